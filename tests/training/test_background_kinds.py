"""Refreshes in the background under the other three trainers: mined of a snapshot, read by the loss when stated."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback

from st_hardneg import MiningCallback
from st_hardneg.training.rescoring import TrainedCrossEncoder
from tests.training.runs import HOST_WARNINGS
from tests.training.test_background import wait_for
from tests.training.test_surroundings import (
    MODELS,
    POSITIVES,
    RETRIEVER,
    TEXTS,
    TRAINERS,
    make_negatives,
    note,
    ranking_loss,
)

pytestmark = [
    pytest.mark.training,
    *HOST_WARNINGS,
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
]


def negatives_of(found) -> list[list[str]]:
    return [found.corpus.texts.take(row) for row in found.negative_ids]


class Watch(TrainerCallback):
    """Mines at step 3 what the other process is to mine, and lets step 4 last until that is done."""

    def __init__(self, kind, found, callback):
        self.kind, self.found, self.callback = kind, found, callback
        self.in_force, self.expected, self.was_training = {}, None, []

    def on_step_end(self, args, state, control, model=None, **_):
        step = state.global_step
        self.in_force[step] = negatives_of(self.found)
        self.was_training.append(model.training)
        if step == 3:
            searched, rescorer = (RETRIEVER, TrainedCrossEncoder(model)) if self.kind == "cross" else (model, None)
            self.expected = self.found.compute_mining(searched, step=3, rescorer=rescorer, show_progress_bar=False)
        if step == 4:
            wait_for(self.callback)


@pytest.mark.parametrize("kind", ["sparse", "multi-vector", "cross"])  # for dense models see test_background.py
def test_a_mining_of_a_snapshot_is_put_in_force_and_read(kind, tmp_path):
    """The negatives of the weights of step 3 are in force from step 5 on, and at the loss from the step that is logged."""
    model = MODELS[kind](tmp_path / "model")
    found = make_negatives(model, range(40))
    loss, batches = ranking_loss(kind, model), []
    note(loss, "", batches)
    trainer_class, args_class = TRAINERS[kind]
    callback = MiningCallback(found, 3, background=True, retriever=RETRIEVER if kind == "cross" else None)
    watch = Watch(kind, found, callback)
    args = args_class(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=5, max_steps=9, save_strategy="no",
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False, learning_rate=0.02, use_cpu=True,
    )  # fmt: skip
    trainer = trainer_class(
        model=model, args=args, train_dataset=found.as_dataset(), loss=loss, callbacks=[callback, watch]
    )
    before = negatives_of(found)
    trainer.train()
    expected = watch.expected.negatives
    assert watch.in_force[3] == watch.in_force[4] == before != watch.in_force[5]
    assert watch.in_force[5] == [found.corpus.texts.take(row) for row in expected.ids.tolist()]
    assert all(watch.was_training)
    log = next(entry for entry in trainer.state.log_history if "mining/refresh" in entry)
    assert (log["step"], log["mining/staleness"], log["mining/seen_from_step"]) == (5, 2, 7)
    for step, (_, batch) in enumerate(batches, start=1):
        state = dict(zip(TEXTS[:40], before if step < 7 else watch.in_force[5], strict=True))
        assert all(positive == POSITIVES[anchor] for anchor, positive, *_ in batch)
        if step < 9:  # from then on it may be that of step 6
            assert all(negatives == state[anchor] for anchor, _, *negatives in batch), step
    assert callback._refresher.process is None
    scores = expected.cross_encoder_scores if kind == "cross" else expected.similarities
    assert math.isfinite(float(torch.as_tensor(scores).sum()))
