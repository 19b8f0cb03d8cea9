"""Batches without duplicate anchors and positives, whatever the negatives are."""

from __future__ import annotations

import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.samplers import NoDuplicatePairsBatchSampler
from tests.conftest import WORDS, word_model


def batches(dataset, seed=0, batch_size=8):
    sampler = NoDuplicatePairsBatchSampler(
        dataset, batch_size, drop_last=False, generator=torch.Generator(), seed=seed, valid_label_columns=["label"]
    )
    return list(sampler)


def test_no_text_occurs_twice_in_a_batch():
    """Anchors and positives of a batch are all different, also but for case; every row is drawn once."""
    pairs = Dataset.from_dict(
        {"anchor": [f"a{i % 20}" for i in range(80)], "positive": [f"A{i % 30}" for i in range(80)]}
    )
    drawn = batches(pairs)
    assert sorted(row for batch in drawn for row in batch) == list(range(80))
    for batch in drawn:
        texts = [text.lower() for row in batch for text in set(pairs[row].values())]
        assert len({t.lower() for row in batch for t in pairs[row].values()}) == sum(
            len({t.lower() for t in pairs[row].values()}) for row in batch
        ), texts


def test_the_plan_does_not_change_with_the_negatives(bag_of_words, word_pairs):
    """After a refresh the same seed gives the same batches, with and without ids."""
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    before = batches(hard_negatives.as_dataset()), batches(hard_negatives.as_dataset(with_ids=True))
    other = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(5)))
    hard_negatives.mine(other, show_progress_bar=False)
    assert (batches(hard_negatives.as_dataset()), batches(hard_negatives.as_dataset(with_ids=True))) == before
    assert before[0] == before[1] == batches(word_pairs) != batches(word_pairs, seed=1)
