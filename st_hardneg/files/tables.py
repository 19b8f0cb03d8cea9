"""Tables of numbers in Arrow files, written and read by their description in the schema."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from st_hardneg.files.schema import FileColumn, damaged, vocabulary, warn_of_unknown


def table_of(columns: Mapping[str, FileColumn], values: Mapping[str, Tensor | None], names: Sequence[str]) -> pa.Table:
    """Return values as an Arrow table, those that are None left out.

    Args:
        columns: The description.
        values: Tensors of shape ``(num_rows,)``, or ``(num_rows, n)`` for columns of lists.
        names: What numbers of sources stand for.
    """
    arrays = {}
    for name, column in columns.items():
        tensor = values.get(name)
        if tensor is not None:
            words = (names if column.names == "source_names" else vocabulary(column.names)) if column.names else None
            arrays[name] = arrow_of(tensor.cpu().numpy(), words, column.missing)
    return pa.table(arrays)


def arrow_of(numbers: Any, words: Sequence[str] | None = None, missing: int = -1) -> pa.Array:
    """Return an array of numbers as Arrow, a matrix as lists of its rows.

    Args:
        numbers: Array of shape ``(num_rows,)`` or ``(num_rows, n)``.
        words: If given, what the numbers stand for.
        missing: The number that stands for nothing, and becomes null.
    """
    flat = numbers.reshape(-1)
    if words is None:
        values = pa.array(flat)
    else:
        # The last of the places is that of nothing, wherever the number lies.
        places = np.where(flat == missing, len(words), flat).astype(np.int32)
        values = pa.DictionaryArray.from_arrays(pa.array(places), pa.array([*words, None], pa.string())).cast(
            pa.string()
        )
    return values if numbers.ndim == 1 else lists_of(values, numbers.shape)


def lists_of(values: pa.Array, shape: tuple[int, int]) -> pa.Array:
    """Return a flat array as lists, ``shape[1]`` values in each of ``shape[0]``."""
    offsets = np.arange(shape[0] + 1, dtype=np.int64) * shape[1]
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def write_table(folder: str, name: str, table: pa.Table) -> None:
    """Write a table as ``NAME.arrow``, which ``datasets.Dataset.from_file`` reads, too."""
    with pa.OSFile(os.path.join(folder, f"{name}.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def has_table(folder: str, name: str) -> bool:
    """Tell whether a folder has a table of this name."""
    return os.path.isfile(os.path.join(folder, f"{name}.arrow"))


def read_table(folder: str, name: str) -> pa.Table:
    """Read what :func:`write_table` wrote, into memory: a file that changes later must not change what was checked.

    Raises:
        ValueError: If it is not there or not readable.
    """
    try:
        with pa.OSFile(os.path.join(folder, f"{name}.arrow"), "rb") as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        table.validate()
        wrong = [name for name in table.column_names if not all(map(can_be_followed, table.column(name).chunks))]
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        raise damaged(folder, f"{name!r} cannot be read ({type(error).__name__}: {error})") from None
    if wrong:
        raise damaged(folder, f"the columns {wrong} of {name!r} do not hold values as Arrow writes them")
    return table


def can_be_followed(chunk: pa.Array) -> bool:
    """Tell whether the offsets of strings or lists lie in what they count; Arrow does not look when it reads a file.

    Arrow's own full check reads every text, too, to see whether it is UTF-8, which takes most of the time.
    """
    kind = chunk.type
    width = np.int64 if pa.types.is_large_string(kind) or pa.types.is_large_list(kind) else np.int32
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not len(chunk) or not (is_list or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return True
    offsets, count = chunk.buffers()[1], chunk.offset + len(chunk) + 1
    if offsets is None or offsets.size < count * np.dtype(width).itemsize:
        return False
    starts = np.frombuffer(offsets, dtype=width, count=count)[chunk.offset :]
    if is_list:
        size = len(chunk.values)
    else:
        data = chunk.buffers()[2]
        size = 0 if data is None else data.size
    are_inside = bool((np.diff(starts) >= 0).all()) and int(starts[0]) >= 0 and int(starts[-1]) <= size
    return are_inside and (not is_list or can_be_followed(chunk.values))


class TableReader:
    """Reads the columns of a table by their description.

    Args:
        folder: Where the table was read, for errors.
        table: The table.
        num_rows: How many rows it has to have.
        width: How many values each list has to have.
        limits: The counts that values have to stay below, by name.
        source_names: The names of sources that the reader knows.

    Raises:
        ValueError: If it has another number of rows.
    """

    def __init__(
        self,
        folder: str,
        table: pa.Table,
        *,
        num_rows: int,
        width: int,
        limits: Mapping[str, int],
        source_names: Sequence[str] = (),
    ) -> None:
        if table.num_rows != num_rows:
            raise damaged(folder, f"there are {table.num_rows:,} rows where {num_rows:,} are expected")
        self.folder, self.table, self.width, self.limits = folder, table, width, limits
        self.words: dict[str, list[str]] = {"source_names": list(source_names), "ORIGINS": list(vocabulary("ORIGINS"))}

    def columns(self, columns: Mapping[str, FileColumn]) -> dict[str, Any]:
        """Return the columns as tensors; those that the file lacks hold their defaults, or are None.

        A name that is not among :attr:`words` is added to them.

        Raises:
            ValueError: If a column is missing that has to be there, or does not hold what was written.
        """
        warn_of_unknown(self.folder, set(self.table.column_names) - set(columns))
        return {name: self._column(name, column) for name, column in columns.items()}

    def _column(self, name: str, column: FileColumn) -> Tensor | None:
        shape = (self.table.num_rows, self.width) if column.is_list else (self.table.num_rows,)
        if name not in self.table.column_names:
            if column.default is None:
                return None
            if not isinstance(column.default, (int, float)):
                raise damaged(self.folder, f"{name!r} is missing")
            return torch.full(shape, column.default, dtype=column.dtype)
        flat = self._flat(name, column)
        if column.names is not None:
            return torch.from_numpy(self._numbers(flat, column)).reshape(shape)
        values = torch.from_numpy(np.array(flat.to_numpy(zero_copy_only=False))).reshape(shape)
        self._check_range(name, values, column)
        return values

    def _flat(self, name: str, column: FileColumn) -> pa.Array:
        """Return the values of a column one after the other."""
        parts = []
        for chunk in self.table.column(name).chunks:
            if column.is_list:
                is_list = pa.types.is_large_list(chunk.type) or pa.types.is_list(chunk.type)
                if not is_list or chunk.null_count or bool((np.diff(chunk.offsets.to_numpy()) != self.width).any()):
                    raise damaged(self.folder, f"{name!r} does not hold lists of {self.width} values")
                chunk = chunk.flatten()
            if chunk.type != column.value_type and not (column.names and pa.types.is_large_string(chunk.type)):
                raise damaged(self.folder, f"{name!r} holds {chunk.type} where {column.value_type} is expected")
            if chunk.null_count and not column.names:
                raise damaged(self.folder, f"{name!r} holds rows without a value")
            parts.append(chunk)
        if len(parts) == 1:  # no copy
            return parts[0]
        return pa.concat_arrays(parts) if parts else pa.array([], column.value_type)

    def _numbers(self, flat: pa.Array, column: FileColumn) -> Any:
        """Return which place each name has in :attr:`words`."""
        words, only = self.words[str(column.names)], _first_of_equal(flat)
        coded = (flat if only is None else only).dictionary_encode()
        try:
            names = coded.dictionary.to_pylist()
        except UnicodeDecodeError as error:
            raise damaged(self.folder, f"a name cannot be read ({error})") from None
        # A name that is not known is kept: a source of the user's, or one of another version of this package.
        words += [name for name in names if name not in words]
        if len(words) > torch.iinfo(column.dtype).max:
            raise damaged(self.folder, f"there are {len(words):,} different names")
        places = np.array([*(words.index(name) for name in names), column.missing], np.int8)
        if only is not None:
            return np.full(len(flat), places[0])
        return places[coded.indices.fill_null(len(places) - 1).to_numpy()]

    def _check_range(self, name: str, values: Tensor, column: FileColumn) -> None:
        if column.dtype.is_floating_point:
            if not column.may_be_nan and bool(values.isnan().any()):
                raise damaged(self.folder, f"{name!r} holds values that are not numbers")
            return
        if column.dtype is torch.bool or not values.numel():
            return
        most = None if column.limit is None else self.limits[column.limit] - 1
        lowest, highest = int(values.min()), int(values.max())
        if (column.least is not None and lowest < column.least) or (most is not None and highest > most):
            where = "outside of the corpus" if column.limit == "corpus" else "out of range"
            raise damaged(self.folder, f"{name!r} holds numbers {where}")


def _first_of_equal(names: pa.Array) -> pa.Array | None:
    """Return the first name if it stands everywhere, as it mostly does; else None. To look up each takes much longer."""
    if not len(names) or names.null_count:
        return None
    width = np.int64 if pa.types.is_large_string(names.type) else np.int32
    starts = np.frombuffer(names.buffers()[1], dtype=width)[names.offset : names.offset + len(names) + 1]
    length = int(starts[1] - starts[0])
    if not length or bool((np.diff(starts) != length).any()):
        return None
    letters = np.frombuffer(names.buffers()[2], dtype=np.uint8)[starts[0] : starts[-1]].reshape(len(names), length)
    return names[:1] if bool((letters == letters[0]).all()) else None
