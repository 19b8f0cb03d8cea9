"""MiningReport: as data that comes back, as a table, as figures of a log."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
import torch

from st_hardneg import MiningReport
from st_hardneg.report import peak_memory_mb, summarize
from tests.conftest import whole
from tests.toys import Model, by_angle, by_seed, mined, random_pairs

FIGURES = {"count": 4.0, "mean": 2.5, "min": 1.0, "25%": 1.75, "50%": 2.5, "75%": 3.25, "max": 4.0}


def test_a_summary_is_that_of_finite_values():
    """NaN and infinities are left out; one value has no spread, and none has nothing."""
    summary = summarize(torch.tensor([[4.0, 1.0, math.nan], [2.0, 3.0, -math.inf]]))
    assert {name: summary[name] for name in FIGURES} == FIGURES
    assert summary["std"] == pytest.approx(torch.tensor([1.0, 2, 3, 4]).std().item())
    assert summarize(torch.tensor([3.0]))["std"] == 0.0
    empty = summarize(torch.tensor([math.nan]))
    assert empty["count"] == 0 and all(math.isnan(empty[name]) for name in ("mean", "std", "min", "50%", "max"))


@pytest.fixture
def report() -> MiningReport:
    return mined(random_pairs(20), Model(by_seed(0)), [f"d{i}" for i in range(50)], num_negatives=4, max_score=0.3,
                 sources={"dense": 3, "random": 1}, shortfall="random").report  # fmt: skip


def test_it_comes_back_from_json(report):
    """`from_dict` reads what `to_dict` wrote, in strict JSON."""
    again = MiningReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again == report and str(again) == str(report) and again.metrics() == report.metrics()


@pytest.mark.parametrize("name", [part.name for part in fields(MiningReport) if part.name != "further"])
def test_a_figure_that_is_missing_takes_its_default(report, name):
    """Reports of other versions are read, and can be printed."""
    values = report.to_dict()
    del values[name]
    again = MiningReport.from_dict(values)
    assert getattr(again, name) == getattr(MiningReport(), name)
    assert str(again) and again.metrics()
    assert str(MiningReport()) and MiningReport().metrics()


def test_what_a_later_version_has_noted_is_kept(report):
    """It is written again."""
    values = {**report.to_dict(), "new_figure": {"a": 1}}
    again = MiningReport.from_dict(values)
    assert again.further == {"new_figure": {"a": 1}} and again.to_dict() == values


@pytest.mark.parametrize(
    ("name", "value", "like"),
    [
        ("num_rows", "many", "0"),
        ("num_rows", True, "0"),
        ("removed", [1], "{}"),
        ("similarity", 3, "'cosine'"),
        ("notes", "one", "()"),
        ("notes", [1], "()"),
        ("churn", [0.5], "None"),
        ("hardness", None, "{}"),
    ],
)
def test_figures_of_another_kind_are_refused(report, name, value, like):
    """The whole message is compared."""
    with pytest.raises(TypeError, match=whole(f"Expected `{name}` of a report to be like {like}, got {value!r}.")):
        MiningReport.from_dict({**report.to_dict(), name: value})
    with pytest.raises(TypeError, match=whole("Expected a report as a dictionary, got list.")):
        MiningReport.from_dict([])


def test_slots_add_up_and_the_table_shows_them(report):
    """Every slot is counted once, and whatever is not 0 has a line."""
    parts = {
        "mined": report.num_mined,
        "carried over": report.num_carried_over,
        "last resort": report.num_last_resort,
        "random": report.num_random,
        "repeated": report.num_repeated,
        "empty": report.num_missing,
    }
    assert sum(parts.values()) == report.num_slots == 80
    table = str(report)
    for name, count in parts.items():
        assert (f"  {name:<34}{count:>12,}" in table) == bool(count or name in ("mined", "empty"))
    assert "20 rows, 20 queries, 70 corpus texts, 4 negatives per row, cosine similarity" in table
    for rule, count in report.removed.items():
        assert f"  {'- ' + rule:<34}{count:>12,}" in table
    assert report.num_kept <= report.num_candidates
    assert (
        report.num_kept + max(report.removed.values())
        <= report.num_candidates
        <= report.num_kept + sum(report.removed.values())
    )
    assert report.metrics()["mining/filled"] == 1.0


def test_fillers_that_are_many_are_said_in_words():
    """Random texts above a tenth of the slots, besides those that a quota asked for, with the rule that is to blame."""
    corpus = [f"d {angle}°" for angle in range(41, 80)] + [f"far {angle}°" for angle in range(150, 180)]
    one = [("q 0°", "p 40°")]
    blamed = mined(
        one, Model(by_angle), corpus, num_negatives=5, max_score=0.0, shortfall="random", range_max=10
    ).report
    assert len(blamed.notes) == 1
    assert blamed.notes[0].startswith("100% of the slots are random texts, because nothing else was found.")
    assert "`max_score` removes" in blamed.notes[0] and blamed.notes[0] in str(blamed)
    asked = mined(one, Model(by_angle), corpus, num_negatives=2, sources={"dense": 1, "random": 1}).report
    assert asked.notes == ()
    empty = mined(one, Model(by_angle), ["d 50°", "d 60°"], num_negatives=4).report
    assert empty.notes == ("50% of the slots are empty. There are 3 texts for 4 negatives. Lower `num_negatives`.",)


def test_memory_is_what_the_system_says():
    """Megabytes of this process, which is larger than 50 and smaller than a hundred thousand."""
    assert 50 < peak_memory_mb() < 100_000
