"""Two processes: every rank ends with the same negatives, and no failure is kept quiet."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from st_hardneg.encoders import ranks
from tests.conftest import WORDS
from tests.training import ranks_losses_script, runs

pytestmark = [pytest.mark.training, *runs.HOST_WARNINGS]

ROOT = Path(__file__).parents[2]


def run(
    folder: Path, processes: int, *arguments: str, script: str = "ranks_script.py"
) -> subprocess.CompletedProcess[str]:
    command = [str(Path(__file__).parent / script), str(folder), *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, *command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder: Path, rank: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    """Start one of two ranks, without a launcher, which would end the other rank if one fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    command = [sys.executable, str(Path(__file__).parent / "ranks_script.py"), str(folder), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one process, and each of two ranks, ends with after eight steps with three refreshes, by loss."""
    folder = tmp_path_factory.mktemp("losses")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    no_chance = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(vocab_size=len(WORDS) + 2, **sizes, **no_chance)).save_pretrained(folder / "bert")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder / "bert")
    model = SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(16)], device="cpu")
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    done = run(folder, 2, str(folder / "model"), script="ranks_losses_script.py")
    assert done.returncode == 0, done.stderr[-4000:]
    results = {"files": [np.load(folder / f"losses{rank}.npz") for rank in (0, 1)]}
    for name in ranks_losses_script.LOSSES:
        alone, encoded = ranks_losses_script.train(name, folder, str(folder / "model"), world=1)
        results[name] = [alone | {"encoded": encoded}]
        for rank in (0, 1):
            arrays = results["files"][rank]
            found = {key: arrays[f"{name}_{key}"] for key in ("tables", "alone", "weights")}
            found["encoded"] = json.loads((folder / f"encoded{rank}.json").read_text())[name]
            results[name].append(found)
    return results


TOGETHER = [name for name in ranks_losses_script.LOSSES if name != "diverging"]


@pytest.mark.parametrize("name", TOGETHER)
def test_ranks_end_with_the_same_weights_and_the_same_negatives(trained, name):
    """With every loss: bit-identical at each of three refreshes, and what one process finds with these weights."""
    _, first, second = trained[name]
    assert (first["weights"] == second["weights"]).all()
    for rank in (first, second):
        assert len(rank["tables"]) == 3 and (rank["tables"] == first["tables"]).all()
        assert (rank["alone"] == first["tables"]).all()
    assert all((first["tables"][0] != table).any() for table in first["tables"][1:])


@pytest.mark.parametrize("name", ["plain", "ranking", "cached", "sharded"])
def test_ranks_train_as_one_process_does(trained, name):
    """Where the mean over two half batches is that over the whole: the tables are those of a single-process run."""
    single, first, _ = trained[name]
    assert (first["tables"] == single["tables"]).all()
    np.testing.assert_allclose(first["weights"], single["weights"], atol=1e-5)


@pytest.mark.parametrize("name", TOGETHER)
def test_ranks_share_the_encoding(trained, name):
    """Each rank encodes half of the queries and half of the texts; all of them where the model is sharded."""
    single, first, second = (result["encoded"] for result in trained[name])
    assert len(single) == 3 and all(len(calls) == 2 for calls in single)
    for whole, one, other in zip(*map(chain.from_iterable, (single, first, second)), strict=True):
        if name == "sharded":
            assert one == other == whole
        else:
            assert one + other == whole and abs(one - other) <= 1


def test_a_model_that_is_sharded_over_the_ranks_is_mined_with(trained):
    """FSDP2: no rank holds the whole of a weight, and all find what the whole model finds."""
    for arrays in trained["files"]:
        if "fsdp2_found" not in arrays:
            pytest.skip("this torch has no FSDP2")
        local, whole = arrays["fsdp2_sizes"]
        assert local < whole and (arrays["fsdp2_found"] == arrays["fsdp2_expected"]).all()


def test_the_checks_notice_ranks_that_diverge(trained):
    """A loss that hides its model from the trainer; even then all ranks get the negatives of the first."""
    _, first, second = trained["diverging"]
    assert (first["weights"] != second["weights"]).any() and (second["alone"] != second["tables"]).any()
    assert (first["tables"] == second["tables"]).all()


def test_ranks_agree_from_the_first_batch_on(tmp_path):
    """Each rank mines by itself before the training; weights that round differently mine differently."""
    done = run(tmp_path, 2, "drift")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}-of-2.json").read_text()) for rank in (0, 1))
    assert first["mined_alone"] != second["mined_alone"]
    assert first["first_table"] == second["first_table"] == first["mined_alone"]
    tables = [np.load(tmp_path / f"rank{rank}-of-2.npz")["table"] for rank in (0, 1)]
    assert (tables[0] == tables[1]).all()


def test_ranks_whose_live_views_have_other_rows_are_refused_together(tmp_path):
    """All of them raise: none is left waiting for the one that found out."""
    port = free_port()
    ranks = [start(tmp_path, rank, port, "other-rows") for rank in (0, 1)]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "live views have different rows" in errors


def test_ranks_agree_under_a_schedule_in_batches_of_topics(tmp_path):
    """Both ranks have the same tables, topics and numbers of negatives, and together they see every row once an epoch."""
    done = run(tmp_path, 2, "schedule")
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (np.load(tmp_path / f"rank{rank}-of-2.npz") for rank in (0, 1))
    for name in ("table", "ids", "weights"):
        assert (first[name] == second[name]).all(), name
    one, other = (json.loads((tmp_path / f"rank{rank}-of-2.json").read_text()) for rank in (0, 1))
    assert one["steps"] == other["steps"] == [0, 2, 4, 6, 8, 10]
    assert one["topics"] == other["topics"] and len(set(one["topics"])) == 4
    shown = [1, 1, 2, 2, 3, 3]
    skipped = [6, 5, 4, 3, 2, 1]
    expected = [{"range_min": r, "num_shown": n} for n, r in zip(shown, skipped, strict=True)]
    assert one["in_force"] == other["in_force"] == expected
    for rank in (one, other):
        assert [len(batch) - 2 for batch in rank["batches"]] == [1] * 4 + [2] * 4 + [3] * 4
    for start in (0, 4, 8):
        # Texts are of two words each.
        seen = [batch[0] for rank in (one, other) for batch in rank["batches"][start : start + 4]]
        anchors = {pair for tokens in seen for pair in zip(tokens[::2], tokens[1::2], strict=True)}
        assert len(anchors) == 80 == sum(len(tokens) for tokens in seen) // 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_ends_the_run_with_its_own_error(tmp_path, rank):
    """Whichever rank raises while it encodes, the run stops at once, and the error is that rank's."""
    started = time.perf_counter()
    done = run(tmp_path, 2, f"fail-{rank}")
    assert done.returncode != 0 and time.perf_counter() - started < 200
    assert f"simulated failure on rank {rank}" in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a signal kills the rank")
@pytest.mark.parametrize(
    ("rank", "is_resumed"),
    [(1, False), pytest.param(0, True, marks=pytest.mark.slow), pytest.param(1, True, marks=pytest.mark.slow)],
)
def test_a_killed_rank_ends_the_other_soon_and_the_run_can_be_resumed(tmp_path, rank, is_resumed):
    """Killed while it encodes: the other rank raises an error of its own, and the last checkpoint is whole."""
    killed = tmp_path / "killed"
    killed.mkdir()
    port = free_port()
    ranks = [start(killed, number, port, f"kill-{rank}") for number in (0, 1)]
    try:
        assert ranks[rank].wait(timeout=300) == -signal.SIGKILL
        _, error = ranks[1 - rank].communicate(timeout=30)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert ranks[1 - rank].returncode == 1 and re.search("Connection (closed|reset) by peer", error)
    checkpoints = [f"checkpoint-{step}" for step in range(1, 4)]
    assert sorted(path.name for path in (killed / "output").iterdir() if path.name != "runs") == checkpoints
    for name in checkpoints:
        (state,) = (killed / "output" / name / "hard_negatives").glob("*/state.json")
        assert len(Dataset.from_file(str(state.parent / "negatives.arrow"))) == 80
    if not is_resumed:
        return
    for folder, arguments in ((killed, ["resume"]), (tmp_path, [])):
        done = run(folder, 2, *arguments)
        assert done.returncode == 0, done.stderr[-4000:]
    for number in (0, 1):
        resumed, whole = (np.load(folder / f"rank{number}-of-2.npz") for folder in (killed, tmp_path))
        for name in ("table", "ids", "weights"):
            assert (resumed[name] == whole[name]).all(), name
    assert json.loads((killed / "rank0-of-2.json").read_text())["steps"] == [2, 4, 6]


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


def test_ranks_go_on_with_the_negatives_of_the_first():
    """What another rank has is put in force, in views that were handed out, too; other rows are refused."""
    model = runs.make_model()
    first, other = runs.make_negatives(model), runs.make_negatives(model, seed=5)
    view = other.as_dataset()
    expected = first.as_dataset()[3]
    assert view[3] != expected
    other.live.start_from(first.live.starting_state())
    assert runs.ids_of(other) == runs.ids_of(first) == runs.table_of(other)
    assert view[3] == expected
    short = runs.make_negatives(model, relative_margin=0.3, range_max=None)
    short.as_dataset()
    with pytest.raises(ValueError, match="live views have different rows"):
        other.live.start_from(short.live.starting_state())


def test_signs_of_life_come_when_it_is_time(monkeypatch):
    """A text is encoded when the last one was long ago, and not before."""
    now, encoded = [0.0], []
    monkeypatch.setattr(ranks.time, "monotonic", lambda: now[0])
    keep_alive = ranks.KeepAlive(lambda: encoded.append(now[0]))
    for now[0] in (1.0, 59.0, 61.0, 100.0, 122.0):
        keep_alive()
    assert encoded == [61.0, 122.0]


def test_ranks_agree_when_a_mining_of_the_background_is_put_in_force(tmp_path):
    """At the same steps, the same negatives: the losses of both ranks see one table."""
    done = run(tmp_path, 2, "background")
    assert done.returncode == 0, done.stderr[-3000:]
    tables = [np.load(tmp_path / f"rank{rank}-of-2.npz") for rank in (0, 1)]
    figures = [json.loads((tmp_path / f"rank{rank}-of-2.json").read_text()) for rank in (0, 1)]
    for name in ("table", "ids", "weights"):
        assert (tables[0][name] == tables[1][name]).all()
    assert figures[0]["steps"] == figures[1]["steps"] == [2, 4, 6]
    assert figures[0]["generation"] == figures[1]["generation"] == 3
    assert figures[0]["first_table"] != tables[0]["table"].tolist()
