"""The triplet loss over semi-hard triplets, with any number of negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric, TripletLoss
from sentence_transformers.sentence_transformer.model import SentenceTransformer
from torch import Tensor
from torch.nn import functional

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.hardness import HardnessDefinition
from st_hardneg.losses.citations import FACENET
from st_hardneg.losses.diagnostics import MaskingDiagnostics
from st_hardneg.losses.distances import check_covered, to_negatives, to_scores
from st_hardneg.losses.labels import RowLabels
from st_hardneg.losses.masking import (
    NegativeFilter,
    check_known_positives,
    known_positives_among_own_negatives,
    ready_for,
)

OuterEdge: TypeAlias = float | Literal["triplet_margin"] | None


class SemiHardTripletLoss(TripletLoss):
    """Triplet loss over the semi-hard triplets of (anchor, positive, negative_1, …, negative_n).

    Each negative makes a triplet with its row's anchor and positive, and costs
    ``max(d(anchor, positive) - d(anchor, negative) + triplet_margin, 0)``. Only some triplets take part, and the loss
    is the mean over those: by default the semi-hard ones, ``0 < d(a, n) - d(a, p) <= triplet_margin``. A negative as
    close as the positive is hard, and probably a right answer. One that is further away by more than the
    ``triplet_margin`` costs nothing and would only dilute the mean. The selection is made in each call, on the distance
    that the loss itself uses. If no triplet takes part, the loss and its gradient are zero.

    Args:
        model: The model to train.
        distance_metric: Distance of the vectors of two matrices, row by row, such as a ``TripletDistanceMetric``.
        triplet_margin: How much further away than the positive the negative should be.
        mask_hard: Leave out triplets whose negative is as close as the positive or closer.
        margin: Outer edge of the semi-hard band, in units of the distance: triplets whose negative is further away
            than the positive by more than this are left out. ``"triplet_margin"`` uses that value, as the FaceNet
            paper does. None keeps all.
        definition: Which outer edge ``margin`` means, see :mod:`st_hardneg.hardness`. ``"facenet"`` measures in
            squared L2 distances, so it works with the cosine and the Euclidean metric only.
        known_positives: The right answers to every query, ``hard_negatives.known_positives``. Negatives among them
            are left out. Needs a label with ids while training.

    Raises:
        ValueError: If a parameter is out of its range, or if ``definition`` does not work with the metric; when
            called, if there are fewer than three columns, or if the label is none of the kinds below or has the ids
            of another dataset than ``known_positives``.

    Requirements:
        1. (anchor, positive, negative_1, …, negative_n) tuples with at least one negative

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

        A row's weight multiplies the losses of its triplets; the mean is over the number of triplets that take part.

    Recommendations:
        - Sentence Transformers' defaults, a Euclidean distance and a ``triplet_margin`` of 5, suit long vectors. For
          vectors of length 1 use ``TripletDistanceMetric.COSINE`` and a ``triplet_margin`` of 0.1 to 0.3.

    Relations:
        - ``TripletLoss`` is this loss with ``mask_hard=False, margin=None`` and one negative.
        - ``BatchSemiHardTripletLoss`` looks for semi-hard triplets in a batch of single texts with class labels.
        - :class:`SemiHardMultipleNegativesRankingLoss` also uses the texts of the other rows.

    References:
        - FaceNet: A Unified Embedding for Face Recognition and Clustering: https://huggingface.co/papers/1503.03832

    Example:
        ::

            loss = SemiHardTripletLoss(
                model, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=0.2
            )
            trainer = SentenceTransformerTrainer(
                model=model, train_dataset=hard_negatives.as_dataset(with_ids=True), loss=loss
            )
            trainer.train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        distance_metric: Callable[[Tensor, Tensor], Tensor] = TripletDistanceMetric.EUCLIDEAN,
        triplet_margin: float = 5,
        *,
        mask_hard: bool = True,
        margin: OuterEdge = "triplet_margin",
        definition: HardnessDefinition = "half-open",
        known_positives: KnownPositives | None = None,
    ) -> None:
        super().__init__(model, distance_metric=distance_metric, triplet_margin=triplet_margin)
        if isinstance(margin, str) and margin != "triplet_margin":
            raise ValueError(
                f"Expected `margin` to be a number of at least 0, 'triplet_margin' or None. Got {margin!r}."
            )
        self.mask_hard = mask_hard
        self.margin: OuterEdge = margin
        self.definition: HardnessDefinition = definition
        check_known_positives(known_positives)
        self.known_positives = known_positives
        self.diagnostics = MaskingDiagnostics()
        NegativeFilter(mask_hard, self._outer_edge, definition)
        check_covered(definition, distance_metric)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the loss of embedded columns.

        Args:
            embeddings: Anchors, positives and negatives, each of shape ``(batch, dim)``.
            labels: A label of one of the kinds listed for this class.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If there are fewer than three columns or the label does not suit.
        """
        if len(embeddings) < 3:
            raise ValueError(
                f"Expected at least 3 columns, anchor, positive and negative. Got {len(embeddings)}. "
                "Mine negatives first, or pass (anchor, positive, negative_1, …, negative_n) columns in this order."
            )
        anchors, positives, *negatives = embeddings
        read = RowLabels.parse(labels, len(anchors), len(negatives))
        self.known_positives = ready_for(self.known_positives, read, anchors.device)
        positive_distances = self.distance_metric(anchors, positives).unsqueeze(1)
        negative_distances = to_negatives(self.distance_metric, anchors, negatives)
        left_out = NegativeFilter(self.mask_hard, self._outer_edge, self.definition).leave_out(
            to_scores(positive_distances.detach(), self.distance_metric, self.definition),
            to_scores(negative_distances.detach(), self.distance_metric, self.definition),
            unfilled=read.unfilled,
            known_positive=known_positives_among_own_negatives(self.known_positives, read),
        )
        self.diagnostics.add(left_out, negative_distances.numel())
        losses = functional.relu(positive_distances - negative_distances + self.triplet_margin)
        if read.weights is not None:
            losses = losses * read.weights.to(losses.dtype).unsqueeze(1)
        keep = ~left_out.union
        # In half precision the sum over many triplets would overflow.
        total = losses.masked_fill(~keep, 0.0).sum(dtype=torch.promote_types(losses.dtype, torch.float32))
        return (total / keep.sum().clamp(min=1)).to(losses.dtype)

    @property
    def _outer_edge(self) -> float | None:
        return self.triplet_margin if isinstance(self.margin, str) else self.margin

    def get_config_dict(self) -> dict[str, Any]:
        """Return the parameters, for the model card."""
        config: dict[str, Any] = super().get_config_dict()
        return config | {
            "mask_hard": self.mask_hard,
            "margin": self.margin,
            "definition": self.definition,
            "known_positives": self.known_positives is not None,
        }

    @property
    def citation(self) -> str:
        """The papers of the loss and of semi-hard negatives, for the model card."""
        return str(super().citation) + FACENET
