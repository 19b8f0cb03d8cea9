"""Which negatives a loss leaves out, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from st_hardneg.hardness import HardnessDefinition, check_definition, check_margin, is_easy, is_hard
from st_hardneg.losses.labels import RowLabels
from st_hardneg.pairs import KnownPositives


@dataclass(frozen=True)
class LeftOut:
    """Negatives that a loss leaves out, by reason; a negative has one reason at most.

    Args:
        known_positive: Boolean tensor: a right answer by its id.
        near_positive: Boolean tensor of the same shape: nearly the same text as the positive.
        hard: Boolean tensor of the same shape: scores at least as high as the positive, so probably a right answer.
        easy: Boolean tensor of the same shape: beyond the margin.
    """

    known_positive: Tensor
    near_positive: Tensor
    hard: Tensor
    easy: Tensor

    @property
    def union(self) -> Tensor:
        """All that is left out, for whatever reason."""
        return self.known_positive | self.near_positive | self.hard | self.easy


@dataclass(frozen=True)
class NegativeFilter:
    """Decides by scores which negatives a loss leaves out.

    Args:
        mask_hard: Leave out the hard ones.
        margin: Leave out the easy ones beyond this margin; None keeps them.
        definition: The definition of the outer edge, see :mod:`st_hardneg.hardness`.
        margin_name: What the loss calls its margin, for the error.

    Raises:
        ValueError: If the margin is negative or not a number, or the definition is unknown.
    """

    mask_hard: bool
    margin: float | None
    definition: HardnessDefinition = "half-open"
    margin_name: str = "margin"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_definition(self.definition)
        if self.margin is not None:
            check_margin(self.margin, self.margin_name)

    def leave_out(
        self,
        positive_scores: Tensor,
        negative_scores: Tensor,
        known_positive: Tensor | None = None,
        near_positive: Tensor | None = None,
        judged: Tensor | None = None,
        tolerance: float = 0.0,
    ) -> LeftOut:
        """Mark what is left out.

        Args:
            positive_scores: Scores that broadcast with ``negative_scores``.
            negative_scores: Scores of any shape.
            known_positive: Boolean tensor of that shape: negatives that are left out whatever they score.
            near_positive: Boolean tensor of that shape: negatives that are too similar to the positive.
            judged: Boolean tensor of that shape: negatives of which any score is looked at. None means all.
            tolerance: A negative this close below the positive, relative to a score of 1, still ties with it.

        Returns:
            Masks of the shape of ``negative_scores``.
        """
        nothing = torch.zeros_like(negative_scores, dtype=torch.bool)
        hard = easy = nothing
        if self.mask_hard:
            slack = tolerance * positive_scores.abs().clamp(min=1.0) if tolerance else 0.0
            hard = is_hard(positive_scores - slack, negative_scores)
        if self.margin is not None:
            easy = is_easy(positive_scores, negative_scores, self.margin, self.definition)
        known = nothing if known_positive is None else known_positive
        near = nothing if near_positive is None else near_positive
        may_judge = ~known if judged is None else judged & ~known
        near = near & may_judge
        return LeftOut(known, near, hard & may_judge & ~near, easy & may_judge & ~near)


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Return how far the scores of two equal texts may lie apart in a matrix product.

    The same text embedded in another column is padded differently, and its score then differs in the last bits. Half
    precision rounds such differences away by itself.
    """
    return 16 * torch.finfo(dtype).eps if dtype in (torch.float32, torch.float64) else 0.0


def known_positives_among_own_negatives(known_positives: KnownPositives | None, labels: RowLabels) -> Tensor | None:
    """Mark the mined negatives that are right answers of their own row's query.

    Args:
        known_positives: The right answers, on the labels' device.
        labels: The batch's label.

    Returns:
        Boolean tensor of shape ``(batch, num_negatives)``, or None if nothing is known or the label has no ids.
    """
    if known_positives is None or labels.query_ids is None or labels.negative_ids is None:
        return None
    return known_positives.contains(labels.query_ids, labels.negative_ids)


def on_device_of(known_positives: KnownPositives | None, tensor: Tensor) -> KnownPositives | None:
    """Return the known positives on a tensor's device, copying only if they are elsewhere."""
    if known_positives is None or known_positives.keys.device == tensor.device:
        return known_positives
    return known_positives.to(tensor.device)


def check_known_positives(known_positives: object) -> None:
    """Raise unless this is what ``HardNegativeDataset.known_positives`` returns, or None.

    Raises:
        TypeError: If it is something else.
    """
    if known_positives is not None and not isinstance(known_positives, KnownPositives):
        raise TypeError(
            f"Expected `known_positives` to be a KnownPositives or None. Got {type(known_positives).__name__}. "
            "Pass `hard_negatives.known_positives`."
        )


def check_ids_present(known_positives: KnownPositives | None, labels: RowLabels) -> None:
    """Raise if the known positives of a training batch cannot be looked up.

    Evaluation data are frozen and carry no ids; there, nothing is masked by identity.

    Args:
        known_positives: The right answers that the loss was given.
        labels: The batch's label.

    Raises:
        ValueError: If gradients are being computed and the label carries no ids.
    """
    if known_positives is not None and labels.query_ids is None and torch.is_grad_enabled():
        raise ValueError(
            "Expected a label with ids, because `known_positives` was given. Got a label without ids. "
            "Train on `HardNegativeDataset.as_dataset(with_ids=True)`, or leave `known_positives` out."
        )
