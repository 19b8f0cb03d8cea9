"""Curricula, and what is in force at a point of a training, by hand."""

from __future__ import annotations

import functools
import json

import pytest

from st_hardneg.config import MiningConfig, numeric_fields
from st_hardneg.strategies import Adaptive, Softmax
from st_hardneg.training.curriculum import Curriculum, Stage, checked_schedules, describe, in_force
from st_hardneg.training.schedules import Cosine, Linear, PerEpoch, Progress, Step


def test_the_random_rate_of_the_dual_space_search():
    """The series of its reference use: 0.8, falling by 0.02 an epoch down to 0."""
    schedule = PerEpoch(0.8, add=-0.02, limit=0.0)
    rates = {0: 0.8, 1: 0.78, 5: 0.7, 20: 0.4, 39: 0.02, 40: 0.0, 41: 0.0}
    for epoch, rate in rates.items():
        progress = Progress(epoch / 50, epoch)
        assert schedule(progress) == pytest.approx(rate, abs=1e-12)
        assert in_force({"random_rate": schedule}, MiningConfig(), progress).config.random_rate == pytest.approx(rate)


def test_growing_by_a_fifth_an_epoch():
    """3, 3.6, 4.32, ... negatives, rounded, up to the limit and up to the table's width."""
    schedule = {"num_shown": PerEpoch(3, times=1.2, limit=8)}
    shown = [in_force(schedule, MiningConfig(num_negatives=10), Progress(0, epoch)).num_shown for epoch in range(8)]
    assert shown == [3, 4, 4, 5, 6, 7, 8, 8]
    narrow = [in_force(schedule, MiningConfig(num_negatives=5), Progress(0, epoch)).num_shown for epoch in range(8)]
    assert narrow == [3, 4, 4, 5, 5, 5, 5, 5]


def test_whole_numbers_are_rounded_half_up():
    """A field of whole numbers gets the nearest one; .5 goes up; a field of any number stays as it is."""
    config = MiningConfig(num_negatives=1, range_max=100)
    for value, rounded in ((2.4, 2), (2.5, 3), (3.5, 4), (0.49, 0)):
        found = in_force({"range_min": value, "max_score": value}, config, Progress(0)).config
        assert (found.range_min, found.max_score) == (rounded, value)
        assert isinstance(found.range_min, int)


NUMERIC = {name: kind for name, kind in numeric_fields().items() if name != "num_negatives"} | {"num_shown": int}


def test_there_are_many_numeric_fields():
    """The loop below means something."""
    assert len(NUMERIC) >= 11 and {"random_rate", "relative_margin", "range_max", "min_words", "seed"} <= set(NUMERIC)


@pytest.mark.parametrize("name", NUMERIC)
def test_every_numeric_field_can_be_scheduled(name):
    """Each of them takes the schedule's value, in a config of the dataset that says something else or nothing."""
    start, end = {"num_shown": (1, 2), "range_max": (20, 40)}.get(
        name, (0.25, 0.75) if NUMERIC[name] is float else (1, 5)
    )
    schedule = checked_schedules({name: Linear(start, end)})
    for t in (0.0, 0.5, 1.0):
        found = in_force(schedule, MiningConfig(num_negatives=2), Progress(t))
        expected = Linear(start, end)(t)
        expected = int(expected + 0.5) if NUMERIC[name] is int else expected
        assert found.values == {name: expected}
        assert (found.num_shown if name == "num_shown" else getattr(found.config, name)) == expected
    assert in_force(schedule, MiningConfig(num_negatives=2), Progress(1.0)).config.num_negatives == 2


def test_a_function_of_the_user_s_own():
    """It is given the progress, with the epoch; what else it returns than a number is refused by name."""
    seen = []

    def rate(progress):
        seen.append((float(progress), progress.epoch))
        return progress**2

    assert in_force({"random_rate": rate}, MiningConfig(), Progress(0.5, 3)).config.random_rate == 0.25
    assert seen == [(0.5, 3)]
    for wrong in ("0.5", None, float("nan"), True):
        with pytest.raises(ValueError, match="schedule of `random_rate` to return finite numbers"):
            in_force({"random_rate": lambda _, value=wrong: value}, MiningConfig(), Progress(0))


def test_a_strategy_whose_numbers_change():
    """A function may return a strategy, which the report holds as plain JSON, as it does that of a stage."""
    cooling = checked_schedules({"sampling_strategy": lambda progress: Softmax(1.0 - 0.5 * progress)})
    found = in_force(cooling, MiningConfig(), Progress(0.5))
    assert found.config.sampling_strategy == Softmax(0.75)
    stage = Curriculum([Stage("only", 1, sampling_strategy=Softmax(0.75), sources={"dense": 2, "random": 1})])
    staged = in_force(stage, MiningConfig(), Progress(0.5))
    plain = {"name": "softmax", "temperature": 0.75}
    assert found.values == {"sampling_strategy": plain}
    assert staged.values == {"sampling_strategy": plain, "sources": {"dense": 2, "random": 1}}
    assert json.loads(json.dumps(staged.values)) == staged.values
    with pytest.raises(ValueError, match="Expected `sampling_strategy` to be one of"):
        in_force({"sampling_strategy": lambda progress: "warm"}, MiningConfig(), Progress(0))


