"""Compare recipes on several data sets: what each is worth on held-out queries, epoch by epoch.

    python examples/compare_recipes.py --sets scifact=DIR checkthat=DIR --model PATH --static --seeds 1 2 3
    python examples/compare_recipes.py --sets scifact=DIR --model PATH --layers 3 --max-seq-length 64 --seeds 1 2

Without ``--sets``, the docstrings of Python's standard library are the data set. A cell (data set, recipe, seed) takes
seconds to minutes; finished ones are kept in ``--results`` and are not run again with the same settings, so a comparison
can be stopped and continued. ``--workers`` runs cells side by side, on one thread each.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from datasets import disable_progress_bars
from train_with_refresh import argument_parser, load, make_model, measure, train
from transformers import TrainerCallback

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss


@dataclass(frozen=True)
class Arm:
    """One way to get negatives. ``config`` makes the recipe for a number of negatives; None trains on in-batch ones."""

    config: Callable[[int], MiningConfig] | None
    refresh: bool = False
    masks: bool = False


def _plain(**fields: object) -> Callable[[int], MiningConfig]:
    return lambda n: MiningConfig(**{"num_negatives": n, "shortfall": "random", **fields})  # type: ignore[arg-type]


# The five kinds of NV-Retriever (https://huggingface.co/papers/2407.15831), then ours.
ARMS = {
    "in-batch": Arm(None),
    "once, naive": Arm(_plain()),
    "once, shifted by 10": Arm(_plain(range_min=10, range_max=40)),
    "once, max_score .7": Arm(_plain(max_score=0.7)),
    "once, margin .05 below": Arm(_plain(absolute_margin=0.05)),
    "once, 95 % of positive": Arm(_plain(relative_margin=0.05)),
    "refreshed, naive": Arm(_plain(), refresh=True),
    "refreshed, 95 % of positive": Arm(_plain(relative_margin=0.05), refresh=True),
    "recommended, once": Arm(lambda n: MiningConfig.recommended(num_negatives=n), masks=True),
    "recommended, refreshed": Arm(lambda n: MiningConfig.recommended(num_negatives=n), refresh=True, masks=True),
}


class _ByEpoch(TrainerCallback):
    """Measures after every epoch."""

    def __init__(self, measure_now: Callable[[], float]) -> None:
        self.measure_now, self.values = measure_now, list[float]()

    def on_epoch_end(self, *_: object, **__: object) -> None:
        self.values.append(self.measure_now())


def run_cell(arguments: argparse.Namespace, name: str, arm_name: str, seed: int) -> dict[str, object]:
    """Train once; return nDCG@10 after every epoch, and the last report's first lines."""
    torch.set_num_threads(1)
    disable_progress_bars()
    started = time.perf_counter()
    pairs, corpus, evaluate = load(dict(data_sets(arguments))[name], arguments.limit)
    base = make_model(arguments, [*pairs["anchor"], *corpus["text"]])
    if arguments.max_seq_length and hasattr(base[0], "max_seq_length"):
        base.max_seq_length = arguments.max_seq_length
    arm, model = ARMS[arm_name], copy.deepcopy(base)
    by_epoch = _ByEpoch(lambda: measure(evaluate, model))
    callbacks: list[TrainerCallback] = [by_epoch]
    dataset, loss, report = pairs.select_columns(["anchor", "positive"]), None, {}
    if arm.config is not None:
        hard_negatives = HardNegativeDataset(pairs, corpus, arm.config(arguments.num_negatives), batch_size=256)
        hard_negatives.mine(model, show_progress_bar=False)
        if arm.refresh:
            callbacks.append(MiningCallback(hard_negatives, mining_strategy="epoch"))
        if arm.masks:
            loss = SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives)
        dataset = hard_negatives.as_dataset(with_ids=arm.masks)
        first = hard_negatives.report
        report = {
            "typical_rank": first.typical_rank,
            "doubt": first.doubt,
            "random": first.num_random / first.num_slots,
        }
    train(model, dataset, arguments, seed, callbacks, loss)
    return {
        "set": name, "arm": arm_name, "seed": seed, "by_epoch": by_epoch.values,
        "seconds": time.perf_counter() - started, "settings": settings(arguments, name), **report,
    }  # fmt: skip


def settings(arguments: argparse.Namespace, name: str) -> dict[str, object]:
    """Return what a cell depends on beside its data set's name, recipe and seed: others are other cells."""
    names = (
        "model", "static", "layers", "epochs", "batch_size", "learning_rate", "num_negatives", "limit", "max_seq_length",
    )  # fmt: skip
    return {"data": dict(data_sets(arguments))[name], **{one: getattr(arguments, one) for one in names}}


def data_sets(arguments: argparse.Namespace) -> list[tuple[str, str | None]]:
    """Return the name and the folder of each data set; None is the standard library's docstrings."""
    named = [tuple(one.split("=", 1)) for one in arguments.sets]
    return [(name, folder or None) for name, folder in named] or [("docstrings", None)]


def table(results: list[dict[str, object]], names: list[str], arms: list[str]) -> list[str]:
    """Return the lines of a table: mean, spread and mean by epoch of each cell."""
    lines = []
    for name in names:
        lines.append(f"{name:<30}{'mean':>8}{'spread':>8}   by epoch")
        for arm in arms:
            cells = [one["by_epoch"] for one in results if one["set"] == name and one["arm"] == arm]
            if not cells:
                continue
            last = [values[-1] for values in cells]  # type: ignore[index]
            epochs = " ".join(f"{statistics.mean(column):.3f}" for column in zip(*cells, strict=True))  # type: ignore[arg-type]
            spread = max(last) - min(last)
            lines.append(f"  {arm:<28}{statistics.mean(last):>8.4f}{spread:>8.4f}   {epochs}   ({len(cells)} seeds)")
    return lines


def main() -> None:
    """Run what is missing and print the table."""
    parser = argument_parser(__doc__, without=("data", "relative-margin", "range-max", "shortfall"))
    parser.add_argument(
        "--sets", nargs="+", default=[], metavar="NAME=DIR", help="folders in BEIR's layout; an empty DIR: docstrings"
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--results", default="recipes.jsonl", help="where finished cells are kept")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-seq-length", type=int)
    arguments = parser.parse_args()
    done: list[dict[str, object]] = []
    if os.path.exists(arguments.results):
        with open(arguments.results, encoding="utf-8") as file:
            done = [json.loads(line) for line in file]
    names = [name for name, _ in data_sets(arguments)]
    # What was measured with other settings is left in the file, and is not part of this comparison.
    done = [one for one in done if one["set"] in names and one.get("settings") == settings(arguments, str(one["set"]))]
    known = {(one["set"], one["arm"], one["seed"]) for one in done}
    cells = [(name, arm, seed) for seed in arguments.seeds for name in names for arm in arguments.arms]
    missing = [cell for cell in cells if cell not in known]
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        for number, finished in enumerate(
            as_completed([pool.submit(run_cell, arguments, *cell) for cell in missing]), 1
        ):
            done.append(finished.result())
            with open(arguments.results, "a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(
                f"{number} of {len(missing)}: {done[-1]['set']}, {done[-1]['arm']}, seed {done[-1]['seed']}", flush=True
            )
    print("\n".join(table(done, names, arguments.arms)))


if __name__ == "__main__":
    main()
