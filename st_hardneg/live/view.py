"""The picklable transform behind a live view."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable
from datasets.utils._dill import pklregister
from torch.utils.data import ConcatDataset, get_worker_info

from st_hardneg.corpus.texts import Ids, TextColumn
from st_hardneg.live.table import NegativeTable

LABEL_COLUMN = "label"
# Row numbers are stored above this, so that no number of a user's own column is mistaken for one.
_FIRST_ROW = 1 << 61
WEIGHT_UNIT = 1_000_000
"""Weights stand in labels as whole millionths: a float among ids would turn all of them into floats."""


class LiveView:
    """Turns row numbers into texts at the moment they are fetched, with the negatives of that moment.

    Every column of a live view's Arrow table holds the same numbers: the rows of the wrapped dataset. So any column can
    be selected, removed or read alone, and rows can be shuffled, filtered or split, and all of it stays live.

    Args:
        anchors: The anchors, one per row.
        positives: The positives, one per row.
        corpus: The corpus texts.
        table: The negatives of each row.
        anchor_name: Name of the anchor column.
        positive_name: Name of the positive column.
        row_query: int64 of shape ``(num_rows,)``: the query of each row.
        row_positive: int64 of shape ``(num_rows,)``: the corpus id of each row's positive.
        row_weight: int64 of shape ``(num_rows,)``: the weight of each row in millionths.
        owner: The HardNegativeDataset that refreshes the table; it does not travel to workers.
    """

    def __init__(
        self,
        anchors: TextColumn,
        positives: TextColumn,
        corpus: TextColumn,
        table: NegativeTable,
        anchor_name: str,
        positive_name: str,
        row_query: Ids,
        row_positive: Ids,
        row_weight: Ids,
        owner: object,
    ) -> None:
        self.anchors = anchors
        self.positives = positives
        self.corpus = corpus
        self.table = table
        self.anchor_name = anchor_name
        self.positive_name = positive_name
        self.row_query = row_query
        self.row_positive = row_positive
        self.row_weight = row_weight
        self.owner = owner
        self.topics: npt.NDArray[np.int32] | None = None
        self.token = uuid.uuid4().hex
        self._old_batches = 0
        self._batches_served = 0

    @property
    def column_names(self) -> list[str]:
        """Names of the text columns, in the order in which losses expect them."""
        return [self.anchor_name, self.positive_name, *self.negative_names]

    @property
    def negative_names(self) -> list[str]:
        """``negative_1`` to ``negative_n``."""
        return [f"negative_{i + 1}" for i in range(self.table.width)]

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        """Resolve a batch of row numbers; what ``map`` has put into or beside the view's columns stays as it is.

        Negatives that a schedule does not show yet are left out.

        Raises:
            ValueError: If a column of the view was renamed.
        """
        numbered = {name: values for name, values in batch.items() if _are_rows(values)}
        for name in numbered:
            if not self._is_ours(name) or not isinstance(numbered[name][0], int):
                raise ValueError(
                    f"Expected the columns of a live view, {self.column_names}, as they were made, got {name!r} renamed "
                    "or cast. Rename or cast columns before the dataset is wrapped, or take a frozen copy with "
                    "`to_dataset()`."
                )
        resolved = {name: list(values) for name, values in batch.items()}
        if numbered:
            rows = np.asarray(next(iter(numbered.values())), dtype=np.int64) - _FIRST_ROW
            found = self.resolve(rows, list(numbered))
            resolved = {
                name: found.get(name, values) for name, values in resolved.items() if self._is_shown(name, batch)
            }
        return resolved

    def _is_shown(self, name: str, names: Collection[str]) -> bool:
        """Tell whether a column is shown; where nothing else is asked for, a negative is shown in any case."""
        hidden = self.negative_names[self.table.num_active :]
        return name not in hidden or all(other in hidden for other in names)

    def serve_previous(self, batches: int) -> None:
        """Read the next so many batches from before the last refresh, as the interrupted run that is resumed did.

        Call it before the dataloader is iterated. Workers take turns, beginning with the first, so each of them knows
        which of these batches are its own. In a ``DatasetDict`` batches of all its datasets count: see
        :func:`read_in_batches`.
        """
        self._old_batches = batches
        self._batches_served = 0

    def pass_batch(self) -> bool:
        """Count a batch, and tell whether it was fetched before the last refresh in the run that is resumed."""
        if not self._old_batches:
            return False
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number = first + every * self._batches_served
        self._batches_served += 1
        if number >= self._old_batches:
            self._old_batches = 0
            return False
        return True

    def resolve(self, rows: Ids, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return these columns of these rows, all negatives of one generation, without those that are not shown.

        Args:
            rows: int64 of shape ``(batch,)``: rows of the wrapped dataset.
            names: Columns of the view.
        """
        num_active = self.table.num_active
        names = [name for name in names if self._is_shown(name, names)]
        slots = {name: slot for slot, name in enumerate(self.negative_names)}
        wanted = [name for name in names if name in slots]
        negatives = self.table.read(rows, previous=bool(wanted) and self.pass_batch())
        # One look-up for all slots: what it costs is the call, not the texts.
        found = self.corpus.take(negatives[:, [slots[name] for name in wanted]].T.ravel())
        resolved: dict[str, list[Any]] = {}
        for name in names:
            if name in slots:
                start = wanted.index(name) * len(rows)
                resolved[name] = found[start : start + len(rows)]
            elif name == self.anchor_name:
                resolved[name] = self.anchors.take(rows)
            elif name == self.positive_name:
                resolved[name] = self.positives.take(rows)
            else:
                ids = (rows, self.row_query[rows], self.row_positive[rows], self.row_weight[rows])
                resolved[name] = np.column_stack([*ids, negatives[:, :num_active]]).tolist()
        return resolved

    def topics_of(self, dataset: Dataset) -> npt.NDArray[np.int32] | None:
        """Return the topic of the anchor of each row of a dataset that reads from this view, or None without topics."""
        name = next((name for name in dataset.column_names if self._is_ours(name)), None)
        if self.topics is None or name is None:
            return None
        places = np.arange(len(dataset))
        if dataset._indices is not None:
            places = dataset._indices.column(0).to_numpy()
        column = dataset.data.column(name).combine_chunks()
        column = pa.chunked_array([column]) if not isinstance(column, pa.ChunkedArray) else column
        rows = _numbers_at(column, places)
        return None if rows is None else self.topics[rows]

    def _is_ours(self, name: str) -> bool:
        """Tell whether a column of this name is one of the view's."""
        return name in (self.anchor_name, self.positive_name, LABEL_COLUMN) or name in self.negative_names

    def dataset(self, rows: Ids, template: Dataset, *, with_ids: bool) -> Dataset:
        """Return the live ``datasets.Dataset`` of these rows, int64, of the wrapped dataset.

        Its table is in memory, so ``map`` never finds an old cache file for it.
        """
        numbers = pa.array(rows + _FIRST_ROW, type=pa.int64())
        names = [*self.column_names, LABEL_COLUMN] if with_ids else self.column_names
        info = template.info.copy()
        info.features = None
        table = InMemoryTable(pa.table({name: numbers for name in names}))
        dataset = LiveDataset(table, info=info, split=template.split, fingerprint=self.fingerprint())
        dataset.set_transform(self)
        return dataset

    def fingerprint(self) -> str:
        """Identify what the view shows now; changes with every refresh."""
        return f"{self.token[:16]}{self.table.generation:016x}"

    def __deepcopy__(self, memo: dict[int, Any]) -> LiveView:
        # A copied dataset has to follow refreshes as the original does.
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None}


