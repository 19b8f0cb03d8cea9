"""The benchmarks of refreshes run in a small form, so that none rots; their figures say nothing there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.training


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("refresh_stops.py", ["refresh in the loop", "the loop stops for one in the background", "mean: of an epoch"]),
        ("refresh_fraction.py", ["mined once", "refreshed", "half the corpus", "queries only", "steps old"]),
    ],
)
def test_small_forms(script, printed):
    """Each trains a toy and prints every line."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).parent / script), "--small", "--epochs", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(words in done.stdout for words in printed), done.stdout
