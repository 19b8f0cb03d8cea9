"""The short examples run as they are, offline; the README names every field and every public name."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import st_hardneg
from st_hardneg import MiningConfig

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", ["mine_offline.py", "custom_searcher.py"])
def test_short_examples(name):
    """Each prints a report."""
    assert "Hard negatives: first mining" in run(f"examples/{name}")


def test_the_main_example_on_few_pairs():
    """It trains on every kind of negatives and prints a row for each."""
    out = run("examples/train_with_refresh.py", "--epochs", "2", "--num-negatives", "1", "--limit", "200")
    for row in ("before training", "in-batch negatives", "mined once", "refreshed each epoch"):
        assert f"\n{row}" in out


def test_the_readme_names_every_field_and_every_public_name():
    """What can be configured and imported is documented on the front page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for field in fields(MiningConfig):
        assert f"`{field.name}`" in readme, field.name
    for name in st_hardneg.__all__:
        assert name in readme or name.endswith("Error"), name
