"""From distances to the scores that hardness is defined on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from sentence_transformers.sentence_transformer.losses import SiameseDistanceMetric, TripletDistanceMetric
from torch import Tensor

from st_hardneg.hardness import HardnessDefinition

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_COSINE: tuple[Distance, ...] = (TripletDistanceMetric.COSINE, SiameseDistanceMetric.COSINE_DISTANCE)
_EUCLIDEAN: tuple[Distance, ...] = (TripletDistanceMetric.EUCLIDEAN, SiameseDistanceMetric.EUCLIDEAN)


def to_negatives(distance_metric: Distance, anchors: Tensor, negatives: Sequence[Tensor]) -> Tensor:
    """Return the distance of every anchor to each of its own negatives.

    Args:
        distance_metric: Distance of the vectors of two matrices, row by row.
        anchors: Embeddings of shape ``(batch, dim)``.
        negatives: For each column, embeddings of shape ``(batch, dim)``.

    Returns:
        float of shape ``(batch, num_negatives)``.
    """
    return torch.stack([distance_metric(anchors, column) for column in negatives], dim=1)


def to_scores(distances: Tensor, distance_metric: Distance, definition: HardnessDefinition) -> Tensor:
    """Turn distances into scores, higher is closer, in the unit of the definition.

    Args:
        distances: float of any shape.
        distance_metric: The metric of the distances.
        definition: For ``"half-open"`` a score is the negative distance. ``"facenet"`` needs cosines of unit vectors,
            from which ``-d² / 2`` differs by a constant if ``d`` is Euclidean.
    """
    if definition == "facenet" and distance_metric in _EUCLIDEAN:
        return -distances.square() / 2
    return -distances


def check_covered(definition: HardnessDefinition, distance_metric: Distance) -> None:
    """Raise if a definition of hardness does not work with a metric.

    Args:
        definition: A definition of the semi-hard band.
        distance_metric: Distance of the vectors of two matrices, row by row.

    Raises:
        ValueError: If ``definition`` is ``"facenet"`` and the metric is neither the cosine nor the Euclidean one.
    """
    if definition == "facenet" and distance_metric not in _COSINE + _EUCLIDEAN:
        raise ValueError(
            "`definition='facenet'` measures squared L2 distances, so it needs a cosine or Euclidean `distance_metric`. "
            f"Got {distance_metric!r}. Use `definition='half-open'`, which takes any distance."
        )
