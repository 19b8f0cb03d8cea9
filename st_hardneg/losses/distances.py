"""Distances as the scores that the definition of hardness takes."""

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
    """Turn distances into scores, higher is closer, in the unit that the definition measures in.

    Args:
        distances: float of any shape.
        distance_metric: What they were measured with.
        definition: ``"half-open"`` takes the negative distance; ``"facenet"`` takes cosines of unit vectors, and
            ``-d² / 2`` differs from those by a constant for the Euclidean distance.
    """
    if definition == "facenet" and distance_metric in _EUCLIDEAN:
        return -distances.square() / 2
    return -distances


def check_covered(definition: HardnessDefinition, distance_metric: Distance) -> None:
    """Raise if the definition says nothing about a metric.

    Args:
        definition: A definition of the semi-hard band.
        distance_metric: Distance of the vectors of two matrices, row by row.

    Raises:
        ValueError: If ``definition`` is ``"facenet"`` and the metric is neither the cosine nor the Euclidean one.
    """
    if definition == "facenet" and distance_metric not in _COSINE + _EUCLIDEAN:
        raise ValueError(
            "Expected a cosine or Euclidean `distance_metric`, because `definition='facenet'` measures squared L2 "
            f"distances. Got {distance_metric!r}. Use `definition='half-open'`, which takes any distance."
        )
