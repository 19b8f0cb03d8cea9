"""The contrastive loss over the pairs of tuples, without the negatives that are probably right answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import ContrastiveLoss, SiameseDistanceMetric
from sentence_transformers.sentence_transformer.model import SentenceTransformer
from torch import Tensor
from torch.nn import functional

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.hardness import HardnessDefinition
from st_hardneg.losses.citations import FACENET
from st_hardneg.losses.diagnostics import MaskingDiagnostics
from st_hardneg.losses.distances import check_covered, to_negatives, to_scores
from st_hardneg.losses.labels import RowLabels, carries_ids
from st_hardneg.losses.masking import (
    NegativeFilter,
    check_known_positives,
    known_positives_among_own_negatives,
    ready_for,
)


class SemiHardContrastiveLoss(ContrastiveLoss):
    """Contrastive loss over the pairs of (anchor, positive, negative_1, …, negative_n), without the hard negatives.

    A tuple gives one pair to pull together, anchor and positive, which costs ``d² / 2``, and one pair to push apart
    for each negative, which costs ``max(margin - d, 0)² / 2``. A negative that is as close to the anchor as the
    positive is probably a right answer, so its pair is left out; so is one that is far beyond the positive, if
    ``semi_hard_margin`` is given. The loss is the mean over the pairs that take part. The pairs to pull together always
    do, so the loss is not zero if all negatives are left out.

    Two columns with 0/1 labels are treated as in ``ContrastiveLoss``. Nothing is left out there, because a single pair
    has no positive to compare with.

    Args:
        model: The model to train.
        distance_metric: Distance of the vectors of two matrices, row by row, such as a ``SiameseDistanceMetric``.
        margin: The distance that negatives should have, as in ``ContrastiveLoss``. It has nothing to do with the band
            of semi-hard negatives.
        size_average: Return the mean over the pairs. Otherwise their sum.
        mask_hard: Leave out negatives that are as close to the anchor as the positive or closer.
        semi_hard_margin: Leave out negatives that are further away than the positive by more than this, in units of
            the distance. None keeps them.
        definition: Which outer edge ``semi_hard_margin`` means, see :mod:`st_hardneg.hardness`. ``"facenet"``
            measures in squared L2 distances, so it works with the cosine and the Euclidean metric only.
        known_positives: The right answers to every query, ``hard_negatives.known_positives``. Negatives among them
            are left out. Needs a label with ids while training.

    Raises:
        ValueError: If a parameter is out of its range, or if ``definition`` does not work with the metric; when
            called, if columns and label are none of the kinds below, or if the label has the ids of another dataset
            than ``known_positives``.

    Requirements:
        1. (anchor, positive, negative_1, …, negative_n) tuples with at least one negative, or labelled pairs

    Inputs:
        +--------------------------------------------------+------------------------------------------------------+
        | Inputs                                           | Labels                                               |
        +==================================================+======================================================+
        | (anchor, positive, negative_1, …, negative_n)    | none                                                 |
        +--------------------------------------------------+------------------------------------------------------+
        | (anchor, positive, negative_1, …, negative_n)    | float: the weight of each row, such as a graded      |
        |                                                  | relevance of 0.7                                     |
        +--------------------------------------------------+------------------------------------------------------+
        | (anchor, positive, negative_1, …, negative_n)    | int64, (batch, 4 + n): row, query, positive, weight  |
        |                                                  | in millionths, negatives (-1: leave out)             |
        +--------------------------------------------------+------------------------------------------------------+
        | (anchor, positive/negative)                      | 1 if positive, 0 if negative                         |
        +--------------------------------------------------+------------------------------------------------------+

        A row's weight multiplies the losses of its pairs; the mean is over the number of pairs that take part.

    Relations:
        - ``ContrastiveLoss`` over the same pairs is this loss with ``mask_hard=False``.
        - ``OnlineContrastiveLoss`` keeps the hardest pairs of the batch instead.

    References:
        - Dimensionality Reduction by Learning an Invariant Mapping (Hadsell, Chopra, LeCun, 2006)
        - FaceNet: A Unified Embedding for Face Recognition and Clustering: https://huggingface.co/papers/1503.03832

    Example:
        ::

            loss = SemiHardContrastiveLoss(model, margin=0.5, semi_hard_margin=0.3)
            trainer = SentenceTransformerTrainer(
                model=model, train_dataset=hard_negatives.as_dataset(with_ids=True), loss=loss
            )
            trainer.train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        distance_metric: Callable[[Tensor, Tensor], Tensor] = SiameseDistanceMetric.COSINE_DISTANCE,
        margin: float = 0.5,
        size_average: bool = True,
        *,
        mask_hard: bool = True,
        semi_hard_margin: float | None = None,
        definition: HardnessDefinition = "half-open",
        known_positives: KnownPositives | None = None,
    ) -> None:
        super().__init__(model, distance_metric=distance_metric, margin=margin, size_average=size_average)
        if not margin >= 0:
            raise ValueError(
                f"Expected `margin`, the distance that negatives should have, to be at least 0. Got {margin!r}."
            )
        NegativeFilter(mask_hard, semi_hard_margin, definition, margin_name="semi_hard_margin")
        check_covered(definition, distance_metric)
        self.mask_hard = mask_hard
        self.semi_hard_margin = semi_hard_margin
        self.definition: HardnessDefinition = definition
        check_known_positives(known_positives)
        self.known_positives = known_positives
        self.diagnostics = MaskingDiagnostics()

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the loss of embedded columns.

        Args:
            embeddings: Anchors, positives and negatives, or the two sides of labelled pairs, each of shape
                ``(batch, dim)``.
            labels: A label of one of the kinds listed for this class.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If columns and label are none of the kinds listed for this class.
        """
        if len(embeddings) > 2:
            return self._loss_of_tuples(embeddings, labels)
        if len(embeddings) < 2 or labels is None or carries_ids(labels):
            kind = "no label" if labels is None else "a label with ids" if carries_ids(labels) else "a label"
            raise ValueError(
                "Expected (anchor, positive, negative_1, …, negative_n) columns, or 2 columns with a 0/1 label. "
                f"Got {len(embeddings)} column(s) and {kind}. "
                "Mine negatives first, or add a label column."
            )
        loss: Tensor = super().compute_loss_from_embeddings(embeddings, labels)
        return loss

    def _loss_of_tuples(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        anchors, positives, *negatives = embeddings
        read = RowLabels.parse(labels, len(anchors), len(negatives))
        self.known_positives = ready_for(self.known_positives, read, anchors.device)
        positive_distances = self.distance_metric(anchors, positives).unsqueeze(1)
        negative_distances = to_negatives(self.distance_metric, anchors, negatives)
        left_out = NegativeFilter(self.mask_hard, self.semi_hard_margin, self.definition).leave_out(
            to_scores(positive_distances.detach(), self.distance_metric, self.definition),
            to_scores(negative_distances.detach(), self.distance_metric, self.definition),
            unfilled=read.unfilled,
            known_positive=known_positives_among_own_negatives(self.known_positives, read),
        )
        self.diagnostics.add(left_out, negative_distances.numel())
        pulled = positive_distances.square() / 2
        pushed = functional.relu(self.margin - negative_distances).square() / 2
        losses = torch.cat([pulled, pushed.masked_fill(left_out.union, 0.0)], dim=1)
        if read.weights is not None:
            losses = losses * read.weights.to(losses.dtype).unsqueeze(1)
        # In half precision the sum over many pairs would overflow.
        total = losses.sum(dtype=torch.promote_types(losses.dtype, torch.float32))
        num_pairs = losses.numel() - left_out.union.sum()
        return (total / num_pairs if self.size_average else total).to(losses.dtype)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the parameters, for the model card."""
        config: dict[str, Any] = super().get_config_dict()
        return config | {
            "mask_hard": self.mask_hard,
            "semi_hard_margin": self.semi_hard_margin,
            "definition": self.definition,
            "known_positives": self.known_positives is not None,
        }

    @property
    def citation(self) -> str:
        """The papers of the loss and of semi-hard negatives, for the model card."""
        return str(super().citation) + FACENET
