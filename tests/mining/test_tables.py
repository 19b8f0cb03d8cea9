"""A new rule or strategy is a line in one table: depth, draws and counts follow, and nothing is drawn in silence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.mining.filters import RULES, looks_deep
from st_hardneg.strategies import SAMPLING
from tests.conftest import random_texts

ANY_VALUE = {"exclude_pattern": "x", "min_words": 2}


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if hasattr(MiningConfig(), name)])
def test_every_rule_that_may_remove_the_closest_searches_deeper(name):
    config = MiningConfig(**{name: ANY_VALUE.get(name, 0.5)})
    without = {"is_guided": False, "is_filtered": False, "is_rescored": False}
    assert looks_deep(config, **without) == RULES[name].may_remove_closest
    assert looks_deep(config, **{**without, "is_rescored": True}) >= (name == "min_score")


def test_a_strategy_that_is_added_to_the_table_draws_by_its_own_weights(bag_of_words, word_pairs, monkeypatch):
    """Here, by nothing but the last rank: a uniform draw would come out otherwise."""

    @dataclass(frozen=True)
    class Farthest:
        def log_weights(self, window):
            return window.ranks.double() * 100

    monkeypatch.setitem(SAMPLING, "farthest", Farthest)
    corpus = random_texts(60, seed=2)
    config = MiningConfig(num_negatives=1, range_max=10, sampling_strategy="farthest")
    assert MiningConfig.from_dict(config.to_dict()) == config
    found = HardNegativeDataset(word_pairs, corpus, config)
    found.mine(bag_of_words, show_progress_bar=False)
    last = HardNegativeDataset(word_pairs, corpus, MiningConfig(num_negatives=1, range_min=9, range_max=10))
    last.mine(bag_of_words, show_progress_bar=False)
    assert (found.negative_ids == last.negative_ids).all()


def test_a_strategy_that_is_in_no_table_is_refused():
    @dataclass(frozen=True)
    class Unknown:
        pass

    with pytest.raises(TypeError, match="Expected `sampling_strategy` to be one of"):
        MiningConfig(sampling_strategy=Unknown())
    with pytest.raises(ValueError, match="Did you mean 'softmax'"):
        MiningConfig(sampling_strategy="softmaxx")
