"""What the recommended recipe's rules cost in a refresh, beyond encoding and search.

    python tests/benchmarks/recipe_cost.py --data DIR --model NAME_OR_PATH --static

Mines by turns with the recommended recipe and with Sentence Transformers' margin alone, on a model that was trained for
one epoch, as a refresh finds it. Best of several; the share is of the whole refresh, encoding included.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from datasets import disable_progress_bars

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from train_with_refresh import argument_parser, load, make_model, train

from st_hardneg import HardNegativeDataset, MiningConfig

LIMIT = 0.1


def main() -> None:
    """Print seconds of each recipe, and the share of the rules."""
    parser = argument_parser(__doc__, without=("seeds", "epochs", "relative-margin", "range-max", "shortfall"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.epochs = 1
    disable_progress_bars()
    pairs, corpus, _ = load(arguments.data, arguments.limit)
    model = make_model(arguments, [*pairs["anchor"], *corpus["text"]])
    recipes = {
        "margin alone": MiningConfig(num_negatives=arguments.num_negatives, relative_margin=0.05),
        "recommended": MiningConfig.recommended(num_negatives=arguments.num_negatives),
    }
    datasets = {name: HardNegativeDataset(pairs, corpus, config, batch_size=256) for name, config in recipes.items()}
    for dataset in datasets.values():
        dataset.mine(model, show_progress_bar=False)  # doubt is settled before training, and lasts
    train(model, pairs.select_columns(["anchor", "positive"]), arguments, seed=1)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in recipes}
    for _ in range(arguments.rounds):
        for name, dataset in datasets.items():
            with torch.no_grad():  # or what was encoded is known
                next(model.parameters()).mul_(1.0 + 1e-6)
            seconds[name].append(dict(dataset.mine(model, show_progress_bar=False).seconds))
    best = {name: {part: min(one[part] for one in runs) for part in runs[0]} for name, runs in seconds.items()}
    for name, parts in best.items():
        print(f"{name:<14}" + "".join(f"{part:>10} {value:.3f} s" for part, value in parts.items()))
    plain, ours = (sum(best[name].values()) for name in recipes)
    beyond = {name: sum(parts.values()) - parts["encoding"] for name, parts in best.items()}
    share = (beyond["recommended"] - beyond["margin alone"]) / ours
    print(f"a refresh: {plain:.2f} s with the margin alone, {ours:.2f} s recommended; the rules take {share:.1%} of it")
    print("holds" if share <= LIMIT else f"FAILS: more than {LIMIT:.0%}")


if __name__ == "__main__":
    main()
