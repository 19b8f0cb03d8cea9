"""Peak memory and time of mining with sparse vectors, beyond the texts: ``python tests/benchmarks/sparse_memory.py``.

A stand-in for a SparseEncoder returns vectors of so many active dimensions, so that what is measured is ours: the
vectors, the search and the rules. The memory is that of the process at its highest, less what it was with all
texts in memory; each recipe has a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig

DIM = 30_522
RECIPES = {"plain": MiningConfig(), "recommended": MiningConfig.recommended()}


class SparseEncoder:
    """Texts "text 7 …" and "query 7" to so many random weights, each in a stretch of the vocabulary of its own.

    A query has every fifth weight of its text, so that its right answer is usually found first.

    Args:
        active: Weights that are not zero.
        dim: Size of the vocabulary.
    """

    similarity_fn_name = "dot"

    def __init__(self, active: int, dim: int = DIM) -> None:
        self.active, self.dim = active, dim

    def encode_document(self, texts: list[str], **_: object) -> torch.Tensor:
        """Return a sparse tensor of shape ``(len(texts), dim)``."""
        return self._weights(texts, np.arange(self.active))

    def encode_query(self, texts: list[str], **_: object) -> torch.Tensor:
        """Return the same with every fifth weight."""
        return self._weights(texts, np.arange(0, self.active, 5))

    def _weights(self, texts: list[str], stretches: np.ndarray) -> torch.Tensor:
        numbers = np.array([int(text.split()[1]) for text in texts], dtype=np.uint64)[:, None]
        mixed = (numbers * np.uint64(1_000_003) + stretches.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        width = self.dim // self.active
        columns = stretches * width + ((mixed >> np.uint64(33)) % np.uint64(width)).astype(np.int64)
        weights = ((mixed >> np.uint64(20)) % np.uint64(1000)).astype(np.float32) / 500.0 + 0.01
        places = np.stack([np.repeat(np.arange(len(texts)), len(stretches)), columns.ravel()])
        values, shape = torch.from_numpy(weights.ravel()), (len(texts), self.dim)
        options = {"is_coalesced": True, "check_invariants": False}
        return torch.sparse_coo_tensor(torch.from_numpy(places), values, shape, **options)


def in_process(name: str) -> float:
    """Return a figure of this process in MB: ``VmRSS``, its memory, or ``VmHWM``, the highest that it was."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(num_texts: int, active: int, num_queries: int, config: MiningConfig) -> tuple[float, float]:
    """Return by how many MB the process grew at most while it mined, and how many seconds it took."""
    texts = [f"text {number} {'about something ' * 10}" for number in range(num_texts)]
    anchors = [f"query {number}" for number in range(num_queries)]
    pairs = Dataset.from_dict({"anchor": anchors, "positive": texts[:num_queries]})
    model = SparseEncoder(active)
    small = HardNegativeDataset(pairs.select(range(50)), texts[:500], config)
    small.mine(model, show_progress_bar=False)  # what is loaded at first use is not counted
    found = HardNegativeDataset(pairs, texts, config)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the highest so far is forgotten
    before, started = in_process("VmRSS"), time.perf_counter()
    found.mine(model, show_progress_bar=False)
    return in_process("VmHWM") - before, time.perf_counter() - started


def main() -> None:
    """Measure one recipe, or each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-texts", type=int, default=100_000)
    parser.add_argument("--active", type=int, default=150)
    parser.add_argument("--num-queries", type=int, default=2_000)
    parser.add_argument("--recipe", choices=RECIPES)
    options = parser.parse_args()
    if options.recipe is None:
        for name in RECIPES:
            subprocess.run([sys.executable, *sys.argv, "--recipe", name], check=True)
        return
    torch.set_num_threads(1)
    grown, seconds = measure(options.num_texts, options.active, options.num_queries, RECIPES[options.recipe])
    print(f"{options.recipe}: {grown:.0f} MB at most beyond the texts, {seconds:.1f} s")


if __name__ == "__main__":
    main()
