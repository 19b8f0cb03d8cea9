"""From candidates to negatives."""

from __future__ import annotations
