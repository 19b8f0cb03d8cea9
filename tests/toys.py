"""Toy models and toy datasets that several rooms are tested on: every vector can be worked out by hand."""

from __future__ import annotations

import math
import random
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig

TOO_UNLIKELY = 1e-4
"""Below this p-value, a sound sampler fails once in ten thousand seeds; the seeds of the tests are fixed."""

BOTH = ("corpus", "anchors")
"""The search spaces of the dual-space search."""


class Model:
    """A model that computes a text's vector with a function, and counts its calls."""

    def __init__(self, vector_of: Callable[[str], Sequence[float]], similarity: str = "cosine") -> None:
        self.vector_of = vector_of
        self.similarity_fn_name = similarity
        self.calls = 0

    def encode(self, texts, **options):
        self.calls += 1
        return torch.tensor(np.array([self.vector_of(text) for text in texts]), dtype=torch.float32)

    encode_query = encode_document = encode

    def score(self, left: str, right: str) -> float:
        """Return the similarity of two texts, in float64."""
        a, b = (np.array(self.vector_of(text), dtype=np.float64) for text in (left, right))
        if self.similarity_fn_name == "euclidean":
            return -float(np.linalg.norm(a - b))
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


class Untouchable(Model):
    """A model that no text may reach."""

    def __init__(self) -> None:
        super().__init__(lambda text: [1.0])

    def encode(self, texts, **options):
        raise AssertionError("a text was encoded before the input was refused")

    encode_query = encode_document = encode


def by_angle(text: str) -> tuple[float, float]:
    """The text "note 40°" points to 40°."""
    angle = math.radians(float(text.split()[-1].rstrip("°")))
    return math.cos(angle), math.sin(angle)


def by_seed(seed: int, dim: int = 6) -> Callable[[str], np.ndarray]:
    """Give every text a random vector of its own."""
    return lru_cache(None)(lambda text: np.random.default_rng([seed, zlib.crc32(text.encode())]).standard_normal(dim))


def rows_of(pairs: Sequence[tuple[str, str]]) -> Dataset:
    """Return (anchor, positive) rows."""
    return Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})


def wrapped(pairs, corpus=None, parts: dict[str, Any] | None = None, **fields) -> HardNegativeDataset:
    """Wrap rows with ST's plain recipe and these fields; ``parts`` are further arguments of the dataset.

    ``sources`` go to the dataset, which takes quotas, values and objects.
    """
    pairs = pairs if isinstance(pairs, Dataset) else rows_of(pairs)
    sources = fields.pop("sources", None)
    return HardNegativeDataset(pairs, corpus, MiningConfig(**fields), sources=sources, **(parts or {}))


def mined(pairs, model, corpus=None, parts: dict[str, Any] | None = None, **fields) -> HardNegativeDataset:
    """Wrap and mine."""
    found = wrapped(pairs, corpus, parts, **fields)
    found.mine(model, show_progress_bar=False)
    return found


def texts_of(found: HardNegativeDataset) -> list[list[str]]:
    """Return the negatives of every row as texts, without empty slots."""
    return [found.corpus.texts.take([i for i in row if i >= 0]) for row in found.negative_ids.tolist()]


def same(text: str) -> str:
    """Return what two texts share that are the same to a reader, written out plainly."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def random_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return pairs of texts that are all different."""
    rng = random.Random(seed)
    return [(f"q{i} {rng.random():.4f}", f"p{i} {rng.random():.4f}") for i in range(count)]


def dated(texts: Sequence[str], years: Sequence[int], domains: Sequence[str]) -> Dataset:
    """Return a corpus with ids, years and domains."""
    ids = [f"doc{number}" for number in range(len(texts))]
    return Dataset.from_dict({"_id": ids, "text": list(texts), "year": list(years), "domain": list(domains)})
