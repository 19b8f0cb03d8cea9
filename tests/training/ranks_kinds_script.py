"""Run with one or two processes: trains a small model with refreshes, and writes what each rank ends with.

Arguments: output folder, and the kind of model, "sparse" or "multi-vector".
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import disable_progress_bars

from tests.conftest import run_and_leave
from tests.training.kinds import run


def main() -> None:
    """Train eight steps, with refreshes at 3 and 6."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    disable_progress_bars()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    encoded: list[int] = []
    recorder, watched, trainer = run(
        kind, folder / f"{kind}-{rank}", max_steps=8, per_device_train_batch_size=8 // world, encoded=encoded
    )
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    figures = {
        "negatives": {step: sorted(texts.items()) for step, texts in watched.negatives.items()},
        "batches": recorder.batches,
        "weights": weights.tolist(),
        "steps": [report.step for report in watched.reports],
        "encoded": encoded,
    }
    (folder / f"{kind}-{rank}-of-{world}.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    run_and_leave(main)
