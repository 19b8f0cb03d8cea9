"""Schedules and curricula under the real trainer, judged by the negatives that reach the loss."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.strategies import Easy
from st_hardneg.training.curriculum import Stage
from st_hardneg.training.schedules import Cosine, Linear, PerEpoch, Step
from tests.training import runs
from tests.training.ranked import PER_EPOCH, Ranked, logged, make_args, make_model, make_negatives, train
from tests.training.runs import HOST_WARNINGS, TEXTS, ids_of

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


@pytest.fixture
def model():
    return make_model()


STAGES = [
    Stage("easy", 2, range_min=30, num_shown=1),
    Stage("medium", 3, range_min=10, num_shown=2),
    Stage("hard", 2, range_min=1, sampling_strategy="top"),
]


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_a_curriculum_of_three_stages(model, tmp_path, strategy):
    """Log, reports and the negatives in the loss show each stage at exactly its steps: 2, 3 and 2 epochs of 4 steps."""
    hard_negatives = make_negatives(3)
    callback = MiningCallback(hard_negatives, mining_steps=3, mining_strategy=strategy, schedule=STAGES)
    args = make_args(tmp_path, max_steps=-1, num_train_epochs=7)
    batches, trainer = train(model, hard_negatives.as_dataset(), args, [callback])

    # A mining at the beginning, as the dataset was mined otherwise; one at the beginning of each stage in any case.
    steps = [0, 4, 8, 12, 16, 20, 24] if strategy == "epoch" else [0, 3, 6, 8, 9, 12, 15, 18, 20, 21, 24, 27]
    in_stage = {1: ("easy", 30, 1), 2: ("medium", 10, 2), 3: ("hard", 1, None)}
    number_at = {step: 1 if step < 8 else 2 if step < 20 else 3 for step in range(28)}
    assert logged(trainer, "stage", "range_min") == [
        (step, number_at[step], in_stage[number_at[step]][1]) for step in steps
    ]
    widths = [entry for entry in logged(trainer, "num_shown") if entry[0] in (0, 8, 20)]
    assert (0, 1) in widths and (8, 2) in widths and (20, 3) in widths
    assert [report.step for report in callback.reports] == steps
    for report in callback.reports:
        name, range_min, shown = in_stage[number_at[report.step]]
        assert (report.stage, report.stage_number) == (name, number_at[report.step])
        assert report.in_force["range_min"] == report.config["range_min"] == range_min
        assert report.in_force.get("num_shown") == shown
        assert report.config["num_negatives"] == report.num_negatives == 3
        assert f"stage '{name}'" in str(report) and f"range_min={range_min}" in str(report)

    ranks = {1: [30], 2: [10, 11], 3: [1, 2, 3]}
    assert len(batches) == 28
    for step, batch in enumerate(batches):
        assert batch.ranks == [ranks[number_at[step]]] * 8, f"step {step + 1}"
    # At an epoch boundary nothing was fetched ahead, and the log says so.
    assert all(seen == step + 1 for step, seen in logged(trainer, "seen_from_step") if step % PER_EPOCH == 0)


def test_what_is_in_force_at_each_refresh(model, tmp_path):
    """Config, report, log and the negatives in the loss have the schedules' values at step / max_steps."""
    hard_negatives = make_negatives()
    schedule = {
        "range_min": Linear(30, 0),
        "max_score": Cosine(3.0, 2.0),
        "min_score": PerEpoch(-2, add=-1),
    }
    callback = MiningCallback(hard_negatives, mining_steps=3, schedule=schedule)
    batches, trainer = train(model, hard_negatives.as_dataset(), make_args(tmp_path), [callback])
    skipped = {0: 30, 3: 23, 6: 15, 9: 8}  # 30 (1 - s / 12), half up
    highest = {0: 3.0, 3: 2.8535533906, 6: 2.5, 9: 2.1464466094}
    lowest = {0: -2, 3: -2, 6: -3, 9: -4}
    assert [report.step for report in callback.reports] == list(skipped)
    for report in callback.reports:
        step = report.step
        expected = (skipped[step], pytest.approx(highest[step]), lowest[step])
        for values in (report.in_force, report.config):
            assert (values["range_min"], values["max_score"], values["min_score"]) == expected
        assert (report.stage, report.stage_number) == (None, None)
    assert logged(trainer, "range_min", "max_score", "min_score") == [
        (step, skipped[step], round(highest[step], 4), lowest[step]) for step in skipped
    ]
    # One batch is fetched ahead, except over an epoch boundary.
    seen = [30] * 4 + [23] * 3 + [15] * 3 + [8] * 2
    assert [batch.ranks for batch in batches] == [[[first, first + 1]] * 8 for first in seen]
    assert hard_negatives.config.range_min == 0


