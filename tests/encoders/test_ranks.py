"""A mining over ranks outside a training: the texts are shared out, and all end with what one process finds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).parent / "ranks_script.py")


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What one process, and each of two ranks, ends with; and the folder."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for launched in ([], launcher):
        done = subprocess.run(
            [sys.executable, *launched, SCRIPT, str(folder)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        if not launched:
            assert (folder / "cache0").exists()
            (folder / "cache0").rename(folder / "cache_of_one")
    found = [
        json.loads((folder / name).read_text()) for name in ("rank0-of-1.json", "rank0-of-2.json", "rank1-of-2.json")
    ]
    return found, folder


@pytest.mark.parametrize("name", ["static", "service", "rescored", "colbert", "splade"])
def test_ranks_end_with_what_one_process_finds(ended, name):
    """Bit by bit: ids, similarities, whatever kind of model; and each encodes half of the texts."""
    one, first, second = (found["results"][name] for found in ended[0])
    for key in ("ids", "similarities", "rows", "filled"):
        assert one[key] == first[key] == second[key], key
    assert one["filled"] > 0
    # What tells a static model from others is encoded by all, too: a handful of probes.
    assert one["encoded"] <= first["encoded"] + second["encoded"]
    assert abs(first["encoded"] - second["encoded"]) <= 0.15 * one["encoded"]
    assert one["is_training"] == first["is_training"] == second["is_training"]


def test_the_first_rank_alone_writes(ended):
    """What one process would write, and nothing twice."""
    _, folder = ended
    names = [sorted(path.name for path in (folder / name).rglob("*.npy")) for name in ("cache0", "cache_of_one")]
    assert names[0] == names[1] and names[0] and not (folder / "cache1").exists()


def test_what_does_not_go_together_is_refused_on_every_rank(ended):
    """Other rows, prompts, batches or weights, and the error of one rank, in words."""
    said, others = ended[0][1]["said"], ended[0][2]["said"]
    assert said == {**others, "fails": said["fails"]}
    for name in ("rows", "prompts", "batches"):
        assert said[name].startswith(
            "ValueError: The ranks cannot mine together: rank 1 has other rows, corpus or settings"
        )
    assert said["weights"].startswith(
        "ValueError: The ranks cannot mine together: rank 1 has other weights than rank 0."
    )
    for one in (said, others):
        assert "Rank 1 failed while the ranks mined together: ValueError: the disk is full" in one["fails"]


@pytest.mark.parametrize("what", ["dies", "waits"])
def test_a_rank_that_is_gone_ends_the_run_in_words(tmp_path, what):
    """One has ended, or never calls ``mine``, as in ``if rank == 0: mine()``: the other does not wait for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(tmp_path), what],
            env=environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        _, error = ranks[0].communicate(timeout=150)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert ranks[0].returncode == 1
    assert "MiningError: The ranks were cut off from each other while they mined together" in error, error[-3000:]
    assert "Every rank has to call `mine(model, over_ranks=True)`" in error
