"""LiveView: what the rows of a live view are at this moment, as texts and labels."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch.utils.data import get_worker_info

from st_hardneg.corpus.texts import Ids, TextColumn
from st_hardneg.hosts import pklregister
from st_hardneg.live.table import NegativeTable, Scores

LABEL_COLUMN = "label"
SCORES_COLUMN = "scores"


class LiveView:
    """Turns row numbers into texts at the moment they are read, with the negatives of that moment.

    It can be pickled, and follows refreshes in every process of this machine that has a copy.

    Args:
        anchors: The anchors, one per row of the wrapped dataset.
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
        owner: object = None,
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

    @property
    def refreshed_names(self) -> list[str]:
        """The text columns that a refresh changes."""
        return self.negative_names

    def type_of(self, name: str) -> pa.DataType:
        """Return Arrow's type of a column."""
        return {LABEL_COLUMN: pa.list_(pa.int64()), SCORES_COLUMN: pa.list_(pa.float64())}.get(name, pa.string())

    def row_of(self, rows: Ids) -> Ids:
        """Return the row of the wrapped dataset that each row of a dataset over this view is about."""
        return rows

    def shown(self, names: Collection[str]) -> list[str]:
        """Return which of these columns a batch shows: negatives that a schedule does not show yet are left out.

        Where nothing but such negatives is asked for, they are shown all the same.
        """
        hidden = self.negative_names[self.table.num_shown :]
        seen = [name for name in names if name not in hidden] if hidden else list(names)
        return seen or list(names)

    def resolve(self, rows: Ids, names: Sequence[str], *, all_slots: bool = False) -> dict[str, list[Any]]:
        """Return these columns of these rows, all negatives of one generation.

        Labels are ``[row, query, positive, weight in millionths, negatives that are shown …]``; a text that only stands
        in for a negative has -1 there, which losses mask.

        Args:
            rows: int64 of shape ``(batch,)``: rows of the wrapped dataset.
            names: Text columns of the view, or ``"label"``.
            all_slots: Put all negatives into labels, also those that a schedule does not show yet.

        Raises:
            ValueError: If a slot is empty.
        """
        slots = {name: slot for slot, name in enumerate(self.negative_names)}
        wanted = [name for name in names if name in slots]
        negatives, scores = self.read(rows, SCORES_COLUMN in names, previous=bool(wanted) and self.pass_batch())
        width = self.table.width if all_slots else self.table.num_shown
        texts = labelled = negatives
        if negatives.min(initial=0) < 0:
            texts, labelled = np.where(negatives < 0, -negatives - 2, negatives), np.maximum(negatives, -1)
            if texts.min() < 0:
                row = int(rows[(texts < 0).any(axis=1)][0])
                raise ValueError(
                    f"Expected a negative in every slot of the rows of a live view, got an empty one in row {row:,}. Make "
                    "the view anew with `as_dataset()`."
                )
        # One look-up for all slots: what it costs is the call, not the texts.
        found = self.corpus.take(texts[:, [slots[name] for name in wanted]].T.ravel()) if wanted else []
        resolved: dict[str, list[Any]] = {}
        for name in names:
            if name in slots:
                start = wanted.index(name) * len(rows)
                resolved[name] = found[start : start + len(rows)]
            elif name == self.anchor_name:
                resolved[name] = self.anchors.take(rows)
            elif name == self.positive_name:
                resolved[name] = self.positives.take(rows)
            elif name == SCORES_COLUMN:
                assert scores is not None
                resolved[name] = scores[:, : 1 + width].tolist()
            else:
                ids = (rows, self.row_query[rows], self.row_positive[rows], self.row_weight[rows])
                resolved[name] = np.column_stack([*ids, labelled[:, :width]]).tolist()
        return resolved

    def read(self, rows: Ids, with_scores: bool, *, previous: bool) -> tuple[Ids, Scores | None]:
        """Return what the table holds of these rows, negatives and, if wanted, scores, all of one generation."""
        if with_scores:
            return self.table.read_scored(rows, previous=previous)
        return self.table.read(rows, previous=previous), None

    def serve_previous(self, batches: int) -> None:
        """Read the next so many batches from before the last refresh, as the interrupted run that is resumed did.

        Call it before the dataloader is iterated. Workers take turns, beginning with the first, so each of them knows
        which of these batches are its own. In a ``DatasetDict`` batches of all its datasets count: see
        :func:`st_hardneg.live.batches.read_in_batches`.
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

    def fingerprint(self) -> str:
        """Identify what the view shows now; changes with every refresh."""
        return f"{self.token[:16]}{self.table.generation:016x}"

    def __deepcopy__(self, memo: dict[int, Any]) -> LiveView:
        # A copied dataset has to follow refreshes as the original does.
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None}


@pklregister(LiveView)
def _save_live_view(pickler: Any, view: LiveView) -> None:
    # `datasets` identifies a dataset by pickling it: 0.2 s for a million rows. This is that pickler only; workers get
    # the real thing.
    pickler.save_reduce(str, (f"{__name__}.LiveView({view.fingerprint()})",), obj=view)
