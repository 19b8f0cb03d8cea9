"""Where negatives come from: what each source proposes for a query."""

from __future__ import annotations

from st_hardneg.sources.protocol import Plan, Proposal, Queries, Source
from st_hardneg.sources.values import Texts, Where, Written

__all__ = ["Plan", "Proposal", "Queries", "Source", "Texts", "Where", "Written"]
