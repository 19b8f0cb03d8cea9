"""How vectors have moved since they were encoded, told from some that were encoded anew."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 65_536
# Of the mean square of a dimension: what the map is drawn towards no movement with.
_RIDGE = 1e-3
# By how much a unit vector's length may differ from 1, also in half precision.
_UNIT = 1e-2


class Drift:
    """The linear map that takes old vectors nearest to new ones of the same texts, for texts that have no new ones.

    Source: that the drift of vectors can be told from others' is from Semantic Drift Compensation (Yu et al. 2020,
    https://arxiv.org/abs/2004.00440), which takes local means; here it is ridge regression of the movement on the vector,
    ``min_W sum |x W - (y - x)|^2 + r |W|^2``, with old vectors ``x`` and new ones ``y``.

    Args:
        dim: Dimensions.
    """

    def __init__(self, dim: int) -> None:
        self._squares = torch.zeros(dim, dim, dtype=torch.float64)
        self._moves = torch.zeros(dim, dim, dtype=torch.float64)
        self._count, self._are_unit = 0, True

    def add(self, old: Tensor, new: Tensor) -> None:
        """Look at texts of both times, float of shape ``(m, dim)``."""
        for before, after in zip(old.split(_BLOCK), new.split(_BLOCK), strict=True):
            before, after = before.float(), after.float()
            self._squares += (before.T @ before).double().cpu()
            self._moves += (before.T @ (after - before)).double().cpu()
            self._count += len(before)
            self._are_unit &= bool(((torch.linalg.vector_norm(after, dim=1) - 1.0).abs() < _UNIT).all())

    def apply(self, vectors: Tensor, rows: Tensor) -> None:
        """Move some rows of a matrix, in place; none where too few texts were looked at to tell.

        Args:
            vectors: float of shape ``(n, dim)``.
            rows: int64 of shape ``(m,)``.
        """
        ridge = _RIDGE * float(self._squares.diagonal().mean())
        if self._count < len(self._squares) or not ridge > 0:
            return
        known = self._squares + ridge * torch.eye(len(self._squares), dtype=torch.float64)
        move = torch.linalg.solve(known, self._moves).to(vectors.device, torch.float32)
        if not bool(move.isfinite().all()):  # not of these: the mining says what is wrong with the new ones
            return
        for some in rows.split(_BLOCK):
            old = vectors[some].float()
            moved = old + old @ move
            # Of a model whose vectors are of unit length these are, too: a dot product would tell them from others.
            vectors[some] = (torch.nn.functional.normalize(moved, dim=1) if self._are_unit else moved).to(vectors.dtype)
