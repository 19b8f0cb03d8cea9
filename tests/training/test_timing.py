"""Steps, epochs, and what was fetched ahead, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from st_hardneg.training.timing import Timing, first_step_seen


def arguments(accumulation=1, workers=0, prefetch=None):
    return SimpleNamespace(
        gradient_accumulation_steps=accumulation, dataloader_num_workers=workers, dataloader_prefetch_factor=prefetch
    )


@pytest.mark.parametrize(
    ("step", "accumulation", "workers", "prefetch", "seen"),
    [(5, 1, 0, None, 7), (5, 1, 1, 2, 9), (5, 1, 2, 2, 11), (5, 1, 2, 4, 15), (3, 4, 0, None, 5), (3, 4, 2, 2, 6)],
)
def test_the_first_step_that_is_new(step, accumulation, workers, prefetch, seen):
    """As measured with the hosts: accelerate reads one batch ahead, each worker `prefetch_factor` of them."""
    assert first_step_seen(step, arguments(accumulation, workers, prefetch)) == seen


def test_at_the_boundary_of_an_epoch_nothing_is_fetched_ahead():
    """The next step has the new negatives."""
    timing = Timing.of(arguments(workers=2), 40, range(10), 3)
    assert (timing.first_step_seen(10), timing.first_step_seen(9)) == (11, 15)


@pytest.mark.parametrize(
    ("batches", "accumulation", "per_epoch"), [(10, 1, 10), (10, 4, 3), (1, 4, 1), (0, 1, 1), (12, 4, 3)]
)
def test_steps_of_an_epoch(batches, accumulation, per_epoch):
    """What is left over of the batches makes a step, too."""
    assert Timing.of(arguments(accumulation), 12, range(batches), None).steps_per_epoch == per_epoch


@pytest.mark.parametrize(("mining_steps", "every"), [(5, 5), (5.0, 5), (0.2, 3), (0.001, 1), (0.99, 14), (None, None)])
def test_how_often(mining_steps, every):
    """Below 1, it is a share of all 14 steps, rounded up."""
    timing = Timing.of(arguments(), 14, range(10), mining_steps)
    assert timing.refresh_every == every
    assert [step for step in range(1, 15) if timing.is_due(step)] == (list(range(every, 15, every)) if every else [])


def test_progress():
    """The share of the steps, and the epoch; the end belongs to the last epoch."""
    timing = Timing.of(arguments(), 12, range(4), 5)
    found = [(float(timing.progress(step)), timing.progress(step).epoch) for step in (0, 3, 4, 11, 12)]
    assert found == [(0, 0), (0.25, 0), (1 / 3, 1), (11 / 12, 2), (1, 2)]
    assert [round(12 * point) for point in timing.refresh_points()] == [0, 4, 5, 8, 10, 12]
    assert [timing.first_step_of_epoch(step) for step in (0, 3, 4, 7, 11)] == [0, 0, 4, 4, 8]


@pytest.mark.parametrize(
    ("mined_at", "step", "accumulation", "workers", "old"),
    [
        (None, 3, 1, 0, 0),
        (3, 3, 1, 0, 1),
        (3, 4, 1, 0, 0),
        (3, 5, 1, 0, 0),
        (3, 3, 2, 0, 1),
        (3, 3, 1, 2, 5),
        (3, 5, 1, 2, 3),
        (3, 8, 1, 2, 0),
        (4, 5, 1, 2, 0),  # a boundary: nothing was fetched ahead of it
    ],
)
def test_batches_of_a_resumed_run_that_were_fetched_before_the_refresh(mined_at, step, accumulation, workers, old):
    """So many batches are served from the negatives before the last refresh."""
    timing = Timing.of(arguments(accumulation, workers), 12, range(4 * accumulation), 3)
    assert timing.num_old_batches(mined_at, step) == old


@pytest.mark.parametrize(
    ("max_steps", "every", "warmup", "message"),
    [
        (10, None, 0, "`mining_strategy='epoch'` refreshes before every epoch but the first"),
        (6, None, 0, "this training has only one"),
        (11, None, 0, None),
        (30, None, 30, "`mining_warmup_steps=30` leaves no refresh in the 30 steps"),
        (30, None, 21, "`mining_warmup_steps=21` leaves no refresh"),
        (30, None, 20, None),
        (30, 20, 25, "`mining_warmup_steps=25` leaves no refresh"),
        (30, 20, 20, None),
        (30, 30, 0, "`mining_steps=30` is not below the 30 steps"),
        (30, 29, 0, None),
        (30, 5, 40, "`mining_warmup_steps=40` leaves no refresh in the 30 steps"),
    ],
)
def test_a_training_in_which_nothing_will_be_refreshed_is_warned_of(caplog, max_steps, every, warmup, message):
    """One epoch, fewer steps than one refresh takes, or a warm-up that outlasts the training."""
    timing = Timing.of(arguments(), max_steps, range(10), every)
    timing.say_when(every or 500, warmup)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (message is not None)
    assert all(message in warning and "refreshed" in warning for warning in warnings)
