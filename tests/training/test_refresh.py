"""Faults while a trainer runs: the error reaches the user, nothing is lost or left over, and resuming goes on as if."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import MiningCallback, MiningError
from st_hardneg.live.table import NegativeTable
from st_hardneg.losses import LossDiagnosticsCallback, SemiHardMultipleNegativesRankingLoss
from st_hardneg.search import ExactSearcher
from tests.test_resume import make_args, make_model, make_negatives, run

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.*:FutureWarning"),
]
STEPS, EVERY, FAULT = 9, 3, 6


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The batches and the negatives of a run to which nothing happens."""
    batches, hard_negatives, _ = run(tmp_path_factory.mktemp("whole"), max_steps=STEPS, save_strategy="no")
    return batches, hard_negatives.negative_ids


class Watched(MiningCallback):
    """Notes everything that a failing refresh must not change, just before the refresh at which the fault comes."""

    def __init__(self, inject, hard_negatives=None, mining_steps=EVERY):
        super().__init__(hard_negatives, mining_steps=mining_steps)
        self.inject = inject
        self.before = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == FAULT:
            self.running = self.trainer  # the callback itself does not hold it
            self.before = snapshot(self.running, self.hard_negatives, self)
            self.inject(kwargs["model"])
        super().on_step_end(args, state, control, **kwargs)


def snapshot(trainer, hard_negatives, callback) -> dict:
    """Return the state of the training and of the negatives, to be compared with ``==``."""
    rows = np.arange(len(hard_negatives))
    model = trainer.model
    return {
        "step": trainer.state.global_step,
        "weights": [parameter.detach().tolist() for parameter in model.parameters()],
        "optimizer": repr(trainer.optimizer.state_dict()),
        "modes": [module.training for module in model.modules()],
        "random": (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()),  # noqa: NPY002
        "negatives": (hard_negatives.negative_ids.tolist(), hard_negatives.negative_scores.tolist()),
        "report": id(hard_negatives.report),
        "table": [hard_negatives._table.read(rows, previous=previous).tolist() for previous in (False, True)],
        "generation": hard_negatives._table.generation,
        "minings": hard_negatives._num_minings,
        "view": hard_negatives.as_dataset()[:],
        "reports": [report.step for report in callback.reports],
        "metrics": [entry["step"] for entry in trainer.state.log_history if "mining/refresh" in entry],
    }


def raise_(error):
    def fail(*_, **__):
        raise error

    return fail


def nan_embeddings(model):
    infer = model._inference
    model._inference = lambda inputs, **options: infer(inputs, **options) * torch.nan


def interrupted_encoding(model):
    """Ctrl-C after the queries were encoded, before the corpus is."""
    infer, calls = model._inference, []

    def once(inputs, **options):
        calls.append(inputs)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return infer(inputs, **options)

    model._inference = once


