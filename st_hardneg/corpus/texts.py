"""Columns of texts, read by row number, and the check of what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from st_hardneg.hosts import in_memory_dataset, row_indices

Ids = npt.NDArray[np.int64]
"""Row numbers; shapes are given where they are used."""


def distinct_ids(numbers: Ids) -> Ids:
    """Return the distinct numbers, ascending. NumPy's own ``unique`` hashes, which takes 40 times as long for 500 000."""
    ordered = np.sort(numbers)
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]


TEXT_TYPES = ("string", "large_string", "string_view")
"""What ``datasets`` calls the types of a column of texts."""

_READ_ROWS = 10_000
# Texts a chunk of Arrow from which it pays to ask each chunk once.
_MANY_A_CHUNK = 4


def dataset_of(table: pa.Table) -> Dataset:
    """Make a Dataset of an Arrow table, without the hash of all of its bytes that `datasets` would compute."""
    return in_memory_dataset(table)


class TextColumn:
    """A column of texts, read by row number, in memory or memory-mapped as its dataset is.

    Args:
        dataset: The dataset that holds the column.
        name: The column.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        if str(dataset.data.column(name).type) == "string_view":  # polars, DuckDB; `datasets` cannot join it to others
            strings = _only(dataset, name).with_format("arrow")[:].column(name).cast(pa.large_string())
            dataset = dataset_of(pa.table({name: strings}))
        self._dataset = dataset
        self.name = name
        self._open()

    def _open(self) -> None:
        self._chunks = self._dataset.data.column(self.name)
        self._indices = row_indices(self._dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def type(self) -> pa.DataType:
        """Arrow's type of the texts."""
        return self._chunks.type

    def take(self, rows: Sequence[int] | Ids) -> list[str]:
        """Return the texts of these row numbers, in their order."""
        numbers = np.asarray(rows, dtype=np.int64)
        if self._indices is not None:
            numbers = self._indices[numbers]
        # 320 texts of 500 000: 0.1 ms with `take` on one chunk, 51 ms with `take` on 500, 0.6 ms one by one.
        if self._chunks.num_chunks > 1 and len(numbers) < _MANY_A_CHUNK * self._chunks.num_chunks:
            return [self._chunks[number].as_py() for number in numbers.tolist()]
        texts: list[str] = self._array(numbers).to_pylist()
        return texts

    def array(self, rows: Ids) -> pa.Array:
        """Return the texts of these row numbers, int64 of shape ``(m,)``, in an Arrow array."""
        return self._array(rows if self._indices is None else self._indices[rows])

    def _array(self, numbers: Ids) -> pa.Array:
        chunks = self._chunks.chunks
        if len(chunks) == 1:
            is_all = len(numbers) == len(chunks[0]) and bool((numbers == np.arange(len(numbers))).all())
            return chunks[0] if is_all else chunks[0].take(pa.array(numbers))
        # Chunk by chunk, and then in order.
        starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], starts)
        found = [
            chunk.take(pa.array(numbers[order[bounds[i] : bounds[i + 1]]] - starts[i])).cast(pa.large_string())
            for i, chunk in enumerate(chunks)
            if bounds[i] < bounds[i + 1]
        ]
        texts = pa.concat_arrays(found or [pa.array([], type=pa.large_string())])
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return texts if bool((np.diff(place) == 1).all()) else texts.take(pa.array(place))

    def some(self, rows: Ids) -> SomeTexts:
        """Return the texts of these row numbers, which are read when they are asked for."""
        return SomeTexts(self, rows)

    def batches(self, size: int = _READ_ROWS) -> Iterator[list[Any]]:
        """Yield all texts in order, in lists of at most ``size``."""
        for start in range(0, len(self), size):
            if self._indices is None:
                yield self._chunks.slice(start, size).to_pylist()
            else:
                yield self.take(np.arange(start, min(start + size, len(self))))

    def after(self, start: int) -> Iterator[pa.Array]:
        """Yield the texts from a row number on, in Arrow arrays of one type."""
        if self._indices is None:
            yield from self._chunks.slice(start).chunks
            return
        for first in range(start, len(self), _READ_ROWS):
            rows = np.arange(first, min(first + _READ_ROWS, len(self)))
            yield self.array(rows).cast(self._chunks.type)

    def arrays(self) -> Iterator[pa.Array]:
        """Yield all texts in order, in Arrow arrays of a few thousand."""
        for part in self.after(0):
            for start in range(0, len(part), _READ_ROWS):
                yield part.slice(start, _READ_ROWS)

    def followed_by(self, texts: TextColumn) -> TextColumn:
        """Return the column with these texts at its end."""
        if not len(self):
            return texts  # as it is: joining it to nothing would convert all of it
        own, added = _only(self._dataset, self.name), _only(texts._dataset, texts.name)
        added = added if texts.name == self.name else added.rename_column(texts.name, self.name)
        if added.features != own.features:
            added = added.cast(own.features)
        return TextColumn(concatenate_datasets([own, added]), self.name)

    @classmethod
    def of(cls, texts: Sequence[str]) -> TextColumn:
        """Return a column of these texts, in memory."""
        return cls(dataset_of(pa.table({"text": pa.array(texts, type=pa.large_string())})), "text")

    @classmethod
    def of_arrays(cls, arrays: Sequence[pa.Array]) -> TextColumn:
        """Return a column of the texts in these arrays, in memory, in one piece."""
        texts = pa.concat_arrays([one.cast(pa.large_string()) for one in arrays] or [pa.array([], pa.large_string())])
        return cls(dataset_of(pa.table({"text": texts})), "text")

    def in_one_piece(self) -> TextColumn:
        """Return the column called ``"text"``; where it is one piece of memory already, without copying it."""
        if self._indices is None and self._chunks.num_chunks == 1:
            return TextColumn(dataset_of(pa.table({"text": self._chunks})), "text")
        return TextColumn.of_arrays(list(self.arrays()))

    def __getstate__(self) -> dict[str, Any]:
        return {"_dataset": _only(self._dataset, self.name), "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class SomeTexts(Sequence[str]):
    """Some texts of a column, read from Arrow when they are asked for.

    Args:
        column: The column.
        rows: int64 of shape ``(m,)``: which ones.
    """

    def __init__(self, column: TextColumn, rows: Ids) -> None:
        self._column, self._rows = column, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, places: int) -> str: ...
    @overload
    def __getitem__(self, places: slice) -> list[str]: ...
    def __getitem__(self, places: int | slice) -> str | list[str]:
        if isinstance(places, slice):
            return self._column.take(self._rows[places])
        return self._column.take(self._rows[[places]])[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _READ_ROWS):
            yield from self[start : start + _READ_ROWS]


