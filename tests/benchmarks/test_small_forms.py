"""Every benchmark of time and memory runs, in a small form, so that none rots; the bounds are for the sizes of users."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SMALL = {
    "drop_in": (["--rows", "300", "--dim", "64", "--repeats", "1"], 12),
    "memory": (["--texts", "9000", "--small", "4500", "--dim", "8", "--queries", "20"], 6),
    "rows": (["--rows", "500", "--length", "40"], 6),
    "search": (["--sizes", "500", "--dim", "8", "--queries", "70", "--repeats", "1"], 8),
}


@pytest.mark.training
@pytest.mark.parametrize("name", SMALL)
def test_a_small_form_runs(name):
    """It measures all of its figures, and says whether each is within its bound; results are compared at any size."""
    arguments, num_figures = SMALL[name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), *sys.path])}
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    lines = [line for line in done.stdout.splitlines() if "(at most" in line]
    assert len(lines) == num_figures, done.stdout + done.stderr
    assert done.returncode == int(any("TOO HIGH" in line for line in lines))
    assert not any("TOO HIGH" in line for line in lines if "another result" in line)
