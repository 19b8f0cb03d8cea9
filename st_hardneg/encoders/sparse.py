"""Texts to sparse vectors: SPLADE and other models of the kind SparseEncoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from st_hardneg.encoders.dense import Encoding, Encodings, call, check_finite, halving, similarity_name
from st_hardneg.encoders.fingerprint import MAX_PROBES, PROBES, recipe_fingerprint, remembered
from st_hardneg.encoders.sparse_rows import SparseRows, similarities
from st_hardneg.errors import MiningError

# Texts encoded into one block: what is sorted by length together, and what is searched at once.
_SHARD = 4_096


class SparseTextEncoder:
    """A SparseEncoder, or an object whose ``encode_query`` and ``encode_document`` return sparse vectors.

    Args:
        model: The model.
        encodings: Prompts, routes and batch sizes.

    Raises:
        TypeError: If the model cannot encode queries and documents.
        ValueError: If its vectors cannot be searched by its similarity.
    """

    def __init__(self, model: Any, encodings: Encodings) -> None:
        self.model = model
        self.encodings = encodings
        self.similarity = similarity_name(model)
        self.pairwise, self.score_function = similarities(self.similarity)

    def queries(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> SparseRows:
        """Return the vectors of queries, of shape ``(len(texts), dim)``."""
        shards = self._shards(texts, self.encodings.queries, "Encoding queries", show_progress_bar)
        return SparseRows.concatenated(list(shards))

    def corpus(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Iterator[SparseRows]:
        """Yield the vectors of corpus texts in shards, of shape ``(at most 4,096, dim)`` each."""
        yield from self._shards(texts, self.encodings.corpus, "Encoding texts", show_progress_bar)

    def fingerprint(self, probes: Sequence[str] = ()) -> str | None:
        """Return what identifies the model and its prompts, or None for a model whose weights cannot be seen.

        Args:
            probes: Texts of the data whose vectors go into it, besides :data:`~st_hardneg.encoders.fingerprint.PROBES`.
        """
        if not isinstance(self.model, nn.Module):
            return None
        both = (self.encodings.queries, self.encodings.corpus)
        recipe = [(one.task, one.prompt_name, one.prompt) for one in both]
        texts = [*PROBES, *probes[:MAX_PROBES]]

        def with_vectors(state: str) -> str:
            return recipe_fingerprint(state, *(_fingerprint(_encode(self.model, texts, one)) for one in both))

        # A module of SPLADE models sees only from its first text how many dimensions there are, and notes it.
        _encode(self.model, PROBES[:1], self.encodings.corpus)
        return remembered(self.model, [recipe, texts], with_vectors)

    def _shards(
        self, texts: Sequence[str], encoding: Encoding, what: str, show_progress_bar: bool
    ) -> Iterator[SparseRows]:
        # A pool shares out what it is given at once.
        size = max(1, len(texts)) if encoding.pool is not None else _SHARD
        with tqdm(total=len(texts), desc=what, unit="text", disable=not show_progress_bar) as progress:
            for start in range(0, len(texts), size):
                some = texts[start : start + size]
                rows = _encode(self.model, some, encoding)
                progress.update(len(some))
                yield rows


def _encode(model: Any, texts: Sequence[str], encoding: Encoding) -> SparseRows:
    """Encode texts; see :func:`st_hardneg.encoders.dense.encode` for what is raised."""

    def run(batch_size: int) -> SparseRows:
        encoded, _ = call(
            model,
            texts,
            replace(encoding, batch_size=batch_size),
            show_progress_bar=False,
            convert_to_tensor=True,
            convert_to_sparse_tensor=True,
            save_to_cpu=True,
        )
        return SparseRows.of(encoded)

    rows = halving(run, encoding.batch_size)
    if len(rows) != len(texts):
        raise MiningError(
            f"Expected one vector per text from {type(model).__name__}, got {len(rows):,} for {len(texts):,} texts."
        )
    sums = torch.from_numpy(np.asarray(rows.matrix().sum(axis=1)).ravel())
    check_finite(sums.isfinite(), texts)
    return rows


def _fingerprint(rows: SparseRows) -> str:
    """Identify vectors to three digits, of those weights that are left then; more would tell devices apart."""
    matrix = rows.matrix().tocoo()
    scaled = (matrix.data / max(float(abs(matrix.data).max(initial=0.0)), 1e-12) * 1000.0).round().astype(np.int64)
    kept = scaled != 0
    return recipe_fingerprint(*(part[kept].tolist() for part in (matrix.row, matrix.col, scaled)))
