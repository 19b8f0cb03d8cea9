"""MiningCallback under the real trainer: when a refresh comes, and at which step its negatives reach the loss."""

from __future__ import annotations

import logging
import multiprocessing

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState

from st_hardneg import MiningCallback
from st_hardneg.samplers import NoDuplicatePairsBatchSampler
from tests.conftest import WORDS
from tests.training import runs
from tests.training.rounds import Recorder, Rounds, first_new, make_args, make_model, make_negatives, run
from tests.training.runs import HOST_WARNINGS

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


@pytest.fixture
def model():
    return make_model()


def test_without_workers_a_refresh_is_seen_exactly_at_the_stated_step(model, tmp_path):
    """A refresh at step 5 fills whole batches from step 7 on: accelerate has fetched one batch ahead."""
    loss, callback, trainer = run(model, make_negatives(), make_args(tmp_path), mining_steps=5)
    assert first_new(loss.rounds, 1) == 7
    assert loss.rounds[:6] == [{0}] * 6 and loss.rounds[6:11] == [{1}] * 5 and loss.rounds[11:] == [{2}] * 3
    assert callback.first_step_seen(5, trainer.args) == 7


def test_with_gradient_accumulation(model, tmp_path):
    """With 4 micro-batches a step, a refresh at step 3 makes step 4 mixed and step 5 new."""
    args = make_args(tmp_path, gradient_accumulation_steps=4, max_steps=8)
    loss, callback, _ = run(model, make_negatives(), args, mining_steps=3)
    assert first_new(loss.rounds, 1) == 14
    assert callback.first_step_seen(3, args) == 5


@pytest.mark.parametrize(
    ("method", "persistent", "accumulation"),
    [("fork", False, 1), ("fork", True, 4), ("spawn", True, 1)],
)
def test_with_workers_nothing_old_is_seen_after_the_bound(
    model, tmp_path, monkeypatch, method, persistent, accumulation
):
    """With 2 workers, every micro-batch after the stated bound has new negatives, however workers are started."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        args = make_args(
            tmp_path,
            max_steps=14 if accumulation == 1 else 8,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=2,
            dataloader_prefetch_factor=2,
            dataloader_persistent_workers=persistent,
        )
        every = 5 if accumulation == 1 else 3
        loss, callback, _ = run(model, make_negatives(), args, mining_steps=every)
    finally:
        multiprocessing.set_start_method(before, force=True)
    bound = every * accumulation + 1 + 2 * 2 + 1
    assert every * accumulation < first_new(loss.rounds, 1) <= bound
    assert callback.first_step_seen(every, args) == -(-(bound - 1) // accumulation) + 1


def test_each_epoch_starts_with_new_negatives(model, tmp_path):
    """At an epoch boundary there is no delay, and nothing is mined after the last step."""
    args = make_args(tmp_path, max_steps=-1, num_train_epochs=3, per_device_train_batch_size=16)
    loss, callback, _ = run(model, make_negatives(), args, mining_strategy="epoch")
    assert loss.rounds == [{0}] * 10 + [{1}] * 10 + [{2}] * 10
    assert [report.step for report in callback.reports] == [10, 20]


@pytest.mark.parametrize("persistent", [False, True])
def test_each_epoch_starts_with_new_negatives_in_workers(model, tmp_path, persistent):
    """Persistent workers, which never see a changed attribute, see a refresh between epochs at once."""
    args = make_args(
        tmp_path,
        max_steps=-1,
        num_train_epochs=2,
        per_device_train_batch_size=16,
        dataloader_num_workers=2,
        dataloader_persistent_workers=persistent,
    )
    loss, _, _ = run(model, make_negatives(), args, mining_strategy="epoch")
    assert loss.rounds == [{0}] * 10 + [{1}] * 10


def test_in_a_dataset_dict_with_a_dict_of_losses(model, tmp_path):
    """Beside another dataset with a loss of its own, the live view is refreshed all the same."""
    hard_negatives = make_negatives()
    hard_negatives.mine(model, show_progress_bar=False)
    other = Dataset.from_dict({"anchor": WORDS[:80], "positive": WORDS[80:160]})
    loss = Recorder(model)
    callback = MiningCallback({"mined": hard_negatives}, mining_steps=6)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path, max_steps=24, multi_dataset_batch_sampler="round_robin"),
        train_dataset=DatasetDict({"mined": hard_negatives.as_dataset(), "other": other}),
        loss={"mined": loss, "other": MultipleNegativesRankingLoss(model)},
        callbacks=[callback],
    )
    trainer.train()
    assert len(loss.rounds) == 12
    # The views's micro-batches are every other one: 1, 3, 5, ...; the refresh is seen from micro-batch 8 on.
    assert loss.rounds[:4] == [{0}] * 4 and loss.rounds[4:7] == [{1}] * 3
    assert [report.step for report in callback.reports] == [6, 12, 18]


def test_metrics_are_logged_and_the_loss_log_is_not_swallowed(model, tmp_path):
    """Every step's loss is in the log history, also those of steps at which was mined."""
    _, callback, trainer = run(model, make_negatives(), make_args(tmp_path), mining_steps=5)
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 15))
    mined = [entry for entry in history if "mining/refresh" in entry]
    assert [(entry["step"], entry["mining/refresh"]) for entry in mined] == [(5, 1.0), (10, 2.0)]
    assert mined[0]["mining/seen_from_step"] == 7
    assert mined[0]["mining/churn"] == 1.0
    assert [report.refresh for report in callback.reports] == [1, 2]


