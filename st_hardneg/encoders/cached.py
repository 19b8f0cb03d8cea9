"""Encoders that keep their vectors on disk."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.multi_vector import MultiVectorTextEncoder
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.reuse import ReusingEncoder
from st_hardneg.encoders.sparse import SparseTextEncoder
from st_hardneg.encoders.store import SHARD, Store, StoredRows, digests_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# Folders of vectors that are kept for one mining, and what says that it goes on.
_FOR_NOW, _LOCK = "for_now_", "lock"
# Of this process: on some file systems to close a lock's file a second time lets go of the lock.
_HELD: set[str] = set()


def cached(encoder: Encoder, folder: str | None, say: Callable[..., None]) -> Encoder:
    """Return an encoder that keeps its vectors in a folder, or the encoder itself where there is none.

    Args:
        encoder: The encoder.
        folder: The folder, or None.
        say: Told what was read and written.
    """
    if not folder:
        return encoder
    if isinstance(encoder, (SparseTextEncoder, MultiVectorTextEncoder)):
        logger.warning(
            "`cache_folder` is not used: it holds one dense vector of each text, which this model has not got."
        )
        return encoder
    fingerprint = encoder.fingerprint()
    if fingerprint is None:
        logger.warning(
            "`cache_folder` is not used: the model is no torch module, so its weights cannot be told from others."
        )
        return encoder
    return CachedEncoder(encoder, folder, fingerprint, say)


def on_disk(encoder: Encoder, texts: Sequence[str], folder: str, *, show_progress_bar: bool = False) -> StoredRows:
    """Return the vectors of corpus texts as rows that stay on disk.

    Those of an encoder that is not kept for later go when they are not used any more.

    Args:
        encoder: The encoder; dense.
        texts: The texts.
        folder: Where to keep them, if the encoder has no place of its own.
        show_progress_bar: Whether to show progress.
    """
    if isinstance(encoder, CachedEncoder):
        return encoder.rows(texts, show_progress_bar=show_progress_bar)
    os.makedirs(folder, exist_ok=True)
    _clear_of_killed(folder)
    for_now = tempfile.mkdtemp(prefix=_FOR_NOW, dir=folder)
    _HELD.add(for_now)
    lock = _locked(for_now)
    kept = CachedEncoder(encoder, for_now, "one_mining", logger.debug)
    try:
        rows = kept.rows(texts, show_progress_bar=show_progress_bar)
    except BaseException:
        _remove(for_now, lock)
        raise
    weakref.finalize(rows, _remove, for_now, lock)
    return rows


def _locked(folder: str) -> IO[bytes] | None:
    """Return the open lock of a folder, which the system lets go of when this process ends, in whatever way."""
    if fcntl is None:
        return None
    path = os.path.join(folder, _LOCK)
    file = open(f"{path}.new", "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.replace(file.name, path)  # others see it once it is held
    except OSError:  # a file system without locks
        file.close()
        return None
    return file


def _clear_of_killed(folder: str) -> None:
    """Remove vectors of one mining that processes have left which were killed: nobody holds their locks any more."""
    left = set(glob.glob(os.path.join(glob.escape(folder), f"{_FOR_NOW}*"))) if fcntl is not None else set()
    for path in left - _HELD:
        with suppress(OSError), open(os.path.join(path, _LOCK), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


def _remove(folder: str, lock: IO[bytes] | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _HELD.discard(folder)
    if lock is not None:
        lock.close()


class CachedEncoder:
    """An encoder that keeps its vectors on disk, by everything that decides them and by text.

    A :class:`~st_hardneg.encoders.reuse.ReusingEncoder` stops keeping vectors in memory, where they would be kept twice.

    Args:
        encoder: The encoder; dense.
        folder: Where to keep vectors; made if it is not there.
        fingerprint: What identifies everything that decides them.
        say: Told what was read and written.
    """

    def __init__(self, encoder: Encoder, folder: str, fingerprint: str, say: Callable[..., None]) -> None:
        self.encoder, self.folder, self.key, self.say = encoder, folder, fingerprint, say
        if isinstance(encoder, ReusingEncoder):
            encoder.keep_nothing()
        self.similarity, self.pairwise, self.score_function = (
            encoder.similarity,
            encoder.pairwise,
            encoder.score_function,
        )

    def queries(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Any:
        """Return the vectors of queries, float32 of shape ``(len(texts), dim)``."""

        def encode(some: Sequence[str]) -> Tensor:
            vectors: Any = self.encoder.queries(some, show_progress_bar=show_progress_bar)
            return torch.as_tensor(vectors)

        shards = [shard for _, _, shard in self._kept("query", texts, encode)]
        return torch.cat(shards) if shards else self.encoder.queries(texts)

    def corpus(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Iterator[Tensor]:
        """Yield the vectors of corpus texts in shards, float32 of shape ``(some, dim)``."""
        for _, _, shard in self._kept("corpus", texts, self._encode_corpus(show_progress_bar)):
            yield shard

    def rows(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> StoredRows:
        """Return the vectors of corpus texts as rows that stay on disk."""
        places: list[Ids] = []
        store, dim = None, 0
        for kept_in, some, shard in self._kept("corpus", texts, self._encode_corpus(show_progress_bar)):
            places.append(some)
            store, dim = kept_in, shard.shape[1]
        assert store is not None
        return StoredRows(store, np.concatenate(places), dim)

    def fingerprint(self, probes: Sequence[str] = ()) -> str | None:
        """Return what identifies everything that decides the vectors."""
        return self.key

    def _encode_corpus(self, show_progress_bar: bool) -> Callable[[Sequence[str]], Tensor]:
        def encode(some: Sequence[str]) -> Tensor:
            shards: list[Any] = list(self.encoder.corpus(some, show_progress_bar=show_progress_bar))
            return torch.cat(shards)

        return encode

    def _kept(
        self, kind: str, texts: Sequence[str], encode: Callable[[Sequence[str]], Tensor]
    ) -> Iterator[tuple[Store, Ids, Tensor]]:
        """Yield, a few thousand texts at a time, where vectors are in which store, and the vectors."""
        folder = os.path.join(self.folder, f"{kind}_embeddings_{self.key}")
        store = Store(folder)
        num_encoded = 0
        for start in range(0, len(texts), SHARD):
            some = texts[start : start + SHARD]
            digests = digests_of(some)
            places = store.find(digests)
            missing = np.flatnonzero(places < 0)
            if len(missing):
                _, first, which = np.unique(digests[missing], return_index=True, return_inverse=True)
                order = np.argsort(first)  # equal texts once, in the order of the texts
                new = missing[first[order]]
                vectors = encode(some if len(new) == len(some) else [some[i] for i in new.tolist()])
                places_of = np.empty(len(new), dtype=np.int64)
                places_of[order] = store.add(digests[new], vectors.detach().float().cpu().numpy())
                places[missing] = places_of[which.ravel()]
                num_encoded += len(new)
            yield store, places, torch.from_numpy(store.read_through(places))
        if num_encoded:
            self.say(f"[Cache] Saved {kind} embeddings of {num_encoded:,} texts to {folder}")
        if num_encoded < len(texts):
            self.say(f"[Cache] Loaded {kind} embeddings of {len(texts) - num_encoded:,} texts from {folder}")
