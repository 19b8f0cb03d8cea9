"""Which of the kept candidates are drawn.

Drawing is without replacement and exact: the ``n`` largest of ``log weight + Gumbel noise`` are distributed as ``n`` draws
one after the other, each proportional to the weights that are left (Gumbel-top-k; Kool, van Hoof, Welling 2019,
https://huggingface.co/papers/1903.06059). The weights are those of :mod:`st_hardneg.strategies`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def window_of_survivors(keep: Tensor, start: int, stop: Tensor) -> Tensor:
    """Mark the kept candidates whose rank among the kept ones is in ``[start, stop)``.

    Args:
        keep: Boolean of shape ``(q, k)``, candidates ordered closest first.
        start: First rank.
        stop: int64 of shape ``(q,)``: the rank after the last.
    """
    rank = keep.long().cumsum(1) - 1
    return keep & (rank >= start) & (rank < stop[:, None])


def choose(
    allowed: Tensor, num_negatives: int, log_weights: Tensor | None = None, noise: Tensor | None = None
) -> Tensor:
    """Choose up to ``num_negatives`` of the allowed candidates of each query, without replacement.

    Args:
        allowed: Boolean of shape ``(q, k)``, candidates ordered closest first.
        num_negatives: Slots per query.
        log_weights: float64 of shape ``(q, k)``, of any scale: a candidate is drawn with a probability proportional to
            the exponential of its own; -inf is never drawn. None takes the closest.
        noise: Uniform float64 in [0, 1) of shape ``(q, k)``, for draws.

    Returns:
        int64 of shape ``(q, num_negatives)``: places in ``[0, k)``, closest first; -1 where there are too few.
    """
    num_queries, width = allowed.shape
    places = torch.arange(width).expand(num_queries, width)
    if log_weights is not None:
        assert noise is not None
        allowed = allowed & (log_weights > -torch.inf)
        keys = (log_weights + gumbel(noise)).masked_fill(~allowed, -torch.inf)
        drawn = keys.argsort(dim=1, descending=True, stable=True)[:, :num_negatives]
        allowed = allowed & torch.zeros_like(allowed).scatter_(1, drawn, True)
    chosen = places.masked_fill(~allowed, width).sort(dim=1).values[:, :num_negatives]
    if chosen.shape[1] < num_negatives:
        padding = chosen.new_full((num_queries, num_negatives - chosen.shape[1]), width)
        chosen = torch.cat([chosen, padding], dim=1)
    return chosen.masked_fill(chosen == width, -1)


def gumbel(noise: Tensor) -> Tensor:
    """Turn uniform noise, float64 on multiples of 2^-53 in [0, 1), into standard Gumbel noise of the same shape.

    Source: Gumbel 1954; ``-log(-log(u))``. Half a step is added, so that neither 0 nor 1 occurs.
    """
    return -torch.log(-torch.log((noise + 2.0**-54).clamp(max=1.0 - 2.0**-53)))


def probabilities(log_weights: Tensor, allowed: Tensor) -> Tensor:
    """Return how probable each candidate is as the first draw, float64 of shape ``(q, k)``; 0 where none can be drawn."""
    weights = log_weights.masked_fill(~allowed, -torch.inf)
    return torch.softmax(weights, dim=1).nan_to_num(0.0)
