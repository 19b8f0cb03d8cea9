"""Two datasets over one corpus: it is encoded once for both, as long as the model is the same."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from tests.conftest import random_texts


@pytest.fixture
def two(word_pairs):
    corpus = Dataset.from_dict({"text": random_texts(60, seed=5)})
    config = MiningConfig(num_negatives=2)
    first = HardNegativeDataset(word_pairs.select(range(24)), corpus, config)
    return first, HardNegativeDataset(word_pairs.select(range(24, 48)), first.corpus, config)


def test_a_shared_corpus_is_encoded_once(two, bag_of_words, monkeypatch):
    """The second dataset encodes its own positives and queries only, and finds what it would find alone."""
    seen: list[str] = []
    real = bag_of_words.encode_document
    monkeypatch.setattr(
        bag_of_words, "encode_document", lambda texts, **options: seen.extend(texts) or real(texts, **options)
    )
    first, second = two
    first.mine(bag_of_words, show_progress_bar=False)
    in_corpus = set(first.corpus.given["text"])
    assert in_corpus <= set(seen)
    seen.clear()
    second.mine(bag_of_words, show_progress_bar=False)
    assert seen and not in_corpus & set(seen)
    alone = HardNegativeDataset(second._wrapped.rows.dataset, list(first.corpus.given["text"]), second.config)
    alone.mine(bag_of_words, show_progress_bar=False)
    assert (alone.negative_ids == second.negative_ids).all()


def test_other_weights_are_seen(two, bag_of_words):
    """A step of training between the two minings: nothing stale is searched."""
    first, second = two
    first.mine(bag_of_words, show_progress_bar=False)
    with torch.no_grad():
        bag_of_words[0].embedding.weight.copy_(torch.randn(bag_of_words[0].embedding.weight.shape))
    second.mine(bag_of_words, show_progress_bar=False)
    alone = HardNegativeDataset(second._wrapped.rows.dataset, list(first.corpus.given["text"]), second.config)
    alone.mine(bag_of_words, show_progress_bar=False)
    assert (alone.negative_ids == second.negative_ids).all()
