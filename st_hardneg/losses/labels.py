"""What the label of a training batch tells the losses: how much each row counts, and which texts are in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_LEADING_IDS = 4
"""Numbers before the negatives in a label with ids: row, query, positive, weight in millionths."""

UNFILLED = -1
"""The id of a negative that only completes its row: a text stands there, but it must not be trained on."""


@dataclass(frozen=True)
class RowLabels:
    """The label of a batch, taken apart. What the label does not carry is None.

    Args:
        weights: float of shape ``(batch,)``: how much each row counts.
        text_ids: int64 of shape ``(batch, 2 + num_negatives)``: query, positive, negatives; ``UNFILLED`` where a slot
            could not be filled.
    """

    weights: Tensor | None = None
    text_ids: Tensor | None = None

    @property
    def unfilled(self) -> Tensor | None:
        """Boolean of shape ``(batch, num_negatives)``: the slots not to train on; None if the label has no ids."""
        return None if self.text_ids is None else self.text_ids[:, 2:] == UNFILLED

    @classmethod
    def parse(cls, labels: Tensor | None, batch_size: int, num_negatives: int) -> RowLabels:
        """Read the label of a batch.

        Args:
            labels: None; float row weights of shape ``(batch,)`` or ``(batch, 1)``; or the integer label of
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
            return cls(weights, torch.cat([ids[:, 1:3], ids[:, NUM_LEADING_IDS:]], dim=1))
        raise ValueError(_refusal(labels, batch_size, num_negatives))


def carries_ids(labels: Tensor | None) -> bool:
    """Tell whether a label is a matrix of ids, rather than row weights or classes."""
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
            "Use 0.0 for a row that must not count."
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
    if labels.ndim == 2 and labels.shape[1] > 1 and not _is_real_valued(labels):
        hint = (
            "The columns and the ids must come from the same `as_dataset(with_ids=True)`, with no column removed or "
            "added."
        )
        if labels.shape[1] < width:
            hint += (
                f" If they do, and the model's embeddings have {width} dimensions, `MatryoshkaLoss` took the ids for "
                f"embeddings and cut them: mine another number of negatives than {num_negatives}."
            )
        return message + hint
    if not labels.is_floating_point() and labels.numel() == batch_size:
        return message + (
            "Convert the label column to float if it holds row weights. If it holds classes, remove it: this loss "
            "does not use them."
        )
    return message + "Remove the label column, or train on `HardNegativeDataset.as_dataset(with_ids=True)`."
