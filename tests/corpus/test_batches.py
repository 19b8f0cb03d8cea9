"""Batches of `map` in every form that a dataset's format gives them."""

from __future__ import annotations

import re
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Value

from st_hardneg.corpus.batches import check_batch, dataset_of_batch


@pytest.mark.parametrize(
    "numbers",
    [
        [1, 0],
        np.array([1, 0]),
        torch.tensor([1, 0]),
        [np.int64(1), np.int32(0)],
        [torch.tensor(1), torch.tensor(0)],
        [np.array(1), np.array(0)],
    ],
)
def test_numbers_are_read_in_every_form(numbers):
    """Lists, arrays, tensors, and lists of the numbers of either."""
    read = dataset_of_batch({"q": ["a", "b"], "number": numbers, "label": numbers})
    assert read["number"][:] == read["label"][:] == [1, 0]


def test_what_is_kept():
    """Texts, numbers and labels; pictures, vectors and the like are nobody's business."""
    batch = {
        "q": np.array(["a", "b"], dtype=object),
        "weight": [0.5, None],
        "flag": [True, False],
        "price": [Decimal("1.5"), Decimal("2")],
        "vector": [np.zeros(3), np.zeros(3)],
        "picture": [object(), object()],
        "labels": [[1], [0]],
    }
    read = dataset_of_batch(batch)
    assert read.column_names == ["q", "weight", "flag", "price", "labels"]
    assert read["q"][:] == ["a", "b"] and read["labels"][:] == [[1], [0]]


class LazyBatch(dict):
    """A batch that knows the features of its columns, as `datasets` hands it out."""

    def __init__(self, columns, features):
        super().__init__(columns)
        self.formatter = SimpleNamespace(features=features)


def test_classes_keep_their_names():
    """Only classes: other features say nothing that the values do not."""
    features = {"label": ClassLabel(names=["yes", "no"]), "gone": ClassLabel(names=["x"]), "number": Value("int8")}
    read = dataset_of_batch(LazyBatch({"label": [0, 1], "number": [5, 6]}, features))
    assert read.features["label"].names == ["yes", "no"]
    assert read.features["number"].dtype == "int64"


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            pd.DataFrame({"a": ["b"], "c": ["d"]}),
            TypeError,
            "Expected a batch of columns as lists, got DataFrame. Take the format off: "
            "`dataset.with_format(None).map(miner, batched=True)`.",
        ),
        (
            pa.table({"a": ["b"], "c": ["d"]}),
            TypeError,
            "Expected a batch of columns as lists, got Table. Take the format off: "
            "`dataset.with_format(None).map(miner, batched=True)`.",
        ),
        (
            {"a": ["b"]},
            ValueError,
            "Expected batches with an anchor and a positive column, got the columns ['a']. Call "
            "`dataset.map(miner, batched=True)` on a dataset of pairs.",
        ),
        (
            {"a": "b", "c": "d"},
            ValueError,
            "Expected a batch of rows, got a single one. Call `dataset.map(miner, batched=True)`.",
        ),
    ],
)
def test_what_is_no_batch_is_refused(batch, error, message):
    """Each with what to do."""
    check_batch({"a": ["b"], "c": ["d"]})
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check_batch(batch)