@pytest.mark.parametrize(
    ("range_min", "warmup", "steps"),
    [(0, 0, [3, 6]), (5, 0, [0, 3, 6]), (5, 1, [3, 6]), (5, 4, [6])],
)
def test_mining_before_the_first_step(model, tmp_path, range_min, warmup, steps):
    """Only if the dataset was mined otherwise than the schedule wants, and never before the warm-up is over."""
    hard_negatives = make_negatives()
    callback = MiningCallback(
        hard_negatives, mining_steps=3, mining_warmup_steps=warmup, schedule={"range_min": range_min}
    )
    batches, _ = train(model, hard_negatives.as_dataset(), make_args(tmp_path, max_steps=8), [callback])
    assert [report.step for report in callback.reports] == steps
    first = 5 if steps[0] == 0 else 0
    assert batches[0].ranks == [[first, first + 1]] * 8


def test_a_dataset_that_was_saved_is_not_mined_again(model, tmp_path):
    """What was mined as the schedule wants, and then written and loaded, is not mined anew before the first step."""
    make_negatives().save_to_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved", searcher=Ranked())
    callback = MiningCallback(loaded, mining_steps=3, schedule={"range_min": Step({0: 0, 0.5: 4})})
    train(model, loaded.as_dataset(), make_args(tmp_path, max_steps=4), [callback])
    assert [report.step for report in callback.reports] == [3]


def test_a_stage_waits_for_the_warm_up(model, tmp_path):
    """No stage begins with a mining before the warm-up is over."""
    hard_negatives = make_negatives()
    stages = [Stage("a", 1, range_min=1), Stage("b", 1, range_min=2), Stage("c", 1, range_min=3)]
    callback = MiningCallback(hard_negatives, mining_steps=100, mining_warmup_steps=5, schedule=stages)
    train(model, hard_negatives.as_dataset(), make_args(tmp_path), [callback])
    assert [(report.step, report.stage) for report in callback.reports] == [(8, "c")]


def broken(progress):
    """A user's function with a mistake."""
    return 0.0 / (1 - progress)


INVALID = {
    "window": ({"range_min": Linear(0, 11)}, r"at 9\d% .*window from `range_min=11`"),
    "window-stage": ([Stage("a", 1), Stage("b", 1, range_min=11)], r"epoch 1\): .*window from `range_min=11`"),
    "margin": ({"relative_margin": Linear(0.1, -0.1)}, "Expected `relative_margin` to stay at 0 or above, got -0.00"),
    "margin-stage": ([Stage("a", 1, absolute_margin=-0.1)], r"epoch 0\): .*`absolute_margin` to stay at 0 or above"),
    "scores": ({"min_score": Linear(0.0, 0.9), "max_score": Linear(1.0, 0.5)}, "Expected `min_score` to be at most"),
    "rate": ({"random_rate": Linear(0.5, 1.5)}, "Expected `random_rate` to be at most 1, got 1.0"),
    "none": ({"num_shown": 0}, r"at 0% of it \(epoch 0\): Expected at least 1 negative to be shown, got 0"),
    "none-later": ({"num_shown": Linear(2, 0)}, "Expected at least 1 negative to be shown, got 0"),
    "none-stage": ([Stage("a", 1, num_shown=0)], "Expected at least 1 negative to be shown, got 0"),
    "function": ({"random_rate": broken}, r"at 100% .*the schedule of `random_rate` .*ZeroDivisionError"),
    "type-stage": ([Stage("a", 1, absolute_margin="wide")], "Expected `absolute_margin` to be a finite number"),
    "source-stage": ([Stage("a", 1), Stage("b", 1, sources={"far": 2})], r"epoch 1\): .*got \['far'\]"),
    "quota-stage": ([Stage("a", 1, sources={"random": 1})], "Expected the quotas in `sources` to add up"),
    "spaces-stage": ([Stage("a", 1, search_spaces=("corpus", "anchors"))], "to search the anchors, too"),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_schedule_that_becomes_invalid_is_refused_before_anything_is_encoded(model, tmp_path, monkeypatch, name):
    """When the callback is made, if it has the dataset; else when the training begins. The point is named."""
    schedule, message = INVALID[name]
    hard_negatives = make_negatives(range_max=12)
    before = ids_of(hard_negatives)

    def encode(*_, **__):
        raise AssertionError("something was encoded")

    for method in ("encode", "encode_query", "encode_document", "_inference", "forward"):
        monkeypatch.setattr(model, method, encode)
    whole = "Expected a schedule that is valid throughout the training, got an invalid one .*" + message
    for given in (hard_negatives, {"any": hard_negatives}):
        with pytest.raises(ValueError, match=whole):
            MiningCallback(given, schedule=schedule)
    callback = MiningCallback(mining_steps=1, schedule=schedule)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path, max_steps=100),
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[callback],
    )
    with pytest.raises(ValueError, match=whole):
        trainer.train()
    assert ids_of(hard_negatives) == before and hard_negatives.live.num_shown == 2


