"""Every format that is written, on a labelled set, and read back: rows, ids, negatives, scores, weights and columns.

    python tests/benchmarks/round_trips.py --data PATH_OF_scifact [--model PATH_OF_all-MiniLM-L6-v2] [--reader PATH]

``--data`` is a folder in BEIR's layout; it is mined with the word vectors of the model. The rows get a column of evidence
and one of notes, the corpus keeps its own. ``--reader`` is a folder with FlagEmbedding's source (`pip download --no-deps
FlagEmbedding`, unpacked), whose own reader then reads its file, too. It ends with 1 if anything comes back as something
else.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import numpy as np
from datasets import Dataset, disable_progress_bars, load_dataset
from train_with_refresh import word_vectors

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.formats.beir import read_beir
from st_hardneg.layouts import beir_tables

READERS = {
    "flag-embedding": HardNegativeDataset.from_flag_embedding,
    "tevatron": HardNegativeDataset.from_tevatron,
    "ids": HardNegativeDataset.from_ids,
    "beir": HardNegativeDataset.from_beir,
}
EVIDENCE = ("whole", "partly", None)


def noted(pairs: Dataset) -> Dataset:
    """Return pairs with further columns: how far a text supports its claim, and a nested one."""
    rows = range(len(pairs))
    pairs = pairs.add_column("evidence", [EVIDENCE[row % 3] for row in rows])
    return pairs.add_column("notes", [{"sentences": list(range(row % 4)), "by": f"reader {row % 5}"} for row in rows])


def written(dataset: HardNegativeDataset, columns: list[str]) -> dict[str, Any]:
    """Return what a file has to bring back, by name."""
    given, scores = dataset._wrapped.rows.dataset.with_format(None), dataset.negative_scores
    corpus, ids = dataset.corpus, dataset.negative_ids
    mining = dataset.live.mining
    assert mining is not None
    return {
        "pairs": list(dataset.known_pairs()),
        "negatives": [corpus.texts.take(row[row >= 0]) for row in ids],
        "negative_scores": [s[row >= 0].astype(float).tolist() for s, row in zip(scores, ids, strict=True)],
        "positive_score": mining.positive_similarities.tolist(),
        "weight": given["weight"][:],
        **{name: given[name][:] for name in columns},
        "corpus": documents(dataset, sorted({*ids[ids >= 0].tolist(), *dataset._wrapped.pairs.row_positive.tolist()})),
    }


def read(dataset: HardNegativeDataset, columns: list[str]) -> dict[str, Any]:
    """Return the same of what was read."""
    rows = dataset._wrapped.rows.dataset.with_format(None)
    names = sorted((name for name in rows.column_names if name.startswith("negative_") and name[9:].isdigit()), key=len)
    texts = zip(*(rows[name][:] for name in names), strict=True)
    return {
        "pairs": list(dataset.known_pairs()),
        "negatives": [[text for text in row if text is not None] for row in texts],
        **{name: rows[name][:] for name in ("negative_scores", "positive_score", "weight", *columns)},
        "corpus": documents(dataset, range(len(dataset.corpus))),
    }


def documents(dataset: HardNegativeDataset, numbers: Any) -> dict[str, dict[str, Any]]:
    """Return the rows of the corpus by id."""
    given = dataset.corpus.given
    assert given is not None
    return {row["_id"]: row for row in given.with_format(None).select(numbers)}


def differing(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return the names of what came back as something else."""
    if len(expected["pairs"]) != len(found["pairs"]):
        return [f"{len(found['pairs']):,} of {len(expected['pairs']):,} rows"]
    return [name for name in expected if expected[name] != found[name]]


def differing_in_flag_embedding(source: str, path: str, dataset: HardNegativeDataset) -> list[str]:
    """Return what FlagEmbedding's own reader reads as something else than what the dataset holds."""
    folder = os.path.join(source, "FlagEmbedding", "abc", "finetune", "embedder")
    package = types.ModuleType("embedder")
    package.__path__ = [folder]
    sys.modules["embedder"] = package  # alone, without the rest of FlagEmbedding and what that needs
    arguments, reader = (importlib.import_module(f"embedder.Abs{name}") for name in ("Arguments", "Dataset"))
    mining, pairs = dataset.live.mining, dataset._wrapped.pairs
    assert mining is not None
    width, wrong = dataset.config.num_negatives, set()
    for with_scores in (False, True):
        args = arguments.AbsEmbedderDataArguments(
            train_data=[path],
            train_group_size=width + 1,
            knowledge_distillation=with_scores,
            cache_path=os.path.join(os.path.dirname(path), "reader"),
        )
        found = reader.AbsEmbedderTrainDataset(args, tokenizer=None)
        if len(found) != pairs.num_queries:
            wrong.add(f"{len(found):,} of {pairs.num_queries:,} queries")
        for query in range(pairs.num_queries):
            text, passages, scores = found[query]
            ids = mining.negatives.ids[query]
            theirs = dict(
                zip(dataset.corpus.texts.take(ids.numpy()), mining.negatives.scores[query].tolist(), strict=True)
            )
            rows = np.flatnonzero(pairs.row_query == query)
            right = dict(
                zip(
                    dataset.corpus.texts.take(pairs.row_positive[rows]),
                    mining.positive_similarities[rows].tolist(),
                    strict=True,
                )
            )
            expected = right | theirs
            if text != pairs.anchors.take(rows[:1])[0] or passages[0] not in right:
                wrong.add("pairs")
            if set(passages[1:]) != set(theirs):
                wrong.add("negatives")
            if with_scores and [expected.get(one) for one in passages] != list(scores):
                wrong.add("scores")
    return sorted(wrong)


def main() -> None:
    """Mine, write, read, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--reader", help="FlagEmbedding's source")
    args = parser.parse_args()
    disable_progress_bars()
    pairs, corpus = read_beir(*beir_tables(args.data, None, None, "train"))
    dataset = HardNegativeDataset(noted(pairs), corpus, MiningConfig(num_negatives=3))
    dataset.mine(word_vectors(args.model), show_progress_bar=False)
    columns = ["query-id", "corpus-id", "score", "evidence", "notes"]
    expected, is_well = written(dataset, columns), True

    def say(layout: str, wrong: list[str]) -> None:
        nonlocal is_well
        is_well &= not wrong
        told = "NOT EQUAL: " + ", ".join(wrong) if wrong else "equal"
        print(f"{layout:<22} {len(dataset):,} rows: {told}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for layout, reader in READERS.items():
            path = dataset.export(os.path.join(folder, layout), layout)
            say(layout, differing(expected, read(reader(path), columns)))
            if layout == "flag-embedding" and args.reader:
                whole = dataset.export(os.path.join(folder, "whole.jsonl"), layout)
                say("FlagEmbedding's reader", differing_in_flag_embedding(args.reader, whole, dataset))
        for layout in ("triplet", "n-tuple", "labeled-pair", "labeled-list"):
            for ending, kind in (("jsonl", "json"), ("parquet", "parquet"), ("csv", "csv")):
                if (layout, ending) == ("labeled-list", "csv"):  # lists do not fit into CSV
                    continue
                path = dataset.export(os.path.join(folder, f"{layout}.{ending}"), layout)
                found = load_dataset(kind, data_files=path, split="train", cache_dir=os.path.join(folder, "cache"))
                ours = dataset.to_dataset(layout).to_dict()
                say(f"{layout} {ending}", [name for name in ours if found.to_dict().get(name) != ours[name]])
    sys.exit(not is_well)


if __name__ == "__main__":
    main()
