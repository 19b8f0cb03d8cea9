"""MiningConfig: validated once, printed, hashed, written and read."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives as reference

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.config import _MOVED
from tests.conftest import whole


def test_shared_fields_have_st_s_defaults():
    """Every field that ST's function also has defaults to the same."""
    theirs = {name: parameter.default for name, parameter in inspect.signature(reference).parameters.items()}
    ours = MiningConfig().to_dict()
    shared = set(ours) & set(theirs)
    assert len(shared) == 12
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    # What is no part of the recipe is an argument of the dataset.
    values = inspect.signature(HardNegativeDataset).parameters
    speed = {name: parameter.default for name, parameter in values.items() if name in ("batch_size", "use_faiss")}
    assert len(speed) == 2 and speed == {name: theirs[name] for name in speed}


def test_a_recipe_says_which_negatives_and_no_more():
    """At most 25 fields, none of them about speed."""
    names = [part.name for part in fields(MiningConfig)]
    assert len(names) <= 25
    assert not [name for name in names if re.search("batch|chunk|faiss|cache|device|process", name)]


def test_the_recommended_recipe_is_st_s_plain_one_with_changes():
    """Held off from unlabelled answers, and no row is lost; any field can be changed."""
    changed = {
        part.name
        for part in fields(MiningConfig)
        if getattr(MiningConfig.recommended(), part.name) != getattr(MiningConfig(), part.name)
    }
    assert changed == {"relative_margin", "max_relative_positive_similarity", "shortfall"}
    ours = MiningConfig.recommended(num_negatives=5, shortfall="drop")
    assert (ours.num_negatives, ours.shortfall) == (5, "drop")


def test_it_is_a_value():
    """Frozen, equal by content, hashable, and the same after JSON."""
    config = MiningConfig(num_negatives=5, relative_margin=0.05, exclude_pattern="^x")
    with pytest.raises(AttributeError):
        config.num_negatives = 3  # type: ignore[misc]
    again = MiningConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)
    with pytest.raises(TypeError):
        MiningConfig(3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "is_deep", "expected"),
    [
        ({}, False, (0, 4)),
        ({"range_min": 2}, False, (2, 6)),
        ({"relative_margin": 0.1}, True, (0, 31)),
        ({"min_score": 0.1}, False, (0, 4)),
        ({"min_score": 0.1}, True, (0, 31)),
        ({"range_max": 50, "relative_margin": 0.1}, True, (0, 50)),
        ({"sampling_strategy": "random"}, False, (0, 4)),
        ({"sampling_strategy": "softmax"}, False, (0, 31)),
    ],
)
def test_windows_are_st_s(options, is_deep, expected):
    """The window that is chosen where none is given; which rules look deep is the business of their table."""
    assert MiningConfig(**options).window(1, is_deep=is_deep) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"num_negatives": 5, "range_min": 10, "range_max": 12},
            ValueError,
            "Cannot keep `num_negatives=5`: the window from `range_min=10` to `range_max=12` holds 2 candidates. Lower "
            "`num_negatives` or raise `range_max`.",
        ),
        (
            {"num_negatives": 0},
            ValueError,
            "Expected `num_negatives` to be at least 1, got 0.",
        ),
        (
            {"num_negatives": 2.0},
            TypeError,
            "Expected `num_negatives` to be an integer, got 2.0 (float).",
        ),
        (
            {"max_score": float("nan")},
            TypeError,
            "Expected `max_score` to be a finite number, got nan (float).",
        ),
        (
            {"num_negatives": True},
            TypeError,
            "Expected `num_negatives` to be an integer, got True (bool).",
        ),
        ({"num_negatives": 10_001}, ValueError, "Expected `num_negatives` to be at most 10,000, got 10001."),
        (
            {"sampling_strategy": "best"},
            ValueError,
            "Expected `sampling_strategy` to be one of ['top', 'random', 'softmax', "
            "'simans', 'log_rank', 'distance'], got 'best'.",
        ),
        (
            {"shortfall": "repeated"},
            ValueError,
            "Expected `shortfall` to be one of ['drop', 'random', 'repeat', 'error'], got 'repeated'. Did you mean "
            "'repeat'?",
        ),
        (
            {"identity": "exactly"},
            ValueError,
            "Expected `identity` to be one of ['normalized', 'exact'], got 'exactly'. Did you mean 'exact'?",
        ),
        (
            {"relative_margin": 5},
            ValueError,
            "Expected `relative_margin` to be a share of the positive's score, above -1 and at most 1, got 5. 0.05 keeps "
            "what scores at most 95 % of the positive.",
        ),
        (
            {"sources": ["dense"]},
            TypeError,
            "Expected `sources` to be a dictionary, got ['dense'] (list).",
        ),
        (
            {"sources": {"dense": 2, "anchors": 1}},
            ValueError,
            "Expected the sources of `sources`, got 'anchors', which are a search space: with "
            "`search_spaces=('corpus', 'anchors')`, \"dense\" finds negatives among them, too.",
        ),
        (
            {"sources": {"dense": 4, "random": -1}},
            ValueError,
            "Expected `sources` to map names to numbers of negatives from 0 up, got 'random': -1. Write "
            "`sources={'dense': 2, 'lexical': 1}`, for example; a source of your own goes to HardNegativeDataset.",
        ),
        (
            {"num_negatives": 4, "sources": {"dense": 2, "random": 1}},
            ValueError,
            "Expected the quotas in `sources` to add up to `num_negatives=4`, got {'dense': 2, 'random': 1}, which add "
            "up to 3. Set `num_negatives=3`, or change the quotas.",
        ),
        (
            {"num_negatives": 5, "sources": {"dense": 4, "random": 1}, "range_max": 3},
            ValueError,
            "Cannot keep a quota of 4: the window from `range_min=0` to `range_max=3` holds 3 candidates. Lower "
            "`num_negatives` or raise `range_max`.",
        ),
        (
            {"min_score": 0.5, "max_score": 0.4},
            ValueError,
            "Expected `min_score` to be at most `max_score`, got 0.5 and 0.4: no candidate can pass both. Lower the "
            "one or raise the other.",
        ),
    ],
)
def test_bad_values(options, error, message):
    """What was expected, what was given, what to do."""
    with pytest.raises(error, match=whole(message)):
        MiningConfig(**options)


