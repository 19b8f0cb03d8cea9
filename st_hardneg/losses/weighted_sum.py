"""A weighted sum of losses of the same texts, which are embedded once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, cast

from sentence_transformers.sentence_transformer.model import SentenceTransformer
from torch import Tensor, nn

from st_hardneg.hosts import embed_columns, uses_gradient_cache
from st_hardneg.losses.parts import ADDED_BY_WRAPPER, LossParts, compute_part

_TAKEN_LOG_NAMES = ("loss", "steps", "epoch", "grad_norm", "learning_rate", ADDED_BY_WRAPPER)


class WeightedSumLoss(nn.Module):
    """A weighted sum of losses over the same columns, whose texts are embedded once.

    Each part gets the embeddings through its ``compute_loss_from_embeddings``. It is logged under its name, multiplied
    by its weight, so that the logged parts add up to the logged loss. Losses of this package and of Sentence
    Transformers can be parts, and each gets the columns in the form that it takes:

    * those of this package, and ``MultipleNegativesRankingLoss``, get all columns;
    * ``TripletLoss`` gets every negative in turn as the third column;
    * ``ContrastiveLoss``, ``OnlineContrastiveLoss``, ``CosineSimilarityLoss``, ``CoSENTLoss`` and ``AnglELoss`` get a
      pair (anchor, positive) labelled 1 and a pair (anchor, negative) labelled 0 for each negative. For the last three
      a row weight below 1 is used as the label of the positive pair, as a graded relevance.

    Negatives whose id in the label is -1 are left out in all of these.

    Args:
        model: The model to train, and that of all parts.
        losses: The parts, each with its weight: ``{name: (weight, loss)}``, or a sequence of ``(weight, loss)``, which
            are then named by their classes.

    Raises:
        ValueError: If there is no part; if a weight is negative or not finite; if a name is one that the trainer logs
            already; or if a part has another model, or cannot take embeddings. When called, if a part cannot use the
            label.

    Requirements:
        1. Columns that suit all parts. Losses with a gradient cache or a guide embed the texts themselves, so they
           cannot be parts. Wrappers such as ``MatryoshkaLoss`` and ``AdaptiveLayerLoss`` go around the sum.

    Inputs:
        +--------------------------------------------------+------------------------------------------------------+
        | Inputs                                           | Labels                                               |
        +==================================================+======================================================+
        | (anchor, positive, negative_1, …, negative_n)    | none, float row weights, or int64 ids. Only the      |
        |                                                  | losses of this package use the weights.              |
        +--------------------------------------------------+------------------------------------------------------+
        | (anchor, positive/negative)                      | 0/1, or a score: the label for the parts that take   |
        |                                                  | labelled pairs, the row weight for this package's    |
        +--------------------------------------------------+------------------------------------------------------+

    Recommendations:
        - Outside a trainer, call ``loss(features, labels).total().backward()``.

    Relations:
        - A dictionary of losses in ``SentenceTransformerTrainer`` is for several datasets; this is for one.

    Example:
        ::

            loss = WeightedSumLoss(
                model,
                {
                    "ranking": (0.6, SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives)),
                    "contrastive": (0.3, SemiHardContrastiveLoss(model)),
                    "cosine": (0.1, CosineSimilarityLoss(model)),
                },
            )
            train_dataset = hard_negatives.as_dataset(with_ids=True)
            trainer = SentenceTransformerTrainer(model=model, train_dataset=train_dataset, loss=loss)
            trainer.train()  # {'loss': 0.91, ..., 'ranking': 0.62, 'contrastive': 0.2, 'cosine': 0.09}
    """

    def __init__(
        self,
        model: SentenceTransformer,
        losses: Mapping[str, tuple[float, nn.Module]] | Sequence[tuple[float, nn.Module]],
    ) -> None:
        super().__init__()
        given: Iterable[Any] = losses.values() if isinstance(losses, Mapping) else losses
        if any(not _is_weighted_loss(part) for part in given):
            raise TypeError(
                f"Expected `losses` as `{{name: (weight, loss)}}` or `[(weight, loss)]`. Got {losses!r}. Put the weight, "
                "a number, in front of its loss."
            )
        named = dict(losses) if isinstance(losses, Mapping) else _name_by_class(losses)
        if not named:
            raise ValueError(
                "Expected at least one part in `losses`, as `{name: (weight, loss)}` or `[(weight, loss)]`. Got none."
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
            labels: A label of one of the kinds listed for this class.

        Returns:
            The parts, multiplied by their weights.
        """
        return self._parts_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the weighted sum for embedded columns.

        Args:
            embeddings: The columns, each of shape ``(batch, dim)``.
            labels: A label of one of the kinds listed for this class.

        Returns:
            The loss, a scalar.
        """
        return self._parts_from_embeddings(embeddings, labels).total()

    def _parts_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> LossParts:
        return LossParts(
            {
                name: self.weights[name] * compute_part(name, loss, embeddings, labels)
                for name, loss in self.parts.items()
            }
        )

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


def _is_weighted_loss(part: Any) -> bool:
    if not isinstance(part, Sequence) or len(part) != 2:
        return False
    return isinstance(part[0], Real) and isinstance(part[1], nn.Module)


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
        raise ValueError(f"Expected the weight of {name!r} to be a finite number of at least 0. Got {weight!r}.")
    if name in _TAKEN_LOG_NAMES:
        raise ValueError(
            f"A part cannot be named {name!r}, because the log has another figure of that name. "
            f"The names {list(_TAKEN_LOG_NAMES)} are taken."
        )
    if uses_gradient_cache(loss) or not hasattr(loss, "compute_loss_from_embeddings"):
        raise ValueError(
            f"{name!r} is a {type(loss).__name__}, which embeds the texts itself, so it cannot be a part. Use the loss "
            "without a gradient cache or a guide, and put wrappers such as `MatryoshkaLoss` around the "
            "`WeightedSumLoss`."
        )
    if getattr(loss, "model", model) is not model:
        raise ValueError(
            f"{name!r} was built with another model than the `WeightedSumLoss`, which embeds the texts for its parts. "
            "Build every part with the same model."
        )
