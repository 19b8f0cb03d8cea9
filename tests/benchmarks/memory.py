"""Peak memory and time of a mining over a large corpus: held in memory, and streamed from disk.

    python tests/benchmarks/memory.py [--texts 1000000] [--small 100000] [--dim 384] [--queries 200]

Encoding is free. In memory, exact and with FAISS, the peak beyond texts and imports is compared with the size of the
matrix of vectors. Streamed (``cache_folder`` and a ``max_memory`` that nothing fits into), a corpus ten times as large is
compared with the smaller one, and its negatives with those found in memory. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from measuring import ComputedVectors, in_processes, judged, peak_mb


def corpus_on_disk(folder: str, count: int):
    """Return a corpus of short texts that Arrow maps from disk."""
    import pyarrow as pa
    from datasets import Dataset

    path = os.path.join(folder, "corpus.arrow")
    schema = pa.schema({"text": pa.large_string()})
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            writer.write_batch(
                pa.record_batch([pa.array([f"document {i} says" for i in numbers], pa.large_string())], schema)
            )
    return Dataset.from_file(path)


def measure(how: str, count: int, dim: int, num_queries: int) -> dict[str, float]:
    """Mine in this process, and return peak and seconds beyond what was there before."""
    import torch
    from datasets import Dataset

    from st_hardneg import HardNegativeDataset, MiningConfig

    torch.set_num_threads(1)
    model = ComputedVectors(dim)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        corpus = corpus_on_disk(folder, count)
        # Of each block of the numbering one, in the smaller corpus and in the larger one the same.
        rows = [i * 97 for i in range(num_queries)]
        texts = {"anchor": [f"query {i} asks" for i in rows], "positive": [f"document {i} says" for i in rows]}
        options: dict[str, object] = {
            "config": MiningConfig(num_negatives=5, range_max=50),
            "use_faiss": how == "faiss",
        }
        if how == "streamed":
            options |= {"cache_folder": os.path.join(folder, "vectors"), "max_memory": 1e-3}
        few = Dataset.from_dict({name: some[:8] for name, some in texts.items()})
        HardNegativeDataset(few, [f"document {i} says" for i in range(50)], **options).mine(model)
        before, started = peak_mb(), time.process_time()
        hard_negatives = HardNegativeDataset(Dataset.from_dict(texts), corpus, **options)
        hard_negatives.mine(model)
        seconds = time.process_time() - started
        ids = hard_negatives.negative_ids.tobytes()
    digest = int.from_bytes(hashlib.blake2b(ids, digest_size=6).digest(), "little")
    return {"mb": peak_mb() - before, "peak": peak_mb(), "seconds": seconds, "result": digest}


def main(arguments: list[str] | None = None) -> bool:
    """Measure all cases, and tell whether the ratios hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--streamed-only", action="store_true", help="for a corpus that does not fit into memory")
    parser.add_argument("--measure", nargs=2)
    given = parser.parse_args(arguments)
    if given.measure:
        how, count = given.measure
        print(json.dumps(measure(how, int(count), given.dim, given.queries)))
        return True
    sizes = ["--dim", given.dim, "--queries", given.queries]
    cases = {f"streamed {count:,}": ["--measure", "streamed", count] for count in (given.small, given.texts)}
    if not given.streamed_only:
        cases |= {how: ["--measure", how, given.texts] for how in ("exact", "faiss")}
    found = in_processes(__file__, {name: [*sizes, *case] for name, case in cases.items()}, 1)
    for name, one in found.items():
        print(f"{name:<22} {one['seconds']:7.1f} s, +{one['mb']:,.0f} MB, peak {one['peak']:,.0f} MB")
    matrix = 4 * given.texts * given.dim / 2**20
    small, large = (found[f"streamed {count:,}"] for count in (given.small, given.texts))
    factor = given.texts / given.small
    figures = {
        f"streamed, {factor:g} times the texts: peak": (large["peak"] / small["peak"], 1.3),
        f"streamed, {factor:g} times the texts: time": (large["seconds"] / small["seconds"], 1.05 * factor),
    }
    for how in () if given.streamed_only else ("exact", "faiss"):
        figures[f"{how}: peak in matrices"] = (found[how]["mb"] / matrix, 1.3)
        figures[f"{how}: another result than streamed"] = (float(found[how]["result"] != large["result"]), 0.0)
    return judged(figures)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
