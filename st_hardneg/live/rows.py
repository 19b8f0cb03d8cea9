"""LiveRows: the Arrow table of a live view, whose texts are looked up when they are read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from st_hardneg.corpus.texts import Ids
from st_hardneg.hosts import TableBlock
from st_hardneg.live.view import LiveView

logger = logging.getLogger(__name__)

_READ_ROWS = 10_000
_SAMPLE = 100


class Beside:
    """Columns that are not a view's, which stand beside its own.

    Args:
        table: A table of ``datasets``.
        rows: int64 of shape ``(num_rows,)``: the row of the table that each row is; None if they are in order.
    """

    def __init__(self, table: Any, rows: Ids | None = None) -> None:
        self.table = table
        self.rows = rows

    def gather(self, places: Ids) -> Beside:
        """Return the rows at these places."""
        return Beside(self.table, places if self.rows is None else self.rows[places])

    def select(self, names: list[str]) -> Beside | None:
        """Return these columns, or None for none."""
        return Beside(self.table.select(names), self.rows) if names else None

    def renamed(self, names: Mapping[str, str]) -> Beside:
        """Return the columns under new names."""
        return Beside(self.table.rename_columns([names[name] for name in self.table.column_names]), self.rows)

    def cast(self, schema: pa.Schema, *args: Any, **kwargs: Any) -> Beside:
        """Return the columns in the types of a schema that has more columns."""
        fields = [schema.field(name) for name in self.table.column_names]
        return Beside(self.table.cast(pa.schema(fields), *args, **kwargs), self.rows)

    def flatten(self) -> Beside:
        """Return the columns with a column for each part of a struct."""
        return Beside(self.table.flatten(), self.rows)

    def read(self, places: Ids) -> pa.Table:
        """Return the rows at these places."""
        if not len(places):
            return self.table.fast_slice(0, 0)
        return self.table.fast_gather(places if self.rows is None else self.rows[places])

    def followed_by(self, added: pa.Table) -> pa.Table:
        """Return all rows in order, with further columns at the end."""
        table = self.table.table if self.rows is None else self.table.table.take(pa.array(self.rows))
        for field in added.schema:
            table = table.append_column(field, added.column(field.name))
        return table


class LiveRows(TableBlock):
    """A table for ``datasets`` that holds row numbers and gives texts, with the negatives of the moment of reading.

    Whatever reads a ``Dataset`` reads its table, through the methods below. So every format, export, sort or
    concatenation sees texts, of the type that it expects; row numbers never leave this object. What is derived by choosing
    rows or columns is another table of this kind and stays live; what needs all bytes, such as a concatenation, gets a
    copy of the texts of that moment.

    A table like this never changes. A row is read as a whole: all negatives of what one call returns are of one mining,
    except where so many rows are asked for that they are read in parts.

    Args:
        view: Where rows are looked up.
        names: The columns, in order.
        rows: int64 of shape ``(num_rows,)``: the row of the wrapped dataset that each row of the table is.
        beside: Columns that are not the view's; one that has the name of a view's stands in its place.
        metadata: Metadata of the schema.
        all_slots: Whether negatives that a schedule does not show yet are shown, as in exports.
    """

    def __init__(
        self,
        view: LiveView,
        names: Sequence[str],
        rows: Ids,
        *,
        beside: Beside | None = None,
        metadata: Mapping[Any, Any] | None = None,
        all_slots: bool = False,
    ) -> None:
        # The base class would want an Arrow table, which here is made when it is asked for.
        self.view = view
        self.rows = rows
        self.beside = beside
        self.all_slots = all_slots
        others = [] if beside is None else beside.table.schema.names
        self.live_names = [name for name in names if name not in others]
        live = [pa.field(name, view.type_of(name)) for name in self.live_names]
        types = {field.name: field for field in [*live, *([] if beside is None else beside.table.schema)]}
        self._names = list(names)
        self._was_copied = False
        self._schema = pa.schema([types[name] for name in names], metadata=metadata)

    def stands_beside(self, name: str) -> bool:
        """Tell whether a column of this name is there and is not the view's, such as one that ``map`` has written."""
        return name in self._names and name not in self.live_names

    def _like(self, **changes: Any) -> LiveRows:
        state = {
            "view": self.view,
            "names": self._names,
            "rows": self.rows,
            "beside": self.beside,
            "metadata": self._schema.metadata,
            "all_slots": self.all_slots,
        }
        return LiveRows(**{**state, **changes})

    @property
    def shows_negatives(self) -> bool:
        """Whether a refresh changes what is read."""
        return any(name in self.live_names for name in self.view.refreshed_names)

    # --- choosing rows and columns ------------------------------------------------------------------------------------

    def gather(self, places: Ids) -> LiveRows:
        """Return the live rows at these places, in their order."""
        return self._like(rows=self.rows[places], beside=self.beside and self.beside.gather(places))

    def slice(self, offset: int = 0, length: int | None = None) -> LiveRows:
        """Return consecutive rows."""
        return self.gather(np.arange(len(self))[offset : None if length is None else offset + length])

    def select(self, columns: Sequence[str | int], *_: Any, **__: Any) -> LiveRows:
        """Return these columns, given by name or position."""
        names = [self._names[self._place(column)] for column in columns]
        others = [name for name in names if name not in self.live_names]
        return self._like(names=names, beside=self.beside and self.beside.select(others))

    def drop(self, columns: Sequence[str], *_: Any, **__: Any) -> LiveRows:
        """Return the table without these columns."""
        gone = {self._names[self._place(column)] for column in columns}
        return self.select([name for name in self._names if name not in gone])

    def _place(self, column: str | int) -> int:
        if isinstance(column, int):
            return range(len(self._names))[column]
        if column not in self._names:
            raise KeyError(f'Field "{column}" does not exist in schema')
        return self._names.index(column)

    def with_columns(self, names: Sequence[str], beside: Any) -> LiveRows:
        """Return the table with other columns; what is live stays live.

        Args:
            names: All columns, in order.
            beside: A table of ``datasets`` with a row for each row, which holds all columns that are not live; or None.
        """
        return self._like(names=names, beside=None if beside is None else Beside(beside))

    def everything(self, all_slots: bool = True) -> LiveRows:
        """Return the table with or without the negatives that a schedule does not show yet."""
        return self if all_slots == self.all_slots else self._like(all_slots=all_slots)

    # --- what changes a column ------------------------------------------------------------------------------------------

    def rename_columns(self, names: Sequence[str], *_: Any, **__: Any) -> LiveRows:
        """Rename columns that are not the view's.

        Raises:
            ValueError: If a live column would get another name.
        """
        new = dict(zip(self._names, names, strict=True))
        for old in self.live_names:
            if new[old] != old:
                raise ValueError(
                    f"The column {old!r} of a live view cannot be renamed to {new[old]!r}: trainer and mining find it by "
                    "its name. Rename columns before the dataset is wrapped, or rename those of a copy, "
                    "`hard_negatives.to_dataset()`."
                )
        return self._like(names=list(names), beside=self.beside and self.beside.renamed(new))

    def cast(self, target_schema: pa.Schema, *args: Any, **kwargs: Any) -> LiveRows:
        """Cast columns that are not the view's.

        Raises:
            TypeError: If a live column would get another type.
        """
        for name in self.live_names:
            have, wanted = self._schema.field(name).type, target_schema.field(name).type
            if have != wanted:
                raise TypeError(
                    f"The column {name!r} of a live view is read as {have} and cannot be cast to {wanted}. Cast columns "
                    "of a copy, `hard_negatives.to_dataset()`."
                )
        return self._like(beside=self.beside and self.beside.cast(target_schema, *args, **kwargs))

    def replace_schema_metadata(self, metadata: Mapping[Any, Any] | None = None) -> LiveRows:
        """Return the table with other metadata."""
        return self._like(metadata=metadata)

    def flatten(self, *_: Any, **__: Any) -> LiveRows:
        """Return the table with a column for each part of a struct; live columns have none."""
        if self.beside is None:
            return self
        beside = self.beside.flatten()
        names: list[str] = []
        for name in self._names:
            others = beside.table.schema.names
            parts = [other for other in others if other.startswith(f"{name}.")]
            names += [name] if name in self.live_names or name in others else parts
        return self._like(names=names, beside=beside)

    def combine_chunks(self, *_: Any, **__: Any) -> LiveRows:
        """Return the table, which has no chunks."""
        return self

    # --- reading --------------------------------------------------------------------------------------------------------

    def read(self, places: Ids, names: Sequence[str] | None = None) -> pa.Table:
        """Return the rows at these places as an Arrow table, with the negatives of now.

        Args:
            places: int64 of shape ``(batch,)``.
            names: The columns; by default those that are shown.
        """
        if names is None:
            names = self._names if self.all_slots else self.view.shown(self._names)
        live = [name for name in names if name in self.live_names]
        columns: dict[str, Any] = (
            dict(self.view.resolve(self.rows[places], live, all_slots=self.all_slots)) if live else {}
        )
        if len(live) < len(names):
            assert self.beside is not None
            found = self.beside.read(places)
            columns.update((name, found.column(name)) for name in names if name not in columns)
        fields = [self._schema.field(name) for name in names]
        return pa.table([_array(columns[field.name], field.type) for field in fields], schema=pa.schema(fields))

    def _resolve(self, places: Ids, names: list[str]) -> dict[str, list[Any]]:
        return self.view.resolve(self.rows[places], names, all_slots=self.all_slots) if names else {}

    def fetch(self, places: Ids) -> list[dict[str, Any]]:
        """Return the rows at these places as dictionaries, as a DataLoader asks for them."""
        names = self._names if self.all_slots else self.view.shown(self._names)
        live = [name for name in names if name in self.live_names]
        columns = self._resolve(places, live)
        if len(live) < len(names):
            columns |= self.read(places, [name for name in names if name not in live]).to_pydict()
        ordered = [columns[name] for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*ordered, strict=True)]

    def fast_gather(self, indices: Sequence[int] | Ids) -> pa.Table:
        """Return the rows at these places, as ``datasets`` asks for them."""
        if not len(indices):
            raise ValueError("Indices must be non-empty")
        return self.read(np.asarray(indices, dtype=np.int64))

    def fast_slice(self, offset: int = 0, length: int | None = None) -> pa.Table:
        """Return consecutive rows, as ``datasets`` asks for them."""
        if offset < 0:
            raise IndexError("Offset must be non-negative")
        stop = len(self) if length is None else min(len(self), offset + max(0, length))
        return self.read(np.arange(offset, max(offset, stop)))

    def to_reader(self, max_chunksize: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all rows in batches; each is looked up when it is its turn."""
        size = max_chunksize or _READ_ROWS
        for start in range(0, len(self), size):
            yield self.fast_slice(start, size).combine_chunks().to_batches()[0]

    @property
    def table(self) -> pa.Table:
        """A copy of all texts of now, as an Arrow table."""
        if len(self) and self.shows_negatives and not self._was_copied:
            self._was_copied = True
            logger.warning(
                f"The texts of {len(self):,} rows of a live view were copied, as a concatenation needs them. The copy "
                "does not follow refreshes; to train on several datasets give the trainer a DatasetDict of live views."
            )
        return self.copied()

    def copied(self) -> pa.Table:
        """Return a copy of all texts of now, also of negatives that a schedule does not show yet."""
        parts = [
            self.everything().read(np.arange(start, min(start + _READ_ROWS, len(self))), self._names)
            for start in range(0, max(1, len(self)), _READ_ROWS)
        ]
        return pa.concat_tables(parts).replace_schema_metadata(self._schema.metadata)

    def column(self, i: str | int) -> pa.ChunkedArray:
        """Return a copy of one column."""
        return self.select([i]).copied().column(0)

    def field(self, i: str | int) -> pa.Field:
        """Return name and type of a column."""
        return self._schema.field(i)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._schema

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self._names)

    @property
    def num_columns(self) -> int:
        """Number of columns."""
        return len(self._names)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), len(self._names)

    @property
    def nbytes(self) -> int:
        """About how many bytes a copy of all texts takes, judged by its first rows."""
        sample = self.fast_slice(0, _SAMPLE)
        return int(sample.nbytes * len(self) / max(1, len(sample)))

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            hasattr(other, "column_names") and self.copied().equals(getattr(other, "table", other))
        )

    def __repr__(self) -> str:
        return f"LiveRows({len(self):,} rows of {self._names})"

    __str__ = __repr__

    def __deepcopy__(self, memo: dict[int, Any]) -> LiveRows:
        # It never changes, and a copied dataset has to follow refreshes as the original does.
        return self


def _array(values: Any, kind: pa.DataType) -> Any:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, type=kind)
