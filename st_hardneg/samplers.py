"""Batches without duplicate anchors and positives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

from st_hardneg.corpus import same_text_key

_READ_ROWS = 10_000


class NoDuplicatePairsBatchSampler(NoDuplicatesBatchSampler):
    """Batches in which no anchor or positive occurs twice, whatever the negatives are at the moment.

    Sentence Transformers' ``BatchSamplers.NO_DUPLICATES`` looks at every column, negatives included: with negatives that
    are refreshed, the plan of batches changes under the training, and a resumed run draws other batches than the
    uninterrupted one. ``NO_DUPLICATES_HASHED`` hashes the negatives once and goes on with the first round's. This one
    looks at the first two columns only, which a refresh never changes, and compares texts as the mining does
    (case, whitespace and Unicode form do not count).

    Use:
        ::

            args = SentenceTransformerTrainingArguments(..., batch_sampler=NoDuplicatePairsBatchSampler)

    Args:
        dataset: The dataset; its first two columns that are no labels are anchor and positive.
        batch_size: Rows per batch.
        drop_last: Whether to drop the last incomplete batch.
        valid_label_columns: Names of label columns, which are not looked at.
        generator: Random number generator for shuffling.
        seed: Seed for the generator.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            valid_label_columns=valid_label_columns,
            generator=generator,
            seed=seed,
        )
        # ST's sampler then compares `_row_hashes` in place of the rows themselves.
        self.precompute_hashes = True
        self._row_hashes: np.ndarray | None = None

    def _build_hashes(self) -> None:
        if self._row_hashes is None:
            self._row_hashes = pair_hashes(self.dataset)


def pair_hashes(dataset: Dataset) -> np.ndarray:
    """Return int64 of shape ``(num_rows, 2)``: a number that equal texts share, for anchor and positive of each row."""
    columns: Sequence[str] = [name for name in dataset.column_names if name != "dataset_name"][:2]
    pairs = dataset.select_columns(list(columns))
    hashes = np.empty((len(dataset), len(columns)), dtype=np.int64)
    for start in range(0, len(dataset), _READ_ROWS):
        batch: dict[str, list[Any]] = pairs[start : start + _READ_ROWS]
        for place, name in enumerate(columns):
            hashes[start : start + _READ_ROWS, place] = [_hash(value) for value in batch[name]]
    return hashes


def _hash(value: Any) -> int:
    key = same_text_key(value) if isinstance(value, str) else hashlib.blake2b(repr(value).encode()).digest()
    return int.from_bytes(key[:8], "little", signed=True)
