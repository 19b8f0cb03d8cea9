"""Draw the two pictures of the README.

    python examples/guides/pictures.py refresh --data DIR --model NAME_OR_PATH --static
    python examples/guides/pictures.py worth --results recipes.jsonl

``refresh`` trains once and follows three similarities through it: of anchors and their positives, their negatives of
before the training, and their negatives of now. ``worth`` draws what ``examples/compare_recipes.py`` has measured.
DIR is a folder in BEIR's layout; without it, the standard library's docstrings are the data. Needs matplotlib (extra
``plots``).
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
from pathlib import Path

import matplotlib
import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

matplotlib.use("svg")
from matplotlib import pyplot

sys.path.insert(0, str(Path(__file__).parent.parent))
from train_with_refresh import argument_parser, load, make_config, make_model, train

from st_hardneg import HardNegativeDataset, MiningCallback
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss

BLUE, RED, GREY = "#2f6fb7", "#c8452f", "#7a7a7a"
# Readable on a light and on a dark page.
pyplot.rcParams.update(
    {"svg.hashsalt": "st_hardneg", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
)


class Follow(TrainerCallback):
    """Measures, before the training and after every epoch, how similar anchors are to three kinds of texts."""

    def __init__(self, hard_negatives: HardNegativeDataset, model: SentenceTransformer) -> None:
        self.hard_negatives = hard_negatives
        self.first = hard_negatives.to_dataset("n-tuple")
        self.values: dict[str, list[float]] = {"positives": [], "negatives mined once": [], "negatives, refreshed": []}
        self.measure(model)

    def measure(self, model: SentenceTransformer) -> None:
        """Note the mean similarities now."""
        now = self.hard_negatives.to_dataset("n-tuple")
        self.values["positives"].append(similarity(model, self.first, ["positive"]))
        negatives = [name for name in self.first.column_names if name.startswith("negative")]
        self.values["negatives mined once"].append(similarity(model, self.first, negatives))
        self.values["negatives, refreshed"].append(similarity(model, now, negatives))

    def on_epoch_end(self, args: object, state: object, control: object, model: object = None, **_: object) -> None:
        """Mine with the weights of now, as the refresh before the next epoch does, and measure."""
        self.hard_negatives.mine(model, show_progress_bar=False)
        self.measure(model)  # type: ignore[arg-type]


def similarity(model: SentenceTransformer, rows: Dataset, columns: list[str]) -> float:
    """Return the mean cosine similarity of the rows' anchors and the texts of some columns."""
    anchors = model.encode_query(rows["anchor"][:], convert_to_tensor=True)
    means = []
    for column in columns:
        texts = model.encode_document(rows[column][:], convert_to_tensor=True)
        means.append(float(torch.nn.functional.cosine_similarity(anchors, texts).mean()))
    return statistics.mean(means)


def draw_refresh(arguments: object, path: Path) -> None:
    """Train with refreshes and draw the three lines."""
    pairs, corpus, _ = load(arguments.data, arguments.limit)  # type: ignore[attr-defined]
    base = make_model(arguments, [*pairs["anchor"], *corpus["text"]])  # type: ignore[arg-type]
    model = copy.deepcopy(base)
    hard_negatives = HardNegativeDataset(pairs, corpus, make_config(arguments), batch_size=256)  # type: ignore[arg-type]
    hard_negatives.mine(model, show_progress_bar=False)
    follow = Follow(copy.deepcopy(hard_negatives), model)
    callbacks = [MiningCallback(hard_negatives, mining_strategy="epoch"), follow]
    loss = SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives)
    train(model, hard_negatives.as_dataset(with_ids=True), arguments, 1, callbacks, loss)  # type: ignore[arg-type]
    figure, axes = pyplot.subplots(figsize=(7, 3.4))
    colours = {"positives": GREY, "negatives mined once": RED, "negatives, refreshed": BLUE}
    for name, values in follow.values.items():
        axes.plot(range(len(values)), values, color=colours[name], marker="o", linewidth=2)
        axes.annotate(
            name, (len(values) - 1, values[-1]), (8, 0), textcoords="offset points", color=colours[name], va="center"
        )
        print(f"{name:<22}" + " ".join(f"{value:.3f}" for value in values))
    axes.set(xlabel="epochs trained", ylabel="cosine to the anchor", xticks=range(len(follow.values["positives"])))
    axes.spines["bottom"].set_bounds(0, len(follow.values["positives"]) - 1)
    axes.set_xlim(-0.15, len(follow.values["positives"]) + 0.9)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


SHOWN = {
    "once, naive": ("mined once", GREY),
    "once, 95 % of positive": ("mined once, margin .05", GREY),
    "refreshed, 95 % of positive": ("refreshed, margin .05", RED),
    "recommended, refreshed": ("the recipe, refreshed", BLUE),
}


def draw_worth(results: str, path: Path) -> None:
    """Draw how much nDCG@10 each way of mining gains over in-batch negatives alone, a row for each data set."""
    with open(results, encoding="utf-8") as file:
        cells = [json.loads(line) for line in file]
    last: dict[tuple[str, str], dict[int, float]] = {}
    for cell in cells:
        last.setdefault((cell["set"], cell["arm"]), {})[cell["seed"]] = cell["by_epoch"][-1]
    sets = [name for name in dict.fromkeys(name for name, _ in last) if (name, "in-batch") in last]
    figure, axes = pyplot.subplots(figsize=(7, 0.8 + 0.62 * len(sets)))
    for row, name in enumerate(sets):
        baseline = statistics.mean(last[name, "in-batch"].values())
        for place, (arm, (label, colour)) in enumerate(SHOWN.items()):
            runs = last.get((name, arm), {})
            if not runs:
                continue
            height = row + (place - (len(SHOWN) - 1) / 2) * 0.17
            gains = [value - baseline for value in runs.values()]
            hollow = arm == "once, naive"
            axes.plot([min(gains), max(gains)], [height, height], color=colour, linewidth=1)
            axes.plot(
                statistics.mean(gains), height, "o", color=colour, markersize=7, label=label if row == 0 else None,
                markerfacecolor="none" if hollow else colour,
            )  # fmt: skip
            print(
                f"{name:<12} {label:<24} {statistics.mean(gains):+.3f} over in-batch {baseline:.3f}, {len(runs)} seeds"
            )
    axes.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(yticks=range(len(sets)), yticklabels=sets, xlabel="nDCG@10 on held-out queries, above in-batch negatives")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    """Draw one of the pictures beside this file."""
    parser = argument_parser(__doc__, without=("seeds",))
    parser.add_argument("picture", choices=["refresh", "worth"])
    parser.add_argument("--results", default="recipes.jsonl", help="what compare_recipes.py has written")
    parser.add_argument("--out", type=Path, help="default: beside this file")
    arguments = parser.parse_args()
    disable_progress_bars()
    path = arguments.out or Path(__file__).parent / f"{arguments.picture}.svg"
    if arguments.picture == "refresh":
        draw_refresh(arguments, path)
    else:
        draw_worth(arguments.results, path)
    print(path)


if __name__ == "__main__":
    main()
