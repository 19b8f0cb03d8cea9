"""Every benchmark of time and memory runs, in a small form, so that none rots; the bounds are for the sizes of users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_models
from tests.conftest import random_texts

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


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[str, str]:
    """Folders of a labelled set in BEIR's layout and of a tiny model: the right answer says twice what the claim says."""
    folder, claims = tmp_path_factory.mktemp("set"), random_texts(40, seed=1)
    texts = {f"d{i}": f"{claim} {claim}" for i, claim in enumerate(claims)}
    texts |= {f"o{i}": text for i, text in enumerate(random_texts(30, seed=2, length=8))}
    documents = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in texts.items()]
    queries = [json.dumps({"_id": f"q{i}", "text": claim}) for i, claim in enumerate(claims)]
    (folder / "corpus.jsonl").write_text("\n".join(documents))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels").mkdir()
    for split, numbers in (("train", range(30)), ("test", range(30, 40))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in numbers)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    model = str(folder / "model")
    tiny_models.dense(folder / "bert").save(model)
    return str(folder), model


def run(script: Path, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.training
def test_models_of_each_kind_are_compared_with_brute_force(given):
    """Dense, sparse, multi-vector and cross encoder, made of one BERT; it ends with another status if one is wrong."""
    data, model = given
    sizes = ("--pairs", "16", "--texts", "40", "--max-length", "16")
    printed = run(FOLDER / "real_models.py", "--data", data, "--model", model, *sizes)
    kinds = ["dense", "sparse", "multi-vector", "cross"]
    assert [line.partition(":")[0] for line in printed.splitlines() if "at the loss" in line] == kinds
    assert printed.count(" 0 scores off by more than 1e-5, 0 of 64 rows at the loss not as stated") == len(kinds)


@pytest.mark.training
def test_planted_right_answers_are_suspects(given):
    """All three kinds of copies of twelve right answers lead the list; those that differ in nothing are on none."""
    data, model = given
    printed = run(FOLDER / "suspects.py", "--data", data, "--model", model, "--copies", "12", "--listed", "10")
    assert printed.count("of 10 suspects ") == 3 and "TOO FEW" not in printed
    assert "12 copies that differ in nothing: 0 suspects, 0 slots, 0 of their own anchor" in printed


@pytest.mark.training
def test_every_format_comes_back(given):
    """Four layouts of others, and eleven files of Sentence Transformers' four formats."""
    data, model = given
    printed = run(FOLDER / "round_trips.py", "--data", data, "--model", model)
    assert printed.count(" 30 rows: equal") == 15


@pytest.mark.training
def test_the_sparse_example_trains(given):
    """A row for each way to get negatives."""
    data, model = given
    script = FOLDER.parents[1] / "examples" / "train_sparse.py"
    printed = run(script, "--data", data, "--model", model, "--epochs", "1", "--num-negatives", "1")
    for row in ("before training", "in-batch negatives", "mined once", "refreshed each epoch"):
        assert f"\n{row}" in printed


@pytest.mark.training
def test_sparse_and_token_vectors_are_compared_with_brute_force(given):
    """Sparse products, MaxSim over everything, and MaxSim over few candidates; another status if one is not the same."""
    data, model = given
    sizes = ("--num-negatives", "5", "--layers", "1", "--max-length", "16", "--depth", "12")
    printed = run(FOLDER / "brute_force.py", "--data", data, "--model", model, *sizes)
    assert printed.count(": the same\n") == 3 and printed.count(": 40 queries x 70 texts, 5 of each; ") == 3