def test_a_bad_pattern_and_an_unknown_field():
    """A broken regular expression and a misspelt field."""
    with pytest.raises(ValueError, match=r"Expected `exclude_pattern` to be a regular expression, got '\['"):
        MiningConfig(exclude_pattern="[")
    said = r"`relative_magin` is not a field of MiningConfig\. Did you mean 'relative_margin'\?"
    with pytest.raises(ValueError, match=said):
        MiningConfig.from_dict({"relative_magin": 0.1})
    with pytest.raises(TypeError, match=said):
        MiningConfig(relative_magin=0.1)
    with pytest.raises(TypeError, match=said):
        HardNegativeDataset(None, relative_magin=0.1)
    with pytest.raises(TypeError, match=whole("Expected a dictionary of MiningConfig's fields, got list.")):
        MiningConfig.from_dict([])


@pytest.mark.parametrize("name", _MOVED)
def test_names_that_people_reach_for_are_answered(name):
    """A field that stands somewhere else now, or has another name in ST: the error says where."""
    with pytest.raises(TypeError, match=rf"^`{name}` is not a field of MiningConfig\. .+"):
        MiningConfig(**{name: 1})
    known = set(inspect.signature(HardNegativeDataset).parameters) | {part.name for part in fields(MiningConfig)}
    known |= {"mine", "mine_hard_negatives", "margin"}  # ST's deprecated argument, whose meaning is explained
    assert name in known or "pass it to HardNegativeDataset" not in _MOVED[name]
    # Every argument that the advice names is there.
    for named in re.findall(r"`(\w+)[=`]", _MOVED[name]):
        assert named in known, named


def test_fields_go_over_the_recommended_recipe_and_not_together_with_a_config():
    """`HardNegativeDataset(pairs, num_negatives=5)`."""
    pairs = Dataset.from_dict({"anchor": ["a", "b"], "positive": ["first", "second"]})
    assert HardNegativeDataset(pairs).config == MiningConfig.recommended()
    assert HardNegativeDataset(pairs, num_negatives=5).config == MiningConfig.recommended(num_negatives=5)
    assert HardNegativeDataset(pairs, config=MiningConfig()).config == MiningConfig()
    with pytest.raises(TypeError, match=r"^Pass `config`, or fields of the recipe such as `num_negatives`, not both\."):
        HardNegativeDataset(pairs, config=MiningConfig(), num_negatives=5)
    with pytest.raises(TypeError, match=r"^Expected `config` to be a MiningConfig, got dict\. Use"):
        HardNegativeDataset(pairs, config={"num_negatives": 3})


def test_quotas_leave_out_what_gives_nothing():
    """A quota of 0 is for later; without quotas all are of the search."""
    assert MiningConfig(num_negatives=4).quotas == {"dense": 4}
    config = MiningConfig(num_negatives=3, sources={"dense": np.int64(3), "lexical": 0})
    assert config.quotas == {"dense": 3} and config.sources == {"dense": 3, "lexical": 0}
    assert json.loads(json.dumps(config.to_dict()))["sources"] == {"dense": 3, "lexical": 0}
    assert config.with_quotas({"dense": 2, "lexical": 2}).num_negatives == 4


def test_numpy_s_numbers_become_python_s():
    """JSON knows no others; a float field keeps an int as it was written."""
    config = MiningConfig(num_negatives=np.int64(4), max_score=np.float32(0.5), min_score=np.int32(0))
    assert [type(value) for value in (config.num_negatives, config.max_score, config.min_score)] == [int, float, int]
    assert MiningConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_annotations_are_not_read_as_strings():
    """A parser that resolves the types of the class in place (`HfArgumentParser` does) breaks no later recipe."""
    for part in fields(MiningConfig):
        part.type = int
    try:
        assert MiningConfig(num_negatives=4, shortfall="random").num_negatives == 4
    finally:
        for part in fields(MiningConfig):
            part.type = MiningConfig.__annotations__[part.name]