class LiveDataset(Dataset):
    """A Dataset that fetches the batches of a live view at once.

    ``datasets`` turns every column of a batch into Python numbers first, row by row, which alone takes 0.7 ms for 64
    rows of seven columns. Most row operations return a plain Dataset, which reads the same texts through the transform.
    """

    def _refuse_export(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "Expected a dataset to export, got a live view, whose table holds row numbers. Export what "
            "`hard_negatives.to_dataset()` returns, or call `hard_negatives.push_to_hub()`."
        )

    save_to_disk = push_to_hub = to_csv = to_json = to_parquet = to_sql = to_pandas = to_polars = _refuse_export

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        """Return the rows of these keys, as a DataLoader asks for them."""
        view = self._format_kwargs.get("transform")
        names = list(self._data.column_names)
        if not isinstance(view, LiveView) or self._format_columns is not None or not all(map(view._is_ours, names)):
            return super().__getitems__(keys)
        places = np.asarray(keys, dtype=np.int64)
        if self._indices is not None:
            places = self._indices.column(0).to_numpy()[places].astype(np.int64)
        numbered = [_numbers_at(self._data.column(name), places) for name in names]
        rows = numbered[0]
        if rows is None or not all(other is not None and np.array_equal(other, rows) for other in numbered):
            return super().__getitems__(keys)
        columns = view.resolve(rows, names)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class _BatchReader:
    """Reads batches from a concatenation of datasets; live views are told of the batches that they are not in, too."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.views = [next((view for _, view in live_views(part)), None) for part in parts]

    def __call__(self, keys: list[int]) -> list[Any]:
        read: dict[int, Any] = {}
        seen = set()
        owners = np.searchsorted(self.ends, keys, side="right")
        for number in dict.fromkeys(owners.tolist()):
            part, start = self.parts[number], self.ends[number] - len(self.parts[number])
            places = np.flatnonzero(owners == number).tolist()
            read.update(zip(places, part.__getitems__([int(keys[place] - start) for place in places]), strict=True))
            seen.add(id(self.views[number]))
        for view in {id(view): view for view in self.views if view is not None and id(view) not in seen}.values():
            view.pass_batch()
        return [read[place] for place in range(len(keys))]


def read_in_batches(dataset: Any) -> None:
    """Let a dataloader read a concatenation of datasets batch by batch, in place.

    torch reads it row by row, which takes five times as long and does not tell a live view where a batch ends.
    """
    if isinstance(dataset, ConcatDataset):
        # A DataLoader asks for this attribute, and no subclass can be given to it once it is made.
        setattr(dataset, "__getitems__", _BatchReader(dataset.datasets))  # noqa: B010


@pklregister(LiveView)
def _save_live_view(pickler: Any, view: LiveView) -> None:
    # `datasets` hashes a transform by pickling it, every time a format is set: 0.2 s for a million rows. This is that
    # pickler only; workers get the real thing.
    pickler.save_reduce(str, (f"{__name__}.LiveView({view.fingerprint()})",), obj=view)


def _are_rows(values: Any) -> bool:
    """Tell whether these are row numbers of a view, also if they were cast to strings or floats."""
    if not len(values):
        return False
    first = values[0]
    if isinstance(first, str):
        return len(first) == len(str(_FIRST_ROW)) and first.isdecimal() and int(first) >= _FIRST_ROW
    return isinstance(first, (int, float)) and _FIRST_ROW <= first < 2 * _FIRST_ROW


def _numbers_at(column: pa.ChunkedArray, places: Ids) -> Ids | None:
    """Return the rows that stand at these places of a column, or None if it holds something else."""
    if column.num_chunks != 1 or column.type != pa.int64() or column.null_count:
        return None
    rows: Ids = column.chunk(0).to_numpy()[places] - _FIRST_ROW
    return rows if rows.min(initial=0) >= 0 else None


def live_views(dataset: Any) -> Iterator[tuple[str | None, LiveView]]:
    """Yield every live view that a dataset, or a concatenation of datasets, reads from, with its dataset's name.

    The name is the one that the trainer gave a member of a ``DatasetDict``, or None.
    """
    for part in getattr(dataset, "datasets", [dataset]):
        transform, name = getattr(part, "_format_kwargs", {}).get("transform"), None
        while isinstance(transform, partial):
            name = transform.keywords.get("dataset_name", name)
            transform = transform.keywords.get("transform")
        if isinstance(transform, LiveView) and _shows_negatives(part, transform):
            yield name, transform


def _shows_negatives(dataset: Dataset, view: LiveView) -> bool:
    """Tell whether a dataset still has the view's negatives: `map` may have rewritten them, or they were dropped."""
    columns = [dataset.data.column(name) for name in dataset.column_names if name in view.negative_names]
    return bool(columns) and all(column.type == pa.int64() for column in columns)
