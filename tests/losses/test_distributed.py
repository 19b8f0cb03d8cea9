"""Two processes on one machine: parameters stay equal, and gathered batches are masked as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_hardneg.losses.diagnostics import SHARE_NAMES

pytestmark = pytest.mark.training

NAMES = [
    "ranking",
    "gathered",
    "cached",
    "cached_gathered",
    "triplet",
    "contrastive",
    "sum",
    "matryoshka",
    "matryoshka_cached",
]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Filled by the first test that runs the two processes."""
    return {}


@pytest.fixture
def figures(
    results: dict[str, Any],
    build_transformer_model: Callable[[], SentenceTransformer],
    rows: Dataset,
    tmp_path: Path,
) -> dict[str, Any]:
    """What two processes measured while they trained every loss."""
    if not results:
        build_transformer_model().save_pretrained(str(tmp_path / "model"), create_model_card=False)
        label = [[row, row % 16, row % 16, 10**6 - row, 16 + row % 48, row % 16] for row in range(64)]
        rows.add_column("label", label).save_to_disk(str(tmp_path / "rows"))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += [str(Path(__file__).parent / "ddp_script.py")]
        command += [str(tmp_path / "model"), str(tmp_path / "rows"), str(tmp_path / "figures.json")]
        source = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        failed = {"failure": run.stderr[-6000:]}
        results.update(failed if run.returncode else json.loads((tmp_path / "figures.json").read_text()))
    if "failure" in results:
        pytest.fail(results["failure"])
    return results


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_equal_on_both_ranks(figures: dict[str, Any], name: str) -> None:
    """After four steps the two ranks hold the same parameters, which have moved."""
    assert figures[name]["divergence"] == 0.0
    assert figures[name]["moved"] > 1e-3


def test_the_check_notices_ranks_that_diverge(figures: dict[str, Any]) -> None:
    """A loss of Sentence Transformers that hides its model from the trainer does diverge."""
    assert figures["sentence_transformers"]["divergence"] > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_shares_are_logged_over_both_ranks(figures: dict[str, Any], name: str) -> None:
    """The log line holds the shares of what was left out."""
    shares = [share for key, share in figures[name]["log"].items() if "masked_" in key]
    assert len(shares) in (len(SHARE_NAMES), 2 * len(SHARE_NAMES))
    assert all(0.0 <= share <= 1.0 for share in shares)
    if "gathered" in name:
        # Of 47 negatives, a row always has its own positive as its second one, which is masked by id.
        assert figures[name]["log"]["masked_known_positive"] >= round(1 / 47, 4)


def test_a_gathered_batch_is_the_whole_batch(figures: dict[str, Any]) -> None:
    """Value, gradients and shares of two gathered halves are those of the whole batch in one process."""
    for measure, figure in figures["whole"].items():
        assert figure < 1e-6, (measure, figure)


def test_numbers_of_two_datasets_are_not_mixed_up(figures: dict[str, Any]) -> None:
    """With a dataset on each device, or with ids on one only, no id is looked up in the other's right answers."""
    for measure, figure in figures["two_datasets"].items():
        assert figure < 1e-5, (measure, figure)