def test_a_share_of_all_steps_and_a_warmup(model, tmp_path):
    """Below 1, `mining_steps` is a share of all steps; before the warm-up is over, nothing is mined."""
    _, callback, _ = run(model, make_negatives(), make_args(tmp_path), mining_steps=0.2, mining_warmup_steps=4)
    assert [report.step for report in callback.reports] == [6, 9, 12]


def test_nothing_is_mined_after_the_last_step(model, tmp_path):
    """A refresh that nobody would train on is not made."""
    _, callback, _ = run(model, make_negatives(), make_args(tmp_path, max_steps=10), mining_steps=5)
    assert [report.step for report in callback.reports] == [5]


def test_a_second_train_starts_clean(model, tmp_path):
    """Training again with the same callback begins its reports anew."""
    _, callback, trainer = run(model, make_negatives(), make_args(tmp_path), mining_steps=5)
    trainer.train()
    assert [report.step for report in callback.reports] == [5, 10]


def test_mode_and_random_states_are_left_as_found(model):
    """Mining changes neither the modes of the modules nor any random state."""
    import random

    import numpy as np

    model.train()
    model[0].eval()
    torch.manual_seed(3)
    random.seed(3)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    make_negatives(sampling_strategy="random", shortfall="random").mine(model, show_progress_bar=False)
    assert model.training and not model[0].training
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate() and (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_training_itself_is_not_disturbed_by_mining(tmp_path):
    """With the same negatives mined again and again, the weights end as they do without a callback."""
    ends = []
    for mining_steps in (2, 100):
        model, searcher = make_model(), Rounds(0)
        searcher.index = lambda *_, rounds=searcher: setattr(rounds, "round", 0)
        hard_negatives = make_negatives(searcher=searcher)
        run(model, hard_negatives, make_args(tmp_path), mining_steps=mining_steps)
        ends.append(model[0].embedding.weight.detach().clone())
    assert torch.equal(*ends)


def test_hashed_no_duplicates_is_warned_about(model, tmp_path, caplog):
    """Its hashes of the negatives are made once and would be stale after a refresh."""
    hard_negatives = make_negatives()
    hard_negatives.mine(model, show_progress_bar=False)
    args = make_args(tmp_path, max_steps=1, batch_sampler=BatchSamplers.NO_DUPLICATES_HASHED)
    callback = MiningCallback(hard_negatives)
    trainer = SentenceTransformerTrainer(
        model=model, args=args, train_dataset=hard_negatives.as_dataset(), loss=Recorder(model)
    )
    trainer.add_callback(callback)
    with caplog.at_level(logging.WARNING):
        callback.on_train_begin(args, trainer.state, trainer.control, train_dataloader=trainer.get_train_dataloader())
    assert "NO_DUPLICATES_HASHED" in caplog.text and "NoDuplicatePairsBatchSampler" in caplog.text


@pytest.mark.parametrize("sampler", [BatchSamplers.NO_DUPLICATES, NoDuplicatePairsBatchSampler])
def test_with_batch_samplers(model, tmp_path, sampler):
    """A refresh is seen at the stated step with batch samplers that look at the rows, too."""
    loss, _, _ = run(model, make_negatives(), make_args(tmp_path, batch_sampler=sampler), mining_steps=5)
    if sampler is NoDuplicatePairsBatchSampler:
        assert first_new(loss.rounds, 1) == 7
    else:  # every row holds the same two negatives here, which that sampler takes for duplicates
        assert min(loss.rounds[-1]) > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mining_steps": 0}, ValueError, "Expected `mining_steps`"),
        ({"mining_steps": 2.5}, ValueError, "Expected `mining_steps`"),
        ({"mining_steps": float("nan")}, ValueError, "Expected `mining_steps`"),
        ({"mining_steps": "often"}, TypeError, "Expected `mining_steps`"),
        ({"mining_strategy": "hourly"}, ValueError, "Expected `mining_strategy`"),
        ({"mining_warmup_steps": -1}, ValueError, "Expected `mining_warmup_steps`"),
        ({"hard_negatives": Dataset.from_dict({"a": ["b"]})}, TypeError, "Expected `hard_negatives`"),
    ],
)
def test_bad_arguments(arguments, error, message):
    """Arguments out of range are refused when the callback is made."""
    with pytest.raises(error, match=message):
        MiningCallback(**arguments)


