"""Several losses of the same texts, which are embedded once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from sentence_transformers.base.losses.gradcache import uses_gradient_cache
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses import (
    ContrastiveLoss,
    CoSENTLoss,
    CosineSimilarityLoss,
    OnlineContrastiveLoss,
    TripletLoss,
)
from sentence_transformers.sentence_transformer.model import SentenceTransformer
from torch import Tensor, nn

from st_hardneg.losses.contrastive import SemiHardContrastiveLoss
from st_hardneg.losses.labels import RowLabels, carries_ids
from st_hardneg.losses.multiple_negatives_ranking import SemiHardMultipleNegativesRankingLoss
from st_hardneg.losses.triplet import SemiHardTripletLoss

_TAKE_TUPLES = (SemiHardContrastiveLoss, SemiHardTripletLoss, SemiHardMultipleNegativesRankingLoss)
_TAKE_LABELLED_PAIRS = (ContrastiveLoss, OnlineContrastiveLoss, CosineSimilarityLoss, CoSENTLoss)
_TAKE_SCORED_PAIRS = (CosineSimilarityLoss, CoSENTLoss)
_TAKEN_LOG_NAMES = ("loss", "steps", "epoch", "grad_norm", "learning_rate")


class LossParts(dict[str, Tensor]):
    """The parts of a loss by name. A trainer logs each and trains on their sum.

    ``MatryoshkaLoss`` multiplies losses with weights and adds them up; it can do so with these, part by part.
    """

    def total(self) -> Tensor:
        """Return the sum of the parts, to call ``backward()`` on where no trainer does."""
        return torch.stack(list(self.values())).sum()

    def __mul__(self, factor: float) -> LossParts:
        return LossParts({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __add__(self, other: LossParts | float) -> LossParts:
        if isinstance(other, LossParts):
            return LossParts({name: value + other[name] for name, value in self.items()})
        # The number that sums start from.
        return self if other == 0 else NotImplemented

    __radd__ = __add__


class WeightedSumLoss(nn.Module):
    """A weighted sum of losses over the same columns, whose texts are embedded once.

    The embeddings are handed to each part through its ``compute_loss_from_embeddings``. Each part is logged under its
    name, multiplied with its weight, so that the parts add up to the loss in the log. The parts may be losses of this
    package or of Sentence Transformers, and each gets the columns in the form that it takes:

    * those of this package, and ``MultipleNegativesRankingLoss``, get all columns;
    * ``TripletLoss`` gets every negative in turn as the third column;
    * ``ContrastiveLoss``, ``OnlineContrastiveLoss``, ``CosineSimilarityLoss``, ``CoSENTLoss`` and ``AnglELoss`` get a
      pair (anchor, positive) labelled 1 and a pair (anchor, negative) labelled 0 for each negative. For the last three
      a row weight below 1 is the label of its positive pair, being the relevance that the pair should show.

    Args:
        model: The model to train; that of all parts.
        losses: The parts, each with its weight: ``{name: (weight, loss)}``, or a sequence of ``(weight, loss)`` to be
            named by their classes.

    Raises:
        ValueError: If there is no part; a weight is negative or not finite; a name is one that the trainer logs
            already; or a part has another model, or cannot take embeddings. When called, if the label does not suit.

    Requirements:
        1. Columns that suit all parts. Losses with a gradient cache and guided losses embed on their own and cannot
           be parts; wrappers such as ``MatryoshkaLoss`` go around the sum.

    Inputs:
        +--------------------------------------------------+------------------------------------------------------+
        | Inputs                                           | Labels                                               |
        +==================================================+======================================================+
        | (anchor, positive, negative_1, …, negative_n)    | none, float row weights, or int64 ids. The losses of |
        |                                                  | this package weigh their rows; others cannot.        |
        +--------------------------------------------------+------------------------------------------------------+
        | (anchor, positive/negative)                      | 0/1, or a score: the label for the parts that take   |
        |                                                  | labelled pairs, the row weight for this package's    |
        +--------------------------------------------------+------------------------------------------------------+

    Recommendations:
        - Outside a trainer, ``loss(features, labels).total().backward()``.

    Relations:
        - A dictionary of losses in ``SentenceTransformerTrainer`` is for several datasets; this is for one.

    Example:
        ::

            loss = WeightedSumLoss(
                model,
                {
                    "ranking": (0.6, SemiHardMultipleNegativesRankingLoss(model)),
                    "contrastive": (0.3, SemiHardContrastiveLoss(model)),
                    "cosine": (0.1, CosineSimilarityLoss(model)),
                },
            )
            trainer = SentenceTransformerTrainer(model=model, train_dataset=train_dataset, loss=loss)
            trainer.train()  # {'loss': 0.91, ..., 'ranking': 0.62, 'contrastive': 0.2, 'cosine': 0.09}
    """

    def __init__(
        self,
        model: SentenceTransformer,
        losses: Mapping[str, tuple[float, nn.Module]] | Sequence[tuple[float, nn.Module]],
    ) -> None:
        super().__init__()
        named = dict(losses) if isinstance(losses, Mapping) else _name_by_class(losses)
        if not named:
            raise ValueError(
                "Expected at least one part in `losses`. Got none. Pass `{name: (weight, loss)}` or `[(weight, loss)]`."
            )
        for name, (weight, loss) in named.items():
            _check_part(name, weight, loss, model)
        self.model = model
        self.weights = {name: float(weight) for name, (weight, _) in named.items()}
        self.parts = nn.ModuleDict({name: loss for name, (_, loss) in named.items()})

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> LossParts:
        """Embed the columns once and compute every part.

        Args:
            sentence_features: Tokenised columns.
            labels: One of the kinds in the class's text.

        Returns:
            The parts, multiplied with their weights.
        """
        return self._parts_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the weighted sum for embedded columns.

        Args:
            embeddings: The columns, each of shape ``(batch, dim)``.
            labels: One of the kinds in the class's text.

        Returns:
            The loss, a scalar.
        """
        return self._parts_from_embeddings(embeddings, labels).total()

    def _parts_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> LossParts:
        parts = LossParts()
        for name, loss in self.parts.items():
            value = cast(Any, loss).compute_loss_from_embeddings(*_as_taken_by(name, loss, embeddings, labels))
            if isinstance(value, Mapping):
                value = torch.stack(list(value.values())).sum()
            parts[name] = self.weights[name] * value
        return parts

    def get_config_dict(self) -> dict[str, Any]:
        """Return the parameters of all parts, for the model card."""
        return {
            "losses": {
                name: {"weight": self.weights[name], "loss": type(loss).__name__}
                | (cast(Any, loss).get_config_dict() if hasattr(loss, "get_config_dict") else {})
                for name, loss in self.parts.items()
            }
        }

    @property
    def citation(self) -> str:
        """The papers of all parts, for the model card."""
        return "".join(dict.fromkeys(str(loss.citation) for loss in self.parts.values() if hasattr(loss, "citation")))


