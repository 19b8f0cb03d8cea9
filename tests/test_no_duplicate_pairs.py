"""NoDuplicatePairsBatchSampler: what it batches, and that few different positives take no time."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from datasets import Dataset

from st_hardneg.samplers import NoDuplicatePairsBatchSampler


def test_batches_of_few_different_positives_are_made_in_time():
    count = 16_000
    rows = {"anchor": [f"a{number}" for number in range(count)], "positive": [f"p{n % 4}" for n in range(count)]}
    sampler = NoDuplicatePairsBatchSampler(Dataset.from_dict(rows), 32, False, generator=torch.Generator(), seed=1)
    started = time.process_time()
    batches = list(sampler)
    assert time.process_time() - started < 5.0
    assert sorted(row for batch in batches for row in batch) == list(range(count))
    assert all(len({row % 4 for row in batch}) == len(batch) for batch in batches)


@pytest.mark.parametrize("seed", range(5))
def test_batches_take_the_earliest_rows_that_repeat_nothing(seed):
    """As the plain loop over all rows that are left does."""
    rng = np.random.default_rng(seed)
    pairs = {
        "anchor": [f"a{n}" for n in rng.integers(0, 25, 90)],
        "positive": [f"p{n}" for n in rng.integers(0, 12, 90)],
    }
    sampler = NoDuplicatePairsBatchSampler(Dataset.from_dict(pairs), 8, False, generator=torch.Generator(), seed=seed)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(seed)).tolist()
    expected = []
    while order:
        batch, texts = [], set()
        for row in order:
            own = {pairs["anchor"][row], pairs["positive"][row]}
            if len(batch) < 8 and not texts & own:
                batch.append(row)
                texts |= own
        expected.append(batch)
        order = [row for row in order if row not in batch]
    assert list(sampler) == expected
