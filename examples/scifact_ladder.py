"""The SciFact ladder: what others publish, and what two cores reach in minutes, with the seconds of each row.

    python examples/scifact_ladder.py --data DIR --model sentence-transformers/all-MiniLM-L6-v2 [--seeds 1 2 3]

DIR holds SciFact in BEIR's layout. The trained rows start from the model's word vectors only (a static embedding); the row
of the whole model is not trained. Published rows are their authors' figures and were not run here.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from bm25s import BM25, tokenize
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformer
from train_with_refresh import argument_parser, load, make_model, measure, train

from st_hardneg import HardNegativeDataset, MiningCallback
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss

PUBLISHED = (
    ("BM25, BEIR's own figure", 0.665),
    ("bert-base, Tevatron's recipe, 80 epochs on a GPU", 0.7473),
    ("LACONIC, a billion parameters, sparse", 0.752),
    ("Qwen3-Embedding-4B, not fine-tuned", 0.7801),
    ("Condenser, fine-tuned", 0.7841),
)


@dataclass(frozen=True)
class Row:
    """One rung: nDCG@10 of every seed, and the seconds of one run, training and mining included."""

    name: str
    values: list[float]
    seconds: float


def timed(name: str, runs: list[Callable[[], float]]) -> Row:
    """Run once per seed."""
    started = time.perf_counter()
    values = [run() for run in runs]
    return Row(name, values, (time.perf_counter() - started) / len(runs))


def bm25(queries: dict[str, str], corpus: dict[str, str], relevant: dict[str, set[str]]) -> float:
    """Return nDCG@10 of BM25 with English stemming left out."""
    index = BM25()
    ids = list(corpus)
    index.index(tokenize(list(corpus.values()), stopwords="en", show_progress=False), show_progress=False)
    tokens = tokenize(list(queries.values()), stopwords="en", show_progress=False)
    found, _ = index.retrieve(tokens, k=10, show_progress=False)
    discounts = 1.0 / np.log2(np.arange(2, 12))
    gains = []
    for query, places in zip(queries, found, strict=True):
        hits = np.array([ids[place] in relevant[query] for place in places], dtype=float)
        gains.append(float(hits @ discounts) / float(discounts[: len(relevant[query])].sum()))
    return statistics.mean(gains)


def trained(base: SentenceTransformer, evaluate: object, arguments: argparse.Namespace, seed: int, way: str) -> float:
    """Train a copy on in-batch negatives, on negatives mined once, or on refreshed ones; return nDCG@10."""
    pairs, corpus, _ = load(arguments.data, arguments.limit)
    model = copy.deepcopy(base)
    if way == "in-batch":
        train(model, pairs.select_columns(["anchor", "positive"]), arguments, seed)
        return measure(evaluate, model)  # type: ignore[arg-type]
    hard_negatives = HardNegativeDataset(pairs, corpus, num_negatives=arguments.num_negatives, batch_size=256)
    hard_negatives.mine(model, show_progress_bar=False)
    callbacks = [MiningCallback(hard_negatives, mining_strategy="epoch")] if way == "refreshed" else None
    loss = SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives)
    train(model, hard_negatives.as_dataset(with_ids=True), arguments, seed, callbacks, loss)
    return measure(evaluate, model)  # type: ignore[arg-type]


def main() -> None:
    """Climb, and print the ladder."""
    without = ("static", "layers", "relative-margin", "range-max", "shortfall")
    arguments = argument_parser(__doc__, without).parse_args()
    if not arguments.data or not arguments.model:
        raise SystemExit("name SciFact's folder with --data and a model with --model")
    arguments.static = True
    _, corpus, evaluate = load(arguments.data)
    queries, documents, relevant = queries_of(evaluate, corpus)
    base = make_model(arguments, [])
    rows = [
        timed("BM25 (bm25s), here", [lambda: bm25(queries, documents, relevant)]),
        timed("static embedding, untrained", [lambda: measure(evaluate, base)]),
        timed("the whole model, not fine-tuned", [lambda: measure(evaluate, SentenceTransformer(arguments.model))]),
    ]
    for way in ("in-batch", "mined once", "refreshed"):
        runs = [lambda s=seed, w=way: trained(base, evaluate, arguments, s, w) for seed in arguments.seeds]
        rows.append(timed(f"static embedding, {way}", runs))
    ladder = [(name, value, "published") for name, value in PUBLISHED]
    ladder += [(row.name, statistics.mean(row.values), f"{row.seconds:.0f} s") for row in rows]
    print(f"{os.cpu_count()} CPU cores, {platform.machine()}; {len(arguments.seeds)} seeds for what is trained\n")
    print(f"{'SciFact, 300 test claims':<52}{'nDCG@10':>8}{'a run':>12}")
    for name, value, took in sorted(ladder, key=lambda line: line[1]):
        print(f"{name:<52}{value:>8.4f}{took:>12}")


def queries_of(evaluate: object, corpus: Dataset) -> tuple[dict[str, str], dict[str, str], dict[str, set[str]]]:
    """Return test queries, documents and right answers by id, as the evaluator has them."""
    ids, texts, relevant = evaluate.queries_ids, evaluate.queries, evaluate.relevant_docs  # type: ignore[attr-defined]
    return dict(zip(ids, texts, strict=True)), dict(zip(corpus["_id"], corpus["text"], strict=True)), relevant


if __name__ == "__main__":
    disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    main()
