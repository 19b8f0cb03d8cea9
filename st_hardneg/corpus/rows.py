"""The rows that users hand in: which columns are what, what labels say, and what is left unused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from st_hardneg.corpus.labels import right_rows
from st_hardneg.corpus.texts import TEXT_TYPES, Ids, TextColumn, check_text_column

WEIGHT_UNIT = 1_000_000
"""Weights stand in labels as whole millionths: a float among ids would turn all of them into floats."""

_MAX_WEIGHT = 1e6
# Names that outputs, labels and the trainer use themselves.
_RESERVED = {"label", "labels", "score", "scores", "return_loss", "dataset_name"}
_ASKS = re.compile(r"(query|question|anchor|claim|q|search|title|prompt|instruction)(_?text)?s?", re.IGNORECASE)
_ANSWERS = re.compile(
    r"(answer|passage|document|doc|context|positive|response|abstract|body|paragraph|article|content)(_?text)?s?",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"negative(_\d+)?")
_ID_NAME = re.compile(
    r"(_?id|idx|index|[qp]id|docid|docno|ur[il]|lang|language|split|.*[_-](id|idx|url))", re.IGNORECASE
)
_ID_VALUE = re.compile(r"\d+|[0-9a-fA-F]{16,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SAMPLE = 200


@dataclass(frozen=True, eq=False)
class Rows:
    """(anchor, positive) rows, and what else the dataset says.

    Args:
        dataset: The rows that are right answers, with all of their columns.
        anchor_name: The anchor column.
        positive_name: The positive column.
        weights: int64 of shape ``(num_rows,)``: the rows' weights in millionths.
        negative_names: Columns of given negatives.
        wrong: The rows that a label says are wrong answers, with all of their columns, or None.
        label_name: The column of labels or grades that was read, if there is one.
        unused: Columns that are not used.
        is_by_place: Whether anchor and positive were taken by their place, and neither named nor called so.
    """

    dataset: Dataset
    anchor_name: str
    positive_name: str
    weights: Ids
    negative_names: tuple[str, ...] = ()
    wrong: Dataset | None = None
    label_name: str | None = None
    unused: tuple[str, ...] = ()
    is_by_place: bool = False

    @property
    def unused_texts(self) -> list[str]:
        """Columns of texts that are not used, and might have been meant."""
        columns = ((name, getattr(self.dataset.features[name], "dtype", None)) for name in self.unused)
        return [name for name, kind in columns if kind in TEXT_TYPES and not _ID_NAME.fullmatch(name)]

    @property
    def looks_swapped(self) -> bool:
        """Whether the names of columns that were taken by their place read as if answers came first."""
        is_swapped = _ANSWERS.fullmatch(self.anchor_name) and _ASKS.fullmatch(self.positive_name)
        return self.is_by_place and is_swapped is not None

    @property
    def anchors(self) -> TextColumn:
        """The anchors, one per row."""
        return TextColumn(self.dataset, self.anchor_name)

    @property
    def positives(self) -> TextColumn:
        """The positives, one per row."""
        return TextColumn(self.dataset, self.positive_name)

    def given_negatives(self) -> list[tuple[TextColumn, TextColumn]]:
        """Return the anchors and the texts of every column of given negatives, rows that are labelled wrong last."""
        columns = [(self.anchors, TextColumn(self.dataset, name)) for name in self.negative_names]
        if self.wrong is not None:
            columns.append((TextColumn(self.wrong, self.anchor_name), TextColumn(self.wrong, self.positive_name)))
        return columns

    def __str__(self) -> str:
        parts = [f"anchor {self.anchor_name!r}", f"positive {self.positive_name!r}"]
        if self.label_name is not None:
            parts.append(f"labels {self.label_name!r}")
        if self.negative_names:
            parts.append(f"given negatives {list(self.negative_names)}")
        if self.wrong is not None:
            parts.append(f"{len(self.wrong):,} rows labelled wrong as given negatives")
        if "weight" in self.dataset.column_names:
            parts.append("weights 'weight'")
        if self.unused:
            parts.append(f"not used {list(self.unused)}")
        return ", ".join(parts)


def read_rows(dataset: Any, anchor: str | None, positive: str | None, *, use_given: bool) -> Rows:
    """Make out what the columns of a dataset are.

    Args:
        dataset: The dataset.
        anchor: The anchor column; made out by name, or else the first one, if None.
        positive: The positive column; likewise.
        use_given: Whether given negatives are wanted: columns ``negative``, ``negative_1`` … and rows with label 0.

    Raises:
        TypeError: If it is of another kind, or a column does not hold text or numbers.
        ValueError: If it is empty, a column is missing or holds ids or empty texts, or labels say that rows are wrong
            answers and given negatives are not wanted.
    """
    _check_dataset(dataset)
    is_by_place = anchor is None and positive is None and not {"anchor", "positive"} <= set(dataset.column_names)
    anchor, positive = column_names(dataset, anchor, positive)
    label_name, is_right = right_rows(dataset, (anchor, positive), use_given=use_given)
    wrong = None
    if is_right is not None and not is_right.all():
        wrong = dataset.select(np.flatnonzero(~is_right))
        dataset = dataset.select(np.flatnonzero(is_right))
        check_text_column(wrong, anchor, "anchor_column_name")
        check_text_column(wrong, positive, "positive_column_name")
    check_text_column(dataset, anchor, "anchor_column_name")
    check_text_column(dataset, positive, "positive_column_name")
    named = tuple(name for name in dataset.column_names if _NEGATIVE.fullmatch(name) and name not in (anchor, positive))
    for name in named if use_given else ():
        if getattr(dataset.features[name], "dtype", None) not in TEXT_TYPES:
            raise TypeError(f"Expected the given negatives in {name!r} to be texts, got {dataset.features[name]}.")
    if use_given and not named and wrong is None:
        raise ValueError(
            "The source 'given' needs negatives in the dataset: columns 'negative' or 'negative_1', 'negative_2' …, or "
            f"rows with label 0. Columns are {dataset.column_names}."
        )
    negatives = named if use_given else ()
    used = {anchor, positive, "weight", label_name, *negatives}
    unused = tuple(name for name in dataset.column_names if name not in used)
    return Rows(dataset, anchor, positive, _row_weights(dataset), negatives, wrong, label_name, unused, is_by_place)


def _check_dataset(dataset: Any) -> None:
    kinds = {
        DatasetDict: "a DatasetDict. Wrap each split by itself: `HardNegativeDataset(dataset['train'])`.",
        IterableDatasetDict: "an IterableDatasetDict. Load the data without `streaming=True`, and wrap each split.",
        IterableDataset: "an IterableDataset, whose rows have no numbers. Load the data without `streaming=True`, or "
        "mine in a stream with `HardNegativeMiner`.",
    }
    for kind, rest in kinds.items():
        if isinstance(dataset, kind):
            raise TypeError(f"Expected a `datasets.Dataset`, got {rest}")
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Expected a `datasets.Dataset`, got {type(dataset).__name__}. Make one with `Dataset.from_dict`, "
            "`Dataset.from_pandas` or `load_dataset`."
        )
    if len(dataset) == 0:
        raise ValueError("Expected a dataset with at least one row, got an empty one.")
    if dataset.format["type"] == "custom":
        raise ValueError(
            "The dataset has a transform (`with_transform` or `set_transform`), and mining would read the texts without "
            "it. Apply it once, with `dataset.with_format(None).map(transform, batched=True, remove_columns=...)`, or "
            "take it off with `dataset.with_format(None)`."
        )


def column_names(dataset: Dataset, anchor: str | None, positive: str | None) -> tuple[str, str]:
    """Return the names of the anchor and the positive column.

    Where a name is not given, a column of the name ``anchor`` or ``positive`` is meant if both are there, in whatever
    order; else the first and the second column, as in Sentence Transformers.

    Raises:
        ValueError: If there are fewer than two columns, one is given for both, or one that was not named holds ids.
        TypeError: If a name is no string.
    """
    names = list(dataset.column_names)
    for parameter, name in (("anchor_column_name", anchor), ("positive_column_name", positive)):
        if name is not None and not isinstance(name, str):
            raise TypeError(f"Expected `{parameter}` to be a string, got {type(name).__name__}. Name a column.")
    chosen = [parameter for parameter, name in (("anchor", anchor), ("positive", positive)) if name is None]
    if {"anchor", "positive"} <= set(names):
        anchor = anchor or ("anchor" if positive != "anchor" else None)
        positive = positive or ("positive" if anchor != "positive" else None)
    anchor = anchor or next((name for name in names if name != positive), "anchor")
    if positive is None:
        positive = next((name for name in names if name != anchor), None)
        if positive is None:
            raise ValueError(
                f"Expected at least two columns, anchor and positive, got {names}. Add the column of positives."
            )
    for parameter, name in (("anchor", anchor), ("positive", positive)):
        if name in _RESERVED or _NEGATIVE.fullmatch(name):
            raise ValueError(
                f"Expected another name than {name!r} for the column of {parameter}s: the mined dataset "
                f"has a column of that name. Rename it with `dataset.rename_column({name!r}, 'text')`, for example."
            )
        if parameter in chosen and name in names and name != parameter:  # a column of that very name is meant
            _refuse_ids(dataset, name, parameter)
    if anchor == positive:
        raise ValueError(f"Expected different columns for anchor and positive, got {anchor!r} for both.")
    return anchor, positive


def _refuse_ids(dataset: Dataset, name: str, parameter: str) -> None:
    """Raise if a column that was taken by its place holds ids and no texts."""
    is_id = _ID_NAME.fullmatch(name) is not None
    if not is_id and getattr(dataset.features[name], "dtype", None) in TEXT_TYPES:
        values = TextColumn(dataset, name).take(np.arange(min(_SAMPLE, len(dataset))))
        is_id = all(isinstance(value, str) and _ID_VALUE.fullmatch(value.strip()) for value in values)
    if is_id:
        raise ValueError(
            f"The column {name!r}, taken as {parameter}s by its place, looks like ids. Name the column of texts: "
            f"`{parameter}_column_name=...`. Columns are {dataset.column_names}."
        )


def _row_weights(dataset: Dataset) -> Ids:
    """Return the rows' weights in whole millionths: the column ``weight``, or 1 each.

    Raises:
        TypeError: If the column does not hold numbers.
        ValueError: If a weight is negative or not finite.
    """
    if "weight" not in dataset.column_names:
        return np.full(len(dataset), WEIGHT_UNIT, dtype=np.int64)
    weights: Any = np.asarray(dataset.with_format(None)["weight"][:], dtype=object)
    try:
        numbers = np.asarray(weights).astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            "Expected the column 'weight' to hold numbers, got something else. Rename it if it is not the rows' weight."
        ) from None
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0) & (numbers <= _MAX_WEIGHT)))
    if len(bad):
        raise ValueError(
            f"Expected weights from 0 to a million in the column 'weight', got {weights[bad[0]]!r} in row {bad[0]}. "
            "Correct it."
        )
    result: Ids = np.rint(numbers * WEIGHT_UNIT).astype(np.int64)
    if len(vanished := np.flatnonzero((result == 0) & (numbers > 0))):
        raise ValueError(
            f"Expected weights of at least a millionth in the column 'weight', got {numbers[vanished[0]]:g} in row "
            f"{vanished[0]}, which would count as 0. Scale the weights, for example to a mean of 1."
        )
    return result
