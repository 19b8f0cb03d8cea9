"""Many refreshes while workers read: no torn row, nothing left behind, no growth."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from st_hardneg.corpus.texts import TextColumn
from st_hardneg.live.dataset import LiveDataset
from st_hardneg.live.table import NegativeTable
from st_hardneg.live.view import LiveView
from tests.live.views import dataset_of

ROWS, WIDTH, BATCH = 5_000, 3, 500


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ids_of_round(number: int) -> np.ndarray:
    """Return a table in which every slot of every row holds the text of this round, every second row a stand-in."""
    ids = np.full((ROWS, WIDTH), number, dtype=np.int64)
    ids[::2] = -ids[::2] - 2
    return ids


def shared_memory() -> set[str]:
    """Return the names of torch's shared memory; other programs have theirs there, too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("torch_")}


class Summary:
    """Turns a batch into (rows, number of batches whose negatives are of two rounds)."""

    def __call__(self, rows: list[dict[str, str]]) -> tuple[int, int]:
        seen = {row[f"negative_{slot + 1}"] for row in rows for slot in range(WIDTH)}
        return len(rows), int(len(seen) != 1)


@pytest.mark.training
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory and files are counted in /proc")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("refreshes", "workers", "rows"),
    [(50, 2, 100_000), pytest.param(1000, 4, 10_000_000, marks=pytest.mark.slow)],
)
def test_soak(refreshes, workers, rows):
    """Writers and readers at full speed; counted afterwards: torn batches, processes, files, shared memory, growth."""
    view = LiveView(
        TextColumn.of([f"anchor {i}" for i in range(ROWS)]),
        TextColumn.of([f"positive {i}" for i in range(ROWS)]),
        TextColumn.of([f"round {number}" for number in range(refreshes + 1)]),
        NegativeTable(ids_of_round(0)),
        "anchor",
        "positive",
        *(np.zeros(ROWS, dtype=np.int64),) * 3,
    )
    dataset = dataset_of(view)
    loader = DataLoader(
        dataset,
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
            view.table.write(ids_of_round(number))
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
    assert {row["negative_1"] for row in dataset.select(range(20))} == {f"round {refreshes}"}
    del loader
    gc.collect()
    assert not multiprocessing.active_children()


class Mismatches:
    """Turns a batch into (rows, texts whose score is not the one that was given for them)."""

    def __call__(self, rows: list[dict]) -> tuple[int, int]:
        wrong = 0
        for row in rows:
            texts = [row[f"negative_{slot + 1}"] for slot in range(WIDTH)]
            wrong += sum(text != f"round {score:.0f}" for text, score in zip(texts, row["scores"][1:], strict=True))
            wrong += row["scores"][0] != -1.0
        return len(rows), wrong


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("refreshes", "rows"), [(50, 50_000), pytest.param(1000, 5_000_000, marks=pytest.mark.slow)])
def test_soak_of_scores(refreshes, rows):
    """The scores that are read belong to the texts that are read, while the table is written at full speed."""
    view = LiveView(
        TextColumn.of([f"anchor {i}" for i in range(ROWS)]),
        TextColumn.of([f"positive {i}" for i in range(ROWS)]),
        TextColumn.of([f"round {number}" for number in range(refreshes + 1)]),
        NegativeTable(ids_of_round(0)),
        "anchor",
        "positive",
        *(np.zeros(ROWS, dtype=np.int64),) * 3,
    )

    def scores_of(number: int) -> np.ndarray:
        return np.tile(np.float32([-1.0, *[number] * WIDTH]), (ROWS, 1))

    view.table.add_scores(scores_of(0))
    dataset = LiveDataset.of(view, np.arange(ROWS), Dataset.from_dict({"anchor": ["a"]}), with_scores=True)
    loader = DataLoader(
        dataset, batch_size=BATCH, num_workers=2, collate_fn=Mismatches(), multiprocessing_context="fork"
    )
    done = threading.Event()

    def write() -> None:
        for number in range(1, refreshes + 1):
            view.table.write(ids_of_round(number), scores_of(number))
            done.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    read = mismatches = 0
    while read < rows or writer.is_alive():
        for count, wrong in loader:
            read, mismatches = read + count, mismatches + wrong
    writer.join()
    print(f"{refreshes} refreshes, {read:,} rows, {mismatches} mismatches")
    assert mismatches == 0 and read >= rows
    assert dataset[0]["scores"] == [-1.0, *[float(refreshes)] * WIDTH]
