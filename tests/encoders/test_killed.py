"""A mining that is killed, by a signal and at any moment, goes on where it was when it is begun again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(signal, "SIGKILL"), reason="a signal kills a fork"),
]

ROOT = Path(__file__).parents[2]

SCRIPT = """
import hashlib, json, os, signal, sys
import torch
from pathlib import Path
from datasets import Dataset, disable_progress_bars
from st_hardneg import HardNegativeDataset
from st_hardneg.encoders import cached, store
from tests.conftest import random_texts

torch.set_num_threads(1)
disable_progress_bars()
folder, FILE = Path(sys.argv[1]), 16
store.SHARD = cached.SHARD = FILE
texts = list(dict.fromkeys(random_texts(400, seed=3, length=3)))
pairs = Dataset.from_dict({"anchor": texts[:60], "positive": texts[60:120]})
corpus = texts[120:240]


class Encoder:
    # Vectors are digests of the texts; every one is noted in a file before it is made, so that a kill hides nothing.
    similarity, score_function = "cosine", None
    pairwise = staticmethod(lambda left, right: torch.nn.functional.cosine_similarity(left, right))

    def __init__(self, log):
        self.log = open(log, "a")

    def queries(self, texts, *, show_progress_bar=False):
        vectors = []
        for text in texts:
            print(text, file=self.log, flush=True)
            vectors.append(torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8))
        return torch.stack(vectors).float() - 128

    def corpus(self, texts, *, show_progress_bar=False):
        for start in range(0, len(texts), 5):
            yield self.queries(texts[start : start + 5])

    def fingerprint(self, probes=()):
        return "sha256"


def mine(name, cache, kind=None, number=0):
    # In a process of its own, which sends itself the signal at a moment: after so many texts, or around a file's renaming.
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    encoder, left = Encoder(folder / f"{name}.log"), [number]
    encode, rename = encoder.queries, os.replace

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def queries(texts, **options):
        left[0] -= len(texts) * (kind == "text")
        if kind == "text" and left[0] <= 0:
            encode(texts[: len(texts) + left[0]])
            die()
        return encode(texts, **options)

    def replace(*paths):
        left[0] -= kind in ("before", "after")
        if kind == "before" and not left[0]:
            die()
        rename(*paths)
        if kind == "after" and not left[0]:
            die()

    encoder.queries, os.replace = queries, replace
    found = HardNegativeDataset(pairs, corpus, num_negatives=3, cache_folder=str(folder / cache))
    found.mine(encoder, show_progress_bar=False)
    negatives = found.live.mining.negatives
    (folder / f"{name}.json").write_text(json.dumps([negatives.ids.tolist(), negatives.similarities.tolist()]))
    os._exit(0)


figures = {"alone": mine("alone", "alone"), "killed": []}
MOMENTS = [("text", 1), ("text", 16), ("text", 37), ("text", 100), ("text", 190)]
MOMENTS += [("before", 2), ("after", 2), ("after", 9), ("before", 20), ("after", 21)]
for number, moment in enumerate(MOMENTS):
    cache = folder / f"cache{number}"
    killed = mine(f"killed{number}", cache.name, *moment)
    ready = [str(path) for path in cache.rglob("*.texts.npy")]
    figures["killed"].append([killed, len(ready), mine(f"again{number}", cache.name)])
(folder / "figures.json").write_text(json.dumps(figures))
"""


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What ten minings end with that are killed and begun again; and the folder."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "figures.json").read_text()), folder


@pytest.mark.parametrize("number", range(10))
def test_a_killed_mining_begun_again(figures, number):
    """The result is that of a run that was left alone, and only texts of the file under way are encoded again."""
    (killed, num_files, again), folder = figures[0]["killed"][number], figures[1]
    assert figures[0]["alone"] == again == 0 and os.WTERMSIG(killed) == signal.SIGKILL
    assert not (folder / f"killed{number}.json").exists()
    assert (folder / f"again{number}.json").read_text() == (folder / "alone.json").read_text()
    everything, before, after = (
        (folder / f"{name}.log").read_text().splitlines() for name in ("alone", f"killed{number}", f"again{number}")
    )
    twice = set(before) & set(after)
    # All that stands in a file that was whole is not encoded again; a file holds sixteen texts.
    assert len(twice) == len(before) - len(everything) + len(after) <= 16
    assert sorted([*(set(before) - twice), *after]) == sorted(everything)
    whole = min(16 * num_files, 180) + max(0, 16 * num_files - 192)  # the last file of the corpus has four of 180 texts
    assert len(before) - len(twice) == whole


def test_moments_are_as_different_as_they_should_be(figures):
    """Killed before the first file is there and after the last of the texts, and with part of a file lost or none."""
    killed = figures[0]["killed"]
    assert len({tuple(one) for one in killed}) >= 5
    assert {num_files for _, num_files, _ in killed} >= {0, 1}
