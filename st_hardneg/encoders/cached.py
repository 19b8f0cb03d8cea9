"""Vectors on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.encoders.fingerprint import recipe_fingerprint, texts_fingerprint
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.vectors import stacked

logger = logging.getLogger(__name__)


def cached(encoder: Encoder, folder: str | None, probes: Sequence[str], say: Callable[..., None]) -> Encoder:
    """Return an encoder that keeps its vectors in a folder, or the encoder itself where there is none.

    Args:
        encoder: The encoder.
        folder: The folder, or None.
        probes: Some texts of the data, whose vectors help to tell the model from another one.
        say: Told what was read and written.
    """
    if not folder:
        return encoder
    fingerprint = encoder.fingerprint(probes)
    if fingerprint is None:
        logger.warning(
            "`cache_folder` is not used: the model is no torch module, so its weights cannot be told from others."
        )
        return encoder
    os.makedirs(folder, exist_ok=True)
    return CachedEncoder(encoder, folder, fingerprint, say)


class CachedEncoder:
    """An encoder that keeps its vectors on disk, by everything that decides them.

    Args:
        encoder: The encoder.
        folder: Where to keep vectors; it exists.
        fingerprint: What identifies everything that decides them.
        say: Told what was read and written.
    """

    def __init__(self, encoder: Encoder, folder: str, fingerprint: str, say: Callable[..., None]) -> None:
        self.encoder, self.folder, self.key, self.say = encoder, folder, fingerprint, say
        self.similarity, self.pairwise, self.score_function = (
            encoder.similarity,
            encoder.pairwise,
            encoder.score_function,
        )

    def queries(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Any:
        """Return the vectors of queries, float32 of shape ``(len(texts), dim)``."""
        return self._kept("query", texts, lambda: self.encoder.queries(texts, show_progress_bar=show_progress_bar))

    def corpus(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Iterator[Tensor]:
        """Yield the vectors of corpus texts, all of them in one shard."""

        def encode() -> Any:
            return stacked(self.encoder.corpus(texts, show_progress_bar=show_progress_bar), len(texts))

        yield self._kept("corpus", texts, encode)

    def fingerprint(self, probes: Sequence[str] = ()) -> str | None:
        """Return what identifies everything that decides the vectors."""
        return self.key

    def _kept(self, kind: str, texts: Sequence[str], encode: Callable[[], Any]) -> Any:
        key = recipe_fingerprint(self.key, kind, texts_fingerprint(texts))
        path = os.path.join(self.folder, f"{kind}_embeddings_{key}.npy")
        if os.path.exists(path):
            embeddings = torch.from_numpy(np.load(path, allow_pickle=False))
            self.say(f"[Cache] Loaded {kind} embeddings from {path} (shape={tuple(embeddings.shape)})")
            return embeddings
        embeddings = encode()
        # Written under another name first: a run that is stopped half-way leaves no half file under the real one.
        partial_path = f"{path}.{os.getpid()}.partial"
        with open(partial_path, "wb") as file:
            np.save(file, embeddings.cpu().numpy())
        os.replace(partial_path, path)
        self.say(f"[Cache] Saved {kind} embeddings to {path}")
        return embeddings
