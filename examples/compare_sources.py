"""Train on negatives from different sources, strategies and schedules, and compare them on held-out queries.

    python examples/compare_sources.py --data DIR --model NAME_OR_PATH --static --seeds 1 2 3

Rows are mined once, before training, except those that say otherwise. The last column is the share of negatives that
are a known positive of their query, counted anew from the texts; it has to be 0.
Takes the options of `train_with_refresh.py`, and --recipes to choose some rows.
"""

from __future__ import annotations

import copy
import logging
import statistics
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset, disable_progress_bars
from train_with_refresh import argument_parser, load, make_config, make_model, measure, train

from st_hardneg import HardNegativeDataset, Linear, MiningCallback, SimANS, Softmax, Stage, Written
from st_hardneg.sources.synthetic import KeywordEdits


@dataclass(frozen=True)
class Recipe:
    """What a row of the table changes: fields of the config, sources, a schedule, and whether negatives are refreshed."""

    config: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] | None = None
    schedule: Any = None
    refresh: bool = False


RECIPES = {
    "top": Recipe(),
    "window 10-210, random": Recipe(
        {"range_min": 10, "range_max": 210, "sampling_strategy": "random", "rank_window": "raw"}
    ),
    "softmax, T=0.05": Recipe({"range_max": 100, "sampling_strategy": Softmax(0.05)}),
    "SimANS, a=50, b=0": Recipe({"range_max": 100, "sampling_strategy": SimANS(50.0, 0.0)}),
    "lexical 1 of 3": Recipe(sources={"dense": 2, "lexical": 1}),
    "keyword edits 1 of 3": Recipe(sources={"dense": 2, "synthetic": Written(KeywordEdits(), 1)}),
    "top, refreshed each epoch": Recipe(refresh=True),
    "dual-space, random rate .8 to 0": Recipe(
        {"search_spaces": ("corpus", "anchors")}, schedule={"random_rate": Linear(0.8, 0.0)}, refresh=True
    ),
    "curriculum: 50-100, 10-60, 0-31": Recipe(
        schedule=[
            Stage("easy", 1, range_min=50, range_max=100, sampling_strategy="random"),
            Stage("medium", 1, range_min=10, range_max=60, sampling_strategy="random"),
            Stage("hard", 2, range_min=0, range_max=31),
        ],
        refresh=True,
    ),
}


def leaked(negatives: Dataset, known: dict[str, set[str]]) -> float:
    """Return the share of negatives that are a known positive of their anchor, by text."""
    wrong = [
        " ".join(row["negative"].split()).casefold() in known[row["anchor"]]
        for row in negatives.select_columns(["anchor", "negative"])
    ]
    return sum(wrong) / len(wrong)


def main() -> None:
    """Train once per recipe and seed and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--refresh", action="store_true", help="refresh the negatives of every recipe each epoch")
    arguments = parser.parse_args()
    pairs, corpus, evaluate = load(arguments.data, arguments.limit)
    known: dict[str, set[str]] = {}
    for row in pairs.select_columns(["anchor", "positive"]):
        known.setdefault(row["anchor"], set()).add(" ".join(row["positive"].split()).casefold())
    base = make_model(arguments, [*pairs["anchor"], *corpus["text"]])
    print(f"\nnDCG@10 on held-out queries{'':<8}{'mean':>7}" + "".join(f"{f'seed {s}':>9}" for s in arguments.seeds))
    for name in arguments.recipes:
        recipe = RECIPES[name]
        values, leaks = [], []
        for seed in arguments.seeds:
            model = copy.deepcopy(base)
            hard_negatives = HardNegativeDataset(
                pairs,
                corpus,
                replace(make_config(arguments), seed=seed, **recipe.config),
                sources=recipe.sources,
                batch_size=256,
            )
            hard_negatives.mine(model, show_progress_bar=False)
            leaks.append(leaked(hard_negatives.to_dataset(), known))
            callbacks = []
            if recipe.refresh or arguments.refresh:
                callbacks = [MiningCallback(hard_negatives, mining_strategy="epoch", schedule=recipe.schedule)]
            train(model, hard_negatives.as_dataset(), arguments, seed, callbacks)
            leaks.append(leaked(hard_negatives.to_dataset(), known))
            values.append(measure(evaluate, model))
        row = "".join(f"{value:>9.4f}" for value in values)
        print(f"{name:<35}{statistics.mean(values):>7.4f}{row}   leaked {max(leaks):.1%}", flush=True)


if __name__ == "__main__":
    disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    main()
