"""A push whose process is killed midway, and repeated: the repository has all of it, or what it had."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.publish.stand_in import running_hub

SCRIPT = """
import sys
from datasets import Dataset
from huggingface_hub import constants
from st_hardneg.publish.card import Contents
from st_hardneg.publish.hub import Target, publish
from st_hardneg.config import MiningConfig
from st_hardneg.report import MiningReport

main = Dataset.from_dict({"anchor": [sys.argv[1]], "positive": ["b"], "negative_1": ["c"]})
contents = Contents("me/mined", "default", "train", {"default": main}, "n-tuple", main.info, None,
                    MiningConfig().to_dict(), MiningReport())
publish(contents, "<svg/>", Target("hf_token"))
"""


def run(hub, text: str, tmp_path: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, text], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def rows_in(files: dict[str, bytes]) -> list[str]:
    return pq.read_table(io.BytesIO(files["data/train-00000-of-00001.parquet"])).column("anchor").to_pylist()


@pytest.mark.training
@pytest.mark.parametrize("phase", ["/preupload/", "/lfs/", "/commit/"])
def test_a_push_that_is_killed_is_repeated(phase, tmp_path):
    """Killed before the files, between them, and before the commit; in the end it is what a push without that leaves."""
    with running_hub() as hub:
        first = run(hub, "first", tmp_path)
        assert first.wait(120) == 0, first.stderr.read()
        before = dict(hub.files["me/mined"]["main"])
        hub.answers[phase] = threading.Event()
        second = run(hub, "second", tmp_path)
        assert hub.stalled.wait(120)
        second.send_signal(signal.SIGKILL)
        second.wait(30)
        second.stderr.close()
        assert hub.files["me/mined"]["main"] == before and len(hub.commits) == 1
        hub.answers.pop(phase)
        third = run(hub, "second", tmp_path)
        assert third.wait(120) == 0, third.stderr.read()
        after = hub.files["me/mined"]["main"]
        assert len(hub.commits) == 2 and set(after) == set(before)
        assert rows_in(before) == ["first"] and rows_in(after) == ["second"]
        with running_hub() as other:
            whole = run(other, "second", tmp_path)
            assert whole.wait(120) == 0, whole.stderr.read()
            whole.stderr.close()
            assert other.files["me/mined"]["main"] == after
        first.stderr.close()
        third.stderr.close()
