"""Many refreshes while workers read: no torn row, nothing left behind, no growth."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.mining.engine import Mining
from st_hardneg.report import MiningReport, summarize

ROWS, WIDTH, BATCH = 5_000, 3, 500


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


FIGURES = summarize(torch.zeros(1))
EMPTY_REPORT = MiningReport(
    **dict.fromkeys(MiningReport.__dataclass_fields__, 0)
    | {key: {} for key in ("removed", "removed_alone", "hardness", "seconds", "config", "sources", "in_force")}
    | dict.fromkeys(("step", "churn", "peak_memory_mb", "stage", "stage_number"), None)
    | {"scores": dict.fromkeys(("positive", "negative", "difference"), FIGURES), "similarity": "cosine"}
)


def mining_of(round_number: int) -> Mining:
    """Return a mining in which every slot of every row holds the text of this round."""
    ids = np.full((ROWS, WIDTH), round_number, dtype=np.int64)
    zeros = np.zeros((ROWS, WIDTH), dtype=np.float32)
    ones = np.ones((ROWS, WIDTH), dtype=np.int8)
    return Mining(
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
        report=EMPTY_REPORT,
    )


def shared_memory() -> set[str]:
    """Return the names of torch's shared memory; other programs have theirs there, too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("torch_")}


class Summary:
    """Turns a batch into (rows, number of batches whose negatives are of two rounds)."""

    def __call__(self, rows: list[dict[str, str]]) -> tuple[int, int]:
        seen = {row[f"negative_{slot + 1}"] for row in rows for slot in range(WIDTH)}
        return len(rows), int(len(seen) != 1)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory and files are counted in /proc")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("refreshes", "workers", "rows"),
    [(50, 2, 100_000), pytest.param(1000, 4, 10_000_000, marks=pytest.mark.slow)],
)
def test_soak(refreshes, workers, rows):
    """Writers and readers at full speed; counted afterwards: torn batches, processes, files, shared memory, growth."""
    pairs = Dataset.from_dict(
        {"anchor": [f"anchor {i}" for i in range(ROWS)], "positive": [f"positive {i}" for i in range(ROWS)]}
    )
    corpus = [f"round {number}" for number in range(refreshes + 1)]
    hard_negatives = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=WIDTH))
    hard_negatives.apply_mining(mining_of(0))
    loader = DataLoader(
        hard_negatives.as_dataset(),
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=True,
        collate_fn=Summary(),
        multiprocessing_context="fork",
    )
    read = torn = epochs = 0
    done = threading.Event()

    def write() -> None:
        for number in range(1, refreshes + 1):
            hard_negatives.apply_mining(mining_of(number))
            done.wait(0.002)

    for count, is_torn in loader:  # workers are up before anything is measured
        read, torn = read + count, torn + is_torn
    gc.collect()
    files, shared, memory = len(os.listdir("/proc/self/fd")), shared_memory(), resident_mb()
    writer = threading.Thread(target=write)
    writer.start()
    while read < rows or writer.is_alive():
        epochs += 1
        for count, is_torn in loader:
            read, torn = read + count, torn + is_torn
    writer.join()
    gc.collect()
    growth = resident_mb() / memory - 1
    print(f"{refreshes} refreshes, {workers} workers, {read:,} rows, {torn} torn, memory {growth:+.1%}")
    assert torn == 0 and read >= rows
    assert len(os.listdir("/proc/self/fd")) <= files + 2 and shared_memory() <= shared
    assert growth < 0.02
    assert {row["negative_1"] for row in hard_negatives.as_dataset().select(range(20))} == {f"round {refreshes}"}
    del loader
    gc.collect()
    assert not multiprocessing.active_children()
