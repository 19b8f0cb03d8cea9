"""Folders that are there whole or not at all: kills, failures, leftovers, permissions."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time

import pytest

from st_hardneg.files import folders
from st_hardneg.files.folders import settle, write_folder


def writes(text: str):
    """Return what writes a folder of one file."""

    def write(folder: str) -> None:
        with open(os.path.join(folder, "file"), "w", encoding="utf-8") as file:
            file.write(text)

    return write


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced(tmp_path):
    """The new content is there, and nothing beside it."""
    for text in ("one", "two"):
        write_folder(str(tmp_path / "saved"), writes(text))
    assert (tmp_path / "saved" / "file").read_text() == "two" and names(tmp_path) == ["saved"]


def test_folders_above_are_made(tmp_path):
    """As `makedirs` does."""
    write_folder(str(tmp_path / "a" / "b" / "saved"), writes("x"))
    assert (tmp_path / "a" / "b" / "saved" / "file").exists()


def test_what_fails_leaves_what_was_there(tmp_path):
    """An error while writing changes nothing, and leaves nothing."""
    write_folder(str(tmp_path / "saved"), writes("one"))

    def write(folder: str) -> None:
        writes("half")(folder)
        raise OSError("simulated")

    with pytest.raises(OSError, match="simulated"):
        write_folder(str(tmp_path / "saved"), write)
    assert (tmp_path / "saved" / "file").read_text() == "one" and names(tmp_path) == ["saved"]


@pytest.mark.parametrize("failing_calls", [(1,), (2,), (2, 3)])
def test_a_renaming_that_fails_leaves_the_earlier_folder(tmp_path, monkeypatch, failing_calls):
    """Where it cannot even be put back it is kept beside, and the next look puts it back."""
    write_folder(str(tmp_path / "saved"), writes("one"))
    real, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) in failing_calls:
            raise OSError("simulated")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="simulated"):
            write_folder(str(tmp_path / "saved"), writes("two"))
    (left,) = names(tmp_path)
    assert left.startswith("saved.st_hardneg-retired-") if 3 in failing_calls else left == "saved"
    settle(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "file").read_text() == "one" and names(tmp_path) == ["saved"]


def in_another_process(code: str, *arguments: str) -> subprocess.Popen:
    """Start Python with the module of this test, and without the package: that would take seconds."""
    script = f"""
        import importlib.util, os, sys, time
        spec = importlib.util.spec_from_file_location("folders", {folders.__file__!r})
        folders = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(folders)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(code), *arguments], stdout=subprocess.PIPE
    )


WRITING = """
    def write(folder):
        open(os.path.join(folder, "file"), "w").close()
        print("writing", flush=True)
        time.sleep(60)
    folders.write_folder(sys.argv[1], write)
"""
BETWEEN_RENAMES = """
    real = os.replace
    def replace(source, target):
        real(source, target)
        if target.endswith("save"):
            print("between", flush=True)
            time.sleep(60)
    os.replace = replace
    folders.write_folder(sys.argv[1], lambda folder: open(os.path.join(folder, "new"), "w").close())
"""


@pytest.fixture
def killed(tmp_path):
    """Run a process until it says something; return it, for the test to kill it."""
    started = []

    def start(code: str) -> subprocess.Popen:
        process = in_another_process(code, str(tmp_path / "saved"))
        started.append(process)
        assert process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.training
def test_a_save_that_was_killed_is_cleaned_up_by_the_next(tmp_path, killed):
    """At once, for its process is gone; while it lives, its folder is not touched."""
    process = killed(WRITING)
    write_folder(str(tmp_path / "saved"), writes("one"))
    assert len(names(tmp_path)) == 2  # the other process is still at work
    process.send_signal(signal.SIGKILL)
    process.wait()
    write_folder(str(tmp_path / "saved"), writes("two"))
    assert names(tmp_path) == ["saved"]


@pytest.mark.training
@pytest.mark.parametrize("by", ["a load", "a save"])
def test_a_save_that_was_killed_between_its_two_renames_is_found(tmp_path, killed, by):
    """Nobody loses the earlier save; while the process lives, nothing is taken from it."""
    write_folder(str(tmp_path / "saved"), writes("one"))
    process = killed(BETWEEN_RENAMES)
    settle(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    if by == "a load":
        settle(str(tmp_path / "saved"))
        assert (tmp_path / "saved" / "file").read_text() == "one"
    write_folder(str(tmp_path / "saved"), writes("two"))
    assert (tmp_path / "saved" / "file").read_text() == "two" and names(tmp_path) == ["saved"]


def test_where_there_are_no_locks_age_decides(tmp_path, monkeypatch):
    """A folder that nobody has touched for an hour is a leftover."""
    for name in ("old", "young"):
        (tmp_path / f"saved.st_hardneg-partial-{name}").mkdir()
    os.utime(tmp_path / "saved.st_hardneg-partial-old", (1, time.time() - 3700))

    def no_locks(*_):
        raise OSError("not supported")

    monkeypatch.setattr(folders.fcntl, "flock", no_locks)
    write_folder(str(tmp_path / "saved"), writes("one"))
    write_folder(str(tmp_path / "saved"), writes("two"))
    assert names(tmp_path) == ["saved", "saved.st_hardneg-partial-young"]


@pytest.mark.parametrize("name", ["saved.old-backup12", "saved.partial-2024", "saved.old", "saved-old-1", "sav"])
def test_a_folder_of_the_users_beside_a_save_stays(tmp_path, name):
    """However old it is, and whatever it holds."""
    kept = tmp_path / name / "save"
    kept.mkdir(parents=True)
    (kept / "thesis.txt").write_text("years of work")
    os.utime(tmp_path / name, (1, 1))
    for text in ("one", "two"):
        write_folder(str(tmp_path / "saved"), writes(text))
    assert (kept / "thesis.txt").read_text() == "years of work"


def test_names_with_wildcards_mean_themselves(tmp_path):
    """`saved[1]` is no pattern of which leftovers to delete."""
    (tmp_path / "saved1.st_hardneg-partial-x").mkdir()
    write_folder(str(tmp_path / "saved[1]"), writes("one"))
    assert names(tmp_path) == ["saved1.st_hardneg-partial-x", "saved[1]"]


def test_permissions_are_those_of_any_new_folder(tmp_path):
    """Not those of a temporary one, which nobody else may read; and the process's mask stays as it is."""
    (tmp_path / "usual").mkdir()
    write_folder(str(tmp_path / "saved"), writes("one"))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "saved")]
    assert modes[0] == modes[1]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Files first, then the folder, then the name, then the folder that holds the name."""
    done = []
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")))
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (done.append("renamed"), real(source, target)))
    write_folder(str(tmp_path / "saved"), writes("one"))
    partial = done[1]
    assert done == [os.path.join(partial, "file"), partial, "renamed", str(tmp_path)]
