"""Two processes: every rank ends with the same negatives, and no failure is kept quiet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.ranks_script import main as train

ROOT = Path(__file__).parent.parent


def run(folder: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = [str(Path(__file__).parent / "ranks_script.py"), str(folder), *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, *script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_ranks_agree_with_each_other_and_with_one_process(tmp_path):
    """After three refreshes the tables of both ranks are bit-identical, and those of a single-process run."""
    done = run(tmp_path, 2)
    assert done.returncode == 0, done.stderr[-4000:]
    train(tmp_path)
    alone, first, second = (np.load(tmp_path / f"rank{name}.npz") for name in ("0-of-1", "0-of-2", "1-of-2"))
    for name in ("table", "ids", "weights"):
        assert (first[name] == second[name]).all(), name
    assert (first["table"] == alone["table"]).all()
    np.testing.assert_allclose(first["weights"], alone["weights"], atol=1e-5)
    figures = [json.loads((tmp_path / f"rank{rank}-of-2.json").read_text()) for rank in (0, 1)]
    single = json.loads((tmp_path / "rank0-of-1.json").read_text())
    assert figures[0]["steps"] == single["steps"] == [2, 4, 6]
    assert figures[0]["generation"] == figures[1]["generation"] == 3
    # Each rank encodes half of the texts, queries and corpus alike.
    shares = list(zip(figures[0]["encoded"], figures[1]["encoded"], strict=True))
    assert [sum(share) for share in shares] == single["encoded"]
    assert all(abs(one - other) <= 1 for one, other in shares)


def test_a_rank_that_fails_ends_the_run_with_its_own_error(tmp_path):
    """Whichever rank raises while it encodes, the run stops at once, and the error is that rank's."""
    done = run(tmp_path, 1, "failures")
    assert done.returncode == 0, done.stderr[-4000:]
    for rank, (seconds, exit_code, stderr) in enumerate(json.loads((tmp_path / "failures.json").read_text())):
        assert exit_code != 0 and seconds < 60
        assert f"simulated failure on rank {rank}" in stderr


@pytest.mark.slow  # seconds decide it, and a busy machine can lose six of them before the ranks have met
def test_a_search_that_takes_longer_than_ranks_wait(tmp_path):
    """The ranks wait 6 seconds, the search takes 12: signs of life in between keep them together."""
    done = run(tmp_path, 2, "slow")
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (np.load(tmp_path / f"rank{rank}-of-2.npz") for rank in (0, 1))
    assert (first["table"] == second["table"]).all()
    assert json.loads((tmp_path / "rank1-of-2.json").read_text())["steps"] == [6]


@pytest.mark.slow
def test_without_signs_of_life_the_same_search_fails(tmp_path):
    """The test above proves something: without them, the waiting rank gives up."""
    assert run(tmp_path, 2, "slow-silent").returncode != 0
