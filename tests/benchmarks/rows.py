"""Rows at the sizes of users: construction, reading from disk, writing triplets, and whether they grow with the rows.

    python tests/benchmarks/rows.py [--rows 500000] [--length 415]

CPU seconds of one thread, medians of three processes. The mining itself is left out: negatives are drawn by number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from measuring import RandomVectors, in_processes, judged, texts


def measure(rows: int, length: int) -> dict[str, float]:
    """Return the seconds of each step."""
    import torch
    from datasets import Dataset

    from st_hardneg import HardNegativeDataset, MiningConfig

    torch.set_num_threads(1)
    config = MiningConfig(num_negatives=5, sources={"random": 5})
    pairs = Dataset.from_dict({"anchor": texts("query", rows, 50), "positive": texts("document", rows, length)})
    HardNegativeDataset(pairs.select(range(50)), config=config)  # so that no import is counted
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = step()
        seconds[name] = time.process_time() - started
        return result

    found = timed("construction", lambda: HardNegativeDataset(pairs, config=config))
    found.mine(RandomVectors(rows, 8), show_progress_bar=False)
    assert len(timed("triplets", lambda: found.to_dataset("triplet"))) == 5 * rows
    with tempfile.TemporaryDirectory() as folder:
        found.save_to_disk(os.path.join(folder, "saved"))
        timed("load_from_disk", lambda: HardNegativeDataset.load_from_disk(os.path.join(folder, "saved")))
    return seconds


def main(arguments: list[str] | None = None) -> bool:
    """Measure so many rows and a fifth of them, and tell whether the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--length", type=int, default=415)
    parser.add_argument("--measure", type=int)
    given = parser.parse_args(arguments)
    if given.measure:
        print(json.dumps(measure(given.measure, given.length)))
        return True
    cases = {str(n): ["--length", given.length, "--measure", n] for n in (given.rows // 5, given.rows)}
    fewer, all_rows = in_processes(__file__, cases, 3).values()
    share = given.rows / 500_000
    bounds = {"construction": 2.5, "load_from_disk": 0.5, "triplets": 1.5}
    figures = {
        f"{name}, {given.rows:,} rows: seconds": (all_rows[name], bound * share) for name, bound in bounds.items()
    }
    figures |= {f"{name}: 5 times the rows, times the time": (all_rows[name] / fewer[name], 6.5) for name in bounds}
    return judged(figures)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