FAULTS = {
    "out of memory": (
        lambda patch, model: setattr(model, "_inference", raise_(torch.OutOfMemoryError("CUDA out of memory."))),
        MiningError,
        "enough memory to encode one text at a time",
    ),
    "diverged": (lambda patch, model: nan_embeddings(model), MiningError, "Expected finite embeddings"),
    "interrupt while encoding": (lambda patch, model: interrupted_encoding(model), KeyboardInterrupt, None),
    "interrupt while searching": (
        lambda patch, model: patch.setattr(ExactSearcher, "search", raise_(KeyboardInterrupt())),
        KeyboardInterrupt,
        None,
    ),
    "interrupt while writing": (
        lambda patch, model: patch.setattr(NegativeTable, "write", raise_(KeyboardInterrupt())),
        KeyboardInterrupt,
        None,
    ),
    "a broken index": (
        lambda patch, model: patch.setattr(ExactSearcher, "search", raise_(RuntimeError("index on fire"))),
        RuntimeError,
        "index on fire",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refresh_that_fails_changes_nothing_and_the_run_can_be_resumed(tmp_path, monkeypatch, uninterrupted, fault):
    """At the second refresh; judged by weights, optimizer, modes, random states, negatives, tables, views and files."""
    inject, error, message = FAULTS[fault]
    with monkeypatch.context() as patch:
        callback = Watched(lambda model: inject(patch, model))
        with pytest.raises(error, match=message):
            run(tmp_path, callback=callback, max_steps=STEPS, auto_find_batch_size=True)
        patch.undo()
        assert callback.before["reports"] == callback.before["metrics"] == [EVERY]
        assert callback.before["negatives"][0] == callback.before["table"][0] != callback.before["table"][1]
        after = snapshot(callback.running, callback.hard_negatives, callback)
        assert {name for name in after if after[name] != callback.before[name]} == set()
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint-{step}" for step in range(1, FAULT)]
    batches, resumed, _ = run(tmp_path, resume=True, max_steps=STEPS, save_strategy="no")
    assert batches == uninterrupted[0][FAULT - 1 :] and (resumed.negative_ids == uninterrupted[1]).all()


def test_an_interrupt_while_the_table_is_written_leaves_old_or_new_but_no_mixture():
    """Ctrl-C may come between any two lines, and most likely when the long copy is over: all parts tell the same."""
    model, hard_negatives = make_model(), make_negatives(make_model())
    hard_negatives.as_dataset()
    rows, outcomes, line = np.arange(len(hard_negatives)), [], 1
    while True:
        before, minings = hard_negatives.negative_ids, hard_negatives._num_minings
        mining = hard_negatives.compute_mining(model, show_progress_bar=False)
        seen = 0

        def trace(frame, event, _):
            nonlocal seen
            if frame.f_code is NegativeTable.write.__code__ and event in ("line", "return"):
                seen += 1
                if seen == line:  # noqa: B023 - called within this round only
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        tracing = sys.gettrace()
        try:
            sys.settrace(trace)
            hard_negatives.apply_mining(mining)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(tracing)
        is_new = hard_negatives._num_minings > minings
        outcomes.append(is_new)
        assert (hard_negatives.negative_ids == (mining.negative_ids if is_new else before)).all(), line
        assert (hard_negatives._table.read(rows) == hard_negatives.negative_ids).all(), line
        line += 1
    assert set(outcomes) == {False, True}


# --- a killed worker ----------------------------------------------------------------------------------------------


def leftovers() -> dict[str, object]:
    """Return what this process holds of processes, open files and shared memory."""
    gc.collect()
    maps = Path("/proc/self/maps")
    return {
        "processes": [child.pid for child in multiprocessing.active_children()],
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "mapped": maps.read_text(encoding="utf-8").count("/dev/shm") if maps.exists() else 0,
        "named": [name for name in os.listdir("/dev/shm") if name.startswith("torch_")]
        if os.path.isdir("/dev/shm")
        else [],
    }


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
    assert leftovers() == before

    options |= {"callback": MiningCallback(mining_steps=8), "save_strategy": "no"}
    batches, resumed, _ = run(tmp_path / "killed", resume=True, **options)
    assert [batch[:2] for batch in batches] == [batch[:2] for batch in whole[15:]]
    ahead = range(16 + 1, 16 + 1 + 2 * 2 + 1)
    for number, (one, other) in enumerate(zip(batches, whole[15:], strict=True), start=16):
        assert one == other or number in ahead, number
    assert (resumed.negative_ids == expected.negative_ids).all()


# --- a full disk --------------------------------------------------------------------------------------------------


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_after_a_part(self, path, **_):
    """As ``Dataset.save_to_disk`` on a disk that is full after a part of the file."""
    os.makedirs(path)
    Path(path, "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    full_disk()


def full_after_half(content, file, **_):
    """As ``json.dump`` on a disk that is full after half of the file."""
    text = json.dumps(content)
    file.write(text[: len(text) // 2])
    file.flush()
    full_disk()


WRITE_POINTS = {
    "the folder": ("st_hardneg.training.checkpoint.os.makedirs", full_disk),
    "the partial folder": ("st_hardneg.files.save.tempfile.mkdtemp", full_disk),
    "the arrow files": ("datasets.Dataset.save_to_disk", full_after_a_part),
    "state.json": ("st_hardneg.training.checkpoint.json.dump", full_after_half),
    "the new name": ("st_hardneg.files.save.os.replace", full_disk),
}


class FullDisk(MiningCallback):
    """Fills the disk when the trainer has written its part of a checkpoint, and the negatives come next."""

    def __init__(self, fill, mining_steps=EVERY):
        super().__init__(mining_steps=mining_steps)
        self.fill = fill

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == FAULT:
            self.fill()
        super().on_save(args, state, control, **kwargs)


@pytest.mark.parametrize("point", WRITE_POINTS)
def test_a_full_disk_while_a_checkpoint_is_written(tmp_path, monkeypatch, uninterrupted, point):
    """The error reaches the user, nothing half-written is left, and the checkpoint before is the one to resume from."""
    with monkeypatch.context() as patch:
        with pytest.raises(OSError, match="No space left on device"):
            run(tmp_path, callback=FullDisk(lambda: patch.setattr(*WRITE_POINTS[point])), max_steps=STEPS)
    check_after_a_full_disk(tmp_path, uninterrupted)


def check_after_a_full_disk(folder, uninterrupted):
    steps = {f"checkpoint-{step}" for step in range(1, FAULT + 1)}
    assert set(os.listdir(folder)) == steps
    written = folder / f"checkpoint-{FAULT}" / "hard_negatives"
    assert not [path for path in written.rglob("*") if path.is_file() or path.name.count("partial")]
    # Not silently with other negatives: the trainer's last checkpoint is refused, and says what to do.
    with pytest.raises(ValueError, match="Resume from an earlier checkpoint"):
        run(folder, resume=True, max_steps=STEPS, save_strategy="no")
    before = str(folder / f"checkpoint-{FAULT - 1}")
    batches, resumed, _ = run(folder, resume=before, max_steps=STEPS, save_strategy="no")
    assert batches == uninterrupted[0][FAULT - 1 :] and (resumed.negative_ids == uninterrupted[1]).all()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (it takes root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free", [0, 1, 3])
def test_a_disk_that_is_full_for_real(small_disk, uninterrupted, free):
    """The same with a disk on which so many pages are left when the negatives are to be written."""
    output = small_disk / "output"

    def fill():
        with open(small_disk / "filler", "wb", buffering=0) as file:
            with pytest.raises(OSError, match="No space left on device"):
                while True:
                    file.write(bytes(4096))
            file.truncate(file.tell() - free * 4096)

    with pytest.raises(OSError, match=r"No space left on device|Errno 28"):
        run(output, callback=FullDisk(fill), max_steps=STEPS)
    (small_disk / "filler").unlink()
    check_after_a_full_disk(output, uninterrupted)


# --- compiled models ----------------------------------------------------------------------------------------------


class Independent(MiningCallback):
    """Mines beside every refresh, with a new model that has the weights of the moment."""

    def __init__(self, hard_negatives, mining_steps=EVERY):
        super().__init__(hard_negatives, mining_steps=mining_steps)
        self.found, self.expected = [], []

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step % self.mining_steps == 0 and state.global_step < state.max_steps:
            alone, trained = make_model(), getattr(kwargs["model"], "_orig_mod", kwargs["model"])
            with torch.no_grad():
                alone[0].embedding.weight.copy_(trained[0].embedding.weight)
            self.found.append(self.hard_negatives.negative_ids)
            self.expected.append(make_negatives(alone, sampling_strategy="top").negative_ids)


@pytest.mark.parametrize("how", ["arguments", "arguments, aot_eager", "in place", "wrapped"])
def test_a_compiled_model_is_mined_with_as_it_is_at_the_moment(tmp_path, how):
    """However it is compiled, every refresh finds what an uncompiled model with the same weights finds."""
    model = make_model()
    hard_negatives = make_negatives(model, sampling_strategy="top")
    options = {"save_strategy": "no", "max_steps": STEPS}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trained = model
    if how.startswith("arguments"):
        options |= {"torch_compile": True, "torch_compile_backend": "aot_eager" if "aot" in how else "eager"}
    elif how == "in place":
        model.compile(backend="eager")
    else:
        trained = torch.compile(model, backend="eager")
    initial = hard_negatives.negative_ids
    # Mining by hand takes the wrapper, too.
    hard_negatives.mine(trained, show_progress_bar=False)
    assert (hard_negatives.negative_ids == initial).all()
    callback = Independent(hard_negatives)
    trainer = SentenceTransformerTrainer(
        model=trained,
        args=make_args(tmp_path, **options),
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(trained),
        callbacks=[callback],
    )
    trainer.train()
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0  # it was compiled, indeed
    torch._dynamo.reset()
    assert len(callback.found) == 2
    for found, expected in zip(callback.found, callback.expected, strict=True):
        assert (found == expected).all() and (found != initial).any()
    assert (callback.found[0] != callback.found[1]).any()
