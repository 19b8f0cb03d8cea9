"""What a report says in words, and rows that are never lost."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from tests.conftest import random_texts, word_model


def test_a_report_says_that_most_negatives_are_random(bag_of_words, word_pairs):
    """A margin that removes nearly everything: what is trained on is no mined negative, and the report says so."""
    config = MiningConfig(num_negatives=2, relative_margin=0.2, min_words=4, shortfall="random", range_max=20)
    corpus = [f"{text} w{i}" for i, text in enumerate(word_pairs["positive"])]
    found = HardNegativeDataset(word_pairs, corpus, config)
    report = found.mine(bag_of_words, show_progress_bar=False)
    assert report.num_random > 0.1 * report.num_slots
    (note,) = [note for note in report.notes if "random" in note]
    assert note.startswith(f"{report.num_random / report.num_slots:.0%} of the slots are random texts")
    assert "`relative_margin` removes" in note and f"  note: {note}" in str(report)
    asked = HardNegativeDataset(word_pairs, corpus, num_negatives=2, sources={"dense": 1, "random": 1})
    assert not [note for note in asked.mine(bag_of_words, show_progress_bar=False).notes if "are random" in note]


@pytest.mark.parametrize("num_negatives", [2, 5])
def test_random_fillers_lose_no_row(bag_of_words, word_pairs, num_negatives):
    """Rules that let nothing pass for some queries: every row is in the view, and losses mask what only stands in."""
    config = MiningConfig(num_negatives=num_negatives, max_score=0.3, min_score=0.28, shortfall="random")
    found = HardNegativeDataset(word_pairs, random_texts(60, seed=2), config)
    report = found.mine(bag_of_words, show_progress_bar=False)
    assert report.num_last_resort > 0 and report.num_missing == report.num_incomplete_rows == 0
    view = found.as_dataset(with_ids=True)
    assert len(view) == len(word_pairs) == len(found.to_dataset("n-tuple"))
    labels = torch.tensor(view["label"][:])
    assert int((labels[:, 4:] == -1).sum()) == report.num_last_resort
    positives = {(row["anchor"], row["positive"]) for row in word_pairs}
    for row in view:
        own = [row[f"negative_{slot + 1}"] for slot in range(num_negatives)]
        assert all(own) and row["anchor"] not in own
        assert not any((row["anchor"], text) in positives for text in own)


def test_texts_that_are_cut_to_the_vector_of_a_right_answer_are_said():
    """Contracts that share a long beginning, and a model that reads no further."""
    words = [f"w{number}" for number in range(50)]
    model = word_model(words, torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))

    class Cut:
        similarity_fn_name = "cosine"

        def encode_query(self, texts, **_):
            return model.encode([" ".join(text.split()[:3]) for text in texts], convert_to_tensor=True)

        encode_document = encode_query

    pairs = Dataset.from_dict(
        {
            "anchor": [f"w{i} w{i + 1}" for i in range(12)],
            "positive": [f"w{i // 4} w{i // 4 + 1} w9 w{20 + i}" for i in range(12)],
        }
    )
    report = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=3)).mine(Cut(), show_progress_bar=False)
    (note,) = [note for note in report.notes if "exactly the vector of a right answer" in note]
    assert "raise `model.max_seq_length`" in note and note in str(report)
    whole = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=3)).mine(model, show_progress_bar=False)
    assert not [note for note in whole.notes if "exactly the vector" in note]
