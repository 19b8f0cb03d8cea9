"""The drop-in and HardNegativeDataset against Sentence Transformers' function: time and memory, the same embeddings.

    python tests/benchmarks/drop_in.py [--rows 20000] [--dim 384] [--repeats 3]

Each measurement is a process of its own, with one thread. Encoding is a look-up, and everything else is counted: numbering
the texts, search, filters, draws, and writing the rows. "Beyond the search" is all but the time in the searcher, or in
FAISS, or in the product and top-k. Memory is the peak beyond the texts and embeddings that all are given.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from measuring import RandomVectors, clock_around, in_processes, judged, peak_mb, texts

SETTINGS = {
    "range_min": 10,
    "range_max": 50,
    "max_score": 0.8,
    "relative_margin": 0.05,
    "sampling_strategy": "random",
    "num_negatives": 5,
}


def run(which: str, pairs, model, use_faiss: bool):
    """Mine with one of the three and return the triplets."""
    if which == "dataset":
        from st_hardneg import HardNegativeDataset, MiningConfig

        hard_negatives = HardNegativeDataset(pairs, config=MiningConfig(**SETTINGS), use_faiss=use_faiss)
        hard_negatives.mine(model)
        return hard_negatives.to_dataset("triplet")
    if which == "drop-in":
        from st_hardneg import mine_hard_negatives
    else:
        from sentence_transformers.util import mine_hard_negatives
    return mine_hard_negatives(pairs, model, use_faiss=use_faiss, verbose=False, **SETTINGS)


def places_of_search(which: str, use_faiss: bool, model):
    """Return the functions whose time is the search."""
    import faiss
    import torch

    from st_hardneg.search import ExactSearcher, FaissSearcher

    if which != "theirs":
        searcher = FaissSearcher if use_faiss else ExactSearcher
        return [(searcher, "index"), (searcher, "search")]
    if use_faiss:
        return [(faiss.IndexFlatIP, "add"), (faiss.IndexFlatIP, "search")]
    return [(model, "similarity"), (torch, "topk")]


def measure(which: str, rows: int, dim: int, use_faiss: bool) -> dict[str, float]:
    """Run one of the three in this process and return its figures."""
    import torch
    from datasets import Dataset

    torch.set_num_threads(1)
    model = RandomVectors(rows, dim)
    queries, documents = texts("query", rows, 40), texts("document", rows, 415)
    pairs, few = (Dataset.from_dict({"anchor": queries[:n], "positive": documents[:n]}) for n in (rows, 64))
    with contextlib.redirect_stderr(io.StringIO()):
        run(which, few, model, use_faiss)  # so that no import is counted
        places = places_of_search(which, use_faiss, model)
        before, started = peak_mb(), time.perf_counter()
        with clock_around(*places) as search:
            triplets = run(which, pairs, model, use_faiss)
        seconds = time.perf_counter() - started
    assert len(triplets) == SETTINGS["num_negatives"] * rows
    return {"seconds": seconds, "search": search[0], "beyond": seconds - search[0], "mb": peak_mb() - before}


def main(arguments: list[str] | None = None) -> bool:
    """Measure all three in turn, with FAISS and without, and tell whether the ratios of the medians hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=2)
    given = parser.parse_args(arguments)
    if given.measure:
        which, search = given.measure
        print(json.dumps(measure(which, given.rows, given.dim, search == "faiss")))
        return True
    is_good = True
    for search in ("faiss", "exact"):
        sizes = ["--rows", given.rows, "--dim", given.dim]
        cases = {which: [*sizes, "--measure", which, search] for which in ("theirs", "drop-in", "dataset")}
        found = in_processes(__file__, cases, given.repeats)
        print(f"{given.rows:,} pairs, {given.dim} dimensions, {search}, 5 negatives each")
        for which, one in found.items():
            print(
                f"  {which:<8} {one['seconds']:6.2f} s, search {one['search']:6.2f} s, beyond it {one['beyond']:5.2f} s, "
                f"+{one['mb']:.0f} MB"
            )
        for which in ("drop-in", "dataset"):
            ratio = {key: found[which][key] / found["theirs"][key] for key in found[which]}
            is_good &= judged(
                {
                    f"{which}, {search}: beyond the search": (ratio["beyond"], 0.1),
                    f"{which}, {search}: whole run": (ratio["seconds"], 0.6),
                    f"{which}, {search}: extra memory": (ratio["mb"], 0.5),
                }
            )
    return is_good


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
