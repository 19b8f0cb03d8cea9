"""Live views for cross encoders: a pair and its label in each row, or a query and a list of texts and labels."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from st_hardneg.corpus.texts import Ids
from st_hardneg.live.view import LiveView

Self = TypeVar("Self", bound="LabeledView")


class LabeledView(LiveView):
    """A view whose rows hold texts and how right they are: labels 1 and 0, or scores.

    No loss can mask what only stands in for a negative, so another negative of the same row is read in its place, in
    turn; only where a row has nothing but stand-ins do they stay.
    """

    label_names: tuple[str, str]
    """The column of labels, and what it is called where it holds scores."""

    with_scores: bool

    @classmethod
    def beside(cls: type[Self], view: LiveView, *, with_scores: bool) -> Self:
        """Return a labelled view of what another view reads."""
        labeled = cls.__new__(cls)
        labeled.__dict__.update(view.__dict__, token=uuid.uuid4().hex, with_scores=with_scores)
        labeled.serve_previous(0)
        return labeled

    @property
    def label_name(self) -> str:
        """The column of labels or scores."""
        return self.label_names[self.with_scores]

    @property
    def column_names(self) -> list[str]:
        """All columns, in the order in which losses expect them."""
        return [self.anchor_name, self.positive_name, self.label_name]

    @property
    def refreshed_names(self) -> list[str]:
        """The text column that a refresh changes."""
        return [self.positive_name]

    def shown(self, names: Collection[str]) -> list[str]:
        """Return which of these columns a batch shows: all."""
        return list(names)

    def read_texts(self, rows: Ids, *, all_slots: bool) -> tuple[Ids, npt.NDArray[np.bool_], Any]:
        """Return the negatives of some rows, all of one generation.

        Args:
            rows: int64 of shape ``(batch,)``: rows of the wrapped dataset.
            all_slots: Also those that a schedule does not show yet.

        Returns:
            Corpus ids, int64 of shape ``(batch, num_negatives)``; where a negative stands that is shown and no stand-in,
            boolean of the same shape; and the scores of positives and negatives, or None.
        """
        ids, scores = self.read(rows, self.with_scores, previous=self.pass_batch())
        is_good = ids >= 0
        is_shown = np.arange(ids.shape[1]) < (self.table.width if all_slots else self.table.num_shown)
        is_good &= is_shown
        has_none = ~is_good.any(axis=1)
        is_good[has_none] = is_shown
        return np.where(ids < 0, -ids - 2, ids), is_good, scores


class LabeledPairs(LabeledView):
    """Each row is an anchor, a text and its label: each positive, and each negative of a query once.

    The rows are counted as ``row * (1 + num_negatives) + slot``, where slot 0 is the positive. Which pair stands in which
    row never changes; the texts of the negatives do.
    """

    label_names = ("label", "score")

    def type_of(self, name: str) -> pa.DataType:
        """Return Arrow's type of a column."""
        number = pa.float64() if self.with_scores else pa.int64()
        return number if name == self.label_name else pa.string()

    def places(self, rows: Ids) -> Ids:
        """Return the pairs of some rows: each positive, and after a query's last row its negatives."""
        queries, width = self.row_query[rows], 1 + self.table.width
        is_last = np.zeros(len(rows), dtype=bool)
        is_last[len(rows) - 1 - np.unique(queries[::-1], return_index=True)[1]] = True
        is_pair = np.repeat(is_last[:, None], width, axis=1)
        is_pair[:, 0] = True
        row, slot = np.nonzero(is_pair)
        places: Ids = rows[row] * width + slot
        return places

    def row_of(self, rows: Ids) -> Ids:
        """Return the row of the wrapped dataset that each pair is of."""
        return rows // (1 + self.table.width)

    def resolve(self, rows: Ids, names: Sequence[str], *, all_slots: bool = False) -> dict[str, list[Any]]:
        """Return these columns of these pairs, all of one generation."""
        row, slot = np.divmod(rows, 1 + self.table.width)
        ids, is_good, scores = self.read_texts(row, all_slots=all_slots)
        each, is_positive = np.arange(len(rows)), slot == 0
        shown = _in_turn(is_good)[each, slot - 1]
        resolved: dict[str, list[Any]] = {}
        for name in names:
            if name == self.anchor_name:
                resolved[name] = self.anchors.take(row)
            elif name == self.positive_name:
                texts = np.empty(len(rows), dtype=object)
                texts[is_positive] = self.positives.take(row[is_positive])
                texts[~is_positive] = self.corpus.take(ids[each, shown][~is_positive])
                resolved[name] = texts.tolist()
            elif scores is None:
                resolved[name] = is_positive.astype(np.int64).tolist()
            else:
                resolved[name] = scores[each, np.where(is_positive, 0, 1 + shown)].astype(np.float64).tolist()
        return resolved


class LabeledLists(LabeledView):
    """Each row is an anchor, a list of its positive and its negatives, and a list of their labels."""

    label_names = ("labels", "scores")

    def type_of(self, name: str) -> pa.DataType:
        """Return Arrow's type of a column."""
        if name == self.anchor_name:
            return pa.string()
        if name == self.positive_name:
            return pa.list_(pa.string())
        return pa.list_(pa.float64() if self.with_scores else pa.int64())

    def resolve(self, rows: Ids, names: Sequence[str], *, all_slots: bool = False) -> dict[str, list[Any]]:
        """Return these columns of these rows, all of one generation."""
        ids, is_good, scores = self.read_texts(rows, all_slots=all_slots)
        ends = np.cumsum(is_good.sum(axis=1))[:-1]
        resolved: dict[str, list[Any]] = {}
        for name in names:
            if name == self.anchor_name:
                resolved[name] = self.anchors.take(rows)
            elif name == self.positive_name:
                positives, found = self.positives.take(rows), iter(self.corpus.take(ids[is_good]))
                counts = is_good.sum(axis=1).tolist()
                resolved[name] = [
                    [text, *(next(found) for _ in range(count))] for text, count in zip(positives, counts, strict=True)
                ]
            elif scores is None:
                resolved[name] = [[1, *[0] * int(count)] for count in is_good.sum(axis=1)]
            else:
                parts = np.split(scores[:, 1:][is_good].astype(np.float64), ends)
                resolved[name] = [[float(own), *part] for own, part in zip(scores[:, 0], parts, strict=True)]
        return resolved


def _in_turn(is_good: npt.NDArray[np.bool_]) -> Ids:
    """Return which slot is read for each slot, int64 of shape ``(batch, n)``: itself, or the good ones in turn."""
    count = is_good.sum(axis=1, keepdims=True)
    slots = np.broadcast_to(np.arange(is_good.shape[1]), is_good.shape)
    good_first = np.argsort(~is_good, axis=1, kind="stable")
    turns: Ids = np.where(is_good, slots, np.take_along_axis(good_first, slots % np.maximum(count, 1), axis=1))
    return turns


LABELED: dict[str, type[LabeledView]] = {"labeled-pair": LabeledPairs, "labeled-list": LabeledLists}
"""The labelled views by the name of their output format."""
