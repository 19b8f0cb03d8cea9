"""The errors that a caller may want to catch; everything else is a ValueError or a TypeError.

* HardNegativeError
  x NotMinedError: negatives were asked for before any were mined.
  x MissingExtraError: an optional dependency is not installed.
  x MiningError: a mining run failed on its input, and nothing was changed.
"""

from __future__ import annotations

from importlib.util import find_spec


class HardNegativeError(Exception):
    """Base of all errors of this package."""


class NotMinedError(HardNegativeError, RuntimeError):
    """Negatives were asked for before any were mined."""


class MissingExtraError(HardNegativeError, ImportError):
    """An optional dependency is not installed."""


class MiningError(HardNegativeError, RuntimeError):
    """A mining run could not be completed; the negatives are what they were before it."""


def require_extra(module: str, extra: str, wanted_by: str) -> None:
    """Raise if an optional dependency is missing, before anything is imported or computed.

    Args:
        module: Top-level module that must be importable.
        extra: Name of the extra of this package that installs it.
        wanted_by: What asked for it, as the caller wrote it, such as ``"`use_faiss=True`"``.

    Raises:
        MissingExtraError: If ``module`` cannot be found.
    """
    if find_spec(module) is None:
        raise MissingExtraError(
            f'{wanted_by} needs `{module}`, which is not installed. Install it with `pip install "st-hardneg[{extra}]"`.'
        )