def test_an_adaptive_margin_in_a_stage():
    """A stage may have one where the recipe has a number, and the report holds it as plain JSON."""
    stage = Curriculum([Stage("only", 1, relative_margin=Adaptive(trusted=0.05, doubted=0.2))])
    found = in_force(stage, MiningConfig(), Progress(0))
    assert found.values == {"relative_margin": {"name": "adaptive", "trusted": 0.05, "doubted": 0.2}}


def test_how_many_are_mined_is_no_matter_of_a_schedule():
    """What changes is how many are shown; a stage and a schedule say so."""
    for make in (lambda: Stage("one", 1, num_negatives=2), lambda: checked_schedules({"num_negatives": Linear(1, 2)})):
        with pytest.raises(ValueError, match="How many of them are shown can change: `num_shown`"):
            make()


def test_which_stage_an_epoch_is_in():
    """Stages follow each other, and the last one goes on."""
    curriculum = Curriculum([Stage("easy", 2), Stage("medium", 3), Stage("hard", 2)])
    found = [curriculum.stage_at(epoch) for epoch in range(9)]
    assert [number for number, _ in found] == [1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [stage.name for _, stage in found] == ["easy"] * 2 + ["medium"] * 3 + ["hard"] * 4


def test_what_a_checkpoint_keeps_of_a_schedule():
    """Plain JSON, the same for the same schedule in another process, and different for different ones."""

    class Own:
        def __call__(self, progress):
            return 0.5

    def half(progress, scale=1):
        return 0.5 * scale

    def kept(schedule):
        found = describe(checked_schedules(schedule))
        assert json.loads(json.dumps(found)) == found
        assert " at 0x" not in json.dumps(found), "an address in memory differs from process to process"
        return found

    different = [
        {"random_rate": Linear(0.8, 0.0)},
        {"random_rate": Linear(0.8, 0.1)},
        {"random_rate": Cosine(0.8, 0.0)},
        {"random_rate": 0.8},
        {"relative_margin": 0.8},
        {"random_rate": half},
        {"random_rate": Own()},
        {"random_rate": functools.partial(half, scale=2)},
        [Stage("easy", 2, range_min=3)],
        [Stage("easy", 3, range_min=3)],
        [Stage("easy", 2, range_min=4)],
        [Stage("hard", 2, range_min=3)],
        [Stage("easy", 2, range_min=3), Stage("hard", 2)],
        None,
    ]
    texts = [json.dumps(kept(schedule), sort_keys=True) for schedule in different]
    assert len(set(texts)) == len(texts)
    assert kept({"random_rate": Own()}) == kept({"random_rate": Own()})
    two = {"random_rate": 0.5, "range_min": Step({0: 3})}
    assert kept(two) == kept(dict(reversed(two.items())))


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (3, TypeError, "Expected `schedule` to map fields of MiningConfig to schedules, or to be a list of stages"),
        ("linear", TypeError, "Expected `schedule` to map fields"),
        (Linear(0, 1), TypeError, "Expected `schedule` to map fields"),
        (Stage("one", 1), TypeError, "Expected `schedule` to map fields"),
        ([], ValueError, "Expected a curriculum of at least one stage, got none"),
        ([Stage("one", 1), {"range_min": 3}], TypeError, "Expected stages, got dict"),
        ({"random_rat": 0.1}, ValueError, r"got 'random_rat'.*Did you mean 'random_rate'\?"),
        ({3: 0.1}, ValueError, "Expected fields of MiningConfig in a schedule, got 3"),
        ({"shortfall": "drop"}, ValueError, r"Expected fields of numbers in a schedule.*Only a stage can"),
        (
            {"sampling_strategy": "top"},
            TypeError,
            "function from the training's progress, from 0 to 1, to a strategy",
        ),
        ({"use_faiss": 1}, ValueError, "Expected fields of MiningConfig in a schedule, got 'use_faiss'"),
        ({"random_rate": "0.5"}, TypeError, "schedule of `random_rate` to be a number or a function"),
        ({"random_rate": True}, TypeError, "schedule of `random_rate` to be a number or a function"),
        ({"random_rate": None}, TypeError, "schedule of `random_rate` to be a number or a function"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, error, message):
    """Without any dataset at hand."""
    with pytest.raises(error, match=message):
        checked_schedules(schedule)


def test_schedules_that_differ_in_their_arguments_differ():
    """Also those made with `functools.partial`, so that a resumed run notices."""

    def rate(share, progress):
        return share

    one, other = ({"random_rate": functools.partial(rate, share)} for share in (0.1, 0.9))
    same = {"random_rate": functools.partial(rate, 0.1)}
    assert describe(one) != describe(other) and describe(one) == describe(same)
