"""Folders that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from st_hardneg.errors import writing

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

# Folders of these names are deleted when they are left over, so they must be names that nobody else gives.
_PARTIAL, _RETIRED = ".st_hardneg-partial-", ".st_hardneg-retired-"
_EARLIER = "save"
# Where the system has no locks, a folder that nobody has touched for so long is taken for a leftover.
_ABANDONED_SECONDS = 3600.0


def write_folder(path: str, write: Callable[[str], None]) -> None:
    """Write a folder under another name first: under its own it is complete, or what it was before.

    What is written is on the disk before the name changes, so that a loss of power leaves one or the other, too.

    Args:
        path: The folder.
        write: Writes the contents into the folder that it is given.

    Raises:
        OSError: If it cannot be written; what was there is as it was.
    """
    with writing(path):
        _write_folder(*os.path.split(os.path.abspath(path)), write)


def _write_folder(parent: str, name: str, write: Callable[[str], None]) -> None:
    os.makedirs(parent, exist_ok=True)
    _clean_up(parent, name)
    with _new_folder(parent, f"{name}{_PARTIAL}") as partial:
        try:
            with _no_progress_bars():
                write(partial)
            os.chmod(partial, _usual_mode(partial))
            _sync(partial)
            _put_in_place(partial, parent, name)
            _sync_folder(parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def settle(path: str) -> None:
    """Put back what a process that was killed between two renames has left under another name."""
    parent, name = os.path.split(os.path.abspath(path))
    for leftover in _named(parent, name, _RETIRED):
        with suppress(OSError):
            _put_back(leftover, os.path.join(parent, name))


def _put_in_place(partial: str, parent: str, name: str) -> None:
    path = os.path.join(parent, name)
    if not os.path.exists(path):
        os.replace(partial, path)
        return
    # Files that are still mapped into memory stay readable on POSIX; the name is free at once.
    with _new_folder(parent, f"{name}{_RETIRED}") as retired:
        earlier = os.path.join(retired, _EARLIER)
        try:
            os.replace(path, earlier)
            try:
                os.replace(partial, path)
            except BaseException:
                os.replace(earlier, path)
                raise
        except BaseException:
            # Only an empty folder goes: what could not be put back stays where it is.
            with suppress(OSError):
                os.rmdir(retired)
            raise
        shutil.rmtree(retired, ignore_errors=True)


def _clean_up(parent: str, name: str) -> None:
    """Put right what a process that was killed while it saved has left: nothing is lost, and nothing stays."""
    for leftover in _named(parent, name, _RETIRED):
        with suppress(OSError):
            if _put_back(leftover, os.path.join(parent, name)):
                shutil.rmtree(leftover, ignore_errors=True)
    for leftover in _named(parent, name, _PARTIAL):
        with suppress(OSError):
            if _is_abandoned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)


def _named(parent: str, name: str, kind: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(parent), glob.escape(name) + kind + "*")))


def _put_back(leftover: str, path: str) -> bool:
    """Give an earlier save its name again if that is free; False if the process that moved it is still at work."""
    if not _is_abandoned(leftover, without_locks=True):
        return False
    earlier = os.path.join(leftover, _EARLIER)
    if os.path.isdir(earlier) and not os.path.exists(path):
        os.replace(earlier, path)
        with suppress(OSError):
            os.rmdir(leftover)
    return True


@contextmanager
def _new_folder(parent: str, prefix: str) -> Iterator[str]:
    """Make a folder that other processes know to be in use, for as long as this one lives."""
    while True:
        folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
        lock = _lock(folder)
        if os.path.isdir(folder):  # else another process took it for a leftover before it was locked
            break
        _unlock(lock)
    try:
        yield folder
    finally:
        _unlock(lock)


def _lock(folder: str) -> int | None:
    """Lock a folder until the process ends, however it ends; None where folders cannot be locked."""
    if fcntl is None:  # pragma: no cover - Windows
        return None
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return None
    return number


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _is_abandoned(folder: str, *, without_locks: bool = False) -> bool:
    """Tell whether the process that made a folder is gone; ``without_locks`` is the answer where none can be had."""
    if fcntl is not None:
        number = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        finally:
            os.close(number)
    return without_locks or time.time() - os.stat(folder).st_mtime > _ABANDONED_SECONDS


def _sync(folder: str) -> None:
    """Make sure that everything in a folder is on the disk."""
    for inner, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(inner, file), "rb+") as written:
                os.fsync(written.fileno())
        _sync_folder(inner)


def _sync_folder(folder: str) -> None:
    with suppress(OSError):  # Windows opens no folders, and needs none of this
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    # Arrow files are written at every checkpoint of a training; two bars each time would be most of its output.
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _usual_mode(folder: str) -> int:
    """Return the permissions of a new folder here. Asking the system for the umask would change it for all threads."""
    probe = os.path.join(folder, ".mode")
    os.mkdir(probe)
    try:
        return stat.S_IMODE(os.stat(probe).st_mode)
    finally:
        os.rmdir(probe)
