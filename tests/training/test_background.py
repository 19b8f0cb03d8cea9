"""Refreshes in the background: what is put in force, when, and what happens when something goes wrong there."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig, MiningError
from st_hardneg.training.background import BackgroundRefresher
from st_hardneg.training.curriculum import Stage
from tests.training.runs import HOST_WARNINGS, ids_of, make_args, make_model, make_negatives, table_of

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


class Keeper(TrainerCallback):
    """Notes weights and what is in force after each step, and lets steps wait for what goes on in the background."""

    def __init__(self, callback, waits_after=()):
        self.callback, self.waits_after = callback, set(waits_after)
        self.weights, self.ids, self.tables = {}, {}, {}
        self.at_step = {}

    def on_step_end(self, args, state, control, **kwargs):
        step, hard_negatives = state.global_step, self.callback.hard_negatives
        self.weights[step] = {name: one.clone() for name, one in kwargs["model"].state_dict().items()}
        self.ids[step], self.tables[step] = ids_of(hard_negatives), table_of(hard_negatives)
        if step in self.at_step:
            self.at_step[step](self.callback)
        if step in self.waits_after:
            wait_for(self.callback)


def wait_for(callback):
    """Wait until the other process has answered, as a long step would."""
    job = callback._refresher._job
    until = time.monotonic() + 60
    while job is not None and job.answer is None:
        assert time.monotonic() < until
        time.sleep(0.01)


def train(
    folder, hard_negatives, model, *, waits_after=(), at_step=None, resume=None, loss=None, options=None, **mining
):
    callback = MiningCallback(hard_negatives, **{"background": True, "mining_steps": 3, **mining})
    keeper = Keeper(callback, waits_after)
    keeper.at_step = at_step or {}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(folder, **{"max_steps": 9, "save_strategy": "no", **(options or {})}),
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(model) if loss is None else loss,
        callbacks=[callback, keeper],
    )
    trainer.train(resume_from_checkpoint=resume)
    return callback, keeper, trainer.state.log_history


def test_a_mining_of_a_snapshot_is_put_in_force_when_it_is_done(tmp_path):
    """The very negatives that this model mines with the weights of step 3, and not before the step that follows."""
    model = make_model()
    hard_negatives = make_negatives(model)
    before = ids_of(hard_negatives)
    expected = []

    def mine_here(callback):
        expected.append(hard_negatives.compute_mining(model, step=3, show_progress_bar=False).negatives.ids.tolist())

    callback, keeper, log = train(tmp_path, hard_negatives, model, waits_after=[4], at_step={3: mine_here})
    assert keeper.ids[3] == before and keeper.ids[4] == before
    assert keeper.ids[5] == expected[0] != before
    assert keeper.tables[5] == keeper.ids[5]  # each query has one row
    assert [report.step for report in callback.reports][:1] == [3]
    entry = next(entry for entry in log if "mining/refresh" in entry)
    assert (entry["step"], entry["mining/staleness"], entry["mining/seen_from_step"]) == (5, 2, 7)
    assert callback._refresher.process is None  # ended with the training


@pytest.mark.parametrize("weights_change", ["in training", "not at all"])
def test_the_snapshot_is_of_one_moment(tmp_path, weights_change):
    """The copy is whole before the optimizer changes a weight."""
    model = make_model()
    hard_negatives = make_negatives(model)
    seen = []

    class Slow(BackgroundRefresher):
        def before_weights_change(self):
            super().before_weights_change()
            if self._job is not None:
                seen.append({name: one.clone() for name, one in self._buffers.items()})

    rate = 0.05 if weights_change == "in training" else 0.0
    options = {"options": {"learning_rate": rate}, "background": False, "refresher": Slow}
    _, keeper, _ = train(tmp_path, hard_negatives, model, waits_after=[4, 7], **options)
    assert len(seen) >= 2
    assert all(torch.equal(seen[0][name], keeper.weights[3][name]) for name in seen[0])


def test_an_error_surfaces_in_the_trainer(tmp_path):
    """As the error that it was, with where it was raised; the earlier negatives stand."""
    model = make_model()
    hard_negatives = make_negatives(model)
    before = ids_of(hard_negatives)

    def spoil(callback):
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)

    with pytest.raises(MiningError, match="Expected finite embeddings") as caught:
        train(tmp_path, hard_negatives, model, waits_after=[3], at_step={2: spoil})
    assert "in the process that mines in the background" in str(caught.value.__cause__)
    assert "check_finite" in str(caught.value.__cause__)
    assert ids_of(hard_negatives) == before


def test_a_killed_process_does_not_kill_the_training(tmp_path, caplog):
    """It says so, and the next refresh starts a new process, whose mining is put in force."""
    model = make_model()
    hard_negatives = make_negatives(model)
    pids = []

    def kill(callback):
        pids.append(callback._refresher.process.pid)
        os.kill(pids[0], signal.SIGKILL)

    def note(callback):
        pids.append(callback._refresher.process.pid)

    with caplog.at_level(logging.WARNING):
        callback, _, _ = train(tmp_path, hard_negatives, model, waits_after=[3, 6], at_step={2: kill, 7: note})
    assert [report.step for report in callback.reports] == [6]
    assert pids[0] != pids[1]
    (line,) = [record.message for record in caplog.records if "is lost" in record.message]
    assert line == (
        "The process that mines in the background was killed by SIGKILL, perhaps for want of memory, so that the refresh "
        "of step 3 is lost. The training goes on with the negatives that it has, and the next refresh starts a new "
        "process."
    )


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_overtaken_is_dropped(tmp_path, caplog):
    """While one is mined, of those that wait only the last is made, with the weights of the moment at which it begins."""
    model = make_model()
    hard_negatives = make_negatives(model)

    def stop(callback):
        os.kill(callback._refresher.process.pid, signal.SIGSTOP)

    def go_on(callback):
        os.kill(callback._refresher.process.pid, signal.SIGCONT)
        wait_for(callback)

    with caplog.at_level(logging.WARNING):
        callback, keeper, _ = train(
            tmp_path, hard_negatives, model, mining_steps=2, waits_after=[8], at_step={1: stop, 7: go_on}
        )
    # Asked for at 2, 4, 6 and 8; done: that of 2, and at 8, when it was done, the one that waited.
    assert [report.step for report in callback.reports] == [2, 8]
    assert "The refresh of step 4 was overtaken by that of step 6 and is dropped" in caplog.text
    assert keeper.ids[7] != keeper.ids[8] != keeper.ids[9]


def test_a_stage_begins_with_a_mining_that_the_training_waits_for(tmp_path):
    """What was under way for the stage before is dropped."""
    model = make_model()
    hard_negatives = make_negatives(model)
    stages = [Stage("easy", 1, range_min=6), Stage("hard", 1)]

    def stop(callback):
        os.kill(callback._refresher.process.pid, signal.SIGSTOP)

    def go_on(callback):
        os.kill(callback._refresher.process.pid, signal.SIGCONT)
        wait_for(callback)

    callback, _, _ = train(
        tmp_path,
        hard_negatives,
        model,
        schedule=stages,
        mining_steps=18,
        at_step={1: stop, 21: go_on},
        options={"max_steps": 40},
    )
    found = [(report.step, report.stage) for report in callback.reports]
    assert found[:2] == [(0, "easy"), (20, "hard")]
    assert 18 not in [step for step, _ in found]


def test_a_checkpoint_says_which_mining_is_in_force(tmp_path, caplog):
    """And that a refresh was under way, which the resumed training begins anew."""
    model = make_model()
    hard_negatives = make_negatives(model)
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 9}

    def stop(callback):
        os.kill(callback._refresher.process.pid, signal.SIGSTOP)

    _, keeper, _ = train(
        tmp_path, hard_negatives, model, mining_steps=3, waits_after=[3], at_step={5: stop}, options=options
    )
    assert keeper.ids[4] == keeper.ids[7]

    model = make_model()
    resumed = make_negatives(model)
    with caplog.at_level(logging.INFO):
        callback, again, _ = train(
            tmp_path,
            resumed,
            model,
            mining_steps=3,
            waits_after=[8],
            resume=str(tmp_path / "checkpoint-7"),
            options=options,
        )
    assert (
        "Resuming with the negatives mined with the weights of step 3, in force since step 4. The refresh of step 6 was "
        "not done; it is begun anew." in caplog.text
    )
    assert again.ids[8] == keeper.ids[7]
    assert [report.step for report in callback.reports] == [3, 8]


SCRIPT = """
import sys
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback
from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.search import ExactSearcher
from tests.training.runs import TEXTS, make_args, make_model
from tests.training.test_background import wait_for

