"""Which texts count as one: copies of a right answer are no negatives, and what is merged is counted and can be kept."""

from __future__ import annotations

import time

import pytest
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig

INVISIBLE = ["\u200b", "\u00ad", "\ufeff", "\u200e", "\u2060", "\ufe0f"]
QUIZ = Dataset.from_dict(
    {"anchor": ["what is 5 squared", "how many ways to choose"], "positive": ["25", "10"]}
)  # answers of digits only


def mined(pairs, corpus=None, *, model, n=1, **fields) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=n, **fields))
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
def test_a_copy_of_the_positive_with_an_invisible_character_is_no_negative(character, bag_of_words):
    pairs = Dataset.from_dict({"anchor": ["w1 w2"], "positive": ["w3 w4"]})
    found = mined(pairs, [f"w3{character} w4", "w90 w91"], model=bag_of_words)
    assert found.to_dataset()["negative"][:] == ["w90 w91"]


def test_answers_that_differ_in_a_superscript_are_merged_counted_and_can_be_kept_apart(bag_of_words):
    """2⁵ is 25 for Unicode's normal form, and not for a quiz: the report counts it, and `identity="exact"` keeps them."""
    corpus = ["25", "2⁵", "52", "10"]
    merged = mined(QUIZ, corpus, model=bag_of_words, n=3)
    assert "1 texts count as the same as another one" in repr(merged)
    assert merged.report.num_merged_texts == 1 and "1 texts count as the same" in str(merged.report)
    assert not {"2⁵", "25"} & set(merged.to_dataset().filter(lambda row: row["positive"] == "25")["negative"])
    exact = mined(QUIZ, corpus, model=bag_of_words, n=3, identity="exact")
    assert exact.report.num_merged_texts == 0 and "count as the same" not in repr(exact)
    rows = exact.to_dataset().filter(lambda row: row["positive"] == "25")
    assert set(rows["negative"]) == {"2⁵", "52", "10"}


def test_code_that_differs_in_indentation_can_be_a_negative_if_asked_for(bag_of_words):
    pairs = Dataset.from_dict({"anchor": ["w1 w2", "w7"], "positive": ["if x:\n    w3\n    w4", "w8"]})
    other = "if x:\n    w3\nw4"
    negatives = {}
    for identity in ("normalized", "exact"):
        found = mined(pairs, [other], model=bag_of_words, n=2, identity=identity)
        negatives[identity] = {row["negative"] for row in found.to_dataset() if row["anchor"] == "w1 w2"}
    assert negatives == {"normalized": {"w8"}, "exact": {"w8", other}}


def test_thousands_of_spellings_of_one_anchor_are_built_and_mined_in_time(bag_of_words):
    """Whitespace and case variants: near-linear, and no variant is another one's negative."""
    spellings = [" " * (1 + number) + "w1" for number in range(2_000)]
    pairs = Dataset.from_dict({"anchor": spellings, "positive": [f"w2 x{number}" for number in range(2_000)]})
    started = time.process_time()
    hard_negatives = HardNegativeDataset(pairs, ["w3 w4", "w5 w6"], MiningConfig(num_negatives=1))
    assert time.process_time() - started < 2.0
    assert len(hard_negatives.known_positives.keys) < 5_000
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    assert time.process_time() - started < 7.0
    assert set(hard_negatives.to_dataset()["negative"]) <= {"w3 w4", "w5 w6"}