def _name_by_class(losses: Sequence[tuple[float, nn.Module]]) -> dict[str, tuple[float, nn.Module]]:
    named: dict[str, tuple[float, nn.Module]] = {}
    for weight, loss in losses:
        name, count = type(loss).__name__, 1
        while name in named:
            count += 1
            name = f"{type(loss).__name__}_{count}"
        named[name] = (weight, loss)
    return named


def _check_part(name: str, weight: float, loss: nn.Module, model: SentenceTransformer) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(
            f"Expected the weight of {name!r} to be a finite number of at least 0. Got {weight!r}. "
            "Pass `(weight, loss)` with a weight such as 0.5."
        )
    if name in _TAKEN_LOG_NAMES:
        raise ValueError(
            f"Expected a name that the trainer does not log itself. Got {name!r}. "
            f"Call the part something else than {list(_TAKEN_LOG_NAMES)}."
        )
    if uses_gradient_cache(loss) or not hasattr(loss, "compute_loss_from_embeddings"):
        raise ValueError(
            f"Expected parts that take embeddings, through `compute_loss_from_embeddings`. Got {name!r}, a "
            f"{type(loss).__name__}, which embeds the texts itself. Use the loss without a gradient cache or a guide, "
            "and put wrappers such as `MatryoshkaLoss` around the `WeightedSumLoss`."
        )
    if getattr(loss, "model", model) is not model:
        raise ValueError(
            f"Expected all parts to have the model of the `WeightedSumLoss`, which embeds for them. Got another model "
            f"in {name!r}. Build every part with the same model."
        )


def _as_taken_by(
    name: str, loss: nn.Module, embeddings: list[Tensor], labels: Tensor | None
) -> tuple[list[Tensor], Tensor | None]:
    num_negatives = len(embeddings) - 2
    if isinstance(loss, _TAKE_TUPLES):
        is_pair_label = num_negatives == 0 and labels is not None and labels.ndim == 1
        if is_pair_label and labels is not None and not isinstance(loss, SemiHardContrastiveLoss):
            return embeddings, labels.float()
        return embeddings, labels
    if isinstance(loss, TripletLoss) and num_negatives > 1:
        anchors, positives, *negatives = embeddings
        repeats = (num_negatives, 1)
        return [anchors.repeat(repeats), positives.repeat(repeats), torch.cat(negatives)], labels
    if not isinstance(loss, _TAKE_LABELLED_PAIRS):
        return embeddings, labels
    if num_negatives > 0:
        return _labelled_pairs(embeddings, labels, scored=isinstance(loss, _TAKE_SCORED_PAIRS))
    if labels is None or carries_ids(labels):
        raise ValueError(
            f"Expected negatives or a label for each pair, because {name!r} is a {type(loss).__name__}. "
            f"Got {len(embeddings)} columns without either. Mine negatives first, or add a label column."
        )
    return embeddings, labels


def _labelled_pairs(embeddings: list[Tensor], labels: Tensor | None, scored: bool) -> tuple[list[Tensor], Tensor]:
    anchors, *others = embeddings
    batch_size = len(anchors)
    relevance = torch.zeros(len(others), batch_size, device=anchors.device)
    weights = RowLabels.parse(labels, batch_size, len(others) - 1).weights
    relevance[0] = weights.clamp(max=1.0) if scored and weights is not None else 1.0
    return [anchors.repeat(len(others), 1), torch.cat(others)], relevance.reshape(-1)
