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

from st_hardneg.corpus.texts import TextColumn
from st_hardneg.live.dataset import LiveDataset
from st_hardneg.live.table import NegativeTable
from st_hardneg.live.view import LiveView


def milliseconds(dataset: Dataset, batches: list[list[int]]) -> float:
    """Return the median time of a batch, after a hundred to warm up."""
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        dataset.__getitems__(batch)  # what a DataLoader calls
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[100:]) * 1000


def main() -> None:
    """Build the view with random negatives, fetch, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    rng = random.Random(0)
    filler = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=416)) for _ in range(1000)]
    texts = TextColumn.of([f"text {i:9d}{filler[i % 1000]}" for i in range(rows)])
    table = NegativeTable(np.random.default_rng(0).integers(0, rows, (rows, 5)), num_texts=rows)
    anchors, row = TextColumn.of([f"what is the number {i}" for i in range(rows)]), np.arange(rows)
    view = LiveView(anchors, texts, texts, table, "anchor", "positive", row, row, np.full(rows, 1_000_000))
    batches = [rng.sample(range(rows), 64) for _ in range(600)]
    template = Dataset.from_dict({"anchor": [""]})
    datasets = {
        "as made": LiveDataset.of(view, row, template, with_ids=False),
        "with ids": LiveDataset.of(view, row, template, with_ids=True),
    }
    datasets["shuffled"] = datasets["as made"].shuffle(seed=0)
    datasets["with a transform, as in a DatasetDict"] = datasets["as made"].with_transform(lambda batch: batch)
    # What the same batch costs from a Dataset that holds all texts, seven columns of them, in memory.
    ids = table.read(row)
    columns = {"anchor": anchors.take(row), "positive": texts.take(row)}
    columns |= {f"negative_{slot + 1}": texts.take(ids[:, slot]) for slot in range(5)}
    datasets["a plain Dataset in memory"] = Dataset.from_dict(columns)
    del columns
    assert len(datasets["as made"].__getitems__(batches[0])[0]["negative_5"]) == 430
    for name, dataset in datasets.items():
        print(f"{milliseconds(dataset, batches):.2f} ms a batch of 64 from {rows:,} rows, {name}")


if __name__ == "__main__":
    main()
