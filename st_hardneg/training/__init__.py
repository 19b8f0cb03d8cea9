"""Refreshing while a trainer trains, and what may change while it does."""

from __future__ import annotations

from st_hardneg.training.curriculum import Curriculum, Stage
from st_hardneg.training.schedules import Constant, Cosine, Exponential, Linear, PerEpoch, Progress, Step

__all__ = ["Constant", "Cosine", "Curriculum", "Exponential", "Linear", "PerEpoch", "Progress", "Stage", "Step"]
