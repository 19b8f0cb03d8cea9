"""Candidates and Negatives, the values that flow through a mining run."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a search found for some queries, closest first; ``q`` queries, ``k`` places each.

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
    """

    query_ids: Tensor
    corpus_ids: Tensor
    scores: Tensor
    similarities: Tensor
    ranks: Tensor
    positive_scores: Tensor
    positive_similarity: Tensor | None = None

    @property
    def is_present(self) -> Tensor:
        """Boolean tensor of shape ``(q, k)``: True where there is a candidate at all."""
        return self.corpus_ids >= 0

    def at(self, places: Tensor) -> Negatives:
        """Return what stands at these places, int64 of shape ``(q, n)``, -1 for nothing."""
        return Negatives(self.corpus_ids, self.scores, self.similarities, self.ranks).at(places)


@dataclass(frozen=True, eq=False)
class Negatives:
    """The chosen negatives of some queries; ``q`` queries, ``n`` slots each.

    Args:
        corpus_ids: int64 of shape ``(q, n)``; -1 where no negative was found.
        scores: float32 of shape ``(q, n)``: the score they were chosen by; -inf where missing.
        similarities: float32 of shape ``(q, n)``: the model's own similarity; -inf where missing.
        ranks: int64 of shape ``(q, n)``: the place at which the search returned each, from 0; -1 where it did not
            come from the search.
    """

    corpus_ids: Tensor
    scores: Tensor
    similarities: Tensor
    ranks: Tensor

    @property
    def is_present(self) -> Tensor:
        """Boolean tensor of shape ``(q, n)``: True where a slot is filled."""
        return self.corpus_ids >= 0

    def of(self, rows: Tensor) -> Negatives:
        """Return the negatives of some of the queries, int64 of shape ``(m,)``."""
        return Negatives(self.corpus_ids[rows], self.scores[rows], self.similarities[rows], self.ranks[rows])

    def at(self, places: Tensor) -> Negatives:
        """Return what stands at these places, int64 of shape ``(q, n)``, -1 for nothing."""
        there = places.clamp(min=0)
        missing = places < 0
        return Negatives(
            self.corpus_ids.gather(1, there).masked_fill(missing, -1),
            self.scores.gather(1, there).masked_fill(missing, -inf),
            self.similarities.gather(1, there).masked_fill(missing, -inf),
            self.ranks.gather(1, there).masked_fill(missing, -1),
        )

    def filled_with(self, others: Negatives) -> Negatives:
        """Put ``others``, of shape ``(q, m)``, into the empty slots, in order, keeping what is there.

        A text that a query already has is not taken a second time.
        """
        ids = torch.cat([self.corpus_ids, others.corpus_ids], dim=1)
        earlier = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril(-1)
        repeated = ((ids[:, :, None] == ids[:, None, :]) & earlier).any(dim=2)
        # Filled slots first, in order, then what is left to take; the width stays.
        order = ((ids < 0) | repeated).long().argsort(dim=1, stable=True)[:, : self.corpus_ids.shape[1]]
        absent = ((ids < 0) | repeated).gather(1, order)

        def arranged(own: Tensor, other: Tensor, missing: float) -> Tensor:
            return torch.cat([own, other], dim=1).gather(1, order).masked_fill(absent, missing)

        return Negatives(
            arranged(self.corpus_ids, others.corpus_ids, -1),
            arranged(self.scores, others.scores, -inf),
            arranged(self.similarities, others.similarities, -inf),
            arranged(self.ranks, others.ranks, -1),
        )
