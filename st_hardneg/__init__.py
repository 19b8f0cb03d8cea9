"""Mine, refresh and report hard negatives for Sentence Transformers."""

from __future__ import annotations

from st_hardneg.config import MiningConfig
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.drop_in import mine_hard_negatives
from st_hardneg.errors import HardNegativeError, MiningError, MissingExtraError, NotMinedError
from st_hardneg.mapping import HardNegativeMiner
from st_hardneg.report import MiningReport
from st_hardneg.training.callback import MiningCallback

__version__ = "0.1.0"
__all__ = [
    "HardNegativeDataset",
    "HardNegativeError",
    "HardNegativeMiner",
    "MiningCallback",
    "MiningConfig",
    "MiningError",
    "MiningReport",
    "MissingExtraError",
    "NotMinedError",
    "mine_hard_negatives",
]
