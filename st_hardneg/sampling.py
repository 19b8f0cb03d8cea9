"""Which of the kept candidates are drawn.

Noise is a function of (seed, refresh, query, candidate) and of nothing else, so that a draw does not depend on chunks,
batch sizes or ranks, and can be repeated.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from st_hardneg.config import SamplingStrategy


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
    allowed: Tensor,
    num_negatives: int,
    strategy: SamplingStrategy,
    noise: Tensor | None = None,
) -> Tensor:
    """Choose up to ``num_negatives`` of the allowed candidates of each query, without replacement.

    Args:
        allowed: Boolean of shape ``(q, k)``, candidates ordered closest first.
        num_negatives: Slots per query.
        strategy: ``"top"`` takes the closest; ``"random"`` draws uniformly: those with the least noise.
        noise: Uniform float64 in [0, 1) of shape ``(q, k)``, for ``"random"``.

    Returns:
        int64 of shape ``(q, num_negatives)``: places in ``[0, k)``, closest first; -1 where there are too few.
    """
    num_queries, width = allowed.shape
    places = torch.arange(width).expand(num_queries, width)
    if strategy == "random":
        assert noise is not None
        drawn = noise.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True)[:, :num_negatives]
        allowed = allowed & torch.zeros_like(allowed).scatter_(1, drawn, True)
    chosen = places.masked_fill(~allowed, width).sort(dim=1).values[:, :num_negatives]
    if chosen.shape[1] < num_negatives:
        padding = chosen.new_full((num_queries, num_negatives - chosen.shape[1]), width)
        chosen = torch.cat([chosen, padding], dim=1)
    return chosen.masked_fill(chosen == width, -1)


def uniform_noise(seed: int, refresh: int, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
    """Return the noise of each (query, candidate) pair, uniform in [0, 1).

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
    applied to each of the four numbers in turn.

    Args:
        seed: The config's seed.
        refresh: How many times this dataset was mined before.
        query_ids: int64 of shape ``(q,)``.
        corpus_ids: int64 of shape ``(q, k)``.

    Returns:
        float64 of shape ``(q, k)``.
    """
    state = np.zeros(corpus_ids.shape, dtype=np.uint64)
    parts = (seed, refresh, query_ids[:, None].numpy(), corpus_ids.numpy())
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix(state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
