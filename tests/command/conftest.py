"""A place to run commands in."""

from __future__ import annotations

import pytest

from tests.command.runs import ROWS, write_csv


@pytest.fixture
def place(protractor, tmp_path, monkeypatch):
    """A folder with a model and pairs, which is the current one."""
    monkeypatch.chdir(tmp_path)
    protractor.save("model")
    write_csv("pairs.csv", [("anchor", "positive"), *ROWS])
    return tmp_path
