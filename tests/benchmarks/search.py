"""Exact search against FAISS Flat called directly, and at every chunk size and depth against the best of them.

    python tests/benchmarks/search.py [--sizes 50000 200000] [--dim 384] [--queries 1000] [--repeats 3]

CPU seconds of one thread for all queries, medians of interleaved runs, which others on the machine hardly change. "FAISS
Flat called directly" is an ``IndexFlatIP`` that is filled once; ours are asked through :class:`Searcher`, for as
many queries at once as a mining asks for. Chunks of other sizes are asked for as in a mining, which searches ahead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

CHUNKS = (64, 128, 512, 2_048)
DEPTHS = (10, 60, 300)


def interleaved(cases: dict[object, Callable[[], None]], repeats: int) -> dict[object, float]:
    """Return the median seconds of each case, run in turn."""
    seconds: dict[object, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            started = time.process_time()
            case()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(some) for name, some in seconds.items()}


def vectors(count: int, dim: int, seed: int):
    """Return unit vectors in clusters, float32."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(500, dim, generator=torch.Generator().manual_seed(0))
    found = torch.randn(count, dim, generator=generator)
    found += centres[torch.randint(500, (count,), generator=generator)]
    return torch.nn.functional.normalize(found, dim=1)


def measure(size: int, dim: int, num_queries: int, repeats: int) -> bool:
    """Measure one size of the corpus."""
    import faiss
    import numpy as np
    import torch
    from measuring import judged

    from st_hardneg.hosts import computes_bfloat16
    from st_hardneg.search import ExactSearcher, FaissSearcher
    from st_hardneg.sources.dense import Space

    corpus, queries = vectors(size, dim, 1), vectors(num_queries, dim, 2)
    flat = faiss.IndexFlatIP(dim)
    flat.add(corpus.numpy())
    searchers = {"exact": ExactSearcher(), "faiss": FaissSearcher()}
    for searcher in searchers.values():
        searcher.index(corpus, "cosine")

    def in_chunks(searcher, chunk: int, depth: int) -> Callable[[], None]:
        order, space = torch.arange(num_queries), Space(searcher, np.arange(size), 0)

        def search() -> None:
            space.prepare(queries, order, torch.full_like(order, min(depth, size)))
            for ids in order.split(chunk):
                space.search(queries[ids], min(depth, size), ids)

        return search

    def alone(searcher) -> Callable[[], None]:
        return lambda: [searcher.search(some, 60) for some in queries.split(searcher.queries_at_once)] and None

    cases = {"direct": lambda: flat.search(queries.numpy(), 60)}
    cases |= {name: alone(searcher) for name, searcher in searchers.items()}
    seconds = interleaved(cases, repeats)
    print(f"{size:,} x {dim}, {num_queries:,} queries: " + ", ".join(f"{n} {s:.2f} s" for n, s in seconds.items()))
    # Where bfloat16 is native, exact search gains by it.
    bounds = {"exact": 0.7 if computes_bfloat16("cpu") else 1.2, "faiss": 1.2}
    figures = {f"{name} against FAISS Flat": (seconds[name] / seconds["direct"], bounds[name]) for name in searchers}
    for name, searcher in searchers.items():
        for depth in DEPTHS:
            each = interleaved({chunk: in_chunks(searcher, chunk, depth) for chunk in CHUNKS}, repeats)
            worst = max(each, key=lambda chunk: each[chunk])
            figures[f"{name}, depth {depth}: {worst} queries at once, against the best"] = (
                each[worst] / min(each.values()),
                1.3,
            )
    return judged(figures)


def main(arguments: list[str] | None = None) -> bool:
    """Measure each size, and tell whether the ratios hold."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return all([measure(size, given.dim, given.queries, given.repeats) for size in given.sizes])


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
