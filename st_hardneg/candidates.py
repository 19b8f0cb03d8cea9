"""Candidates and Negatives, the values that flow through a mining run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf, nan

import torch
from torch import Tensor

DENSE, ANCHORS, LEXICAL, RANDOM, SYNTHETIC = range(5)
"""What a source is called in arrays; sources that the caller names follow."""

BUILT_IN_SOURCES = ("dense", "anchors", "lexical", "random", "synthetic")
"""The sources of these numbers. ``"anchors"`` is where a dual-space search found a negative among the anchors."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a source proposes for some queries, best first; ``q`` queries, ``k`` places each.

    Args:
        query_ids: int64 of shape ``(q,)``.
        corpus_ids: int64 of shape ``(q, k)``; -1 for none.
        sources: int8 of shape ``(q, k)``: where each comes from.
        ranks: int64 of shape ``(q, k)``: its place in that source's own order, from 0; -1 if it has none.
        similarities: float32 of shape ``(q, k)``: the model's similarity, if the source has computed it.
        source_scores: float32 of shape ``(q, k)``: a score of the source's own (BM25), if it has one.
        is_ranked: Whether the order is the source's own, which a cross encoder leaves as it is.
    """

    query_ids: Tensor
    corpus_ids: Tensor
    sources: Tensor
    ranks: Tensor
    similarities: Tensor | None = None
    source_scores: Tensor | None = None
    is_ranked: bool = False

    @classmethod
    def unranked(cls, query_ids: Tensor, corpus_ids: Tensor, source: int = -1) -> Found:
        """Return texts that come from no search."""
        sources = torch.full(corpus_ids.shape, source, dtype=torch.int8)
        return cls(query_ids, corpus_ids, sources, torch.full_like(corpus_ids, -1))


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a source found for some queries, scored, best first; ``q`` queries, ``k`` places each.

    Args:
        query_ids: int64 of shape ``(q,)``.
        corpus_ids: int64 of shape ``(q, k)``; -1 where a search returned less than ``k``.
        scores: float32 of shape ``(q, k)``, by which candidates are filtered and ordered; -inf where missing.
        similarities: float32 of shape ``(q, k)``: the model's own similarity. Differs from ``scores`` only after a
            cross encoder has rescored.
        ranks: int64 of shape ``(q, k)``: the place at which the search returned each, from 0; -1 where it did not
            come from the search.
        positive_scores: float32 of shape ``(q,)``: the lowest score among each query's positives.
        positive_similarity: float32 of shape ``(q, k)``: how similar each candidate is to the nearest of the query's
            positives, or None where no filter asks.
        sources: int8 of shape ``(q, k)``: where each comes from, as a place in the dataset's ``source_names``; -1 for
            none.
        source_scores: float32 of shape ``(q, k)``: the source's own score, BM25 for a lexical one; NaN where there is
            none.
        guide_gap: float32 of shape ``(q, k)``: how far the guide scores each candidate above the query's lowest positive
            guide score, or None where there is no guide.
    """

    query_ids: Tensor
    corpus_ids: Tensor
    scores: Tensor
    similarities: Tensor
    ranks: Tensor
    positive_scores: Tensor
    positive_similarity: Tensor | None = None
    sources: Tensor | None = None
    source_scores: Tensor | None = None
    guide_gap: Tensor | None = None

    @property
    def is_present(self) -> Tensor:
        """Boolean tensor of shape ``(q, k)``: True where there is a candidate at all."""
        return self.corpus_ids >= 0

    def at(self, places: Tensor) -> Negatives:
        """Return what stands at these places, int64 of shape ``(q, n)``, -1 for nothing."""
        sources = torch.full(self.corpus_ids.shape, -1, dtype=torch.int8) if self.sources is None else self.sources
        own = torch.full(self.corpus_ids.shape, nan) if self.source_scores is None else self.source_scores
        return Negatives(self.corpus_ids, self.scores, self.similarities, self.ranks, sources, own).at(places)

    def where(self, keep: Tensor) -> Negatives:
        """Return the candidates that a boolean mask of shape ``(q, k)`` keeps, at their places."""
        return self.at(torch.arange(keep.shape[1]).expand(keep.shape).masked_fill(~keep, -1))


