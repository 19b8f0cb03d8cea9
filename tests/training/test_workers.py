"""Workers of the dataloader: they go with their trainer, and one that is killed leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
import weakref
from collections import Counter
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformerTrainer

from st_hardneg import MiningCallback
from st_hardneg.losses import LossDiagnosticsCallback, SemiHardMultipleNegativesRankingLoss
from st_hardneg.search import ExactSearcher
from tests.training.runs import HOST_WARNINGS, ids_of, make_args, make_model, make_negatives, run
from tests.training.test_refresh import snapshot

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


def leftovers() -> Counter[tuple[str, str]]:
    """Return what this process holds of processes, open files and shared memory, each with what it is."""
    gc.collect()
    descriptors, maps, shared = Path("/proc/self/fd"), Path("/proc/self/maps"), Path("/dev/shm")
    found = [("process", str(child.pid)) for child in multiprocessing.active_children()]
    for number in os.listdir(descriptors) if descriptors.exists() else []:
        with contextlib.suppress(FileNotFoundError):  # the one by which the folder was read
            found.append(("file", os.readlink(descriptors / number)))
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    found += [("mapped", line.partition("/dev/shm")[2]) for line in lines if "/dev/shm" in line]
    found += [("named", name) for name in (os.listdir(shared) if shared.exists() else []) if name.startswith("torch_")]
    return Counter(found)


def test_a_trainer_is_gone_once_it_is_dropped_and_its_workers_with_it(tmp_path):
    """No circle through a callback keeps it, nor persistent workers, until the garbage is collected."""
    model = make_model()
    hard_negatives = make_negatives(model)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(
            tmp_path, save_strategy="no", max_steps=4, dataloader_num_workers=1, dataloader_persistent_workers=True
        ),
        train_dataset=hard_negatives.as_dataset(),
        loss=SemiHardMultipleNegativesRankingLoss(model),
        callbacks=[MiningCallback(hard_negatives, mining_steps=2)],
    )
    trainer.add_callback(LossDiagnosticsCallback(trainer))
    trainer.train()
    assert multiprocessing.active_children()
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None and not multiprocessing.active_children()
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="the DataLoader learns of it by a signal")
@pytest.mark.parametrize("where", ["between steps", "in a refresh"])
def test_a_killed_worker_ends_the_run_and_leaves_nothing_behind(tmp_path, monkeypatch, where):
    """The DataLoader's own error, soon; negatives intact; no process, file or shared memory left; resumed as if."""
    options = {"dataloader_num_workers": 2, "max_steps": 24, "save_steps": 15}
    whole, expected, _ = run(tmp_path / "whole", callback=MiningCallback(mining_steps=8), **options)

    def kill(*_):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(30)  # the DataLoader's handler of the signal interrupts it

    class Killer(MiningCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 15:
                self.running = self.trainer
                self.before = snapshot(self.running, self.hard_negatives, self)
                if where == "between steps":
                    kill()
                else:
                    monkeypatch.setattr(ExactSearcher, "search", kill)

    killer = Killer(mining_steps=8)
    before, started = leftovers(), time.perf_counter()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*killed by signal"):
        run(tmp_path / "killed", callback=killer, **options)
    assert time.perf_counter() - started < 20
    monkeypatch.undo()
    after = snapshot(killer.running, killer.hard_negatives, killer)
    intact = {"negatives", "report", "table", "generation", "minings", "reports", "metrics"}
    assert {name for name in intact if after[name] != killer.before[name]} == set()
    assert after["negatives"][0] == after["table"][0] and after["reports"] == [8]
    assert after["step"] == (15 if where == "between steps" else 16)
    del killer, after
    # What an earlier test has left to the garbage collector may go meanwhile; nothing may come.
    assert leftovers() - before == Counter()

    options |= {"callback": MiningCallback(mining_steps=8), "save_strategy": "no"}
    batches, resumed, _ = run(tmp_path / "killed", resume=True, **options)
    assert [batch[:2] for batch in batches] == [batch[:2] for batch in whole[15:]]
    ahead = range(16 + 1, 16 + 1 + 2 * 2 + 1)
    for number, (one, other) in enumerate(zip(batches, whole[15:], strict=True), start=16):
        assert one == other or number in ahead, number
    assert ids_of(resumed) == ids_of(expected)
