"""Prompts and routes that are given to a mining: by column, by dataset, or refused in words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from st_hardneg import HardNegativeDataset
from tests.conftest import WORDS, word_model


def mined(word_pairs, model, **settings) -> HardNegativeDataset:
    found = HardNegativeDataset(word_pairs, num_negatives=2)
    found.mine(model, show_progress_bar=False, **settings)
    return found


@pytest.mark.parametrize("setting", ["prompts", "router_mapping"])
def test_settings_beside_training_arguments_are_refused(word_pairs, setting):
    """They would not be used."""
    args = SimpleNamespace(prompts=None, router_mapping=None)
    with pytest.raises(TypeError, match=f"Expected `args` or `{setting}`, got both. Leave `{setting}` out"):
        HardNegativeDataset(word_pairs).mine(None, args=args, **{setting: {"anchor": "query"}})


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"nq": {"anchor": "query: "}, "other": {"question": "q: "}}, ("query: ", "")),
        ({"nq": "all: "}, ("all: ", "all: ")),
        ({"anchor": "query: ", "positive": "p: ", "negative_1": "p: "}, ("query: ", "p: ")),
        ("all: ", ("all: ", "all: ")),
    ],
)
def test_prompts_by_dataset_name(word_pairs, prompts, expected):
    """As training arguments have them, beside those of other datasets."""
    encodings = mined(word_pairs, word_model(WORDS, torch.eye(200)), prompts=prompts, dataset_name="nq").live.encodings
    assert (encodings.queries.prompt, encodings.corpus.prompt) == expected


@pytest.mark.parametrize(
    ("prompts", "dataset_name", "error", "message"),
    [
        (["query: "], None, TypeError, "`prompts` to be a string or a mapping from columns to strings, got list"),
        (3, None, TypeError, "got int. Pass {'anchor': ..., 'positive': ...}"),
        ({"nq": 3}, "nq", TypeError, r"`prompts\['nq'\]` to be a string or a mapping"),
        ({"anchor": 3}, None, TypeError, r"`prompts\['anchor'\]` to be a string, got int"),
        ({"nq": {"anchor": "q: "}}, None, ValueError, r"got \['nq'\]. Name the dataset by `dataset_name`"),
        ({"nq": {"question": "q: "}}, "nq", ValueError, r"to name the columns 'anchor' and 'positive', got"),
        ({"anchor": "q: ", "negative_1": "p: "}, None, ValueError, r"got 'p: ' and None. Set `prompts\['positive'\]`"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(word_pairs, prompts, dataset_name, error, message):
    with pytest.raises(error, match=message):
        HardNegativeDataset(word_pairs).mine(None, prompts=prompts, dataset_name=dataset_name)
