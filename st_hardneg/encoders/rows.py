"""Rows of vectors: a matrix in memory, or what acts like one in the few ways that mining needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Vectors of many texts, of which a few are looked at together. A tensor of shape ``(num_texts, dim)`` is one.

    What stands on disk, is sparse, or has several vectors a text is another; no base class. Blocks, which are what
    ``rows[...]`` and ``rows.split(...)`` give, are in memory, and are ``Rows`` again. What is no tensor also has a class
    method ``concatenated(parts)``, and an encoder whose ``pairwise`` and ``score_function`` compare such blocks. Where
    queries are of its kind, it has ``pairs_at_once``, how many pairs are best compared at once, ``worth_a_product``, up to
    how many times as many pairs as are asked for all with all is the quicker way, ``cosine(left, right)`` of pairs,
    ``are_equal(other)``, ``few_dimensions()`` for clusters, and ``searcher(given)``, what searches it in place of a
    searcher of dense vectors.
    """

    @property
    def shape(self) -> Sequence[int]:
        """Number of texts, and dimensions of a vector."""

    @property
    def device(self) -> torch.device:
        """Where numbers of rows have to be."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any) -> Any:
        """Return the vectors at some places, int64 of shape ``(m,)`` with repeats in any order, or a slice."""

    def split(self, size: int) -> Iterable[Any]:
        """Yield all vectors in order, ``size`` texts at a time."""


def concatenated(parts: Sequence[Any]) -> Any:
    """Put blocks of one kind below each other."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.to(first.device) for part in parts])
    return type(first).concatenated(parts)
