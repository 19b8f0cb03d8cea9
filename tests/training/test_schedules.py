"""Schedules by themselves: their values by hand, and what they refuse."""

from __future__ import annotations

import pytest

from st_hardneg.training.curriculum import Curriculum, Stage
from st_hardneg.training.schedules import Constant, Cosine, Exponential, Linear, PerEpoch, Progress, Step


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.3), (0.3, 0.3, 0.3)),
        (Linear(0.8, 0.2), (0.8, 0.5, 0.2)),
        (Linear(10, 30), (10, 20, 30)),
        (Cosine(0.8, 0.2), (0.8, 0.5, 0.2)),
        (Exponential(1.0, 0.01), (1.0, 0.1, 0.01)),
        (Exponential(-1.0, -4.0), (-1.0, -2.0, -4.0)),
        (Step({0.0: 3, 0.5: 2, 1.0: 1}), (3, 2, 1)),
        (Step({0: 3, 0.51: 2}), (3, 3, 2)),
        (PerEpoch(3, times=1.2), (3, 3, 3)),
        (lambda progress: 1 - progress, (1, 0.5, 0)),
    ],
)
def test_at_the_beginning_half_way_and_at_the_end(schedule, expected):
    """Each schedule at t = 0, T/2 and T, by hand."""
    assert [schedule(Progress(t)) for t in (0.0, 0.5, 1.0)] == pytest.approx(expected, abs=1e-12)


def test_cosine_is_slow_at_both_ends():
    """At a quarter, half a cosine wave has gone (1 - cos 45°) / 2 = 14.6 % of the way, and is symmetric."""
    quarter, three_quarters = Cosine(0, 1)(0.25), Cosine(0, 1)(0.75)
    assert quarter == pytest.approx(0.1464466094)
    assert quarter + three_quarters == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Exponential(1.0, 0.0), ValueError, "start` and `end` of an exponential schedule to have one sign"),
        (lambda: Exponential(-1.0, 1.0), ValueError, "to have one sign"),
        (lambda: Exponential("1", 2.0), TypeError, "Expected `start` to be a number, got '1'"),
        (lambda: Step({0.5: 1.0}), ValueError, "Expected shares of the training from 0 to 1, the first of them 0"),
        (lambda: Step({}), ValueError, "the first of them 0"),
        (lambda: Step({0.0: 1.0, 1.5: 2.0}), ValueError, "Expected shares of the training from 0 to 1"),
        (lambda: Step([0.3, 0.1]), TypeError, "Expected `values` to map shares of the training to numbers, got list"),
        (lambda: Step({0: 1, "half": 2}), TypeError, "Expected `values` to map shares of the training to numbers"),
        (lambda: Step({0: "much"}), TypeError, "Expected `values` to map shares of the training to numbers"),
        (lambda: Linear("0.8", 0.0), TypeError, "Expected `start` to be a number, got '0.8'"),
        (lambda: Cosine(0.8, None), TypeError, "Expected `end` to be a number, got None"),
        (lambda: Constant([1]), TypeError, r"Expected `value` to be a number, got \[1\]"),
        (lambda: PerEpoch(1, limit="8"), TypeError, "Expected `limit` to be a number, got '8'"),
        (lambda: Linear(0.0, float("nan")), ValueError, "Expected `end` to be a finite number, got nan"),
        (lambda: Stage("one", 0), ValueError, "Expected a stage of at least 1 whole epoch, got 0"),
        (lambda: Stage("one", 1.5), ValueError, "Expected a stage of at least 1 whole epoch, got 1.5"),
        (lambda: Stage("one", True), ValueError, "Expected a stage of at least 1 whole epoch, got True"),
        (lambda: Stage(1, 2), TypeError, "Expected the name of a stage to be a string, got 1"),
        (lambda: Stage("one", 1, range_mim=3), ValueError, r"got 'range_mim'.*Did you mean 'range_min'\?"),
        (lambda: Curriculum([]), ValueError, "Expected a curriculum of at least one stage"),
        (lambda: Curriculum([3]), TypeError, "Expected stages, got int"),
        (lambda: Curriculum(Stage("one", 1)), TypeError, "Expected `stages` to be a list of stages, got Stage"),
    ],
)
def test_schedules_are_checked_when_they_are_made(make, error, message):
    """Wrong kinds and values are told at once, by the name of the argument."""
    with pytest.raises(error, match=message):
        make()
