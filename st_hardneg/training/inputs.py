"""Whether a loss of Sentence Transformers can read the live view that it is trained on; if not, which one it could."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_hardneg.live.dataset import live_views
from st_hardneg.live.labeled import LabeledLists, LabeledPairs
from st_hardneg.live.view import SCORES_COLUMN, LiveView

_PAIRS, _LISTS, _TUPLES = "labeled-pair", "labeled-list", "n-tuple"
LAYOUTS: dict[str, str] = {
    **dict.fromkeys(("BinaryCrossEntropyLoss", "CrossEntropyLoss"), _PAIRS),
    **dict.fromkeys(("ContrastiveLoss", "OnlineContrastiveLoss", "CoSENTLoss", "AnglELoss"), _PAIRS),
    **dict.fromkeys(("LambdaLoss", "ListNetLoss", "ListMLELoss", "PListMLELoss", "RankNetLoss", "ADRMSELoss"), _LISTS),
    **dict.fromkeys(("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"), _TUPLES),
    **dict.fromkeys(("MarginMSELoss", "DistillKLDivLoss", "SparseMarginMSELoss", "SparseDistillKLDivLoss"), _TUPLES),
    **dict.fromkeys(("MultiVectorMarginMSELoss", "MultiVectorDistillKLDivLoss"), _TUPLES),
    **dict.fromkeys(("TripletLoss", "GISTEmbedLoss", "CachedGISTEmbedLoss"), _TUPLES),
}
"""The layout that a loss reads, by the name of its class; others are not checked."""

WITH_SCORES = tuple(
    f"{kind}{loss}" for kind in ("", "Sparse", "MultiVector") for loss in ("MarginMSELoss", "DistillKLDivLoss")
)
"""Losses that learn from a teacher's scores."""

ONE_NEGATIVE = ("TripletLoss", "GISTEmbedLoss")
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


def _check(loss: Any, view: LiveView, columns: list[str]) -> None:
    kind = type(loss)
    # Losses of others, also those that derive from one of these, may read what they like.
    if not kind.__module__.startswith("sentence_transformers.") or kind.__name__ not in LAYOUTS:
        return
    name, wanted = kind.__name__, LAYOUTS[kind.__name__]
    has = _PAIRS if isinstance(view, LabeledPairs) else _LISTS if isinstance(view, LabeledLists) else _TUPLES
    scores = ", with_scores=True" if name in WITH_SCORES else ""
    if has != wanted:
        raise ValueError(
            f"{name} reads rows of the layout {wanted!r}, got a live view of {has!r}. Pass "
            f"`train_dataset=hard_negatives.as_dataset({wanted!r}{scores})`."
        )
    if scores and SCORES_COLUMN not in columns:
        raise ValueError(
            f"{name} learns from a teacher's scores, got a live view without them. Give the dataset a `teacher` and pass "
            "`train_dataset=hard_negatives.as_dataset(with_scores=True)`."
        )
    if name in ONE_NEGATIVE and view.table.width > 1:
        more = "CachedGISTEmbedLoss" if name == "GISTEmbedLoss" else "`st_hardneg.losses.SemiHardTripletLoss`"
        raise ValueError(
            f"{name} takes one negative, got a live view of {view.table.width}. Set `num_negatives=1`, or use {more}."
        )