def test_what_becomes_invalid_after_the_last_epoch_only_is_fine(model, tmp_path):
    """Three epochs of margins 0.2, 0.1 and 0.0: that a fourth one would be negative does not matter."""
    hard_negatives = make_negatives()
    callback = MiningCallback(
        hard_negatives, mining_strategy="epoch", schedule={"absolute_margin": PerEpoch(0.25, add=-0.125)}
    )
    train(model, hard_negatives.as_dataset(), make_args(tmp_path), [callback])
    assert [report.in_force["absolute_margin"] for report in callback.reports] == [0.25, 0.125, 0.0]


def test_a_per_epoch_schedule_is_checked_over_the_training_s_epochs(model, tmp_path):
    """Of how many epochs there are is known when the training begins: the epoch that is invalid is named."""
    hard_negatives = make_negatives(range_max=12)
    callback = MiningCallback(hard_negatives, mining_strategy="epoch", schedule={"range_min": PerEpoch(0, add=6)})
    with pytest.raises(ValueError, match=r"at 67% of it \(epoch 2\): .*`range_min=12`"):
        train(model, hard_negatives.as_dataset(), make_args(tmp_path), [callback])


def test_what_is_kept_never_exceeds_the_quota_of_a_new_stage(tmp_path):
    """A stage that takes nothing from the search any more keeps nothing of it, either."""
    model = runs.make_model()
    pairs = Dataset.from_dict({"anchor": TEXTS[:40], "positive": TEXTS[40:80]})
    config = MiningConfig(num_negatives=2, sources={"dense": 2, "random": 0}, replacement=Easy(score=0.0))
    hard_negatives = HardNegativeDataset(pairs, TEXTS[80:200], config)
    hard_negatives.mine(model, show_progress_bar=False)
    stages = [
        Stage("near", 1),
        Stage("both", 1, sources={"dense": 1, "random": 1}),
        Stage("far", 1, sources={"random": 2}),
    ]
    callback = MiningCallback(hard_negatives, mining_strategy="epoch", schedule=stages)
    runs.train(tmp_path, [callback], hard_negatives.as_dataset(), model, max_steps=-1, num_train_epochs=3)
    assert [report.stage for report in callback.reports] == ["both", "far"]
    assert [dict(report.sources) for report in callback.reports] == [{"dense": 40, "random": 40}, {"random": 80}]


def test_what_cannot_come_about_is_said(tmp_path, caplog):
    """Stages after the end, stages within the warm-up, and slots that keep what a filter would remove."""
    model = runs.make_model()
    hard_negatives = runs.make_negatives(model)
    stages = [Stage("easy", 1), Stage("hard", 2, relative_margin=0.0), Stage("never", 1)]
    callback = MiningCallback(hard_negatives, schedule=stages, mining_warmup_steps=3)
    with caplog.at_level(logging.WARNING, "st_hardneg"):
        runs.train(
            tmp_path, [callback], hard_negatives.as_dataset(), model, max_steps=20, per_device_train_batch_size=8
        )
    assert "before the stages ['hard', 'never'] of the curriculum begin" not in caplog.text
    assert "The training ends after epoch 2, before the stages ['never'] of the curriculum begin" in caplog.text
    assert "The stage that begins at step 0 is not mined for, as `mining_warmup_steps=3`" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "st_hardneg"):
        lowest = float(hard_negatives.live.mining.negatives.similarities.quantile(0.3))
        schedule = {"max_score": Linear(1.0, lowest - (1.0 - lowest) / 3)}  # `lowest` at step 3 of 4
        runs.train(
            tmp_path,
            [MiningCallback(hard_negatives, 3, schedule=schedule)],
            hard_negatives.as_dataset(),
            model,
            max_steps=4,
        )
    assert "slots hold a text that a filter removes" in caplog.text and "`max_score`" in caplog.text
