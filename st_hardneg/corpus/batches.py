"""A batch that ``map`` hands to a function, as the rows of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from datasets import ClassLabel, Dataset

from st_hardneg.corpus.labels import is_label
from st_hardneg.hosts import features_of_batch

_PLAIN = (str, int, float, bool, Decimal, type(None))


def dataset_of_batch(batch: Mapping[str, Any]) -> Dataset:
    """Return the columns of texts and numbers of a batch, whatever its format, and all that are called like labels.

    Args:
        batch: Columns as lists, arrays or tensors. Classes have their names, where the batch knows them.
    """
    columns = {}
    for name, values in batch.items():
        plain = [_plain(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
        if is_label(name) or all(isinstance(value, _PLAIN) for value in plain):
            columns[name] = plain
    dataset = Dataset.from_dict(columns)
    for name, feature in features_of_batch(batch).items():
        if isinstance(feature, ClassLabel) and name in columns:
            dataset = dataset.cast_column(name, feature)
    return dataset


def check_batch(batch: Any) -> None:
    """Raise unless a batch holds several rows, and columns by name.

    Raises:
        TypeError: If it is a table of pandas or Arrow.
        ValueError: If it is a single row, or has one column.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"Expected a batch of columns as lists, got {type(batch).__name__}. Take the format off: "
            "`dataset.with_format(None).map(miner, batched=True)`."
        )
    if len(batch) < 2:
        raise ValueError(
            f"Expected batches with an anchor and a positive column, got the columns {list(batch)}. Call "
            "`dataset.map(miner, batched=True)` on a dataset of pairs."
        )
    if any(isinstance(values, str) for values in batch.values()):
        raise ValueError("Expected a batch of rows, got a single one. Call `dataset.map(miner, batched=True)`.")


def _plain(value: Any) -> Any:
    """Return a number in an array of no dimension, such as NumPy's, as Python's own."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
