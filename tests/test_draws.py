"""Noise by counter: as published, uniform, and dependent on nothing but its four arguments."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

from st_hardneg.draws import _mix, uniform_noise
from tests.toys import TOO_UNLIKELY


def test_noise_does_not_depend_on_chunks_order_or_batch():
    """Each pair of a query and a candidate has its noise, wherever it stands and whatever stands around it."""
    queries, candidates = torch.arange(50) * 7919, torch.arange(30).expand(50, 30)
    whole = uniform_noise(3, 1, queries, candidates)
    order, columns = torch.randperm(50, generator=torch.Generator().manual_seed(0)), torch.arange(30).flip(0)
    assert (uniform_noise(3, 1, queries[order], candidates[order][:, columns]) == whole[order][:, columns]).all()
    chunks = [uniform_noise(3, 1, queries[i : i + 7], candidates[i : i + 7]) for i in range(0, 50, 7)]
    assert (torch.cat(chunks) == whole).all()
    assert uniform_noise(3, 1, queries[4:5], candidates[4:5, 9:10]).item() == whole[4, 9].item()


def test_noise_is_uniform():
    """Kolmogorov and Smirnov find nothing in 200,000 numbers, nor in the counters below 0 that stand for draws."""
    for candidates in (torch.arange(200), -1 - torch.arange(200), -(1 << 40) - torch.arange(200)):
        noise = uniform_noise(0, 0, torch.arange(1000), candidates.expand(1000, 200)).flatten().numpy()
        assert noise.min() >= 0 and noise.max() < 1
        assert stats.kstest(noise, "uniform").pvalue > TOO_UNLIKELY
        assert len(np.unique(noise)) == len(noise)


def test_noise_of_neighbours_is_not_correlated():
    """One more in any of the four arguments gives numbers that have nothing to do with the ones before."""

    def noise(seed: int = 5, refresh: int = 2, query: int = 0, candidate: int = 0) -> np.ndarray:
        queries = torch.arange(query, query + 400)
        candidates = torch.arange(candidate, candidate + 250).expand(400, 250)
        return uniform_noise(seed, refresh, queries, candidates).flatten().numpy()

    here = noise()
    for there in (noise(seed=6), noise(refresh=3), noise(query=1), noise(candidate=1)):
        assert abs(np.corrcoef(here, there)[0, 1]) < 5 / math.sqrt(len(here))
    # Arguments do not stand in for one another either.
    assert uniform_noise(1, 0, torch.tensor([0]), torch.tensor([[0]])) != uniform_noise(
        0, 1, torch.tensor([0]), torch.tensor([[0]])
    )


def test_noise_takes_every_seed_and_key_that_is_allowed():
    """The largest seed and the largest keys of 63 bits, and counters below 0."""
    most = 2**63 - 1
    noise = uniform_noise(most, 10_000, torch.tensor([most, 0]), torch.tensor([[most, -1], [-most, 0]]))
    assert noise.shape == (2, 2) and len(noise.unique()) == 4 and bool((noise < 1).all())


def plain_noise(*parts: int) -> float:
    """SplitMix64's finaliser in plain integers of Python."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


def test_noise_equals_plain_integers():
    """Every number is what SplitMix64's finaliser gives for seed, refresh, query and candidate, in that order."""
    queries, texts = torch.tensor([5, 2**62]), torch.tensor([[0, 1, 7], [2**40, 3, -1]])
    for seed, refresh in ((0, 0), (1, 0), (0, 1), (2**63 - 1, 12)):
        noise = uniform_noise(seed, refresh, queries, texts)
        assert noise.dtype == torch.float64 and noise.shape == (2, 3)
        expected = [
            [plain_noise(seed, refresh, query, text % 2**64) for text in row]
            for query, row in zip(queries.tolist(), texts.tolist(), strict=True)
        ]
        assert noise.tolist() == expected


def test_the_finaliser_is_the_published_one():
    """The first number of SplitMix64 with seed 0, as its authors print it, comes out of the same constants."""
    assert hex(int(_mix(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0])) == "0xe220a8397b1dcdaf"


def test_noise_makes_no_fuss_about_overflow():
    """Sums that wrap around are meant to; other arithmetic is watched as before."""
    with np.errstate(over="raise"):
        assert 0 <= float(uniform_noise(2**63 - 1, 3, torch.tensor([2**62]), torch.tensor([[2**62]]))) < 1
        assert np.geterr()["over"] == "raise"
