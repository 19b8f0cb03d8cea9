"""Rescoring of 500 queries with 30 candidates each, beside the loop of Sentence Transformers' ``mine_hard_negatives``.

Run it with ``python tests/benchmarks/rescoring.py [--queries 500] [--candidates 30]``. The texts are of very different
lengths, as those of a corpus are. The second line is a refresh: a
tenth of the candidates is new.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset
from st_hardneg.mining.rescoring import rescorer


def make_texts(count: int, rng: np.random.Generator, mean: float) -> list[str]:
    """Return texts of random words, whose lengths are spread as those of passages are."""
    lengths = np.clip(rng.lognormal(np.log(mean), 0.8, count).astype(int), 3, 180)
    return [
        " ".join(f"w{word}" for word in rng.integers(0, 200, length)) + f" t{i}" for i, length in enumerate(lengths)
    ]


def make_model(folder: str, layers: int, width: int):
    """Return a cross encoder with random weights."""
    from sentence_transformers import CrossEncoder
    from transformers import BertForSequenceClassification

    from tests.tiny_models import bert_config, saved

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    config = bert_config(max_position_embeddings=256, num_labels=1, initializer_range=0.2, **sizes)
    model = CrossEncoder(saved(Path(folder), BertForSequenceClassification(config)), num_labels=1, device="cpu")
    model.max_seq_length = 200
    return model


def measure(num_queries: int, num_candidates: int, layers: int = 2, width: int = 64) -> dict[str, float]:
    """Return seconds of both, the ratio, the largest difference of scores, and the seconds of a refresh."""
    rng = np.random.default_rng(0)
    anchors, texts = make_texts(num_queries, rng, 8), make_texts(10 * num_queries, rng, 50)
    rows = Dataset.from_dict({"anchor": anchors, "positive": texts[:num_queries]})
    found = HardNegativeDataset(rows, texts)
    pairs, corpus = found._wrapped.pairs, found.corpus
    ids = np.stack([rng.choice(len(texts), num_candidates, replace=False) for _ in range(num_queries)])
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(folder, layers, width)
        started = time.perf_counter()
        theirs = [
            model.predict(
                [(anchor, texts[i]) for i in row], batch_size=32, convert_to_tensor=True, show_progress_bar=False
            )
            for anchor, row in zip(anchors, ids, strict=True)
        ]
        slow = time.perf_counter() - started
        kept: dict[str, Any] = {}
        queries = torch.arange(num_queries).repeat_interleave(num_candidates)
        started = time.perf_counter()
        ours = rescorer(model, pairs, corpus, batch_size=32, kept=kept)(queries, torch.from_numpy(ids.ravel()))
        fast = time.perf_counter() - started
        ids[:, : num_candidates // 10] = rng.integers(0, len(texts), (num_queries, num_candidates // 10))
        started = time.perf_counter()
        rescorer(model, pairs, corpus, batch_size=32, kept=kept)(queries, torch.from_numpy(ids.ravel()))
        refresh = time.perf_counter() - started
    difference = float((ours - torch.cat(theirs)).abs().max())
    return {"theirs": slow, "ours": fast, "ratio": slow / fast, "difference": difference, "refresh": refresh}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--candidates", type=int, default=30)
    given = parser.parse_args()
    found = measure(given.queries, given.candidates)
    seconds = f"Sentence Transformers {found['theirs']:.1f} s, st_hardneg {found['ours']:.1f} s"
    print(f"{given.queries} x {given.candidates}: {seconds}, ratio {found['ratio']:.2f}")
    print(f"largest difference {found['difference']:.1e}; a refresh {found['refresh']:.1f} s")
