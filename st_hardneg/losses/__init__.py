"""Losses over (anchor, positive, negative_1, …, negative_n) that train only on the negatives worth training on."""

from __future__ import annotations

from st_hardneg.losses.cached_multiple_negatives_ranking import SemiHardCachedMultipleNegativesRankingLoss
from st_hardneg.losses.contrastive import SemiHardContrastiveLoss
from st_hardneg.losses.diagnostics import LossDiagnosticsCallback
from st_hardneg.losses.multi_vector import (
    SemiHardCachedMultiVectorMultipleNegativesRankingLoss,
    SemiHardMultiVectorMultipleNegativesRankingLoss,
)
from st_hardneg.losses.multiple_negatives_ranking import SemiHardMultipleNegativesRankingLoss
from st_hardneg.losses.triplet import SemiHardTripletLoss
from st_hardneg.losses.weighted_sum import WeightedSumLoss

__all__ = [
    "LossDiagnosticsCallback",
    "SemiHardCachedMultiVectorMultipleNegativesRankingLoss",
    "SemiHardCachedMultipleNegativesRankingLoss",
    "SemiHardContrastiveLoss",
    "SemiHardMultiVectorMultipleNegativesRankingLoss",
    "SemiHardMultipleNegativesRankingLoss",
    "SemiHardTripletLoss",
    "WeightedSumLoss",
]
