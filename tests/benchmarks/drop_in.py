"""The drop-in against Sentence Transformers: the whole function, time and memory, on the same embeddings.

    python tests/benchmarks/drop_in.py [--rows 20000] [--dim 384] [--repeats 3] [--exact]

Each measurement is a process of its own, with one thread. Encoding is free, and everything else is counted: search,
filters, draws, and writing the rows. Memory is the peak beyond the texts and embeddings that both are given.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time

SETTINGS = {
    "range_min": 10,
    "range_max": 50,
    "max_score": 0.8,
    "relative_margin": 0.05,
    "sampling_strategy": "random",
    "num_negatives": 5,
    "verbose": False,
}


class FixedEmbeddings:
    """A model that looks embeddings up."""

    similarity_fn_name = "cosine"

    def __init__(self, rows: int, dim: int) -> None:
        import torch

        rng = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz     "
        self.device = torch.device("cpu")
        self.queries = [f"query {i} " + "".join(rng.choices(letters, k=40)) for i in range(rows)]
        self.documents = [f"document {i} " + "".join(rng.choices(letters, k=415)) for i in range(rows)]
        generator = torch.Generator().manual_seed(0)
        queries, noise = (torch.randn(rows, dim, generator=generator) for _ in range(2))
        # A positive has a cosine of about .7 with its query.
        unit = torch.nn.functional.normalize
        self.embeddings = {True: unit(queries, dim=1), False: unit(queries + noise, dim=1)}

    def _encode(self, is_query: bool, convert_to_tensor: bool):
        embeddings = self.embeddings[is_query]
        return embeddings if convert_to_tensor else embeddings.numpy()

    def encode_query(self, texts, convert_to_tensor=False, **_):
        return self._encode(True, convert_to_tensor)

    def encode_document(self, texts, convert_to_tensor=False, **_):
        return self._encode(False, convert_to_tensor)

    def get_embedding_dimension(self):
        return self.embeddings[True].shape[1]

    def encode(self, texts, **_):
        raise AssertionError("neither function calls this")

    def similarity(self, left, right):
        from sentence_transformers.util import cos_sim

        return cos_sim(left, right)

    def similarity_pairwise(self, left, right):
        from sentence_transformers.util import pairwise_cos_sim

        return pairwise_cos_sim(left, right)


def peak_mb() -> float:
    """Return this process's peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(which: str, rows: int, dim: int, use_faiss: bool) -> None:
    """Run one of the functions in this process and print its figures."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as theirs

    from st_hardneg import mine_hard_negatives as ours

    torch.set_num_threads(1)
    model, small = FixedEmbeddings(rows, dim), FixedEmbeddings(64, dim)
    dataset, few = (Dataset.from_dict({"anchor": m.queries, "positive": m.documents}) for m in (model, small))
    function = ours if which == "ours" else theirs
    with contextlib.redirect_stderr(io.StringIO()):
        function(few, small, use_faiss=use_faiss, **SETTINGS)  # so that no import is counted
        before, started = peak_mb(), time.perf_counter()
        result = function(dataset, model, use_faiss=use_faiss, **SETTINGS)
        seconds = time.perf_counter() - started
    assert len(result) == SETTINGS["num_negatives"] * rows
    print(json.dumps({"seconds": seconds, "mb": peak_mb() - before}))


def main() -> None:
    """Measure both in turn and print the ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--exact", action="store_true", help="without FAISS")
    parser.add_argument("--measure", choices=["ours", "theirs"])
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.rows, arguments.dim, not arguments.exact)
        return
    figures: dict[str, list[dict[str, float]]] = {"theirs": [], "ours": []}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(arguments.repeats):
        for which, found in figures.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", which]
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            found.append(json.loads(output.splitlines()[-1]))
    median = {
        which: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for which, found in figures.items()
    }
    search = "exact search" if arguments.exact else "FAISS"
    print(
        f"{arguments.rows:,} pairs, {arguments.dim} dimensions, {search}, 5 negatives each; medians of "
        f"{arguments.repeats} processes each, one thread"
    )
    for which, name in (("theirs", "sentence-transformers"), ("ours", "st_hardneg")):
        print(f"{name:<22} {median[which]['seconds']:6.2f} s, +{median[which]['mb']:.0f} MB")
    time_ratio = median["ours"]["seconds"] / median["theirs"]["seconds"]
    memory_ratio = median["ours"]["mb"] / median["theirs"]["mb"]
    print(f"{time_ratio:.2f} of the time, {memory_ratio:.2f} of the memory")


if __name__ == "__main__":
    main()
