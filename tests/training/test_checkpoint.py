"""A resumed run goes on with the negatives of the interrupted one: judged by what reaches the loss."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.samplers import NoDuplicatePairsBatchSampler
from tests.conftest import WORDS, random_texts, word_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.*:FutureWarning"),
]
TEXTS = list(dict.fromkeys(random_texts(400, seed=3, length=2)))


class Recorder(MultipleNegativesRankingLoss):
    """A loss that notes the tokens of every column it gets."""

    def __init__(self, model):
        super().__init__(model)
        self.batches: list[tuple] = []

    def forward(self, sentence_features, labels):
        features = list(sentence_features)
        self.batches.append(tuple(tuple(feature["input_ids"].tolist()) for feature in features))
        return super().forward(features, labels)


def make_model(seed: int = 0):
    model = word_model(WORDS, torch.randn(200, 8, generator=torch.Generator().manual_seed(seed)))
    model._create_model_card = lambda *_, **__: None  # most of what a checkpoint of a small model takes
    return model


def make_negatives(model, **config) -> HardNegativeDataset:
    pairs = Dataset.from_dict({"anchor": TEXTS[:80], "positive": TEXTS[80:160]})
    options = {"num_negatives": 2, "sampling_strategy": "random", "range_max": 12, **config}
    hard_negatives = HardNegativeDataset(pairs, TEXTS[160:], MiningConfig(**options))
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


def make_args(folder, **options) -> SentenceTransformerTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return SentenceTransformerTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def run(folder, resume=None, *, callback=None, config=None, **options):
    """Train from the start, or from a checkpoint, with everything made anew as a restarted script does."""
    model = make_model()
    hard_negatives = make_negatives(model, **(config or {}))
    loss = Recorder(model)
    strategy = options.pop("mining_strategy", "steps")
    callback = callback or MiningCallback(hard_negatives, mining_steps=3, mining_strategy=strategy)
    callback.hard_negatives = hard_negatives
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(folder, **options),
        train_dataset=hard_negatives.as_dataset(),
        loss=loss,
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    return loss.batches, hard_negatives, callback


@pytest.mark.parametrize("sampler", ["default", "ours"])
def test_without_workers_a_resumed_run_is_the_same(tmp_path, sampler):
    """From every checkpoint on, the batches that reach the loss are those of the uninterrupted run, all of them."""
    options = {} if sampler == "default" else {"batch_sampler": NoDuplicatePairsBatchSampler}
    whole, negatives, callback = run(tmp_path / "whole", **options)
    for step in range(1, 12):
        again = tmp_path / f"again-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", again / f"checkpoint-{step}")
        batches, resumed, later = run(again, resume=True, save_strategy="no", **options)
        assert batches == whole[step:], f"resumed from step {step}"
        assert (resumed.negative_ids == negatives.negative_ids).all()
        assert [report.step for report in later.reports] == [report.step for report in callback.reports] == [3, 6, 9]


def test_gradient_accumulation_and_epochs(tmp_path):
    """The same with several micro-batches a step, and with refreshes between epochs, from within and at the boundary."""
    for number, options in enumerate(
        (
            {"gradient_accumulation_steps": 2, "max_steps": 8},
            {"mining_strategy": "epoch", "num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 20},
        )
    ):
        whole, negatives, _ = run(tmp_path / f"whole{number}", **options)
        per_step = 2 if number == 0 else 1
        for step in (2, 3, 4, 7) if number == 0 else (2, 4, 5, 8):
            checkpoint = tmp_path / f"whole{number}" / f"checkpoint-{step}"
            batches, resumed, _ = run(tmp_path / "again", resume=str(checkpoint), save_strategy="no", **options)
            assert batches == whole[step * per_step :], f"{options}, resumed from step {step}"
            assert (resumed.negative_ids == negatives.negative_ids).all()


def test_with_workers_a_resumed_run_is_the_same_but_for_what_was_fetched_ahead(tmp_path):
    """With 2 workers, batches after those that may have been fetched ahead of a refresh are identical."""
    options = {"dataloader_num_workers": 2, "max_steps": 16}
    whole, _, _ = run(tmp_path / "whole", **options)
    for step in (2, 3, 5, 9):
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        batches, _, _ = run(tmp_path / "again", resume=str(checkpoint), save_strategy="no", **options)
        # Rows are the same throughout; negatives may differ in the batches around a refresh, whose number is bounded.
        assert [batch[:2] for batch in batches] == [batch[:2] for batch in whole[step:]]
        refreshes = [at for at in (3, 6, 9, 12, 15) if at >= step - 5]
        open_to_timing = {at + ahead for at in refreshes for ahead in range(1, 2 + 2 * 2 + 1)}
        for number, (one, other) in enumerate(zip(batches, whole[step:], strict=True), start=step + 1):
            assert one == other or number in open_to_timing


def cut_points(steps: int, count: int) -> list[int]:
    return sorted(random.Random(5).sample(range(1, steps), count))


@pytest.mark.parametrize("sampler", ["default", "ours"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("steps", "every", "cuts"), [(16, 5, 3), pytest.param(48, 7, 20, marks=pytest.mark.slow)])
def test_resumed_at_random_points(tmp_path, sampler, workers, steps, every, cuts):
    """Over epochs and refreshes, all batches are those of the uninterrupted run.

    Except, with workers, for the negatives of the batches that are fetched ahead of a refresh, whose number is bounded.
    """
    options = {"max_steps": steps, "dataloader_num_workers": workers}
    if workers:
        # Else what those batches teach would show in all that is mined later.
        options["learning_rate"] = 0.0
    if sampler == "ours":
        options["batch_sampler"] = NoDuplicatePairsBatchSampler
    points = cut_points(steps, cuts)
    whole, negatives, _ = run(tmp_path, callback=MiningCallback(mining_steps=every), **options)
    ahead = 1 + workers * 2 if workers else 0
    open_to_timing = {at + after for at in range(every, steps, every) for after in range(1, ahead + 1)}
    compared = other = 0
    for point in points:
        batches, resumed, _ = run(
            tmp_path / "again",
            str(tmp_path / f"checkpoint-{point}"),
            callback=MiningCallback(mining_steps=every),
            save_strategy="no",
            **options,
        )
        assert len(batches) == steps - point
        for number, (one, expected) in enumerate(zip(batches, whole[point:], strict=True), start=point + 1):
            assert one[:2] == expected[:2], f"resumed from step {point}: other rows at {number}"
            assert one == expected or number in open_to_timing, f"resumed from step {point}: differs at {number}"
            compared, other = compared + 1, other + (one != expected)
        assert (resumed.negative_ids == negatives.negative_ids).all()
    print(f"{sampler}, {workers} workers: cut at {points}: {compared} batches, {other} with other negatives")


def test_old_negatives_are_served_in_the_resumed_epoch_only(tmp_path):
    """Workers that are started for the next epoch do not go back to negatives from before the checkpoint."""
    options = {"dataloader_num_workers": 2, "max_steps": 26}
    whole, _, _ = run(tmp_path / "whole", callback=MiningCallback(mining_steps=8), **options)
    checkpoint = str(tmp_path / "whole" / "checkpoint-8")
    batches, _, _ = run(tmp_path / "again", checkpoint, callback=MiningCallback(mining_steps=8), **options)
    assert batches[22 - 8 - 1 : 24 - 8] == whole[22 - 1 : 24]


@pytest.mark.parametrize("sampler", ["round_robin", "proportional"])
def test_two_datasets_in_a_dict_each_have_their_own_state(tmp_path, sampler):
    """Two callbacks on two datasets, beside one that is not mined: from every checkpoint on, all batches are the same."""

    def train(folder, resume=None, **options):
        model = make_model()
        first, second = make_negatives(model), make_negatives(model, seed=5)
        losses = {name: Recorder(model) for name in ("x/a", "b", "plain")}
        batches = []
        for name, loss in losses.items():
            loss.batches = _Named(name, batches)
        datasets = {"x/a": first.as_dataset(), "b": second.as_dataset(), "plain": second.to_dataset("n-tuple")}
        trainer = SentenceTransformerTrainer(
            model=model,
            args=make_args(folder, max_steps=14, multi_dataset_batch_sampler=sampler, **options),
            train_dataset=DatasetDict(datasets),
            loss=losses,
            callbacks=[MiningCallback(first, mining_steps=3), MiningCallback({"b": second}, mining_steps=4)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return batches, first.negative_ids, second.negative_ids

    whole = train(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(f"checkpoint-{step}" for step in range(1, 15))
    assert {name for name, _ in whole[0]} == {"x/a", "b", "plain"}
    for step in range(1, 14):
        options = {"save_strategy": "no", "restore_callback_states_from_checkpoint": step % 2 == 0}
        resumed = train(tmp_path / "again", str(tmp_path / f"checkpoint-{step}"), **options)
        assert resumed[0] == whole[0][step:], f"resumed from step {step}"
        assert (resumed[1] == whole[1]).all() and (resumed[2] == whole[2]).all()


class _Named:
    """Passes what is appended on to a list, with the name of the dataset that it comes from."""

    def __init__(self, name: str, into: list) -> None:
        self.append = lambda batch: into.append((name, batch))


@pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")  # transformers 5.0, if steps are short
def test_with_the_best_model_loaded_at_the_end(tmp_path):
    """Evaluation, rotation of checkpoints and the return to the best model change nothing about the batches."""
    held_out = Dataset.from_dict({"anchor": TEXTS[:16], "positive": TEXTS[80:96]})

    def train(folder, steps, resume=None):
        model = make_model()
        hard_negatives, loss = make_negatives(model), Recorder(model)
        trainer = SentenceTransformerTrainer(
            model=model,
            args=make_args(
                folder,
                max_steps=12,
                eval_strategy="steps",
                eval_steps=2,
                save_steps=2,
                save_total_limit=2,
                load_best_model_at_end=True,
            ),
            train_dataset=hard_negatives.as_dataset(),
            eval_dataset=held_out,
            loss=loss,
            callbacks=[MiningCallback(hard_negatives, mining_steps=3), StopAt(steps)],
        )
        trainer.train(resume_from_checkpoint=resume)
        # Evaluation goes through the loss, too, with two columns.
        batches = [batch for batch in loss.batches if len(batch) > 2]
        return batches, hard_negatives, model, trainer.state

    whole, negatives, best, state = train(tmp_path / "whole", 12)
    train(tmp_path / "cut", 6)
    assert (tmp_path / "cut" / "checkpoint-6" / "hard_negatives").is_dir()
    batches, resumed, best_of_resumed, state_of_resumed = train(tmp_path / "cut", 12, resume=True)
    assert batches == whole[6:] and (resumed.negative_ids == negatives.negative_ids).all()
    assert state_of_resumed.best_metric == state.best_metric
    assert (best_of_resumed[0].embedding.weight == best[0].embedding.weight).all()


class StopAt(TrainerCallback):
    """Ends the training after this step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def test_changed_config_or_data_is_refused(tmp_path):
    """What differs from the checkpoint is named, and nothing is trained."""
    run(tmp_path, max_steps=4)
    with pytest.raises(ValueError, match=r"got another one: `num_negatives` was 2 and is 3; `seed` was 0 and is 7"):
        run(tmp_path, resume=True, config={"num_negatives": 3, "seed": 7})
    original = TEXTS[0]
    try:
        TEXTS[0] = "w1 w2 w3 w4"
        with pytest.raises(ValueError, match="Expected the rows and the corpus with which"):
            run(tmp_path, resume=True)
    finally:
        TEXTS[0] = original


