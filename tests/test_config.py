"""MiningConfig: validated once, printed, hashed, written and read."""

from __future__ import annotations

import inspect
import json

import pytest
from sentence_transformers.util import mine_hard_negatives as reference

from st_hardneg import MiningConfig
from tests.conftest import whole


def test_shared_fields_have_st_s_defaults():
    """Every field that ST's function also has defaults to the same."""
    theirs = {name: parameter.default for name, parameter in inspect.signature(reference).parameters.items()}
    ours = MiningConfig().to_dict()
    shared = set(ours) & set(theirs)
    assert len(shared) >= 14
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


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
    ("options", "rescored", "expected"),
    [
        ({}, False, (0, 4)),
        ({"range_min": 2}, False, (2, 6)),
        ({"relative_margin": 0.1}, False, (0, 31)),
        ({"min_score": 0.1}, False, (0, 4)),
        ({"min_score": 0.1}, True, (0, 31)),
        ({"range_max": 50, "relative_margin": 0.1}, False, (0, 50)),
        ({"min_words": 3}, False, (0, 31)),
    ],
)
def test_windows_are_st_s(options, rescored, expected):
    """The window that is chosen where none is given."""
    assert MiningConfig(**options).window(1, rescored=rescored) == expected


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
            "Expected `num_negatives` to be at least 1, got 0. Choose another value.",
        ),
        (
            {"num_negatives": 2.0},
            TypeError,
            "Expected `num_negatives` to be an integer, got 2.0 (float). Pass a value of that type.",
        ),
        (
            {"max_score": float("nan")},
            TypeError,
            "Expected `max_score` to be a finite number, got nan (float). Pass a value of that type.",
        ),
        (
            {"use_faiss": 1},
            TypeError,
            "Expected `use_faiss` to be True or False, got 1 (int). Pass a value of that type.",
        ),
        (
            {"sampling_strategy": "best"},
            ValueError,
            "Expected `sampling_strategy` to be one of ['top', 'random', 'softmax', "
            "'simans', 'log_rank', 'distance'], got 'best'. Choose another value.",
        ),
        (
            {"min_score": 0.5, "max_score": 0.4},
            ValueError,
            "Expected `min_score` to be at most `max_score`, got 0.5 and 0.4: no candidate can pass both. Lower the "
            "one or raise the other.",
        ),
        (
            {"faiss_index": "HNSW32"},
            ValueError,
            "`faiss_index='HNSW32'` has no effect without FAISS. Set `use_faiss=True`, too.",
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
    with pytest.raises(ValueError, match=r"got 'relative_magin'.*Did you mean 'relative_margin'\?"):
        MiningConfig.from_dict({"relative_magin": 0.1})