print("the script begins")
NUMBER = 7

class MySearcher(ExactSearcher):
    def search(self, queries, k):
        assert NUMBER == 7
        print("searched")
        return super().search(queries, k)

class Waits(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        wait_for(callback)

model = make_model()
pairs = Dataset.from_dict({"anchor": TEXTS[:80], "positive": TEXTS[80:160]})
filters = {"mine": lambda candidates, corpus: candidates.corpus_ids >= 0}
hn = HardNegativeDataset(pairs, TEXTS[160:], MiningConfig(), searcher=MySearcher(), extra_filters=filters)
hn.mine(model, show_progress_bar=False)
callback = MiningCallback(hn, mining_steps=2, background=True)
args = make_args(sys.argv[1], save_strategy="no", max_steps=6)
loss = MultipleNegativesRankingLoss(model)
SentenceTransformerTrainer(model, args, train_dataset=hn.as_dataset(), loss=loss, callbacks=[callback, Waits()]).train()
print([report.step for report in callback.reports])
if sys.argv[2] == "dies":
    import os, signal
    callback._refresher.begin(callback._targets, model, None, args, None)
    print("helper", callback._refresher.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["ends", "dies"])
def test_a_script_without_a_guard_and_with_objects_of_its_own(tmp_path, end):
    """The other process does not run the script; it gets the script's classes and functions, and ends with it."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path), str(tmp_path), end]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == (0 if end == "ends" else -signal.SIGKILL), done.stderr[-3000:]
    assert done.stdout.count("the script begins") == 1
    assert "[2, 4]" in done.stdout
    if end == "dies":
        pid = int(done.stdout.split("helper ")[1].split()[0])
        until = time.monotonic() + 20
        while is_running(pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert not is_running(pid)


class Unsendable:
    """A searcher with something that no process can send."""

    def __init__(self):
        self.open_search = (number for number in ())  # as a connection or a cursor is, it cannot be sent

    def __reduce__(self):
        raise TypeError("cannot pickle this searcher")

    def index(self, corpus_embeddings, similarity_fn_name):
        self.size = len(corpus_embeddings)

    def search(self, query_embeddings, k):
        ids = torch.arange(k).expand(len(query_embeddings), k) % self.size
        return ids, torch.zeros(ids.shape)


def test_what_cannot_be_sent_is_refused_before_the_training(tmp_path):
    model = make_model()
    pairs = make_negatives(model).to_dataset("n-tuple").select_columns(["anchor", "positive"])
    hard_negatives = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=2), searcher=Unsendable())
    hard_negatives.mine(model, show_progress_bar=False)
    with pytest.raises(MiningError, match=r"cannot \(TypeError: cannot pickle this searcher\)"):
        train(tmp_path, hard_negatives, model)


def test_arguments():
    with pytest.raises(TypeError, match="Expected `background` to be True, or the name of a device"):
        MiningCallback(background=3)
    with pytest.raises(ValueError, match="Expected `background` to be a device of this machine, got 'cuda:77'"):
        MiningCallback(background="cuda:77")
    with pytest.raises(ValueError, match="`background` and `refresher` both say how to mine"):
        MiningCallback(background=True, refresher=BackgroundRefresher)
    MiningCallback(background="cpu"), MiningCallback(background=False)
