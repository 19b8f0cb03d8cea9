"""NegativeTable: the negatives of every row, in memory that all workers share."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from st_hardneg.corpus.texts import Ids

Scores = npt.NDArray[np.float32]
"""Scores of texts."""

logger = logging.getLogger(__name__)


class SharedArray:
    """Memory that all workers of a dataloader share: shared memory, or a mapped file where that is too small.

    Containers often have a /dev/shm of 64 MB. The file lies in the folder for temporary files and goes with the array.

    Args:
        shape: Shape of the array, which begins with zeros.
        dtype: Its type.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.path: str | None = None
        try:
            self.tensor = torch.zeros(shape, dtype=dtype).share_memory_()
        except (RuntimeError, OSError) as error:
            handle, self.path = tempfile.mkstemp(prefix="st_hardneg-")
            os.close(handle)
            weakref.finalize(self, _remove, self.path, os.getpid())
            self._map(shape, dtype)
            logger.warning(
                f"Shared memory does not suffice for {self.tensor.nbytes / 2**20:,.1f} MB of negatives ({error}); they "
                f"are in a mapped file in {os.path.dirname(self.path)!r}. Enlarge /dev/shm (`--shm-size` in Docker)."
            )

    def _map(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        assert self.path is not None
        size = math.prod(shape)
        # A file of no bytes cannot be mapped.
        self.tensor = torch.from_file(self.path, shared=True, size=max(1, size), dtype=dtype)[:size].view(shape)

    def __getstate__(self) -> dict[str, Any]:
        if self.path is None:
            return {"path": None, "tensor": self.tensor}
        return {"path": self.path, "shape": tuple(self.tensor.shape), "dtype": self.tensor.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        if self.path is None:
            self.tensor = state["tensor"]
        else:
            self._map(state["shape"], state["dtype"])


def _within(ids: Ids, dtype: type[np.signedinteger[Any]]) -> bool:
    """Tell whether all ids can be stored in an integer type."""
    bounds = np.iinfo(dtype)
    return bool(ids.size == 0 or (bounds.min <= ids.min() and ids.max() <= bounds.max))


def _remove(path: str, owner: int) -> None:
    # A forked worker inherits the array, and must not take the file away from its parent.
    if os.getpid() == owner:
        # It may be gone already; and Windows keeps a file that someone has still mapped.
        with contextlib.suppress(OSError):
            os.remove(path)


class NegativeTable:
    """The negatives of every row, in memory that all workers of a dataloader share, and that is never read torn.

    There are two buffers and one counter, the generation; its last bit says which buffer is live. A write fills the
    other buffer and then raises the counter. A read notes the counter before and after: if it moved, a writer may have
    come round to the buffer that was read, and the read is repeated. So a reader sees the old rows or the new ones.

    A slot holds ``x >= 0``, the corpus id of a negative, or ``x <= -2``, a text that only stands in where no negative was
    found: its corpus id is ``-x - 2``. Empty slots, -1, may only be where no live row is.

    Scores of the positive and the negatives of each row may stand beside them, written and read under the same generation.

    Args:
        negative_ids: int64 of shape ``(num_rows, num_negatives)``: what the slots hold.
        num_texts: Number of corpus texts, where later writes may hold larger ids than these.
    """

    def __init__(self, negative_ids: Ids, num_texts: int = 0) -> None:
        # A stand-in of the text x is stored as -x - 2, so that two ids less fit.
        fits = _within(np.array([-num_texts - 1, num_texts - 1]), np.int32) and _within(negative_ids, np.int32)
        self._buffers = SharedArray((2, *negative_ids.shape), torch.int32 if fits else torch.int64)
        self._numbers = SharedArray((2,), torch.int64)
        self._scored: SharedArray | None = None
        self._open()
        self._ids[0] = negative_ids
        self.num_shown = self.width

    def _open(self) -> None:
        # NumPy views of the same memory: indexing 64 rows takes 2 us with them and 20 us with torch.
        self._ids = self._buffers.tensor.numpy()
        self._count, self._shown = self._numbers.tensor.numpy()[:1], self._numbers.tensor.numpy()[1:]
        self._scores = None if self._scored is None else self._scored.tensor.numpy()

    def add_scores(self, scores: Scores) -> None:
        """Let scores stand beside the negatives from now on; call it before a dataloader is made.

        Args:
            scores: float32 of shape ``(num_rows, 1 + num_negatives)``: those of what is live now.
        """
        scored = SharedArray((2, self.num_rows, 1 + self.width), torch.float32)
        scored.tensor.numpy()[:] = scores
        self._scored = scored
        self._open()

    @property
    def has_scores(self) -> bool:
        """Whether scores stand beside the negatives."""
        return self._scores is not None

    @property
    def generation(self) -> int:
        """How often the table was written since it was made."""
        return int(self._count[0])

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self._ids.shape[1])

    @property
    def width(self) -> int:
        """Negatives per row."""
        return int(self._ids.shape[2])

    @property
    def num_shown(self) -> int:
        """How many negatives of each row are shown; change it between epochs only, when no batch is on its way."""
        return int(self._shown[0])

    @num_shown.setter
    def num_shown(self, number: int) -> None:
        self._shown[0] = number

    def write(self, negative_ids: Ids, scores: Scores | None = None) -> None:
        """Replace the whole table; readers see it at once.

        Args:
            negative_ids: int64 of shape ``(num_rows, num_negatives)``.
            scores: float32 of shape ``(num_rows, 1 + num_negatives)``: the positive's and the negatives', where the table
                has scores.

        Raises:
            ValueError: If the shape is another one than before, ids are larger than the table was made for, or scores are
                missing where the table has them.
        """
        shape = self._ids.shape[1:]
        if negative_ids.shape != shape:
            raise ValueError(
                f"Expected negatives of shape {shape}, got {negative_ids.shape}. Rows and width of a live view never "
                "change; make a new HardNegativeDataset for another width."
            )
        if not _within(negative_ids, self._ids.dtype.type):
            raise ValueError(
                f"Expected ids that fit the table's {self._ids.dtype}, got one up to {negative_ids.max():,}. Tell "
                "NegativeTable the size of the corpus with `num_texts`."
            )
        generation = self.generation
        if self._scores is not None:
            if scores is None:  # those of two writes ago would stand there
                raise ValueError("Expected scores beside the negatives, as the table has them, got None.")
            self._scores[(generation + 1) % 2] = scores
        self._ids[(generation + 1) % 2] = negative_ids
        self._count[0] = generation + 1

    def read(self, rows: Ids, *, previous: bool = False) -> Ids:
        """Return the negatives of these rows, of shape ``(len(rows), num_negatives)``, all of one generation.

        Args:
            rows: int64 of shape ``(batch,)``.
            previous: Read what was written before the last write.
        """
        while True:
            before = self._count[0]
            found: Ids = self._ids[(before + int(previous)) % 2, rows].astype(np.int64)
            if self._count[0] == before:
                return found

    def read_scored(self, rows: Ids, *, previous: bool = False) -> tuple[Ids, Scores]:
        """Return the negatives of these rows as :meth:`read` does, and the scores of the same generation.

        Returns:
            int64 of shape ``(len(rows), num_negatives)``, and float32 of shape ``(len(rows), 1 + num_negatives)``, the
            positive's score first.
        """
        assert self._scores is not None
        while True:
            before = self._count[0]
            live = (before + int(previous)) % 2
            found, scores = self._ids[live, rows].astype(np.int64), self._scores[live, rows]
            if self._count[0] == before:
                return found, scores

    def __deepcopy__(self, memo: dict[int, Any]) -> NegativeTable:
        # A copied dataset has to follow refreshes as the original does.
        return self

    def __getstate__(self) -> dict[str, SharedArray | None]:
        return {"_buffers": self._buffers, "_numbers": self._numbers, "_scored": self._scored}

    def __setstate__(self, state: dict[str, SharedArray | None]) -> None:
        self.__dict__.update(state)
        self._open()
