"""What a batch's label says: read into row weights and ids, or refused in words."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from st_hardneg.losses.labels import RowLabels, carries_ids, check_weights

IDS = torch.tensor([[0, 4, 9, 1_000_000, 7, -1], [1, 5, 8, 0, -1, 3], [2, 4, 9, 250_000, 1, 2]])


def test_no_label_says_nothing() -> None:
    """Neither weights nor ids, so that there are no unfilled slots to know of."""
    read = RowLabels.parse(None, 3, 2)
    assert (read.weights, read.text_ids, read.unfilled) == (None, None, None)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("num_negatives", [0, 2])
def test_floats_are_row_weights(shape: tuple[int, ...], num_negatives: int) -> None:
    """Zero is a weight: a row that does not count."""
    read = RowLabels.parse(torch.tensor([0.0, 0.5, 2.0]).reshape(shape), 3, num_negatives)
    assert read.weights is not None
    assert read.weights.tolist() == [0.0, 0.5, 2.0]
    assert (read.text_ids, read.unfilled) == (None, None)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integers_are_ids_and_weights(dtype: torch.dtype) -> None:
    """Query, positive and negatives in the order of the columns; the weight in millionths; -1 is unfilled."""
    read = RowLabels.parse(IDS.to(dtype), 3, 2)
    assert read.weights is not None
    assert read.text_ids is not None
    assert read.unfilled is not None
    assert read.weights.tolist() == [1.0, 0.0, 0.25]
    assert read.text_ids.dtype == torch.int64
    assert read.text_ids.tolist() == [[4, 9, 7, -1], [5, 8, -1, 3], [4, 9, 1, 2]]
    assert read.unfilled.tolist() == [[False, True], [True, False], [False, False]]
    assert RowLabels.parse(IDS[:, :4], 3, 0).text_ids.tolist() == [[4, 9], [5, 8], [4, 9]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (None, False),
        (torch.zeros(3, dtype=torch.int64), False),
        (torch.zeros(3, 3, dtype=torch.int64), False),
        (torch.zeros(3, 4, dtype=torch.int64), True),
        (torch.zeros(3, 9, dtype=torch.int32), True),
        (torch.zeros(3, 4, 4, dtype=torch.int64), False),
        (torch.zeros(3, 4), False),
        (torch.zeros(3, 4, dtype=torch.float16), False),
        (torch.zeros(3, 4, dtype=torch.complex64), False),
        (torch.zeros(3, 4, dtype=torch.bool), False),
    ],
)
def test_what_carries_ids(label: Tensor | None, expected: bool) -> None:
    """A matrix of whole numbers with at least row, query, positive and weight."""
    assert carries_ids(label) is expected


@pytest.mark.parametrize("bad", [-0.25, float("inf"), float("-inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(bad: float) -> None:
    """One of many is enough; zeros and large weights are fine."""
    check_weights(torch.tensor([0.0, 1e30]))
    with pytest.raises(ValueError, match=r"^Expected row weights to be finite numbers of at least 0\. Got "):
        check_weights(torch.tensor([1.0, bad, 0.0]))


EXPECTED_LABEL = (
    "Expected no label, float row weights of shape (7,), or int64 ids of shape (7, 5) for 1 negative column(s). "
)
EXPECTED_WEIGHTS = "Expected row weights to be finite numbers of at least 0. "
GIVE_WEIGHTS = "Use 0.0 for a row that must not count."


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.ones(7, dtype=torch.int64),
            EXPECTED_LABEL + "Got int64 of shape (7,). "
            "Convert the label column to float if it holds row weights. If it holds classes, remove it: this loss does "
            "not use them.",
        ),
        (
            torch.ones(7, 5),
            EXPECTED_LABEL + "Got float32 of shape (7, 5). "
            "Remove the label column, or train on `HardNegativeDataset.as_dataset(with_ids=True)`.",
        ),
        (
            torch.ones(7, 4, dtype=torch.int64),
            EXPECTED_LABEL + "Got int64 of shape (7, 4). The columns and the ids must come from the same "
            "`as_dataset(with_ids=True)`, with no column removed or added. If they do, and the model's embeddings have "
            "5 dimensions, `MatryoshkaLoss` took the ids for embeddings and cut them: mine another number of negatives "
            "than 1.",
        ),
        (
            torch.ones(7, 6, dtype=torch.int32),
            EXPECTED_LABEL + "Got int32 of shape (7, 6). The columns and the ids must come from the same "
            "`as_dataset(with_ids=True)`, with no column removed or added.",
        ),
        (
            torch.ones(7, 1, dtype=torch.int32),
            EXPECTED_LABEL + "Got int32 of shape (7, 1). "
            "Convert the label column to float if it holds row weights. If it holds classes, remove it: this loss does "
            "not use them.",
        ),
        (
            torch.ones(7, 5, dtype=torch.bool),
            EXPECTED_LABEL + "Got bool of shape (7, 5). "
            "Remove the label column, or train on `HardNegativeDataset.as_dataset(with_ids=True)`.",
        ),
        (
            torch.tensor([1.0, -0.5, 1, 1, 1, 1, 1]),
            EXPECTED_WEIGHTS + "Got -0.5 as the smallest and 1 as the largest. " + GIVE_WEIGHTS,
        ),
        (
            torch.tensor([1.0, float("nan"), 1, 1, 1, 1, 1]),
            EXPECTED_WEIGHTS + "Got nan as the smallest and nan as the largest. " + GIVE_WEIGHTS,
        ),
        (
            torch.ones(7, 5, dtype=torch.complex64),
            EXPECTED_LABEL + "Got complex64 of shape (7, 5). "
            "Remove the label column, or train on `HardNegativeDataset.as_dataset(with_ids=True)`.",
        ),
        (
            torch.ones(7, 1, dtype=torch.bool),
            EXPECTED_LABEL + "Got bool of shape (7, 1). "
            "Convert the label column to float if it holds row weights. If it holds classes, remove it: this loss does "
            "not use them.",
        ),
        (
            torch.ones(8),
            EXPECTED_LABEL + "Got float32 of shape (8,). "
            "Remove the label column, or train on `HardNegativeDataset.as_dataset(with_ids=True)`.",
        ),
        (
            torch.ones(6, 5, dtype=torch.int64),
            EXPECTED_LABEL + "Got int64 of shape (6, 5). The columns and the ids must come from the same "
            "`as_dataset(with_ids=True)`, with no column removed or added.",
        ),
        (
            torch.ones(7, 5, 1, dtype=torch.int64),
            EXPECTED_LABEL + "Got int64 of shape (7, 5, 1). "
            "Remove the label column, or train on `HardNegativeDataset.as_dataset(with_ids=True)`.",
        ),
        (
            torch.full((7, 5), -1),
            EXPECTED_WEIGHTS + "Got -1e-06 as the smallest and -1e-06 as the largest. " + GIVE_WEIGHTS,
        ),
    ],
)
def test_a_label_of_another_kind_is_refused(labels: Any, message: str) -> None:
    """Labels that are neither weights nor ids, and weights that are none, are errors."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RowLabels.parse(labels, 7, 1)