@dataclass(frozen=True, eq=False)
class Negatives:
    """The chosen negatives of some queries; ``q`` queries, ``n`` slots each.

    Args:
        corpus_ids: int64 of shape ``(q, n)``; -1 where no negative was found.
        scores: float32 of shape ``(q, n)``: the score they were chosen by; -inf where missing.
        similarities: float32 of shape ``(q, n)``: the model's own similarity; -inf where missing.
        ranks: int64 of shape ``(q, n)``: the place at which the search returned each, from 0; -1 where it did not
            come from the search.
        sources: int8 of shape ``(q, n)``: where each comes from; -1 where missing.
        source_scores: float32 of shape ``(q, n)``: the source's own score; NaN where there is none.
    """

    corpus_ids: Tensor
    scores: Tensor
    similarities: Tensor
    ranks: Tensor
    sources: Tensor
    source_scores: Tensor

    @classmethod
    def none(cls, num_queries: int, width: int) -> Negatives:
        """Return empty slots."""
        nothing = torch.zeros(num_queries, width, dtype=torch.bool)
        return cls(*(nothing.to(dtype).masked_fill(~nothing, _MISSING[name]) for name, dtype in _DTYPES.items()))

    @property
    def is_present(self) -> Tensor:
        """Boolean tensor of shape ``(q, n)``: True where a slot is filled."""
        return self.corpus_ids >= 0

    def of(self, rows: Tensor) -> Negatives:
        """Return the negatives of some of the queries, int64 of shape ``(m,)``."""
        return Negatives(*(getattr(self, name)[rows] for name in _MISSING))

    def put(self, rows: Tensor, negatives: Negatives) -> None:
        """Write the negatives of some of the queries, int64 of shape ``(m,)``, in place."""
        for name in _MISSING:
            getattr(self, name)[rows] = getattr(negatives, name)

    def clone(self) -> Negatives:
        """Return a copy that :meth:`put` can write to."""
        return Negatives(*(getattr(self, name).clone() for name in _MISSING))

    def at(self, places: Tensor) -> Negatives:
        """Return what stands at these places, int64 of shape ``(q, n)``, -1 for nothing."""
        there, missing = places.clamp(min=0), places < 0
        return Negatives(
            *(getattr(self, name).gather(1, there).masked_fill(missing, value) for name, value in _MISSING.items())
        )

    def only(self, keep: Tensor) -> Negatives:
        """Empty the slots for which a boolean of shape ``(q, n)`` is False."""
        return self.at(torch.arange(keep.shape[1]).expand(keep.shape).masked_fill(~keep, -1))

    def beside(self, others: Negatives) -> Negatives:
        """Return the slots of both, of shape ``(q, n + m)``."""
        return joined([self, others], dim=1)

    def filled_with(self, others: Negatives) -> Negatives:
        """Put ``others``, of shape ``(q, m)``, into the empty slots, in order, keeping what is there.

        A text that a query already has is not taken a second time.
        """
        both = self.beside(others)
        # Filled slots first, in order, then what is left to take; the width stays. What is there stays, even if twice.
        absent = (both.corpus_ids < 0) | is_repeated(both.corpus_ids)
        absent[:, : self.corpus_ids.shape[1]] = ~self.is_present
        order = absent.long().argsort(dim=1, stable=True)[:, : self.corpus_ids.shape[1]]
        return both.at(order.masked_fill(absent.gather(1, order), -1))


def is_repeated(values: Tensor) -> Tensor:
    """Mark, in each row of an int64 tensor of shape ``(q, k)``, what stands further left already; -1 never is."""
    in_order = values.sort(dim=1, stable=True)
    repeats = torch.zeros_like(values, dtype=torch.bool)
    repeats[:, 1:] = (in_order.values[:, 1:] == in_order.values[:, :-1]) & (in_order.values[:, 1:] >= 0)
    return torch.zeros_like(repeats).scatter_(1, in_order.indices, repeats)


def find_in_row(values: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Look each value up among other values of its row.

    Args:
        values: int64 of shape ``(q, k)``; what is below 0 is never found.
        others: int64 of shape ``(q, m)``.

    Returns:
        Whether it is there, boolean, and the place of the first, int64 in ``[0, m)``, both of shape ``(q, k)``.
    """
    if not others.shape[1]:
        return torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values)
    in_order = others.sort(dim=1, stable=True)
    place = torch.searchsorted(in_order.values.contiguous(), values.contiguous()).clamp(max=others.shape[1] - 1)
    found = (in_order.values.gather(1, place) == values) & (values >= 0)
    return found, in_order.indices.gather(1, place)


def joined(parts: list[Negatives], dim: int = 0) -> Negatives:
    """Put negatives of other queries below each other (``dim=0``), or more slots beside each other (``dim=1``)."""
    return Negatives(*(torch.cat([getattr(part, name) for part in parts], dim=dim) for name in _MISSING))


# What stands in an empty slot.
_MISSING = dict(zip((field.name for field in fields(Negatives)), (-1, -inf, -inf, -1, -1, nan), strict=True))
_DTYPES = dict(
    zip(_MISSING, (torch.int64, torch.float32, torch.float32, torch.int64, torch.int8, torch.float32), strict=True)
)