def test_a_checkpoint_that_never_knew_the_callback(tmp_path, caplog):
    """Training goes on with the negatives at hand, and says so."""
    model = make_model()
    SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path, max_steps=4),
        train_dataset=make_negatives(model).as_dataset(),
        loss=Recorder(model),
    ).train()
    _, _, callback = run(tmp_path, resume=True, max_steps=8)
    assert "holds no negatives for this dataset" in caplog.text
    assert [report.step for report in callback.reports] == [6]


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a part"])
def test_a_checkpoint_whose_negatives_are_missing_is_refused(tmp_path, left):
    """The negatives that were refreshed before it are lost; going on with others would go unnoticed."""
    run(tmp_path, max_steps=4)
    (folder,) = (tmp_path / "checkpoint-4" / "hard_negatives").iterdir()
    if left == "nothing":
        shutil.rmtree(folder.parent)
    elif left == "an empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        (folder / "state.json").unlink()
    with pytest.raises(ValueError, match="got none: writing them was interrupted"):
        run(tmp_path, resume=True, max_steps=8)


def test_restoring_callback_states_from_the_checkpoint(tmp_path):
    """The trainer's own way of restoring callbacks leaves this one in place."""
    whole, _, _ = run(tmp_path, max_steps=8)
    batches, _, _ = run(
        tmp_path / "again",
        resume=str(tmp_path / "checkpoint-4"),
        max_steps=8,
        restore_callback_states_from_checkpoint=True,
    )
    assert batches == whole[4:]


@pytest.mark.parametrize("damage", ["ids", "state", "digest"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    """Nothing is trained on negatives that are not those that were written."""
    run(tmp_path, max_steps=4)
    folder = tmp_path / "checkpoint-4" / "hard_negatives"
    (state_folder,) = folder.iterdir()
    state = state_folder / "state.json"
    if damage == "ids":
        shutil.rmtree(state_folder / "previous")
    elif damage == "state":
        state.write_text("[" * 100_000, encoding="utf-8")
    else:
        content = json.loads(state.read_text(encoding="utf-8"))
        state.write_text(json.dumps(content | {"digest": "0" * 32}), encoding="utf-8")
    with pytest.raises(ValueError, match="got a damaged one"):
        run(tmp_path, resume=True)
