"""Histograms in the files of TensorBoard, Weights & Biases and Trackio themselves, the first mining included."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = [f"mining/{name}_scores" for name in ("difference", "negative", "positive")]
SCRIPT = """
import sys
from tests.training.runs import *

model = make_model()
hard_negatives = make_negatives(model)
trainer = SentenceTransformerTrainer(
    model=model,
    args=make_args(sys.argv[2], report_to=sys.argv[1], max_steps=6, save_strategy="no"),
    train_dataset=hard_negatives.as_dataset(),
    loss=MultipleNegativesRankingLoss(model),
    callbacks=[MiningCallback(hard_negatives, mining_steps=3)],
)
trainer.train()
"""


def of_tensorboard(folder: Path) -> list[tuple[str, int]]:
    """Return name and number of values of every histogram in the event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out*")
    events = EventAccumulator(str(file), size_guidance={"histograms": 0}).Reload()
    found = [(name, event.histogram_value) for name in NAMES for event in events.Histograms(name)]
    assert all(sum(one.bucket) == one.num for _, one in found)
    return [(name, int(one.num)) for name, one in found]


def of_wandb(folder: Path) -> list[tuple[str, int]]:
    """The same of an offline run: records in blocks of 32 kB, in LevelDB's log format behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("*.wandb")
    raw, place, part, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(raw):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
        part += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(part)
            part = b""
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if name.endswith("_scores/values"):
                    found.append((name.removesuffix("/values"), sum(json.loads(item.value_json))))
    return sorted(found)


def of_trackio(folder: Path) -> list[tuple[str, int]]:
    """The same of its database."""
    (file,) = folder.rglob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("select metrics from metrics")]
    database.close()
    return sorted((name, sum(row[name]["values"])) for row in rows for name in NAMES if name in row)


@pytest.mark.training
@pytest.mark.parametrize(
    ("reporter", "found_in"), [("tensorboard", of_tensorboard), ("wandb", of_wandb), ("trackio", of_trackio)]
)
def test_histograms_are_in_the_files(reporter, found_in, tmp_path):
    """As the training begins and at the refresh: 80 positives, and 160 negatives and differences, twice."""
    if importlib.util.find_spec(reporter) is None:
        pytest.skip(f"{reporter} is not installed")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", SCRIPT, reporter, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = {"positive": 80, "negative": 160, "difference": 160}
    assert found_in(tmp_path) == [(name, counts[name[7:-7]]) for name in NAMES for _ in range(2)]
