"""Where negatives come from: what each source proposes for a query."""

from __future__ import annotations

from st_hardneg.sources.dense import DenseSource, Space
from st_hardneg.sources.lexical import LexicalIndex, LexicalSource
from st_hardneg.sources.protocol import SearchPlan, Source
from st_hardneg.sources.uniform import RandomSource
from st_hardneg.sources.written import WrittenSource

__all__ = [
    "DenseSource",
    "LexicalIndex",
    "LexicalSource",
    "RandomSource",
    "SearchPlan",
    "Source",
    "Space",
    "WrittenSource",
]
