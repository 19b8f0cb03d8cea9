"""What the benchmarks share: models whose encoding is free, a clock around searches, and processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import cos_sim, pairwise_cos_sim


def texts(kind: str, count: int, length: int) -> list[str]:
    """Return texts such as ``"query 17 …"`` of about so many characters, none twice."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 10))) for _ in range(5_000)]
    pool = " ".join(rng.choices(words, k=20_000))
    return [f"{kind} {i} {pool[(i * 7919) % 90_000 :][:length].strip()}" for i in range(count)]


class FreeModel:
    """A model whose encoding costs next to nothing: a text's vector is looked up by the number in it."""

    similarity_fn_name = "cosine"
    device = torch.device("cpu")

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.num_encoded = 0
        self.similarity, self.similarity_pairwise = cos_sim, pairwise_cos_sim

    def vectors(self, kind: str, numbers: np.ndarray) -> torch.Tensor:
        """Return unit vectors of texts of a kind, ``"query"`` or ``"document"``, by number."""
        raise NotImplementedError

    def _encode(self, kind: str, some: Sequence[str], convert_to_tensor: bool) -> Any:
        self.num_encoded += len(some)
        numbers = np.array([int(text.split(" ", 2)[1]) for text in some], dtype=np.int64)
        vectors = self.vectors(kind, numbers)
        return vectors if convert_to_tensor else vectors.numpy()

    def encode_query(self, texts, convert_to_tensor=False, **_):
        return self._encode("query", texts, convert_to_tensor)

    def encode_document(self, texts, convert_to_tensor=False, **_):
        return self._encode("document", texts, convert_to_tensor)

    def get_embedding_dimension(self) -> int:
        return self.dim


class RandomVectors(FreeModel):
    """Held in memory: random directions, and positives with a cosine of about .7 with their query."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(dim)
        generator = torch.Generator().manual_seed(0)
        queries, noise = (torch.randn(rows, dim, generator=generator) for _ in range(2))
        unit = torch.nn.functional.normalize
        self.tables = {"query": unit(queries, dim=1), "document": unit(queries + noise, dim=1)}

    def vectors(self, kind: str, numbers: np.ndarray) -> torch.Tensor:
        return self.tables[kind][torch.from_numpy(numbers)]


class ComputedVectors(FreeModel):
    """Computed from the number, so that millions of them take no memory before they are asked for."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        generator = torch.Generator().manual_seed(0)
        self.fine, self.coarse, self.noise = (torch.randn(n, dim, generator=generator) for n in (4_099, 4_093, 509))

    def vectors(self, kind: str, numbers: np.ndarray) -> torch.Tensor:
        places = torch.from_numpy(numbers)
        vectors = self.fine[places % len(self.fine)] + self.coarse[places // len(self.fine) % len(self.coarse)]
        if kind == "query":
            vectors += self.noise[places % len(self.noise)]
        return vectors.div_(torch.linalg.vector_norm(vectors, dim=1, keepdim=True))


def peak_mb() -> float:
    """Return this process's peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def clock_around(*places: tuple[Any, str]) -> Iterator[list[float]]:
    """Add up the seconds in some functions, given as ``(object, name)``; those that call each other count once."""
    spent, is_inside = [0.0], [False]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            if is_inside[0]:
                return function(*arguments, **named)
            is_inside[0], started = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                is_inside[0] = False
                spent[0] += time.perf_counter() - started

        return run

    real = [(place, name, getattr(place, name)) for place, name in places]
    for place, name, function in real:
        setattr(place, name, timed(function))
    try:
        yield spent
    finally:
        for place, name, function in real:
            setattr(place, name, function)


def in_processes(script: str, cases: dict[str, Sequence[str]], repeats: int) -> dict[str, dict[str, float]]:
    """Run a script once for each case, in turn and so many times over, and return the medians of what it prints.

    Args:
        script: The file, which prints one line of JSON with numbers at the end.
        cases: Its arguments, by name.
        repeats: How often each is run. Each is a process of its own, with one thread.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, arguments in cases.items():
            command = [sys.executable, script, *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}


def judged(figures: dict[str, tuple[float, float]]) -> bool:
    """Print each figure with its bound, and tell whether all of them are within."""
    for name, (value, bound) in figures.items():
        print(f"{name:<60} {value:7.3f}  (at most {bound:g}){'' if value <= bound else '  TOO HIGH'}")
    return all(value <= bound for value, bound in figures.values())
