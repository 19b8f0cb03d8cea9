"""Search in bfloat16 with a proof: what may be among the nearest is scored anew in float32, and the rest cannot be.

Where processors multiply bfloat16 natively, they do so several times as fast as float32. Rounding moves a score by less
than a bound that is known for every query, so that a text whose rounded score lies further than that below the k-th best
exact score is not among the k nearest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Candidates that are scored anew, and rounded scores that are looked at beyond the number asked for.
_PER_WANTED, _MORE = 3, 64
# A corpus that is smaller is as quickly searched in float32.
_TEXTS_PER_CANDIDATE = 16
# Of bfloat16, which keeps 8 binary digits: what rounding changes at most, as a share.
_ROUNDING = 2.0**-8
# Floats of candidates that are gathered at once.
_GATHERED = 16_000_000


class RoundedCorpus:
    """A corpus whose scores are computed in bfloat16, block by block; nothing of it is held twice.

    Source of the bound: with ``q = q' + a`` and ``c = c' + b``, where ``q'`` and ``c'`` are rounded,
    ``|q c - q' c'| <= |a| |c| + |q'| |b|`` (Cauchy-Schwarz).

    Args:
        corpus: float32 of shape ``(num_corpus, dim)``.
        inverse_lengths: float32 of shape ``(num_corpus,)``, by which scores are multiplied, or None.
        chunk_size: Texts that are looked at together.
    """

    def __init__(self, corpus: Tensor, inverse_lengths: Tensor | None, chunk_size: int) -> None:
        self._corpus, self._inverse_lengths = corpus, inverse_lengths
        self._length = self._lost = 0.0
        for first in range(0, len(corpus), chunk_size):
            block = corpus[first : first + chunk_size]
            length = torch.linalg.vector_norm(block, dim=1)
            lost = torch.linalg.vector_norm(block - block.bfloat16().float(), dim=1)
            if inverse_lengths is not None:
                factors = inverse_lengths[first : first + chunk_size].to(block.device)
                length, lost = length * factors, lost * factors
            self._length, self._lost = max(self._length, float(length.max())), max(self._lost, float(lost.max()))

    def num_candidates(self, k: int) -> int:
        """Return how many texts are scored anew for ``k`` wanted."""
        return k * _PER_WANTED + _MORE

    def gains(self, k: int) -> bool:
        """Tell whether the corpus is so large that to score some texts anew is little beside searching it."""
        return self.num_candidates(k) * _TEXTS_PER_CANDIDATE <= len(self._corpus)

    def scores(self, queries: Tensor, block: Tensor, first: int) -> Tensor:
        """Return rounded scores.

        Args:
            queries: bfloat16 of shape ``(q, dim)``.
            block: float32 of shape ``(c, dim)``: texts of the corpus.
            first: The row of the first of them.

        Returns:
            bfloat16 of shape ``(c, q)``.
        """
        with _sums_in_float32(queries.device.type):
            scores = block.bfloat16().to(queries.device) @ queries.T
        if self._inverse_lengths is not None:
            scores *= self._inverse_lengths[first : first + len(block), None].to(scores.device, scores.dtype)
        return scores

    def exact_scores(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Return the scores of each query, float32 ``(q, dim)``, with its own texts, ``(q, m)``, of shape ``(q, m)``."""
        step = max(1, _GATHERED // (ids.shape[1] * queries.shape[1]))
        scores = queries.new_empty(ids.shape)
        for start in range(0, len(ids), step):
            some = ids[start : start + step]
            texts = self._corpus[some.to(self._corpus.device)].to(queries.device)
            torch.bmm(texts, queries[start : start + step, :, None], out=scores[start : start + step, :, None])
        return scores if self._inverse_lengths is None else scores * self._inverse_lengths[ids.cpu()].to(scores.device)

    def nearest(self, queries: Tensor, ids: Tensor, rounded: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest of some candidates, and for which queries they are proven to be the nearest of all.

        Args:
            queries: float32 of shape ``(q, dim)``.
            ids: int64 of shape ``(q, m)``: the texts with the highest rounded scores.
            rounded: float of shape ``(q, m)``: those scores, highest first.
            k: How many to return, less than ``m``.

        Returns:
            Rows, int64, and scores, float32, both of shape ``(q, k)``, and a boolean tensor of shape ``(q,)``.
        """
        scores, order = self.exact_scores(queries, ids).topk(k, dim=1)
        lowest = rounded[:, -1].float()
        most_of_others = lowest + self._bound(queries, lowest)
        # No number is proven to be anything.
        return ids.gather(1, order), scores, scores[:, -1] > most_of_others

    def _bound(self, queries: Tensor, rounded: Tensor) -> Tensor:
        """Return by how much an exact score can lie above a rounded one, float32 of shape ``(q,)``."""
        as_rounded = queries.bfloat16().float()
        lost = torch.linalg.vector_norm(queries - as_rounded, dim=1)
        length = torch.linalg.vector_norm(as_rounded, dim=1)
        of_factors = lost * self._length + length * self._lost
        # The product is rounded once, and a second time where it is multiplied by a length that is rounded, too.
        times = 1 if self._inverse_lengths is None else 3
        of_results = rounded.abs() * ((1.0 - _ROUNDING) ** -times - 1.0)
        of_sums = queries.shape[1] * torch.finfo(torch.float32).eps * length * (self._length + self._lost)
        return of_factors + of_results + 2 * of_sums


@contextmanager
def _sums_in_float32(device_type: str) -> Iterator[None]:
    """Let sums be rounded once, at their end; on CUDA they may be rounded in between otherwise."""
    if device_type != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul  # pragma: no cover - needs an accelerator
    before = settings.allow_bf16_reduced_precision_reduction  # pragma: no cover
    settings.allow_bf16_reduced_precision_reduction = False  # pragma: no cover
    try:  # pragma: no cover
        yield
    finally:  # pragma: no cover
        settings.allow_bf16_reduced_precision_reduction = before
