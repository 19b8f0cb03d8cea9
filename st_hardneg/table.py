"""NegativeTable: the shared-memory ids that training reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.corpus import Ids


class NegativeTable:
    """The negatives of every row, in memory that all workers of a dataloader share, and that is never read torn.

    There are two buffers and one counter, the generation; its last bit says which buffer is live. A write fills the
    other buffer and then raises the counter. A read notes the counter before and after: if it moved, a writer may have
    come round to the buffer that was read, and the read is repeated. So a reader sees the old rows or the new ones.

    Args:
        negative_ids: int64 of shape ``(num_rows, num_negatives)``: corpus ids.
    """

    def __init__(self, negative_ids: Ids) -> None:
        fits = negative_ids.size == 0 or int(negative_ids.max()) <= np.iinfo(np.int32).max
        dtype = torch.int32 if fits else torch.int64
        self._buffers = torch.empty((2, *negative_ids.shape), dtype=dtype).share_memory_()
        self._generation = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._buffers[0] = torch.from_numpy(negative_ids)
        self._open()

    def _open(self) -> None:
        # NumPy views of the same memory: indexing 64 rows takes 2 us with them and 20 us with torch.
        self._ids = self._buffers.numpy()
        self._count = self._generation.numpy()

    @property
    def generation(self) -> int:
        """How often the table was written since it was made."""
        return int(self._count[0])

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self._buffers.shape[1])

    @property
    def width(self) -> int:
        """Negatives per row."""
        return int(self._buffers.shape[2])

    def write(self, negative_ids: Ids) -> None:
        """Replace the whole table, int64 of shape ``(num_rows, num_negatives)``; readers see it at once.

        Raises:
            ValueError: If the shape is another one than before.
        """
        shape = tuple(self._buffers.shape[1:])
        if negative_ids.shape != shape:
            raise ValueError(
                f"Expected negatives of shape {shape}, got {negative_ids.shape}. Rows and width of a live view never "
                "change; make a new HardNegativeDataset for another width."
            )
        generation = self.generation
        self._buffers[(generation + 1) % 2] = torch.from_numpy(negative_ids)
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

    def __deepcopy__(self, memo: dict[int, Any]) -> NegativeTable:
        # A copied dataset has to follow refreshes as the original does.
        return self

    def __getstate__(self) -> dict[str, Tensor]:
        return {"_buffers": self._buffers, "_generation": self._generation}

    def __setstate__(self, state: dict[str, Tensor]) -> None:
        self.__dict__.update(state)
        self._open()
