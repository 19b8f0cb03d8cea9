"""The errors that a caller may want to catch; everything else is a ValueError or a TypeError.

* HardNegativeError
  x NotMinedError: negatives were asked for before any were mined.
  x MissingExtraError: an optional dependency is not installed.
  x MiningError: a mining run failed on its input, and nothing was changed.
  x PushError: what was mined could not be pushed; the repository is as it was.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


class HardNegativeError(Exception):
    """Base of all errors of this package."""


class NotMinedError(HardNegativeError, RuntimeError):
    """Negatives were asked for before any were mined."""


class MissingExtraError(HardNegativeError, ImportError):
    """An optional dependency is not installed."""


class MiningError(HardNegativeError, RuntimeError):
    """A mining run could not be completed; the negatives are what they were before it."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say whose code has failed, where code of the caller's is called; its own traceback stays below.

    Args:
        what: Whose it is, such as ``"the source 'mine'"``.

    Raises:
        MiningError: If it raises anything that is not an error of this package.
    """
    try:
        yield
    except HardNegativeError:
        raise
    except Exception as error:
        raise MiningError(
            f"{what[0].upper()}{what[1:]} raised {type(error).__name__}: {error}. The earlier negatives are unchanged."
        ) from error


def check_takes(function: Callable[..., Any], what: str, *names: str) -> None:
    """Raise unless a callable of the caller's takes these arguments, by place.

    Raises:
        TypeError: If it does not.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a function of a C library, which does not say
    try:
        signature.bind(*names)
    except TypeError:
        raise TypeError(
            f"Expected {what} to take the arguments ({', '.join(names)}), got `{signature}`. Change what it takes."
        ) from None


class PushError(HardNegativeError, RuntimeError):
    """What was mined could not be pushed; the repository is as it was."""


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


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an error of the system say which place of the user's could not be written to, whatever file it came from.

    Raises:
        OSError: Of the same kind, in words.
    """
    try:
        yield
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        kind = next(one for one in type(error).__mro__ if one.__module__ == "builtins")  # such as PermissionError
        said = kind(f"Cannot write {os.fspath(path)!r} ({reason}). Name a place that you may write to.")
        said.reason = reason  # what is written within something else says the outer place
        raise said from error
