"""Mine, refresh and report hard negatives for Sentence Transformers."""

from __future__ import annotations

from st_hardneg.config import MiningConfig
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.errors import HardNegativeError, MiningError, MissingExtraError, NotMinedError
from st_hardneg.report import MiningReport

__version__ = "0.1.0"
__all__ = [
    "HardNegativeDataset",
    "HardNegativeError",
    "MiningConfig",
    "MiningError",
    "MiningReport",
    "MissingExtraError",
    "NotMinedError",
]
