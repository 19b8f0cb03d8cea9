"""Whether a loss of Sentence Transformers can read the live view that it is trained on; if not, which one it could."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from st_hardneg import hosts
from st_hardneg.live.dataset import live_views
from st_hardneg.live.labeled import LabeledLists, LabeledPairs
from st_hardneg.live.rows import LiveRows
from st_hardneg.live.view import SCORES_COLUMN, LiveView

logger = logging.getLogger(__name__)

_PAIRS, _LISTS, _TUPLES = "labeled-pair", "labeled-list", "n-tuple"
_RANKING = ("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss")

LAYOUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ContrastiveLoss", "OnlineContrastiveLoss", "SoftmaxLoss"), (_PAIRS,)),
    **dict.fromkeys(("CoSENTLoss", "AnglELoss", "CosineSimilarityLoss"), (_PAIRS,)),
    **dict.fromkeys(("SparseCoSENTLoss", "SparseAnglELoss", "SparseCosineSimilarityLoss"), (_PAIRS,)),
    **dict.fromkeys((*_RANKING, "SparseMultipleNegativesRankingLoss"), (_TUPLES,)),
    **dict.fromkeys(("MultiVectorMultipleNegativesRankingLoss",), (_TUPLES,)),
    **dict.fromkeys(("CachedMultiVectorMultipleNegativesRankingLoss",), (_TUPLES,)),
    **dict.fromkeys(("MultipleNegativesSymmetricRankingLoss",), (_TUPLES,)),
    **dict.fromkeys(("CachedMultipleNegativesSymmetricRankingLoss",), (_TUPLES,)),
    **dict.fromkeys(("MarginMSELoss", "DistillKLDivLoss", "SparseMarginMSELoss", "SparseDistillKLDivLoss"), (_TUPLES,)),
    **dict.fromkeys(("MultiVectorMarginMSELoss", "MultiVectorDistillKLDivLoss"), (_TUPLES,)),
    **dict.fromkeys(("TripletLoss", "SparseTripletLoss", "GISTEmbedLoss", "CachedGISTEmbedLoss"), (_TUPLES,)),
    **dict.fromkeys(("GlobalOrthogonalRegularizationLoss", "FlopsLoss", "CSRReconstructionLoss"), (_TUPLES, _PAIRS)),
    # This package's own.
    **dict.fromkeys(("SemiHardMultipleNegativesRankingLoss", "SemiHardTripletLoss"), (_TUPLES,)),
    **dict.fromkeys(("SemiHardCachedMultipleNegativesRankingLoss",), (_TUPLES,)),
    **dict.fromkeys(("SemiHardMultiVectorMultipleNegativesRankingLoss",), (_TUPLES,)),
    **dict.fromkeys(("SemiHardCachedMultiVectorMultipleNegativesRankingLoss",), (_TUPLES,)),
    **dict.fromkeys(("SemiHardContrastiveLoss", "WeightedSumLoss"), (_TUPLES, _PAIRS)),
}
"""The layouts that a loss of models that encode reads, the best first, by the name of its class."""

OF_CROSS_ENCODERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("BinaryCrossEntropyLoss", "CrossEntropyLoss", "MSELoss"), (_PAIRS,)),
    **dict.fromkeys(("LambdaLoss", "ListNetLoss", "ListMLELoss", "PListMLELoss", "RankNetLoss"), (_LISTS,)),
    **dict.fromkeys(("ADRMSELoss",), (_LISTS,)),
    **dict.fromkeys((*_RANKING, "MarginMSELoss"), (_TUPLES,)),
}
"""The same for cross encoders, whose losses have partly the same names."""

_VECTORS = "learns from a teacher's vectors of each text"
_CLASSES = "reads single texts and their classes"
UNUSED: dict[str, str] = {
    **dict.fromkeys(("MSELoss", "EmbedDistillLoss", "SparseMSELoss"), _VECTORS),
    **dict.fromkeys(("BatchAllTripletLoss", "BatchHardTripletLoss"), _CLASSES),
    **dict.fromkeys(("BatchHardSoftMarginTripletLoss", "BatchSemiHardTripletLoss"), _CLASSES),
    "ContrastiveTensionLoss": "reads a text twice, or with another one",
    "ContrastiveTensionLossInBatchNegatives": "takes its negatives from the batch",
    "DenoisingAutoEncoderLoss": "reads a text and what is left of it",
    "MegaBatchMarginLoss": "takes its negatives from the batch",
}
"""Losses that have no use for a row's negatives, and what they read, by the name of their class."""

