"""The four output formats: scores by who gave them, rows that are left out, and what the dataset says of itself."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig


class Teacher:
    """A cross encoder that scores by the length of the text, far from any cosine."""

    def predict(self, pairs, **_):
        return torch.tensor([5.0 + len(text) / 10 for _, text in pairs])


@pytest.fixture
def taught(bag_of_words, word_pairs) -> HardNegativeDataset:
    found = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=2), cross_encoder=Teacher())
    found.mine(bag_of_words, show_progress_bar=False)
    return found


def test_the_cross_encoders_scores_are_written_for_positives_and_negatives(taught):
    """As MarginMSE and distillation need them, in every format."""
    for row in taught.to_dataset("n-tuple", output_scores=True):
        texts = [row["positive"], row["negative_1"], row["negative_2"]]
        assert row["scores"] == pytest.approx([5.0 + len(text) / 10 for text in texts])
    for row in taught.to_dataset("triplet", output_scores=True):
        assert row["scores"] == pytest.approx([5.0 + len(row[name]) / 10 for name in ("positive", "negative")])
    for row in taught.to_dataset("labeled-pair", output_scores=True):
        assert row["score"] == pytest.approx(5.0 + len(row["positive"]) / 10)
    for row in taught.to_dataset("labeled-list", output_scores=True):
        assert row["scores"] == pytest.approx([5.0 + len(text) / 10 for text in row["positive"]])


def test_scores_in_the_provenance_are_named_by_who_gave_them(taught, bag_of_words):
    """The model's similarities stand beside the cross encoder's."""
    row, texts = taught.provenance()[0], taught.corpus.texts
    negatives = texts.take(taught.negative_ids[0])
    assert row["positive_cross_encoder_score"] == pytest.approx(5.0 + len(taught.to_dataset()[0]["positive"]) / 10)
    assert row["negative_cross_encoder_scores"] == pytest.approx([5.0 + len(text) / 10 for text in negatives])
    anchor = bag_of_words.encode([taught.to_dataset()[0]["anchor"]], convert_to_tensor=True)
    similarities = bag_of_words.similarity(anchor, bag_of_words.encode(negatives, convert_to_tensor=True))[0]
    assert row["negative_scores"] == pytest.approx(similarities.tolist(), abs=1e-5)


def test_what_a_dataset_says_of_itself_is_kept(bag_of_words, word_pairs):
    """License, citation and description survive `to_dataset`, and so a push."""
    word_pairs.info.license, word_pairs.info.citation = "cc-by-4.0", "@misc{x}"
    word_pairs.info.description = "Pairs."
    found = HardNegativeDataset(word_pairs, num_negatives=1)
    found.mine(bag_of_words, show_progress_bar=False)
    for output_format in ("triplet", "n-tuple", "labeled-pair", "labeled-list"):
        info = found.to_dataset(output_format).info
        assert (info.license, info.citation, info.description) == ("cc-by-4.0", "@misc{x}", "Pairs.")


def test_what_only_stands_in_is_in_tuples_only():
    """A text that a rule removes completes a tuple, and is no negative by itself."""
    from tests.conftest import word_model

    radians = torch.tensor([0.0, 10.0, 60.0, 5.0]) * torch.pi / 180
    model = word_model(["q", "p", "a", "b"], torch.stack([radians.cos(), radians.sin()], dim=1))
    pairs = Dataset.from_dict({"anchor": ["q"], "positive": ["p"]})
    config = MiningConfig(num_negatives=2, absolute_margin=0.1, shortfall="random")
    found = HardNegativeDataset(pairs, ["a", "b"], config)
    report = found.mine(model, show_progress_bar=False)
    assert (report.num_mined, report.num_last_resort) == (1, 1)
    assert found.to_dataset("n-tuple").to_list() == [
        {"anchor": "q", "positive": "p", "negative_1": "a", "negative_2": "b"}
    ]
    assert found.to_dataset()["negative"][:] == ["a"]
    assert sorted(found.to_dataset("labeled-pair")["positive"]) == ["a", "p"]
    assert found.as_dataset(with_ids=True)[0]["label"][-1] == -1  # losses mask it
