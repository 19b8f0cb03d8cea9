"""Which of the kept candidates are drawn.

Noise is a function of (seed, refresh, query, candidate) and of nothing else, so that a draw does not depend on chunks,
batch sizes or ranks, and can be repeated. Drawing is without replacement and exact: the ``n`` largest of
``log weight + Gumbel noise`` are distributed as ``n`` draws one after the other, each proportional to the weights that
are left (Gumbel-top-k; Kool, van Hoof, Welling 2019, https://huggingface.co/papers/1903.06059).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DISTANCE_CUTOFF = 0.5
"""Distances below this weigh as much as this one (pytorch-metric-learning's ``cutoff``)."""

DISTANCE_MAX = 1.4
"""From this distance on nothing is drawn (pytorch-metric-learning's ``nonzero_loss_cutoff``)."""


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


# --- log weights, each of shape (q, k), float64 -------------------------------------------------------------------


def equal_log_weights(scores: Tensor) -> Tensor:
    """Weigh every candidate of ``scores``, of shape ``(q, k)``, alike."""
    return torch.zeros(scores.shape, dtype=torch.float64)


def softmax_log_weights(scores: Tensor, temperature: float) -> Tensor:
    """Weigh by ``exp(s / temperature)``.

    Source: NV-Retriever, https://huggingface.co/papers/2407.15831 (footnote 13, at temperature 1).

    Args:
        scores: float of shape ``(q, k)``.
        temperature: Above 0; the lower, the nearer to taking the closest.
    """
    return scores.double() / temperature


def simans_log_weights(scores: Tensor, positive_scores: Tensor, a: float, b: float) -> Tensor:
    """Weigh by ``exp(-a (s - s⁺ - b)²)``: most where a candidate scores ``b`` above the positive.

    Source: SimANS, https://huggingface.co/papers/2210.11773, equation 4, with the paper's sign of ``b`` (the released
    code has the other one). ``a`` is in units of 1 / score²: the paper's 0.5 is meant for dot products of tens. For
    cosine, multiply it by (spread of the dot products / spread of the cosines)²; 50 is a fair start.

    Args:
        scores: float of shape ``(q, k)``.
        positive_scores: float of shape ``(q,)``: the lowest score among each query's positives.
        a: From 0 up: how narrow the band is.
        b: Where the band lies above the positive.
    """
    return -a * (scores.double() - positive_scores.double()[:, None] - b).square()


def log_rank_log_weights(ranks: Tensor) -> Tensor:
    """Weigh by ``1 / log(1 + rank)``, with ranks from 1.

    Source: lightning-ir's ``log_random`` sampler.

    Args:
        ranks: int64 of shape ``(q, k)``, from 0.
    """
    return -torch.log(torch.log1p(ranks.clamp(min=0).double() + 1.0))


def distance_log_weights(distances: Tensor, dim: int) -> Tensor:
    """Weigh by the inverse of how many points of the unit sphere lie at a distance: all distances come alike.

    Source: Wu et al. 2017, "Sampling Matters in Deep Embedding Learning", https://huggingface.co/papers/1706.07567,
    section 4: on the unit sphere in ``dim`` dimensions, the density of the distance d is proportional to
    ``d^(dim-2) (1 - d²/4)^((dim-3)/2)``; the cut-offs are pytorch-metric-learning's. Weights stay logarithms, so that a
    near-duplicate of one query does not underflow those of others. In hundreds of dimensions this takes the closest that
    the cut-off allows; give the intrinsic dimension instead, such as 8 to 64.

    Args:
        distances: float of shape ``(q, k)``: Euclidean distances of unit vectors, from 0 to 2.
        dim: Dimensions.
    """
    d = distances.double().clamp(min=DISTANCE_CUTOFF)
    inside = (1.0 - 0.25 * d.square()).clamp(min=torch.finfo(torch.float64).tiny)
    log_weights = (2.0 - dim) * d.log() - (dim - 3.0) / 2.0 * inside.log()
    return log_weights.masked_fill(d >= DISTANCE_MAX, -torch.inf)


def probabilities(log_weights: Tensor, allowed: Tensor) -> Tensor:
    """Return how probable each candidate is as the first draw, float64 of shape ``(q, k)``; 0 where none can be drawn."""
    weights = log_weights.masked_fill(~allowed, -torch.inf)
    return torch.softmax(weights, dim=1).nan_to_num(0.0)


# --- noise --------------------------------------------------------------------------------------------------------


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
