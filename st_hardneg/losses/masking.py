"""Which negatives a loss leaves out, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.hardness import HardnessDefinition, check_definition, check_margin, is_easy, is_hard
from st_hardneg.losses.labels import UNFILLED, RowLabels


class SupportsKnownPositives(Protocol):
    """What a loss needs of a ``HardNegativeDataset``."""

    @property
    def known_positives(self) -> KnownPositives:
        """The right answers to every query."""


@dataclass(frozen=True)
class LeftOut:
    """Negatives that a loss leaves out, by reason; each has one reason at most.

    Args:
        unfilled: Boolean tensor: the text only completes its row.
        known_positive: Boolean tensor of the same shape: a right answer by its id.
        near_positive: Boolean tensor of the same shape: nearly the same text as the positive.
        hard: Boolean tensor of the same shape: scores at least as high as the positive, so probably a right answer.
        easy: Boolean tensor of the same shape: beyond the margin.
    """

    unfilled: Tensor
    known_positive: Tensor
    near_positive: Tensor
    hard: Tensor
    easy: Tensor

    @property
    def union(self) -> Tensor:
        """All that is left out, for whatever reason."""
        return self.unfilled | self.known_positive | self.near_positive | self.hard | self.easy


@dataclass(frozen=True)
class NegativeFilter:
    """Decides by scores which negatives a loss leaves out.

    Args:
        mask_hard: Leave out the hard ones.
        margin: Leave out the easy ones beyond this margin; None keeps them.
        definition: The definition of the outer edge, see :mod:`st_hardneg.hardness`.
        margin_name: The name of the loss's parameter for the margin, for the error.

    Raises:
        ValueError: If the margin is negative or not a number, or the definition is unknown.
    """

    mask_hard: bool
    margin: float | None
    definition: HardnessDefinition = "half-open"
    margin_name: str = "margin"

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_definition(self.definition)
        if self.margin is not None:
            check_margin(self.margin, self.margin_name)

    def leave_out(
        self,
        positive_scores: Tensor,
        negative_scores: Tensor,
        unfilled: Tensor | None = None,
        known_positive: Tensor | None = None,
        near_positive: Tensor | None = None,
        judged: Tensor | None = None,
        tolerance: float = 0.0,
    ) -> LeftOut:
        """Mark what is left out.

        Args:
            positive_scores: Scores that broadcast with ``negative_scores``.
            negative_scores: Scores of any shape.
            unfilled: Boolean tensor of that shape: texts that only complete their row. They have no other reason.
            known_positive: Boolean tensor of that shape: negatives that are left out whatever they score.
            near_positive: Boolean tensor of that shape: negatives that are too similar to the positive.
            judged: Boolean tensor of that shape: the negatives that may be left out because of a score. None means
                all.
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
        missing = nothing if unfilled is None else unfilled
        known = nothing if known_positive is None else known_positive & ~missing
        near = nothing if near_positive is None else near_positive
        may_judge = ~(missing | known) if judged is None else judged & ~(missing | known)
        near = near & may_judge
        return LeftOut(missing, known, near, hard & may_judge & ~near, easy & may_judge & ~near)


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Return how far apart the scores of two equal texts may be in a matrix product.

    The same text is padded differently in another column, which changes the last bits of its score. Half precision
    rounds such differences away.
    """
    return 16 * torch.finfo(dtype).eps if dtype in (torch.float32, torch.float64) else 0.0


def known_positives_among_own_negatives(known_positives: KnownPositives | None, labels: RowLabels) -> Tensor | None:
    """Mark the mined negatives that are right answers to their own row's query.

    Args:
        known_positives: The right answers, on the labels' device.
        labels: The batch's label.

    Returns:
        Boolean tensor of shape ``(batch, num_negatives)``, or None if nothing is known or the label has no ids.
    """
    if known_positives is None or labels.text_ids is None:
        return None
    return known_positives.contains(labels.text_ids[:, 0], labels.text_ids[:, 2:])


def losses_with_known_positives(loss: nn.Module | Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Find the losses that mask known positives by identity.

    Args:
        loss: A trainer's ``loss``: one loss, or a mapping of dataset names to losses.

    Yields:
        The dataset's name, or ``""`` if there is one loss for everything, and a loss with ``known_positives`` that are
        not None: the loss itself, a part of it, or the one that it wraps. A loss that serves two datasets comes twice.
    """
    for dataset_name, outermost in loss.items() if isinstance(loss, Mapping) else [("", loss)]:
        for module in outermost.modules():
            # The loss with a gradient cache only passes on what the loss inside it holds.
            if isinstance(vars(module).get("known_positives"), KnownPositives):
                yield dataset_name, module


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


def recommended_settings(hard_negatives: object, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a ranking loss for the recommended recipe.

    Args:
        hard_negatives: What the loss will train on, a ``HardNegativeDataset``.
        changes: Parameters that differ from the recommended ones.

    Raises:
        TypeError: If ``hard_negatives`` has no known positives.
    """
    known_positives = getattr(hard_negatives, "known_positives", None)
    if not isinstance(known_positives, KnownPositives):
        raise TypeError(
            f"Expected `hard_negatives` to be the HardNegativeDataset that the loss will train on. "
            f"Got {type(hard_negatives).__name__}. Pass the object on which you call "
            "`as_dataset(with_ids=True)`, and build one loss for each such dataset."
        )
    return {"known_positives": known_positives, "mask_hard": False, **changes}


def ready_for(known_positives: KnownPositives | None, labels: RowLabels, device: torch.device) -> KnownPositives | None:
    """Return the known positives on the device of a batch, after checking that its ids can be looked up in them.

    Args:
        known_positives: The right answers that the loss was given.
        labels: The batch's label.
        device: Where the batch is.

    Raises:
        ValueError: If gradients are being computed and the label has no ids, or if the ids are those of another
            dataset.
    """
    if known_positives is None:
        return None
    if labels.text_ids is None and torch.is_grad_enabled():
        raise ValueError(
            "Expected a label with ids, because `known_positives` was given. Got a label without ids. "
            "Train on `HardNegativeDataset.as_dataset(with_ids=True)`, or leave `known_positives` out."
        )
    if known_positives.keys.device != device:
        known_positives = known_positives.to(device)
    if labels.text_ids is not None:
        _check_numbering(known_positives, labels.text_ids[:, 0], labels.text_ids[:, 1:])
    return known_positives


def _check_numbering(known: KnownPositives, query_ids: Tensor, texts: Tensor) -> None:
    """Raise if the ids are not those of the dataset whose right answers these are.

    Ids of another dataset may be too large, and its rows have positives that are not among the right answers here.
    """
    num_texts = len(known.identities)
    exists = ((texts >= UNFILLED) & (texts < num_texts)).all(dim=1)
    # Where a text does not exist, any other is looked up instead of it, to stay within bounds.
    positives = texts[:, :1].where(exists[:, None], texts.new_zeros(()))
    fits = exists & known.contains(query_ids, positives).squeeze(1)
    if bool(fits.all()):
        return
    row = int((~fits).nonzero()[0])
    raise ValueError(
        "The label holds ids of another dataset than the one whose `known_positives` this loss was given, which has "
        f"{num_texts:,} texts: "
        + (
            f"its text {int(texts[row, 0])} is not a right answer to its query {int(query_ids[row])}. "
            if bool(exists[row])
            else f"it has no text {int(texts[row].max())}. "
        )
        + "Give every dataset a loss of its own, each with the `known_positives` of its dataset, as "
        "`loss={'a': loss_a, 'b': loss_b}` with the names of the datasets. Data for evaluation need no ids."
    )
