"""The highest scores of each query, kept while blocks of texts come in."""

from __future__ import annotations

import torch
from torch import Tensor

# Scores of so many texts are looked at together for the highest, where that leaves out most of them.
GROUP = 16
# Where more than one score in so many may be among the highest, all of them are looked at.
_FEW = 4


class Highest:
    """The ``k`` highest scores so far of each query, and the texts that have them.

    What cannot be among them is left out early, which is much faster than ``topk`` of everything: texts are looked at in
    groups, and a group whose highest score is too low is not looked at again. What is too low is known from the blocks
    before; in the first one, of the ``k`` best groups each has a text, so that the lowest of their maxima will do.

    Args:
        k: How many.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._scores: Tensor | None = None
        self._ids: Tensor | None = None

    def add(self, scores: Tensor, first: int) -> None:
        """Take in the scores of a block of texts.

        Args:
            scores: float of shape ``(num_texts, num_queries)``.
            first: The row of the first text.
        """
        found = self._above(scores)
        if found is None:
            found = scores.T.topk(min(self._k, len(scores)), dim=1)
        values, ids = found[0], found[1] + first
        if self._scores is not None and self._ids is not None:
            values, ids = torch.cat([self._scores, values], dim=1), torch.cat([self._ids, ids], dim=1)
        self._scores, order = values.topk(min(self._k, values.shape[1]), dim=1)
        self._ids = ids.gather(1, order)

    def found(self) -> tuple[Tensor, Tensor]:
        """Return ids, int64, and scores, float32, highest first, both of shape ``(num_queries, k)`` or less."""
        assert self._ids is not None and self._scores is not None
        return self._ids, self._scores.float()

    def _above(self, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what may be among the highest: scores and places, padded with -inf; None where that may be anything."""
        num_texts, num_queries = scores.shape
        num_groups = num_texts // GROUP
        whole = num_groups * GROUP
        if self._scores is None:
            if num_groups < 2 * self._k:
                return None
            maxima = _maxima(scores, num_groups)
            floor = maxima.topk(self._k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
            is_high = ~(maxima < floor)  # not `>=`, so that what is no number is found and reported
        else:
            if self._scores.shape[1] < self._k or not num_groups:
                return None
            floor = self._scores[:, -1:]
            is_high = ~(_maxima(scores, num_groups) <= floor)
        queries, groups = is_high.nonzero(as_tuple=True)
        if len(queries) * GROUP * _FEW > scores.numel():
            return None
        members = torch.arange(GROUP, device=scores.device)
        values = _taken(scores, groups[:, None] * GROUP + members, queries[:, None])
        high = (~(values < floor[queries])).flatten().nonzero().flatten()
        of, member = high // GROUP, high % GROUP
        found = _padded(queries[of], num_queries, values.flatten()[high], groups[of] * GROUP + member)
        if whole == num_texts:
            return found
        places = torch.arange(whole, num_texts, device=scores.device).expand(num_queries, -1)
        return torch.cat([found[0], scores[whole:].T], dim=1), torch.cat([found[1], places], dim=1)


def _maxima(scores: Tensor, num_groups: int) -> Tensor:
    """Return the highest score of each query in each group of texts, of shape ``(num_queries, num_groups)``."""
    return scores[: num_groups * GROUP].unflatten(0, (num_groups, GROUP)).amax(dim=1).T.contiguous()


def _taken(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``matrix[rows, columns]``, in a third of the time."""
    strides = matrix.stride()
    size = 1 + sum((length - 1) * stride for length, stride in zip(matrix.shape, strides, strict=True))
    places = rows * strides[0] + columns * strides[1]
    return matrix.as_strided((size,), (1,)).index_select(0, places.flatten()).view(places.shape)


def _padded(queries: Tensor, num_queries: int, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values and places of each query as rows, padded with -inf; queries are in ascending order."""
    counts = torch.bincount(queries, minlength=num_queries)
    column = torch.arange(len(queries), device=queries.device) - (counts.cumsum(0) - counts)[queries]
    shape = num_queries, int(counts.max()) if len(queries) else 0
    of_queries, of_places = values.new_full(shape, -torch.inf), places.new_zeros(shape)
    of_queries[queries, column], of_places[queries, column] = values, places
    return of_queries, of_places
