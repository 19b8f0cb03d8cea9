"""Mine, refresh and report hard negatives for Sentence Transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_hardneg.config import MiningConfig
    from st_hardneg.dataset import HardNegativeDataset
    from st_hardneg.drop_in import mine_hard_negatives
    from st_hardneg.encoders.multi_vector import LateInteraction
    from st_hardneg.encoders.reduced import ReducedVectors
    from st_hardneg.encoders.stored import StoredVectors
    from st_hardneg.errors import HardNegativeError, MiningError, MissingExtraError, NotMinedError, PushError
    from st_hardneg.mapping import HardNegativeMiner
    from st_hardneg.mining.task import Guide
    from st_hardneg.report import MiningReport
    from st_hardneg.sources.values import Texts, Where, Written
    from st_hardneg.strategies import Adaptive, Distance, Easy, LogRank, SimANS, Softmax
    from st_hardneg.training.callback import MiningCallback
    from st_hardneg.training.curriculum import Curriculum, Stage
    from st_hardneg.training.schedules import Constant, Cosine, Exponential, Linear, PerEpoch, Progress, Step

__version__ = "0.1.0"
__all__ = [
    "Adaptive",
    "Constant",
    "Cosine",
    "Curriculum",
    "Distance",
    "Easy",
    "Exponential",
    "Guide",
    "HardNegativeDataset",
    "HardNegativeError",
    "HardNegativeMiner",
    "LateInteraction",
    "Linear",
    "LogRank",
    "MiningCallback",
    "MiningConfig",
    "MiningError",
    "MiningReport",
    "MissingExtraError",
    "NotMinedError",
    "PerEpoch",
    "Progress",
    "PushError",
    "ReducedVectors",
    "SimANS",
    "Softmax",
    "Stage",
    "Step",
    "StoredVectors",
    "Texts",
    "Where",
    "Written",
    "mine_hard_negatives",
]

_ROOMS = {
    "config": ("MiningConfig",),
    "dataset": ("HardNegativeDataset",),
    "drop_in": ("mine_hard_negatives",),
    "encoders.multi_vector": ("LateInteraction",),
    "encoders.reduced": ("ReducedVectors",),
    "encoders.stored": ("StoredVectors",),
    "errors": ("HardNegativeError", "MiningError", "MissingExtraError", "NotMinedError", "PushError"),
    "mapping": ("HardNegativeMiner",),
    "mining.task": ("Guide",),
    "report": ("MiningReport",),
    "sources.values": ("Texts", "Where", "Written"),
    "strategies": ("Adaptive", "Distance", "Easy", "LogRank", "SimANS", "Softmax"),
    "training.callback": ("MiningCallback",),
    "training.curriculum": ("Curriculum", "Stage"),
    "training.schedules": ("Constant", "Cosine", "Exponential", "Linear", "PerEpoch", "Progress", "Step"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for first: importing this package costs nothing."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