WITH_SCORES = tuple(
    f"{kind}{loss}" for kind in ("", "Sparse", "MultiVector") for loss in ("MarginMSELoss", "DistillKLDivLoss")
)
"""Losses that learn from a teacher's scores."""

ONE_NEGATIVE = ("TripletLoss", "SparseTripletLoss", "GISTEmbedLoss")
"""Losses that take one negative."""


def check_inputs(loss: Any, dataset: Any) -> None:
    """Raise if a loss cannot read a live view that the training reads.

    Args:
        loss: The trainer's loss, or losses by dataset name.
        dataset: What the trainer was given: one dataset, or several by name.

    Raises:
        ValueError: If so; the view that it reads is named.
    """
    parts = dataset.items() if isinstance(dataset, Mapping) else [(None, dataset)]
    for name, part in parts:
        own = loss.get(name) if isinstance(loss, Mapping) else loss
        for _, view in live_views(part):
            _check(own, view, getattr(part, "column_names", []))
        _refuse_other_texts(part)


def _refuse_other_texts(dataset: Any) -> None:
    """Raise if the training reads other anchors or positives than those that refreshes mine for."""
    for part in getattr(dataset, "datasets", [dataset]):
        rows = getattr(part, "data", None)
        if not isinstance(rows, LiveRows):
            continue
        changed = [name for name in (rows.view.anchor_name, rows.view.positive_name) if rows.stands_beside(name)]
        transform = hosts.transform_of(part)
        while isinstance(transform, partial):  # the trainer's own around it
            transform = transform.keywords.get("transform")
        if changed or transform is not None:
            what = f"`map` has written {changed}" if changed else "a transform changes the rows"
            raise ValueError(
                f"The training would not read the texts that are mined for: {what} of the live view, and neither the "
                "negatives nor the refreshes follow. Change the texts of the dataset and of the corpus before it is "
                "wrapped, or use `prompts` of the training arguments for what stands in front of each text."
            )


def _is_hosts(loss: Any) -> bool:
    return type(loss).__module__.startswith("sentence_transformers.")


def innermost(loss: Any) -> Any:
    """Return the loss that reads the columns, where others of Sentence Transformers are around it.

    MatryoshkaLoss, AdaptiveLayerLoss, SpladeLoss and CSRLoss hand columns and labels to the loss that they were given.
    """
    while _is_hosts(loss) and isinstance(inner := getattr(loss, "loss", None), nn.Module):
        loss = inner
    return loss


def _check(loss: Any, view: LiveView, columns: list[str]) -> None:
    inner = innermost(loss)
    # Losses of others, also those that derive from one of these, may read what they like.
    if not _is_hosts(inner) and not type(inner).__module__.startswith("st_hardneg."):
        return
    name = type(inner).__name__
    is_of_pairs = ".cross_encoder." in type(inner).__module__
    said = name if inner is loss else f"{name} inside {type(loss).__name__}"
    if name in UNUSED and not is_of_pairs:
        raise ValueError(
            f"{said} {UNUSED[name]}, and has no use for the negatives of a live view. Train it on another dataset, or use "
            "a ranking loss such as MultipleNegativesRankingLoss."
        )
    wanted = (OF_CROSS_ENCODERS if is_of_pairs else LAYOUTS).get(name)
    if wanted is None:
        return
    has = _PAIRS if isinstance(view, LabeledPairs) else _LISTS if isinstance(view, LabeledLists) else _TUPLES
    needs_scores = name in WITH_SCORES
    scores = ", with_scores=True" if needs_scores else ""
    if has not in wanted:
        raise ValueError(
            f"{said} reads rows of the layout {wanted[0]!r}, got a live view of {has!r}. Pass "
            f"`train_dataset=hard_negatives.as_dataset({wanted[0]!r}{scores})`."
        )
    if needs_scores and SCORES_COLUMN not in columns:
        raise ValueError(
            f"{said} learns from a teacher's scores, got a live view without them. Give the dataset a `teacher` and pass "
            "`train_dataset=hard_negatives.as_dataset(with_scores=True)`."
        )
    if name in ONE_NEGATIVE and view.table.width > 1:
        more = "CachedGISTEmbedLoss" if name == "GISTEmbedLoss" else "`st_hardneg.losses.SemiHardTripletLoss`"
        raise ValueError(
            f"{said} takes one negative, got a live view of {view.table.width}. Set `num_negatives=1`, or use {more}."
        )
    if has == _TUPLES and not needs_scores and SCORES_COLUMN in columns:
        logger.warning(
            f"{said} does not read the scores of the live view, which a teacher gives at every refresh. Leave "
            "`with_scores` out."
        )
