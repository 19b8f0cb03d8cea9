"""LiveDataset: the ``datasets.Dataset`` that a training reads, and finding live views in what a trainer reads."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from st_hardneg import hosts
from st_hardneg.corpus.texts import Ids
from st_hardneg.live.rows import LiveRows
from st_hardneg.live.view import LABEL_COLUMN, SCORES_COLUMN, LiveView

_READ_ROWS = 10_000


def _staying_live(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of ``Dataset`` that chooses rows return a LiveDataset."""

    @wraps(method)
    def call(self: LiveDataset, *args: Any, **kwargs: Any) -> Dataset:
        return _live(method(self, *args, **kwargs))

    return call


def _with_all_slots(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of ``Dataset`` that exports see the negatives that a schedule does not show yet."""

    @wraps(method)
    def call(self: LiveDataset, *args: Any, **kwargs: Any) -> Any:
        return method(self.with_all_slots(), *args, **kwargs)

    return call


class LiveDataset(Dataset):
    """A Dataset whose rows follow refreshes, and so do those that are derived from it.

    Rows can be chosen, shuffled, sorted, filtered and split, columns dropped and added: all of it stays live. ``map``
    keeps live what it leaves as it was; what it computes stays as it is. Exports write the texts of that moment. A
    concatenation holds them, and no longer follows refreshes.
    """

    @classmethod
    def of(
        cls, view: LiveView, rows: Ids, template: Dataset, *, with_ids: bool = False, with_scores: bool = False
    ) -> LiveDataset:
        """Return the live dataset of these rows of a view.

        Args:
            view: The view.
            rows: int64 of shape ``(num_rows,)``: rows as the view counts them.
            template: The wrapped dataset, whose info and split are taken over.
            with_ids: Add ``label``; see :meth:`LiveView.resolve`.
            with_scores: Add ``scores``.
        """
        info = template.info.copy()
        info.features = None
        names = [*view.column_names, *([LABEL_COLUMN] * with_ids), *([SCORES_COLUMN] * with_scores)]
        return cls(LiveRows(view, names, rows), info=info, split=template.split, fingerprint=view.token[:16])

    @property
    def _fingerprint(self) -> str:
        # The same dataset is another one after a refresh: what `map` of a concatenation has cached must not be found.
        own, rows = self.__dict__["_fingerprint"], self.data
        if not isinstance(rows, LiveRows):
            return own
        return hashlib.blake2b(f"{own}{rows.view.fingerprint()}".encode(), digest_size=8).hexdigest()

    @_fingerprint.setter
    def _fingerprint(self, fingerprint: str) -> None:
        self.__dict__["_fingerprint"] = fingerprint

    select = _staying_live(Dataset.select)
    shuffle = _staying_live(Dataset.shuffle)
    filter = _staying_live(Dataset.filter)

    to_csv = _with_all_slots(Dataset.to_csv)
    to_dict = _with_all_slots(Dataset.to_dict)
    to_json = _with_all_slots(Dataset.to_json)
    to_list = _with_all_slots(Dataset.to_list)
    to_pandas = _with_all_slots(Dataset.to_pandas)
    to_parquet = _with_all_slots(Dataset.to_parquet)
    to_polars = _with_all_slots(Dataset.to_polars)
    to_sql = _with_all_slots(Dataset.to_sql)
    to_iterable_dataset = _with_all_slots(Dataset.to_iterable_dataset)
    save_to_disk = _with_all_slots(Dataset.save_to_disk)
    push_to_hub = _with_all_slots(Dataset.push_to_hub)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        """Return the rows of these keys, as a DataLoader asks for them."""
        rows = self.data
        plain = self.format["type"] is None and hosts.shows_all_columns(self) and hosts.row_indices(self) is None
        if not plain or not isinstance(rows, LiveRows):
            return super().__getitems__(keys)
        # `datasets` makes an Arrow table of a batch first, which takes longer than to look it up.
        return rows.fetch(np.asarray(keys, dtype=np.int64))

    def map(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Dataset:
        """Apply a function to all rows, as ``Dataset.map`` does; columns that come out as they went in stay live."""
        whole = self.with_all_slots()
        mapped, rows = Dataset.map(whole, function, *args, **kwargs), whole.data
        if isinstance(rows, LiveRows) and not isinstance(mapped.data, LiveRows) and len(mapped) == len(rows):
            same = _unchanged(rows, mapped.data)
            others = [name for name in mapped.column_names if name not in same]
            if same:
                table = rows.with_columns(mapped.column_names, mapped.data.select(others) if others else None)
                hosts.replace_table(mapped, table.replace_schema_metadata(mapped.data.schema.metadata))
        mapped = _live(mapped)
        return mapped.with_all_slots(False) if isinstance(mapped, LiveDataset) and whole is not self else mapped

    def sort(self, column_names: str | list[str], *args: Any, **kwargs: Any) -> Dataset:
        """Sort by columns as they are now, as ``Dataset.sort`` does."""
        names = [column_names] if isinstance(column_names, str) else list(column_names)
        if not isinstance(self.data, LiveRows) or not set(names) <= set(self.column_names):
            return super().sort(column_names, *args, **kwargs)
        # Only what is sorted by is copied.
        keys = hosts.in_memory_dataset(self.data.select(names).copied())
        order = hosts.row_indices(keys.sort(column_names, *args, **kwargs))
        return self.select(np.arange(len(self)) if order is None else order)

    def repeat(self, num_times: int) -> Dataset:
        """Repeat all rows, as ``Dataset.repeat`` does."""
        if not num_times or num_times < 1:
            return _live(super().repeat(num_times))
        return self.select(np.tile(np.arange(len(self)), num_times))

    def flatten_indices(self, *_: Any, **__: Any) -> Dataset:
        """Return the dataset as it is: its rows are chosen in its table already."""
        return _live(copy.deepcopy(self))

    def add_column(self, name: str, column: Any, *args: Any, **kwargs: Any) -> Dataset:
        """Add a column beside those of the view, as ``Dataset.add_column`` does."""
        rows = self.data
        if not isinstance(rows, LiveRows) or name in self.column_names:
            return super().add_column(name, column, *args, **kwargs)
        # `datasets` would join the column to a copy of all texts.
        alone = Dataset.from_dict({f"not {name}": np.arange(len(self))}).add_column(name, column, *args, **kwargs)
        result = copy.deepcopy(self)
        result.info.features[name] = alone.features[name]
        added = alone.data.table.select([name])
        added = added if rows.beside is None else rows.beside.followed_by(added)
        hosts.replace_table(result, rows.with_columns([*rows.column_names, name], hosts.InMemoryTable(added)))
        if not hosts.shows_all_columns(self):
            result.set_format(**{**self.format, "columns": [*self.format["columns"], name]})
        hosts.set_fingerprint(result, hosts.generate_random_fingerprint())
        return result

    def with_all_slots(self, all_slots: bool = True) -> LiveDataset:
        """Return the dataset with or without the negatives that a schedule does not show yet."""
        rows = self.data
        if not isinstance(rows, LiveRows) or rows.all_slots == all_slots:
            return self
        changed = copy.copy(self)
        hosts.replace_table(changed, rows.everything(all_slots))
        return changed


def _live(dataset: Dataset) -> Dataset:
    """Make a dataset over live rows a LiveDataset, in place, its rows chosen in the table; return others as they are."""
    rows = dataset.data
    if not isinstance(rows, LiveRows):
        return dataset
    indices = hosts.row_indices(dataset)
    if indices is not None:
        rows = rows.gather(indices)
    hosts.replace_table(dataset, rows)
    dataset.__class__ = LiveDataset
    return dataset


def _unchanged(rows: LiveRows, table: Any) -> list[str]:
    """Return which live columns a table of ``datasets`` of as many rows holds as they are read now."""
    same = [name for name in rows.live_names if name in table.column_names]
    same = [name for name in same if table.schema.field(name).type == rows.field(name).type]
    for start in range(0, len(rows), _READ_ROWS):
        if same:
            live, copied = rows.select(same).fast_slice(start, _READ_ROWS), table.fast_slice(start, _READ_ROWS)
            same = [name for name in same if live.column(name).equals(copied.column(name))]
    return same


def live_views(dataset: Any) -> Iterator[tuple[str | None, LiveView]]:
    """Yield every live view that a dataset, or a concatenation of datasets, reads from, with its dataset's name.

    The name is the one that the trainer gave a member of a ``DatasetDict``, or None.
    """
    for part in getattr(dataset, "datasets", [dataset]):
        rows = getattr(part, "data", None)
        if isinstance(rows, LiveRows) and rows.shows_negatives:
            transform, name = hosts.transform_of(part), None
            while isinstance(transform, partial):
                name = transform.keywords.get("dataset_name", name)
                transform = transform.keywords.get("transform")
            yield name, rows.view


def live_topics(dataset: Any) -> npt.NDArray[np.int32] | None:
    """Return the topic of the anchor of each row of a dataset, int32 of shape ``(num_rows,)``.

    None if it is no live view, or was mined without topics.
    """
    rows = getattr(dataset, "data", None)
    if not isinstance(rows, LiveRows) or rows.view.topics is None:
        return None
    indices = hosts.row_indices(dataset)
    return rows.view.topics[rows.view.row_of(rows.rows if indices is None else rows.rows[indices])]
