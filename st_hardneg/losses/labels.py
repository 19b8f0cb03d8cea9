"""What a training batch's label tells the losses: row weights, and which texts are in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_LEADING_IDS = 4
"""Numbers before the negatives in a label with ids: row, query, positive, weight in millionths."""


@dataclass(frozen=True)
class RowLabels:
    """The label of a batch, read. What the label does not carry is None.

    Args:
        weights: float of shape ``(batch,)``: how much each row counts.
        query_ids: int64 of shape ``(batch,)``.
        positive_ids: int64 corpus ids of shape ``(batch,)``.
        negative_ids: int64 corpus ids of shape ``(batch, num_negatives)``, -1 where there is none.
    """

    weights: Tensor | None = None
    query_ids: Tensor | None = None
    positive_ids: Tensor | None = None
    negative_ids: Tensor | None = None

    @property
    def column_major_ids(self) -> Tensor | None:
        """Corpus ids of all positives, then of all first negatives, and so on; None if the label has no ids."""
        if self.positive_ids is None or self.negative_ids is None:
            return None
        return torch.cat([self.positive_ids, self.negative_ids.T.reshape(-1)])

    @classmethod
    def parse(cls, labels: Tensor | None, batch_size: int, num_negatives: int) -> RowLabels:
        """Read the label of a batch.

        Args:
            labels: None; or float row weights of shape ``(batch,)`` or ``(batch, 1)``; or the int64 label of
                ``HardNegativeDataset.as_dataset(with_ids=True)``, of shape ``(batch, 4 + num_negatives)``: row,
                query, positive, weight in millionths, negatives.
            batch_size: Number of rows.
            num_negatives: Number of negative columns.

        Raises:
            ValueError: If the label is of another kind, or a weight is negative or not finite.
        """
        if labels is None:
            return cls()
        if labels.is_floating_point() and labels.shape in ((batch_size,), (batch_size, 1)):
            weights = labels.reshape(batch_size)
            check_weights(weights)
            return cls(weights=weights)
        if carries_ids(labels) and labels.shape == (batch_size, NUM_LEADING_IDS + num_negatives):
            ids = labels.to(torch.int64)
            weights = ids[:, 3].to(torch.float32) / 1_000_000
            check_weights(weights)
            return cls(weights, ids[:, 1], ids[:, 2], ids[:, NUM_LEADING_IDS:])
        raise ValueError(_refusal(labels, batch_size, num_negatives))


def carries_ids(labels: Tensor | None) -> bool:
    """Tell whether a label is an integer matrix, so row ids and not weights or classes."""
    return (
        labels is not None and labels.ndim == 2 and labels.shape[1] >= NUM_LEADING_IDS and not _is_real_valued(labels)
    )


def check_weights(weights: Tensor) -> None:
    """Raise if a row weight is negative, infinite or not a number.

    Args:
        weights: float of shape ``(batch,)``.

    Raises:
        ValueError: If so.
    """
    if not bool(((weights >= 0) & weights.isfinite()).all()):
        raise ValueError(
            "Expected row weights to be finite numbers of at least 0. "
            f"Got {weights.min().item():g} as the smallest and {weights.max().item():g} as the largest. "
            "Give every row a weight such as 1.0, or 0.0 for a row that must not count."
        )


def _is_real_valued(labels: Tensor) -> bool:
    return labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool


def _refusal(labels: Tensor, batch_size: int, num_negatives: int) -> str:
    width = NUM_LEADING_IDS + num_negatives
    message = (
        f"Expected no label, float row weights of shape ({batch_size},), or int64 ids of shape "
        f"({batch_size}, {width}) for {num_negatives} negative column(s). "
        f"Got {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}. "
    )
    if carries_ids(labels) and labels.shape[1] < width:
        return message + (
            "`MatryoshkaLoss` cuts labels that are as wide as the embeddings: if the model's dimension is "
            f"{width}, mine another number of negatives, otherwise pass every negative column that the ids name."
        )
    if not labels.is_floating_point() and labels.ndim == 1:
        return message + "Turn them into floats if they are row weights, otherwise remove the label column."
    return message + "Remove the label column, or use `HardNegativeDataset.as_dataset(with_ids=True)`."
