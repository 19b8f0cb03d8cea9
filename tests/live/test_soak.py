"""Many refreshes while workers read: no torn row, nothing left behind, no growth."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from torch.utils.data import DataLoader

from st_hardneg.corpus.texts import TextColumn
from st_hardneg.live.dataset import LiveDataset
from st_hardneg.live.table import NegativeTable
from st_hardneg.live.view import LiveView
from tests.conftest import word_model
from tests.live.views import dataset_of
from tests.training.runs import HOST_WARNINGS

pytestmark = HOST_WARNINGS
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


NUMBER = re.compile(r"\d+")


class Mismatches:
    """Turns a batch into (rows, scores that are not those of the text that stands there, in that row)."""

    def __call__(self, rows: list[dict]) -> tuple[int, int]:
        wrong = 0
        for row in rows:
            anchor, *rounds = (int(NUMBER.search(row[name])[0]) for name in row if name not in ("positive", "scores"))
            wrong += sum(score != -anchor + number for number, score in zip([0, *rounds], row["scores"], strict=True))
        return len(rows), wrong


def scored_view(rows: int, rounds: int) -> LiveView:
    """Return a view whose texts name their row and their round, with a score that tells both."""
    view = LiveView(
        TextColumn.of([f"anchor{i}" for i in range(rows)]),
        TextColumn.of([f"positive{i}" for i in range(rows)]),
        TextColumn.of([f"round{number}" for number in range(rounds + 1)]),
        NegativeTable(ids_of_round(0)[:rows]),
        "anchor",
        "positive",
        *(np.zeros(rows, dtype=np.int64),) * 3,
    )
    view.table.add_scores(scores_of_round(0, rows))
    return view


def scores_of_round(number: int, rows: int) -> np.ndarray:
    """Return the scores of all rows: minus the row for the positive, and the round more for the negatives."""
    return -np.arange(rows, dtype=np.float32)[:, None] + np.float32([0, *[number] * WIDTH])


@contextlib.contextmanager
def under_fire(view: LiveView, rounds: int) -> Iterator[list[int]]:
    """Write round after round at full speed, and begin again after the last one; yield the rounds so far, and stop."""
    written: list[int] = []
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.001):
            number = (len(written) + 1) % (rounds + 1)
            view.table.write(ids_of_round(number)[: view.table.num_rows], scores_of_round(number, view.table.num_rows))
            written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        done.set()
        writer.join()


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("rows", "workers"), [(50_000, 2), pytest.param(5_000_000, 4, marks=pytest.mark.slow)])
def test_soak_of_scores(rows, workers):
    """The scores that are read belong to the texts that are read, while the table is written at full speed."""
    view = scored_view(ROWS, 50)
    dataset = LiveDataset.of(view, np.arange(ROWS), Dataset.from_dict({"anchor": ["a"]}), with_scores=True)
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=True,
        collate_fn=Mismatches(),
        multiprocessing_context="fork",
    )
    read = mismatches = 0
    with under_fire(view, 50) as written:
        while read < rows:
            for count, wrong in loader:
                read, mismatches = read + count, mismatches + wrong
    print(f"{len(written)} refreshes, {workers} workers, {read:,} rows, {mismatches} mismatches")
    assert mismatches == 0 and len(written) > 50
    assert dataset[7]["scores"] == [-7.0, *[float(written[-1] - 7)] * WIDTH]


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("loss_name", ["MarginMSELoss", "DistillKLDivLoss"])
@pytest.mark.parametrize("steps", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_soak_of_what_reaches_a_loss(loss_name, steps, tmp_path):
    """In the stock trainer with two workers, while the table is written at full speed: scores are those of the texts."""
    rows, rounds = 500, 50
    words = [
        f"{word}{i}"
        for word, count in (("anchor", rows), ("positive", rows), ("round", rounds + 1))
        for i in range(count)
    ]
    model = word_model(words, torch.randn(len(words), 8, generator=torch.Generator().manual_seed(0)))
    view = scored_view(rows, rounds)
    dataset = LiveDataset.of(view, np.arange(rows), Dataset.from_dict({"anchor": ["a"]}), with_scores=True)
    loss = getattr(losses, loss_name)(model)
    first_round, seen, mismatches = model.tokenizer.token_to_id("round0"), set(), []

    def check(_, given):
        features, labels = given
        anchors, _, *negatives = [feature["input_ids"].reshape(-1, 1) - 1 for feature in features]
        numbers = torch.cat(negatives, dim=1) + 1 - first_round
        seen.update(numbers.flatten().tolist())
        expected = torch.cat([torch.zeros_like(anchors), numbers], dim=1) - anchors
        mismatches.append(int((labels != expected).sum()))

    loss.register_forward_pre_hook(check)
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=50, dataloader_num_workers=2,
        dataloader_persistent_workers=True, dataloader_pin_memory=False, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, learning_rate=1e-4,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=dataset, loss=loss)
    with under_fire(view, rounds) as written:
        trainer.train()
    print(f"{loss_name}: {len(written)} refreshes, {50 * len(mismatches):,} rows, {sum(mismatches)} mismatches")
    assert sum(mismatches) == 0 and len(mismatches) == steps
    assert len(written) > steps and len(seen) > 20
