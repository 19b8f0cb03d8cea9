"""How long a batch takes from a live view: 64 rows with five negatives of 430 characters, from 500 000 rows, warm.

python tests/benchmarks/fetch_batch.py [--rows 500000]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import numpy as np
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.mining.engine import Mining
from st_hardneg.report import MiningReport


def main() -> None:
    """Build the view with random negatives, fetch, and print the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    rng = random.Random(0)
    filler = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=416)) for _ in range(1000)]
    pairs = Dataset.from_dict(
        {
            "anchor": [f"what is the number {i}" for i in range(rows)],
            "positive": [f"text {i:9d}{filler[i % 1000]}" for i in range(rows)],
        }
    )
    hard_negatives = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=5))
    shape = (rows, 5)
    ids = np.random.default_rng(0).integers(0, len(hard_negatives.corpus), shape)
    zeros = np.zeros(shape, dtype=np.float32)
    report = MiningReport(**{name: None for name in MiningReport.__dataclass_fields__})
    ones = np.ones(shape, dtype=np.int8)
    mining = Mining(
        negative_ids=ids,
        negative_scores=zeros,
        chosen_by=zeros,
        ranks=ids,
        origin=ones,
        sources=ones,
        source_scores=zeros,
        steps=ids,
        first_scores=zeros,
        positive_scores=zeros[:, 0],
        report=report,
    )
    hard_negatives.apply_mining(mining)
    view = hard_negatives.as_dataset()
    batches = [rng.sample(range(rows), 64) for _ in range(600)]
    assert len(view.__getitems__(batches[0])[0]["negative_5"]) == 430
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        view.__getitems__(batch)  # what a DataLoader calls
        seconds.append(time.perf_counter() - started)
    milliseconds = statistics.median(seconds[100:]) * 1000
    print(f"{milliseconds:.2f} ms a batch of 64 from {rows:,} rows (median of {len(seconds) - 100})")


if __name__ == "__main__":
    main()
