"""Windows, choices and noise on masks that are written down."""

from __future__ import annotations

import math

import numpy as np
import torch

from st_hardneg.mining.sampling import (
    choose,
    distance_log_weights,
    equal_log_weights,
    gumbel,
    uniform_noise,
    window_of_survivors,
)


def mask(*rows: str) -> torch.Tensor:
    """Return a boolean tensor; "1" is True."""
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def test_windows_count_survivors():
    """Ranks are counted among what was kept, from 0; each query has its own end."""
    keep = mask("110101", "011011", "000000")
    assert (window_of_survivors(keep, 0, torch.tensor([2, 9, 3])) == mask("110000", "011011", "000000")).all()
    assert (window_of_survivors(keep, 1, torch.tensor([3, 2, 3])) == mask("010100", "001000", "000000")).all()
    assert (window_of_survivors(keep, 3, torch.tensor([4, 4, 3])) == mask("000001", "000001", "000000")).all()


def test_top_takes_the_closest():
    """Places come closest first, and -1 where there are too few."""
    allowed = mask("01101", "00010", "00000")
    assert choose(allowed, 2).tolist() == [[1, 2], [3, -1], [-1, -1]]
    assert choose(allowed, 7).tolist() == [[1, 2, 4, -1, -1, -1, -1], [3] + [-1] * 6, [-1] * 7]
    assert choose(allowed, 1).dtype == torch.int64
    # Noise is for draws only.
    assert choose(allowed, 2, noise=torch.zeros(3, 5, dtype=torch.float64)).tolist()[0] == [1, 2]


def test_equal_weights_take_those_with_the_most_noise():
    """What is not allowed is never drawn, whatever its noise; the drawn come closest first."""
    allowed = mask("11101", "00010", "00000")
    noise = torch.tensor([[0.5, 0.1, 0.8, 0.99, 0.9], [0.9, 0.8, 0.7, 0.1, 0.99], [0.9] * 5], dtype=torch.float64)
    weights = equal_log_weights(noise)
    assert choose(allowed, 2, weights, noise).tolist() == [[2, 4], [3, -1], [-1, -1]]
    assert choose(allowed, 3, weights, noise).tolist() == [[0, 2, 4], [3, -1, -1], [-1] * 3]
    assert choose(allowed, 6, weights, noise).tolist()[0] == [0, 1, 2, 4, -1, -1]
    # Equal noise: the closer one is drawn.
    assert choose(allowed, 2, weights, torch.full((3, 5), 0.5, dtype=torch.float64)).tolist()[0] == [0, 1]


def test_a_draw_among_many_ties_is_stable():
    """With equal noise, the closest are drawn, however many there are."""
    allowed = torch.ones(1, 5000, dtype=torch.bool)
    noise = torch.full((1, 5000), 0.5, dtype=torch.float64)
    assert choose(allowed, 40, equal_log_weights(noise), noise)[0].tolist() == list(range(40))


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
    from st_hardneg.mining.sampling import _mix

    assert hex(int(_mix(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0])) == "0xe220a8397b1dcdaf"


def test_noise_makes_no_fuss_about_overflow():
    """Sums that wrap around are meant to; other arithmetic is watched as before."""
    with np.errstate(over="raise"):
        assert 0 <= float(uniform_noise(2**63 - 1, 3, torch.tensor([2**62]), torch.tensor([[2**62]]))) < 1
        assert np.geterr()["over"] == "raise"


def test_ends_of_the_scales():
    """Noise of 0 and of almost 1 is finite, by half a step; a distance of exactly the maximum is never drawn."""
    ends = gumbel(torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64))
    assert torch.allclose(
        ends, torch.tensor([-math.log(54 * math.log(2)), 53 * math.log(2)], dtype=torch.float64), rtol=1e-14
    )
    weights = distance_log_weights(torch.tensor([[1.39, 1.4, 1.41]], dtype=torch.float64), 8)
    assert weights.isfinite().tolist() == [[True, False, False]]
    assert equal_log_weights(torch.zeros(1, 2)).dtype == torch.float64
