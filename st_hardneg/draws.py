"""Noise by counter: a function of (seed, refresh, query text, candidate text) and of nothing else.

So a draw does not depend on chunks, batch sizes, ranks or the order of the corpus, and can be repeated.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniform_noise(seed: int, refresh: int, query_keys: Tensor, candidate_keys: Tensor) -> Tensor:
    """Return the noise of each (query, candidate) pair, uniform in [0, 1).

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
    applied to each of the four numbers in turn.

    Args:
        seed: The recipe's seed.
        refresh: How many times this dataset was mined before.
        query_keys: int64 of shape ``(q,)``: what stands for each query's text.
        candidate_keys: int64 of shape ``(q, k)``: what stands for each candidate's text, or counters below 0 where no
            candidate is known yet.

    Returns:
        float64 of shape ``(q, k)``, on multiples of 2^-53.
    """
    state = np.zeros(candidate_keys.shape, dtype=np.uint64)
    parts = (seed, refresh, query_keys[:, None].numpy(), candidate_keys.numpy())
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix(state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
