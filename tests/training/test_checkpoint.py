"""A resumed run goes on with the negatives of the interrupted one: judged by what reaches the loss."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer
from transformers import TrainerCallback

from st_hardneg import MiningCallback
from st_hardneg.samplers import NoDuplicatePairsBatchSampler, TopicAwareBatchSampler
from st_hardneg.training.curriculum import Stage
from st_hardneg.training.schedules import Linear, PerEpoch
from tests.training.runs import HOST_WARNINGS, TEXTS, Recorder, ids_of, make_args, make_model, make_negatives, run

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


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
        assert ids_of(resumed) == ids_of(negatives)
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
            assert ids_of(resumed) == ids_of(negatives)


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
        assert ids_of(resumed) == ids_of(negatives)
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
        return batches, ids_of(first), ids_of(second)

    whole = train(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(f"checkpoint-{step}" for step in range(1, 15))
    assert {name for name, _ in whole[0]} == {"x/a", "b", "plain"}
    for step in range(1, 14):
        options = {"save_strategy": "no", "restore_callback_states_from_checkpoint": step % 2 == 0}
        resumed = train(tmp_path / "again", str(tmp_path / f"checkpoint-{step}"), **options)
        assert resumed[0] == whole[0][step:], f"resumed from step {step}"
        assert resumed[1:] == whole[1:]


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
    assert batches == whole[6:] and ids_of(resumed) == ids_of(negatives)
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


def test_another_speed_is_no_other_recipe(tmp_path):
    """How many texts are encoded at once is not part of what a checkpoint is compared with."""
    whole, _, _ = run(tmp_path, max_steps=8)
    batches, _, _ = run(
        tmp_path / "again", str(tmp_path / "checkpoint-4"), max_steps=8, batch_size=7, save_strategy="no"
    )
    assert batches == whole[4:]


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


@pytest.mark.parametrize("damage", ["a file is gone", "no JSON", "a byte"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    """Nothing is trained on negatives that are not those that were written."""
    run(tmp_path, max_steps=4)
    folder = tmp_path / "checkpoint-4" / "hard_negatives"
    (state_folder,) = folder.iterdir()
    state = state_folder / "state.json"
    table = state_folder / "negatives.arrow"
    if damage == "a file is gone":
        table.unlink()
    elif damage == "no JSON":
        state.write_text("[" * 100_000, encoding="utf-8")
    else:
        content = bytearray(table.read_bytes())
        content[len(content) // 2] ^= 1
        table.write_bytes(content)
    with pytest.raises(ValueError, match="got a damaged one"):
        run(tmp_path, resume=True)


# --- under a schedule -------------------------------------------------------------------------------------------------


SMALL_EPOCHS = {"per_device_train_batch_size": 20, "max_steps": 12}  # 4 steps an epoch


RESUMED = [
    Stage("easy", 1, range_min=6, range_max=18, num_shown=1),
    Stage("medium", 1, range_min=3, range_max=12, num_shown=2),
    Stage("hard", 1, range_max=9),
]


def resumable(folder, resume=None, schedule=RESUMED, mining_steps=3, **options):
    """Train by real search, from the start or a checkpoint: what reaches the loss, negatives, callback."""
    callback = MiningCallback(mining_steps=mining_steps, schedule=schedule)
    return run(folder, resume, callback=callback, config={"num_negatives": 3}, **{**SMALL_EPOCHS, **options})


@pytest.mark.parametrize(
    ("schedule", "mining_steps", "options", "cuts"),
    [
        (RESUMED, 3, {}, (2, 4, 9)),
        # A refresh in the last step of an epoch is seen by the first batch of the next one.
        ({"range_min": Linear(6, 0), "num_shown": PerEpoch(1, add=1)}, 4, {}, (4, 5)),
        (RESUMED, 3, {"batch_sampler": TopicAwareBatchSampler, "num_topics": 4}, (3, 8)),
        pytest.param(RESUMED, 3, {}, range(1, 12), marks=pytest.mark.slow),
        pytest.param(
            RESUMED,
            3,
            {"batch_sampler": TopicAwareBatchSampler, "num_topics": 4},
            range(1, 12),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_resumed_run_is_the_same_under_a_schedule(tmp_path, schedule, mining_steps, options, cuts):
    """From within epochs, at their boundaries and at refreshes: rows, negatives and their number are the same."""
    options = {"schedule": schedule, "mining_steps": mining_steps, **options}
    whole, negatives, callback = resumable(tmp_path / "whole", **options)
    assert [len(batch) - 2 for batch in whole] == [1] * 4 + [2] * 4 + [3] * 4
    for step in cuts:
        cut = str(tmp_path / "whole" / f"checkpoint-{step}")
        batches, resumed, later = resumable(tmp_path / "again", cut, save_strategy="no", **options)
        assert batches == whole[step:], f"resumed from step {step}"
        assert ids_of(resumed) == ids_of(negatives)
        for name in ("step", "stage", "stage_number", "in_force", "config"):
            assert [getattr(report, name) for report in later.reports] == [
                getattr(report, name) for report in callback.reports
            ]
        assert resumed.live.num_shown == 3


def test_workers_that_resume_serve_nothing_from_before_a_boundary(tmp_path):
    """At an epoch boundary nothing was fetched ahead, so with workers, too, the resumed batches are the same."""
    options = {"schedule": {"range_min": Linear(6, 0)}, "mining_steps": 4, "dataloader_num_workers": 2, "max_steps": 8}
    whole, _, _ = resumable(tmp_path / "whole", **options)
    for step in (4, 5):
        cut = str(tmp_path / "whole" / f"checkpoint-{step}")
        batches, _, _ = resumable(tmp_path / "again", cut, save_strategy="no", **options)
        assert batches == whole[step:], f"resumed from step {step}"


def test_another_schedule_is_refused(tmp_path):
    """With both named."""
    options = {"num_topics": 4, "batch_sampler": TopicAwareBatchSampler, "max_steps": 5}
    resumable(tmp_path, **options)
    changed = [*RESUMED[:2], Stage("hard", 1, range_max=10)]
    with pytest.raises(ValueError, match=r"Expected the schedule with which .*'range_max', 9.*got .*'range_max', 10"):
        resumable(tmp_path, True, schedule=changed, **options)
    with pytest.raises(ValueError, match=r"Expected the schedule with which .*, got None\."):
        resumable(tmp_path, True, schedule=None, **options)


# --- a full disk ------------------------------------------------------------------------------------------------------


STEPS, EVERY, FAULT = 9, 3, 6


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The batches and the negatives of a run to which nothing happens."""
    batches, hard_negatives, _ = run(tmp_path_factory.mktemp("whole"), max_steps=STEPS, save_strategy="no")
    return batches, ids_of(hard_negatives)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_after_a_part(folder, name, _):
    """As ``write_table`` on a disk that is full after a part of the file."""
    Path(folder, f"{name}.arrow").write_bytes(b"ARROW1")
    full_disk()


def full_after_half(content, file, **_):
    """As ``json.dump`` on a disk that is full after half of the file."""
    text = json.dumps(content)
    file.write(text[: len(text) // 2])
    file.flush()
    full_disk()


WRITE_POINTS = {
    "the folder": ("os.makedirs", full_disk),
    "the partial folder": ("tempfile.mkdtemp", full_disk),
    "the arrow files": ("st_hardneg.files.minings.write_table", full_after_a_part),
    "state.json": ("json.dump", full_after_half),
    "the new name": ("os.replace", full_disk),
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
    assert batches == uninterrupted[0][FAULT - 1 :] and ids_of(resumed) == uninterrupted[1]


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