def _only(dataset: Dataset, name: str) -> Dataset:
    """Return a dataset with no other column. It takes `datasets` milliseconds, most of what a column of 20 texts costs."""
    if dataset.column_names == [name] and dataset.format["type"] is None:
        return dataset
    return dataset.with_format(None).select_columns([name])


def check_text_column(dataset: Dataset, name: str, parameter: str, *, allow_empty: bool = False) -> None:
    """Make sure that a column exists, holds text and has no missing or empty text.

    Args:
        dataset: The dataset.
        name: The column's name.
        parameter: What to call the column in the error, such as ``"anchor_column_name"``.
        allow_empty: Whether empty texts are let through; None never is.

    Raises:
        ValueError: If the column is missing, or some of its texts are ``None`` or empty (their rows are named).
        TypeError: If the column does not hold text.
    """
    if name not in dataset.column_names:
        close = get_close_matches(name, dataset.column_names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"`{parameter}={name!r}` is not a column of the dataset. Columns are {dataset.column_names}.{hint}"
        )
    dtype = getattr(dataset.features[name], "dtype", None)
    if dtype not in TEXT_TYPES:
        raise TypeError(
            f"Expected the column {name!r} to hold text (strings), got {dataset.features[name]}. "
            "Name a text column, or turn this one into text with `dataset.map`."
        )
    bad = blank_rows_of(TextColumn(dataset, name), only_none=allow_empty)
    if bad:
        shown = ", ".join(map(str, bad[:10])) + (", …" if len(bad) > 10 else "")
        raise ValueError(
            f"Expected a text in every row of the column {name!r}, got None or an empty text in {len(bad):,} "
            f"row{'s' if len(bad) > 1 else ''}: {shown}. Remove them, for example with "
            f"`dataset.filter(lambda row: row[{name!r}] and row[{name!r}].strip())`."
        )


def blank_rows_of(texts: TextColumn, *, only_none: bool = False) -> list[int]:
    """Return the rows of a column that hold None, nothing or nothing but whitespace, or only None."""
    rows: list[int] = []
    start = 0
    for some in texts.arrays():
        rows += [start + place for place in blank_rows(some, only_none=only_none)]
        start += len(some)
    return rows


def blank_rows(texts: pa.Array, *, only_none: bool = False) -> list[int]:
    """Return the places of texts in an Arrow array that are None, empty or nothing but whitespace, or only None."""
    if only_none:
        return np.flatnonzero(texts.is_null()).tolist() if texts.null_count else []
    # A text that is blank begins with whitespace: only the few that do are looked at one by one.
    first = pc.utf8_slice_codeunits(texts, start=0, stop=1)
    may_be = pc.or_(pc.equal(first, ""), pc.utf8_is_space(first)).fill_null(True)
    places = np.flatnonzero(may_be.to_numpy(zero_copy_only=False)).tolist()
    return [place for place in places if not (texts[place].as_py() or "").strip()]
