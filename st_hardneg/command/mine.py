"""``st-hardneg mine``."""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

import numpy as np

from st_hardneg.command.inputs import is_saved, load_model, wrapped
from st_hardneg.command.recipe import settings_of
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.report import MiningReport

_SAMPLE_QUERIES, _SAMPLE_TEXTS = 200, 2_000


def run(asked: argparse.Namespace) -> None:
    """Mine, save, and write the report.

    Raises:
        ValueError: If something is missing or does not fit.
        OSError: If something cannot be read or written.
    """
    recipe, options = settings_of(asked)
    if "model" not in options:
        raise ValueError(
            "Expected a model to mine with. Name one with `--model`, such as all-MiniLM-L6-v2, or a folder."
        )
    output = options.get("output", "hard-negatives")
    page = options.get("report", f"{os.fspath(output).rstrip('/')}.html")
    if not asked.dry_run:
        check_writable(output)
    hard_negatives = wrapped(asked.input, recipe, options)
    print(f"{hard_negatives!r}")
    model = load_model(options["model"])
    if asked.dry_run:
        _dry_run(hard_negatives, model)
        return
    print(hard_negatives.mine(model))
    hard_negatives.save_to_disk(output)
    hard_negatives.report.save(page)
    print(f"\nsaved to {output}; the report is {page}")


def check_writable(folder: str) -> None:
    """Raise before anything is computed if a folder cannot be saved to.

    Raises:
        OSError: If so.
    """
    above = os.path.abspath(folder)
    if os.path.isdir(above) and os.listdir(above) and not is_saved(above):
        raise FileExistsError(f"The folder {folder!r} holds something else. Name another one with `--output`.")
    while not os.path.exists(above):
        above = os.path.dirname(above)
    try:
        os.rmdir(tempfile.mkdtemp(dir=above, prefix=".st-hardneg-"))  # whatever the permissions say
    except OSError as error:
        raise OSError(
            f"Cannot write to {folder!r} ({error.strerror}). Name a folder that you may write to with `--output`."
        ) from None


def _dry_run(hard_negatives: HardNegativeDataset, model: Any) -> None:
    """Mine a sample, and say what all of it will take."""
    wrapped_rows, pairs, corpus = hard_negatives._wrapped.rows, hard_negatives._wrapped.pairs, hard_negatives.corpus
    print(f"\nunderstood: {wrapped_rows}")
    queries = np.unique(np.linspace(0, pairs.num_queries - 1, min(_SAMPLE_QUERIES, pairs.num_queries)).astype(np.int64))
    rows = np.flatnonzero(np.isin(pairs.row_query, queries))
    searched = corpus.searched
    texts = searched[np.linspace(0, len(searched) - 1, min(_SAMPLE_TEXTS, len(searched))).astype(np.int64)]
    sample = HardNegativeDataset(
        wrapped_rows.dataset.with_format(None).select(rows),
        corpus.texts.take(texts),
        hard_negatives.config,
        anchor_column_name=wrapped_rows.anchor_name,
        positive_column_name=wrapped_rows.positive_name,
        cross_encoder=hard_negatives._wrapped.task.cross_encoder,
        batch_size=hard_negatives.batch_size,
    )
    report = sample.mine(model)
    print(f"\na sample of {report.num_queries:,} queries and {report.num_corpus:,} texts:\n{report}")
    dim = len(np.asarray(model.encode(["."])[0]))
    print(f"\n{estimate(report, pairs.num_queries, len(searched), dim)}")


def estimate(report: MiningReport, num_queries: int, num_texts: int, dim: int) -> str:
    """Return what mining all of it will take, by what the sample took.

    Args:
        report: The sample's report.
        num_queries: Queries of all.
        num_texts: Texts of all.
        dim: Dimensions of the vectors.
    """
    texts, all_texts = report.num_queries + report.num_corpus, num_queries + num_texts
    encoding = report.seconds["encoding"] * all_texts / max(1, texts)
    # Every query is compared with every text; the rules look at as many candidates for each query.
    compared = num_queries * num_texts / max(1, report.num_queries * report.num_corpus)
    others = num_queries / max(1, report.num_queries)
    search = report.seconds.get("search", 0.0) * compared + report.seconds.get("rest", 0.0) * others
    memory = all_texts * dim * 4 / 2**20
    return (
        f"all of it, {num_queries:,} queries and {num_texts:,} texts: about {encoding:,.0f} s to encode, at most "
        f"{search:,.0f} s to search and filter, {memory:,.0f} MB of vectors. Nothing was written."
    )
