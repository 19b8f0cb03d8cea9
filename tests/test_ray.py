"""Mining over the workers of a Ray cluster, here one on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.training
def test_workers_mine_what_one_process_mines():
    """The example, as a user runs it: every row comes back once, with the negatives of `HardNegativeMiner.map`."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    done = subprocess.run(
        [sys.executable, "examples/mine_with_ray.py", "--limit", "250"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "250 rows by 2 workers, the same as by one process" in done.stdout
    assert "not writable" not in done.stderr
