"""Vectors on disk, a few thousand texts a file, found by text: what is there is not encoded again."""

from __future__ import annotations

import glob
import hashlib
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from st_hardneg.corpus.identity import text_digests
from st_hardneg.corpus.texts import Ids
from st_hardneg.search import ExactSearcher, FaissSearcher, Searcher
from st_hardneg.search.sharded import ShardedSearcher

SHARD = 4_096
"""Texts a file: what a run that is killed may have to encode again."""

# Files that are open for single vectors at once.
_OPEN = 256
Digests = npt.NDArray[np.void]


class _Vectors:
    """A file of vectors, of which some are read at a time.

    Not mapped into memory: for each page that is touched the system maps its neighbours, too, and to look at ten thousand
    candidates would make a corpus's files resident.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)
        np.lib.format.read_magic(self._file)
        self.shape = np.lib.format.read_array_header_1_0(self._file)[0]
        self.offset = self._file.tell()
        self._close = weakref.finalize(self, self._file.close)

    def read(self, rows: Ids) -> npt.NDArray[np.float32]:
        """Return some rows, float32 of shape ``(len(rows), dim)``."""
        vectors = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        # Rows that lie behind each other are read at once.
        runs = np.flatnonzero(np.diff(rows, prepend=-2, append=-2) != 1)
        for start, stop in pairwise(runs):
            self._file.seek(self.offset + 4 * self.shape[1] * int(rows[start]))
            left = vectors[start:stop].data.cast("B")
            while len(left):
                count = self._file.readinto(left)
                if not count:
                    raise OSError(f"{self._file.name} has become shorter than its {self.shape[0]:,} vectors.")
                left = left[count:]
        return vectors


class Store:
    """A folder of vectors of one model and one kind of text.

    A file ``<name>.npy`` holds vectors, and ``<name>.texts.npy``, which is written after it, the digests of their texts. A
    file appears whole or not at all: it is written under another name first. So a run may be killed at any moment, and two
    may write at once.

    Args:
        folder: The folder; made if it is not there.
    """

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        ready = glob.glob(os.path.join(glob.escape(folder), "*.texts.npy"))
        # Of runs that were killed, or write now. The folder is looked through once: it may hold thousands of files.
        self._partial = set(glob.glob(os.path.join(glob.escape(folder), "*.partial")))
        self.names = sorted(os.path.basename(path).removesuffix(".texts.npy") for path in ready)
        digests = [np.load(self._path(f"{name}.texts"), allow_pickle=False).view("V16").ravel() for name in self.names]
        self._starts = [0, *np.cumsum([len(some) for some in digests]).tolist()]
        # Sorted lists of digests and where these are, each at least as long as the next: one more costs little.
        self._sorted: list[tuple[Any, Ids]] = []
        if digests:
            self._know(np.concatenate(digests), 0)
        self._opened: OrderedDict[int, _Vectors] = OrderedDict()

    def _know(self, digests: Digests, first: int) -> None:
        halves, places = digests.view("<u8").reshape(-1, 2), np.arange(first, first + len(digests))
        while self._sorted and len(self._sorted[-1][1]) <= len(places):
            more, theirs = self._sorted.pop()
            halves, places = np.concatenate([more, halves]), np.concatenate([theirs, places])
        order = np.argsort(halves[:, 0], kind="stable")
        self._sorted.append((halves[order], places[order]))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.npy")

    def find(self, digests: Digests) -> Ids:
        """Return where texts are, int64 of shape ``(m,)`` that :meth:`read` takes; -1 for those that are not there."""
        wanted = digests.view("<u8").reshape(-1, 2)
        found = np.full(len(digests), -1, dtype=np.int64)
        order = np.argsort(wanted[:, 0])  # so that those that lie beside each other are looked up one after the other
        wanted = wanted[order]
        for halves, places in self._sorted:
            at, left = np.searchsorted(halves[:, 0], wanted[:, 0]), np.flatnonzero(found < 0)
            # Different texts with one half of their digests in common stand beside each other; there hardly are any.
            while len(left := left[at[left] < len(halves)]):
                is_half = halves[at[left], 0] == wanted[left, 0]
                is_it = is_half & (halves[at[left], 1] == wanted[left, 1])
                found[left[is_it]] = places[at[left[is_it]]]
                left = left[is_half & ~is_it]
                at[left] += 1
        found[order] = found.copy()
        return found

    def _files_and_rows(self, places: Ids) -> tuple[Ids, Ids]:
        files = np.searchsorted(self._starts, places, side="right") - 1
        return files, places - np.asarray(self._starts)[files]

    def read(self, places: Ids) -> npt.NDArray[np.float32]:
        """Return the vectors at some places, float32 of shape ``(m, dim)``."""
        files, rows = self._files_and_rows(places)
        if len(places) and bool((files == files[0]).all()):
            return self._open(int(files[0])).read(rows)
        order = np.argsort(files, kind="stable")
        bounds = np.flatnonzero(np.diff(files[order], prepend=-1, append=-1))
        vectors: Any = None
        for start, stop in pairwise(bounds):
            some = order[start:stop]
            found = self._open(int(files[some[0]])).read(rows[some])
            vectors = np.empty((len(places), found.shape[1]), dtype=np.float32) if vectors is None else vectors
            vectors[some] = found
        return vectors if vectors is not None else np.empty((0, 0), dtype=np.float32)

    def read_through(self, places: Ids) -> npt.NDArray[np.float32]:
        """Return the same as :meth:`read`; a whole file is read and forgotten, so that none of it stays in memory."""
        files, rows = self._files_and_rows(places)
        first = int(files[0])
        if bool((files == first).all()):
            vectors: npt.NDArray[np.float32] = np.load(self._path(self.names[first]), allow_pickle=False)
            whole = len(rows) == len(vectors) and bool((rows == np.arange(len(rows))).all())
            return vectors if whole else vectors[rows]
        return self.read(places)

    def _open(self, number: int) -> _Vectors:
        if number in self._opened:
            self._opened.move_to_end(number)
            return self._opened[number]
        self._opened[number] = _Vectors(self._path(self.names[number]))
        if len(self._opened) > _OPEN:
            self._opened.popitem(last=False)
        return self._opened[number]

    def add(self, digests: Digests, vectors: npt.NDArray[np.float32]) -> Ids:
        """Write the vectors of texts that are not there, and return where they are, int64 of shape ``(m,)``."""
        name = hashlib.blake2b(digests.tobytes(), digest_size=16).hexdigest()
        self._write(name, vectors)
        self._write(f"{name}.texts", digests.view(np.uint8).reshape(-1, 16))
        self.names.append(name)
        self._know(digests, self._starts[-1])
        self._starts.append(self._starts[-1] + len(digests))
        return np.arange(*self._starts[-2:])

    def _write(self, name: str, array: npt.NDArray[Any]) -> None:
        path = self._path(name)
        partial = f"{path}.{os.getpid()}.partial"
        with open(partial, "wb") as file:
            np.save(file, array)
        try:
            os.replace(partial, path)
        except FileNotFoundError:
            # Another run that writes the same texts at this moment has cleaned up after it was first.
            if not os.path.exists(path):
                raise
        for left in [left for left in self._partial if left.startswith(f"{path}.")]:
            self._partial.remove(left)
            with suppress(FileNotFoundError):
                os.remove(left)


def digests_of(texts: Sequence[str]) -> Digests:
    """Return what a store knows texts by, of shape ``(len(texts),)``."""
    return text_digests(pa.array(texts, type=pa.large_string())).view("V16")[:, 0]


class StoredRows:
    """Vectors in a store, as rows that mining reads without holding them all (:class:`~st_hardneg.encoders.rows.Rows`).

    Args:
        store: The store.
        places: int64 of shape ``(num_texts,)``: where each text's vector is.
        dim: Dimensions.
    """

    device = torch.device("cpu")

    def __init__(self, store: Store, places: Ids, dim: int) -> None:
        self.store, self.places, self.shape = store, places, (len(places), dim)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, places: Any) -> Any:
        wanted = self.places[places.numpy() if isinstance(places, Tensor) else places]
        if isinstance(places, slice) and len(wanted) > SHARD:
            return StoredRows(self.store, wanted, self.shape[1])
        return torch.from_numpy(self.store.read(wanted).reshape(len(wanted), self.shape[1]))

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all vectors in order, at most ``size`` texts and one file at a time."""
        size = max(1, size // SHARD * SHARD) if size >= SHARD else size
        for start in range(0, len(self), size):
            parts = [
                torch.from_numpy(self.store.read_through(self.places[first : min(first + SHARD, start + size)]))
                for first in range(start, min(start + size, len(self)), SHARD)
            ]
            yield parts[0] if len(parts) == 1 else torch.cat(parts)

    def searcher(self, given: Searcher) -> Searcher:
        """Return what searches them shard by shard.

        Raises:
            ValueError: If a searcher of the caller's is to search them, which would hold all of them.
        """
        check_reads_shards(given)
        return ShardedSearcher(given)


def check_reads_shards(searcher: Searcher) -> None:
    """Raise unless a searcher can look into one shard at a time.

    Raises:
        ValueError: If not.
    """
    if not isinstance(searcher, (ExactSearcher, FaissSearcher)) or not searcher.is_exact:
        raise ValueError(
            "The vectors do not fit into memory, and an approximate index or a searcher of your own would hold all of "
            "them. Leave `searcher` out, so that they are searched shard by shard, or raise `max_memory`."
        )
