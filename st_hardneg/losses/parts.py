"""What goes into the parts of a sum of losses, and what comes out."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import (
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    BatchSemiHardTripletLoss,
    ContrastiveLoss,
    CoSENTLoss,
    CosineSimilarityLoss,
    DistillKLDivLoss,
    MarginMSELoss,
    MultipleNegativesRankingLoss,
    OnlineContrastiveLoss,
    TripletLoss,
)
from torch import Tensor, nn

from st_hardneg.losses.contrastive import SemiHardContrastiveLoss
from st_hardneg.losses.labels import RowLabels, carries_ids
from st_hardneg.losses.multiple_negatives_ranking import SemiHardMultipleNegativesRankingLoss
from st_hardneg.losses.triplet import SemiHardTripletLoss

ADDED_BY_WRAPPER = "added_by_wrapper"
"""The name of what a wrapper adds to the parts, such as the KL divergence of ``AdaptiveLayerLoss``."""

_TAKE_TUPLES = (SemiHardContrastiveLoss, SemiHardTripletLoss, SemiHardMultipleNegativesRankingLoss)
_TAKE_LABELLED_PAIRS = (ContrastiveLoss, OnlineContrastiveLoss, CosineSimilarityLoss, CoSENTLoss)
_TAKE_SCORED_PAIRS = (CosineSimilarityLoss, CoSENTLoss)
_TAKE_CLASSES_OR_SCORES = (
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    BatchSemiHardTripletLoss,
    DistillKLDivLoss,
    MarginMSELoss,
)


class LossParts(dict[str, Tensor]):
    """The parts of a loss by name. A trainer logs each and trains on their sum.

    The wrappers of Sentence Transformers multiply, divide and add losses. Here this happens part by part; a number or
    tensor that is added is a part of its own.
    """

    def total(self) -> Tensor:
        """Return the sum of the parts, on which to call ``backward()`` outside a trainer."""
        return torch.stack(list(self.values())).sum()

    def __mul__(self, factor: float | Tensor) -> LossParts:
        return LossParts({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> LossParts:
        return LossParts({name: value / divisor for name, value in self.items()})

    def __add__(self, other: LossParts | float | Tensor) -> LossParts:
        if not isinstance(other, LossParts):
            if isinstance(other, (int, float)):
                if other == 0:  # the number that sums start from
                    return self
                other = next(iter(self.values())).new_tensor(other)
            other = LossParts({ADDED_BY_WRAPPER: other})
        added = LossParts(self)
        for name, value in other.items():
            added[name] = added[name] + value if name in added else value
        return added

    __radd__ = __add__


def compute_part(name: str, loss: nn.Module, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
    """Compute one part, in the form in which it takes columns and label.

    Args:
        name: The part's name, for errors.
        loss: The part.
        embeddings: The columns, each of shape ``(batch, dim)``.
        labels: The label of the batch. Slots that it marks as unfilled take no part.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: If the part needs another label.
    """
    if isinstance(loss, _TAKE_CLASSES_OR_SCORES) and (labels is None or carries_ids(labels)):
        raise ValueError(
            f"{name!r} is a {type(loss).__name__}, which needs classes or scores in the label. "
            f"Got {'no label' if labels is None else 'a label with ids'}. "
            "Train without this part, or on a dataset with the label that it needs."
        )
    if isinstance(loss, TripletLoss) and not isinstance(loss, _TAKE_TUPLES) and len(embeddings) > 2:
        embeddings = _triplets(embeddings, labels)
        if not len(embeddings[0]):
            return torch.stack([column.sum() for column in embeddings]).sum()
    elif _is_plain_ranking(loss):
        loss, labels = _leaving_out_unfilled(loss, labels)
    else:
        embeddings, labels = _as_taken_by(name, loss, embeddings, labels)
    value: Any = loss.compute_loss_from_embeddings(embeddings, labels)  # type: ignore[operator]
    return torch.stack(list(value.values())).sum() if isinstance(value, dict) else value


def _is_plain_ranking(loss: nn.Module) -> bool:
    compute = getattr(type(loss), "compute_loss_from_embeddings", None)
    return compute is MultipleNegativesRankingLoss.compute_loss_from_embeddings


def _leaving_out_unfilled(loss: Any, labels: Tensor | None) -> tuple[nn.Module, Tensor | None]:
    """Return a loss of the same value that can leave out unfilled slots, and the label for it, without row weights."""
    has_ids = labels is not None and carries_ids(labels)
    if not has_ids and not loss.gather_across_devices:
        return loss, labels
    stand_in = SemiHardMultipleNegativesRankingLoss(
        loss.model,
        scale=loss.scale,
        similarity_fct=loss.similarity_fct,
        gather_across_devices=loss.gather_across_devices,
        directions=loss.directions,
        partition_mode=loss.partition_mode,
        hardness_mode=loss.hardness_mode if loss.hardness_strength else None,
        hardness_strength=loss.hardness_strength,
        mask_hard=False,
    )
    if labels is None or not has_ids:
        return stand_in, None
    unweighted = labels.clone()
    unweighted[:, 3] = 1_000_000
    return stand_in, unweighted


def _triplets(embeddings: list[Tensor], labels: Tensor | None) -> list[Tensor]:
    """Return anchors, positives and negatives, with a row for each negative that is not unfilled."""
    anchors, positives, *negatives = embeddings
    repeats = (len(negatives), 1)
    triplets = [anchors.repeat(repeats), positives.repeat(repeats), torch.cat(negatives)]
    unfilled = RowLabels.parse(labels, len(anchors), len(negatives)).unfilled if carries_ids(labels) else None
    return triplets if unfilled is None else [column[~unfilled.T.reshape(-1)] for column in triplets]


def _as_taken_by(
    name: str, loss: nn.Module, embeddings: list[Tensor], labels: Tensor | None
) -> tuple[list[Tensor], Tensor | None]:
    num_negatives = len(embeddings) - 2
    if isinstance(loss, _TAKE_TUPLES):
        is_pair_label = num_negatives == 0 and labels is not None and labels.ndim == 1
        if is_pair_label and labels is not None and not isinstance(loss, SemiHardContrastiveLoss):
            return embeddings, labels.float()
        return embeddings, labels
    if not isinstance(loss, _TAKE_LABELLED_PAIRS):
        return embeddings, labels
    if num_negatives > 0:
        return _labelled_pairs(embeddings, labels, scored=isinstance(loss, _TAKE_SCORED_PAIRS))
    if labels is None or carries_ids(labels):
        raise ValueError(
            f"{name!r} is a {type(loss).__name__}, which needs negatives or a label for each pair. "
            f"Got {len(embeddings)} columns without either. Mine negatives first, or add a label column."
        )
    return embeddings, labels


def _labelled_pairs(embeddings: list[Tensor], labels: Tensor | None, scored: bool) -> tuple[list[Tensor], Tensor]:
    anchors, *others = embeddings
    batch_size = len(anchors)
    read = RowLabels.parse(labels, batch_size, len(others) - 1)
    relevance = torch.zeros(len(others), batch_size, device=anchors.device)
    relevance[0] = read.weights.clamp(max=1.0) if scored and read.weights is not None else 1.0
    pairs, targets = [anchors.repeat(len(others), 1), torch.cat(others)], relevance.reshape(-1)
    if read.unfilled is None:
        return pairs, targets
    taken = torch.cat([torch.ones_like(read.unfilled[:, :1]), ~read.unfilled], dim=1).T.reshape(-1)
    return [column[taken] for column in pairs], targets[taken]