@pytest.mark.parametrize("kind", ["CrossEncoder"])
def test_models_that_cannot_search_are_refused_at_the_start(kind, tmp_path):
    """As a retriever when the callback is made, and as the model in training before the first step."""
    model = type(kind, (), {})()
    with pytest.raises(ValueError, match=f"A {kind} cannot search"):
        MiningCallback(retriever=model)
    found = runs.make_negatives(runs.make_model())
    args, view = runs.make_args(tmp_path), found.as_dataset()
    with pytest.raises(ValueError, match=f"A {kind} cannot search .*retriever=SentenceTransformer"):
        MiningCallback(found).on_train_begin(
            args,
            TrainerState(max_steps=4),
            TrainerControl(),
            model=model,
            train_dataloader=DataLoader(view, batch_size=8, collate_fn=list),
        )


def test_equal_trials_on_one_dataset_are_equal(tmp_path):
    """A training that starts at step 0 begins with what `mine()` left, counters included."""
    found = runs.make_negatives(runs.make_model())
    before, losses = runs.ids_of(found), []
    for _ in range(2):
        model = runs.make_model()
        log = runs.train(tmp_path, [MiningCallback(found, 4)], found.as_dataset(), model)
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert losses[0] == losses[1] and len(losses[0]) == 12
    assert runs.ids_of(found) != before
    found.reset()
    assert runs.ids_of(found) == before


def test_a_mining_that_was_put_in_force_by_hand_is_what_a_training_begins_with(tmp_path):
    """`reset` goes back to it, and not to the mining before."""
    model = runs.make_model()
    found = runs.make_negatives(model)
    other = found.compute_mining(model, show_progress_bar=False)
    found.live.apply(other)
    runs.train(tmp_path, [MiningCallback(found, 4)], found.as_dataset(), model)
    assert runs.ids_of(found) != other.negatives.ids.tolist()
    found.reset()
    assert runs.ids_of(found) == other.negatives.ids.tolist()
