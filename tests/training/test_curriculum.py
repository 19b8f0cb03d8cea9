"""Schedules and curricula: by hand, and under the real trainer, judged by the negatives that reach the loss."""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
from dataclasses import dataclass, fields

import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.corpus.texts import dataset_of
from st_hardneg.losses import (
    SemiHardCachedMultipleNegativesRankingLoss,
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
)
from st_hardneg.samplers import TopicAwareBatchSampler
from st_hardneg.training import checkpoint
from st_hardneg.training.schedules import (
    Constant,
    Cosine,
    Curriculum,
    Exponential,
    Linear,
    PerEpoch,
    Progress,
    Stage,
    Step,
    checked_schedules,
    describe,
    in_force,
)
from tests import test_resume
from tests.conftest import WORDS, word_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.*:FutureWarning"),
]

NUM_ROWS = 32
PER_EPOCH = 4  # steps, with batches of 8
NEGATIVES = [f"n{number}" for number in range(64)]


class Ranked:
    """A searcher by which the text ``n<r>`` has rank ``r`` for every query, so that a rank can be read off a text."""

    def index(self, corpus_embeddings, similarity_fn_name):
        pass

    def search(self, query_embeddings, k):
        ids = torch.full((len(query_embeddings), k), -1)
        scores = torch.full((len(query_embeddings), k), -torch.inf)
        count = min(k, len(NEGATIVES))
        ids[:, :count] = torch.arange(count)
        scores[:, :count] = torch.linspace(0.9, 0.1, count)
        return ids, scores


@dataclass
class Batch:
    """What reached the loss: anchors by token, ranks of the negatives by row, and the label."""

    anchors: list[int]
    ranks: list[list[int]]
    label: list[list[int]] | None

    @property
    def width(self) -> int:
        (width,) = {len(ranks) for ranks in self.ranks}
        return width


def noted(loss, model) -> list[Batch]:
    """Return a list to which every micro-batch that reaches a loss is added."""
    batches: list[Batch] = []
    tokenizer = model.tokenizer
    first = (getattr(tokenizer, "token_to_id", None) or tokenizer.convert_tokens_to_ids)("n0")

    def note(_, args):
        features, labels = args
        columns = [feature["input_ids"].flatten().tolist() for feature in features]
        ranks = [[token - first for token in row] for row in zip(*columns[2:], strict=True)]
        batches.append(Batch(columns[0], ranks, None if labels is None else labels.tolist()))

    loss.register_forward_pre_hook(note)
    return batches


def make_model():
    words = [*WORDS, *NEGATIVES]
    return word_model(words, torch.randn(len(words), 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def model():
    return make_model()


def make_negatives(num_negatives: int = 2, num_rows: int = NUM_ROWS, **config) -> HardNegativeDataset:
    pairs = Dataset.from_dict({"anchor": WORDS[:num_rows], "positive": WORDS[100 : 100 + num_rows]})
    config = MiningConfig(num_negatives=num_negatives, **config)
    hard_negatives = HardNegativeDataset(pairs, NEGATIVES, config, searcher=Ranked())
    hard_negatives.mine(make_model(), show_progress_bar=False)
    return hard_negatives


def make_args(tmp_path, **options) -> SentenceTransformerTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return SentenceTransformerTrainingArguments(output_dir=str(tmp_path), **{**defaults, **options})


def train(model, dataset, args, callbacks, loss=None):
    """Train, and return what reached the loss, and the trainer."""
    loss = MultipleNegativesRankingLoss(model) if loss is None else loss
    batches = noted(loss, model)
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=dataset, loss=loss, callbacks=callbacks)
    trainer.train()
    return batches, trainer


def logged(trainer, *names: str) -> list[tuple]:
    """Return the entries of the trainer's log that have the first of these figures: the step, and all of them."""
    names = tuple(f"mining/{name}" for name in names)
    history = trainer.state.log_history
    return [(entry["step"], *(entry.get(name) for name in names)) for entry in history if names[0] in entry]


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.3), (0.3, 0.3, 0.3)),
        (Linear(0.8, 0.2), (0.8, 0.5, 0.2)),
        (Linear(10, 30), (10, 20, 30)),
        (Cosine(0.8, 0.2), (0.8, 0.5, 0.2)),
        (Exponential(1.0, 0.01), (1.0, 0.1, 0.01)),
        (Exponential(-1.0, -4.0), (-1.0, -2.0, -4.0)),
        (Step({0.0: 3, 0.5: 2, 1.0: 1}), (3, 2, 1)),
        (Step({0: 3, 0.51: 2}), (3, 3, 2)),
        (PerEpoch(3, times=1.2), (3, 3, 3)),
        (lambda progress: 1 - progress, (1, 0.5, 0)),
    ],
)
def test_at_the_beginning_half_way_and_at_the_end(schedule, expected):
    """Each schedule at t = 0, T/2 and T, by hand."""
    assert [schedule(Progress(t)) for t in (0.0, 0.5, 1.0)] == pytest.approx(expected, abs=1e-12)


def test_cosine_is_slow_at_both_ends():
    """At a quarter, half a cosine wave has gone (1 - cos 45°) / 2 = 14.6 % of the way, and is symmetric."""
    quarter, three_quarters = Cosine(0, 1)(0.25), Cosine(0, 1)(0.75)
    assert quarter == pytest.approx(0.1464466094)
    assert quarter + three_quarters == pytest.approx(1.0)


def test_the_random_rate_of_the_dual_space_search():
    """The series of its reference use: 0.8, falling by 0.02 an epoch down to 0."""
    schedule = PerEpoch(0.8, add=-0.02, limit=0.0)
    rates = {0: 0.8, 1: 0.78, 5: 0.7, 20: 0.4, 39: 0.02, 40: 0.0, 41: 0.0}
    for epoch, rate in rates.items():
        progress = Progress(epoch / 50, epoch)
        assert schedule(progress) == pytest.approx(rate, abs=1e-12)
        assert in_force({"random_rate": schedule}, MiningConfig(), progress).config.random_rate == pytest.approx(rate)


def test_growing_by_a_fifth_an_epoch():
    """3, 3.6, 4.32, ... negatives, rounded, up to the limit and up to the table's width."""
    schedule = {"num_negatives": PerEpoch(3, times=1.2, limit=8)}
    shown = [in_force(schedule, MiningConfig(num_negatives=10), Progress(0, epoch)).num_active for epoch in range(8)]
    assert shown == [3, 4, 4, 5, 6, 7, 8, 8]
    narrow = [in_force(schedule, MiningConfig(num_negatives=5), Progress(0, epoch)).num_active for epoch in range(8)]
    assert narrow == [3, 4, 4, 5, 5, 5, 5, 5]


def test_whole_numbers_are_rounded_half_up():
    """A field of whole numbers gets the nearest one; .5 goes up; a field of any number stays as it is."""
    config = MiningConfig(num_negatives=1, range_max=100)
    for value, rounded in ((2.4, 2), (2.5, 3), (3.5, 4), (0.49, 0)):
        found = in_force({"range_min": value, "semi_hard_margin": value}, config, Progress(0)).config
        assert (found.range_min, found.semi_hard_margin) == (rounded, value)
        assert isinstance(found.range_min, int)


NUMERIC = {part.name: part.type for part in fields(MiningConfig) if part.type.startswith(("int", "float"))}


def test_there_are_many_numeric_fields():
    """The loop below means something."""
    assert len(NUMERIC) >= 20 and {"random_rate", "relative_margin", "range_max", "num_topics", "seed"} <= set(NUMERIC)


@pytest.mark.parametrize("name", NUMERIC)
def test_every_numeric_field_can_be_scheduled(name):
    """Each of them takes the schedule's value, in a config of the dataset that says something else or nothing."""
    start, end = {"num_negatives": (1, 2), "num_topics": (2, 4), "distance_dim": (2, 8), "range_max": (20, 40)}.get(
        name, (0.25, 0.75) if "float" in NUMERIC[name] else (1, 5)
    )
    schedule = checked_schedules({name: Linear(start, end)})
    for t in (0.0, 0.5, 1.0):
        found = in_force(schedule, MiningConfig(num_negatives=2), Progress(t))
        expected = Linear(start, end)(t)
        expected = int(expected + 0.5) if "int" in NUMERIC[name] else expected
        assert found.values == {name: expected}
        assert (found.num_active if name == "num_negatives" else getattr(found.config, name)) == expected
    assert in_force(schedule, MiningConfig(num_negatives=2), Progress(1.0)).config.num_negatives == 2


def test_a_function_of_the_user_s_own():
    """It is given the progress, with the epoch; what else it returns than a number is refused by name."""
    seen = []

    def rate(progress):
        seen.append((float(progress), progress.epoch))
        return progress**2

    assert in_force({"random_rate": rate}, MiningConfig(), Progress(0.5, 3)).config.random_rate == 0.25
    assert seen == [(0.5, 3)]
    for wrong in ("0.5", None, float("nan"), True):
        with pytest.raises(ValueError, match="schedule of `random_rate` to give finite numbers"):
            in_force({"random_rate": lambda _, value=wrong: value}, MiningConfig(), Progress(0))


def test_which_stage_an_epoch_is_in():
    """Stages follow each other, and the last one goes on."""
    curriculum = Curriculum([Stage("easy", 2), Stage("medium", 3), Stage("hard", 2)])
    found = [curriculum.stage_at(epoch) for epoch in range(9)]
    assert [number for number, _ in found] == [1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [stage.name for _, stage in found] == ["easy"] * 2 + ["medium"] * 3 + ["hard"] * 4


def test_what_a_checkpoint_keeps_of_a_schedule():
    """Plain JSON, the same for the same schedule in another process, and different for different ones."""

    class Own:
        def __call__(self, progress):
            return 0.5

    def half(progress, scale=1):
        return 0.5 * scale

    def kept(schedule):
        found = describe(checked_schedules(schedule))
        assert json.loads(json.dumps(found)) == found
        assert " at 0x" not in json.dumps(found), "an address in memory differs from process to process"
        return found

    different = [
        {"random_rate": Linear(0.8, 0.0)},
        {"random_rate": Linear(0.8, 0.1)},
        {"random_rate": Cosine(0.8, 0.0)},
        {"random_rate": 0.8},
        {"easy_ratio": 0.8},
        {"random_rate": half},
        {"random_rate": Own()},
        {"random_rate": functools.partial(half, scale=2)},
        [Stage("easy", 2, range_min=3)],
        [Stage("easy", 3, range_min=3)],
        [Stage("easy", 2, range_min=4)],
        [Stage("hard", 2, range_min=3)],
        [Stage("easy", 2, range_min=3), Stage("hard", 2)],
        None,
    ]
    texts = [json.dumps(kept(schedule), sort_keys=True) for schedule in different]
    assert len(set(texts)) == len(texts)
    assert kept({"random_rate": Own()}) == kept({"random_rate": Own()})
    two = {"random_rate": 0.5, "range_min": Step({0: 3})}
    assert kept(two) == kept(dict(reversed(two.items())))


# --- in a training ----------------------------------------------------------------------------------------------------

STAGES = [
    Stage("easy", 2, range_min=30, num_negatives=1),
    Stage("medium", 3, range_min=10, num_negatives=2),
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
    widths = [entry for entry in logged(trainer, "num_negatives") if entry[0] in (0, 8, 20)]
    assert (0, 1) in widths and (8, 2) in widths and (20, 3) in widths
    assert [report.step for report in callback.reports] == steps
    for report in callback.reports:
        name, range_min, shown = in_stage[number_at[report.step]]
        assert (report.stage, report.stage_number) == (name, number_at[report.step])
        assert report.in_force["range_min"] == report.config["range_min"] == range_min
        assert report.in_force.get("num_negatives") == shown
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
        "softmax_temperature": Cosine(1.0, 0.5),
        "semi_hard_margin": PerEpoch(0.1, add=0.1),
    }
    callback = MiningCallback(hard_negatives, mining_steps=3, schedule=schedule)
    batches, trainer = train(model, hard_negatives.as_dataset(), make_args(tmp_path), [callback])
    skipped = {0: 30, 3: 23, 6: 15, 9: 8}  # 30 (1 - s / 12), half up
    temperatures = {0: 1.0, 3: 0.9267766953, 6: 0.75, 9: 0.5732233047}
    margins = {0: 0.1, 3: 0.1, 6: 0.2, 9: 0.3}
    assert [report.step for report in callback.reports] == list(skipped)
    for report in callback.reports:
        step = report.step
        expected = (skipped[step], pytest.approx(temperatures[step]), pytest.approx(margins[step]))
        for values in (report.in_force, report.config):
            assert (values["range_min"], values["softmax_temperature"], values["semi_hard_margin"]) == expected
        assert report.semi_hard_margin == expected[2]
        assert (report.stage, report.stage_number) == (None, None)
    assert logged(trainer, "range_min", "softmax_temperature", "semi_hard_margin") == [
        (step, skipped[step], round(temperatures[step], 4), round(margins[step], 4)) for step in skipped
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


# --- the number of active negatives -----------------------------------------------------------------------------------

WIDER = {"num_negatives": PerEpoch(1, add=1)}  # 1, 2, 3 and no more in a table of three
WIDER_STAGES = [Stage("one", 1, num_negatives=1), Stage("two", 1, num_negatives=2), Stage("all", 1)]


def check_widths(batches, widths, per_epoch, *, with_ids):
    """Each epoch has its number of columns, whole batches of it, and a label of the same negatives."""
    assert [batch.width for batch in batches] == [width for width in widths for _ in range(per_epoch)]
    for batch in batches:
        if with_ids:
            # Row, query, positive and weight; then ids of negatives, which are ranks here.
            assert [ids[4:] for ids in batch.label] == batch.ranks
        else:
            assert batch.label is None


@pytest.mark.parametrize(
    ("schedule", "with_ids", "options"),
    [
        (WIDER, True, {}),
        (WIDER_STAGES, False, {}),
        (WIDER, True, {"gradient_accumulation_steps": 2}),
        (WIDER, True, {"dataloader_num_workers": 2}),
        (WIDER_STAGES, True, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}),
        (WIDER, False, {"batch_sampler": TopicAwareBatchSampler}),
    ],
)
def test_the_number_of_negatives_changes_between_epochs_only(model, tmp_path, schedule, with_ids, options):
    """1, 2 and 3 negatives in the first, second and third epoch, whatever fetches them; refreshes come in between."""
    hard_negatives = make_negatives(3, num_topics=3)
    args = make_args(tmp_path, max_steps=-1, num_train_epochs=4, **options)
    view = hard_negatives.as_dataset(with_ids=with_ids)
    callback = MiningCallback(hard_negatives, mining_steps=3, schedule=schedule)
    batches, trainer = train(model, view, args, [callback])
    check_widths(batches, [1, 2, 3, 3], PER_EPOCH, with_ids=with_ids)
    assert all(batch.ranks == [list(range(batch.width))] * 8 for batch in batches)
    # What the log and the reports call in force is what was shown.
    per_epoch = trainer.state.max_steps // 4
    shown = [1, 2, 3, 3]
    for step, number in logged(trainer, "num_negatives"):
        assert number == shown[step // per_epoch]
    assert {step for step, _ in logged(trainer, "num_negatives")} >= {0, per_epoch, 2 * per_epoch}
    # After the training, all that were mined are there again.
    assert len(view[0]) == 2 + 3 + with_ids and hard_negatives.num_active == 3


@pytest.mark.slow  # a worker that is spawned imports torch
@pytest.mark.parametrize("persistent", [False, True])
def test_the_number_of_negatives_changes_in_spawned_workers(model, tmp_path, persistent):
    """The same where workers are started from nothing."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        hard_negatives = make_negatives(3)
        args = make_args(
            tmp_path,
            max_steps=-1,
            num_train_epochs=4,
            dataloader_num_workers=2,
            dataloader_persistent_workers=persistent,
        )
        callback = MiningCallback(hard_negatives, mining_steps=3, schedule=WIDER)
        batches, _ = train(model, hard_negatives.as_dataset(with_ids=True), args, [callback])
    finally:
        multiprocessing.set_start_method(before, force=True)
    check_widths(batches, [1, 2, 3, 3], PER_EPOCH, with_ids=True)


def test_a_number_that_changes_within_an_epoch_is_settled_when_it_begins(model, tmp_path):
    """A schedule over the steps asks for more in the middle of an epoch: shown, reported and logged is what holds."""
    hard_negatives = make_negatives(4)
    callback = MiningCallback(hard_negatives, mining_steps=1, schedule={"num_negatives": Linear(1, 4)})
    batches, trainer = train(model, hard_negatives.as_dataset(), make_args(tmp_path), [callback])
    check_widths(batches, [1, 2, 3], PER_EPOCH, with_ids=False)  # 1 + 3 s / 12 at s = 0, 4, 8
    assert [report.in_force["num_negatives"] for report in callback.reports] == [1] * 3 + [2] * 4 + [3] * 4
    assert {(step, number) for step, number in logged(trainer, "num_negatives")} == {
        (step, 1 + step // 4) for step in range(12)
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_two_datasets_with_schedules_of_their_own(model, tmp_path, workers):
    """In a DatasetDict, each dataset has its own number of negatives, in whole batches, and its own lines in the log."""
    first, second, third = make_negatives(3), make_negatives(2, num_rows=24), make_negatives(2, num_rows=24)
    callbacks = [
        MiningCallback({"first": first}, mining_steps=4, schedule=WIDER),
        MiningCallback(
            {"second": second, "third": third}, mining_steps=5, schedule={"num_negatives": Step({0: 2, 0.5: 1})}
        ),
    ]
    losses = {name: MultipleNegativesRankingLoss(model) for name in ("first", "second", "third")}
    batches = {name: noted(loss, model) for name, loss in losses.items()}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path, max_steps=-1, num_train_epochs=2, dataloader_num_workers=workers),
        train_dataset=DatasetDict(
            {"first": first.as_dataset(with_ids=True), "second": second.as_dataset(), "third": third.as_dataset()}
        ),
        loss=losses,
        callbacks=callbacks,
    )
    trainer.train()
    check_widths(batches["first"], [1, 2], 4, with_ids=True)
    check_widths(batches["second"], [2, 1], 3, with_ids=False)
    check_widths(batches["third"], [2, 1], 3, with_ids=False)
    assert (first.num_active, second.num_active, third.num_active) == (3, 2, 2)
    assert logged(trainer, "second/num_negatives")[-1][1] == logged(trainer, "third/num_negatives")[-1][1] == 1


def _summed(model):
    ranking, contrastive = SemiHardMultipleNegativesRankingLoss(model), SemiHardContrastiveLoss(model)
    return WeightedSumLoss(model, {"ranking": (0.6, ranking), "contrastive": (0.4, contrastive)})


def _transformer(folder):
    """A random BERT with one layer and a word a token; gradients cannot be cached for a model of word vectors."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS, *NEGATIVES])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16)], device="cpu")


LOSSES = {
    "ranking": SemiHardMultipleNegativesRankingLoss,
    "cached": lambda model: SemiHardCachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
    "triplet": SemiHardTripletLoss,
    "contrastive": SemiHardContrastiveLoss,
    "sum": _summed,
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_more_negatives_from_epoch_to_epoch(tmp_path, name):
    """Each loss trains on 1, 2 and 3 negatives a row, with ids, and its figures stay finite."""
    hard_negatives = make_negatives(3, num_rows=16)
    model = make_model() if name != "cached" else _transformer(tmp_path / "bert")
    loss = LOSSES[name](model)
    args = make_args(tmp_path, max_steps=-1, num_train_epochs=3)
    callback = MiningCallback(hard_negatives, mining_strategy="epoch", schedule=WIDER)
    batches, trainer = train(model, hard_negatives.as_dataset(with_ids=True), args, [callback], loss)
    check_widths(batches, [1, 2, 3], 2, with_ids=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and all(0 <= value < 1e3 for value in losses)


def test_a_training_without_a_schedule_shows_all_again(model, tmp_path):
    """Also after one that was broken off while one negative was shown, with another callback or the same dataset's."""
    hard_negatives = make_negatives(3)

    class Break(MultipleNegativesRankingLoss):
        def forward(self, sentence_features, labels):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            model,
            hard_negatives.as_dataset(),
            make_args(tmp_path),
            [MiningCallback(hard_negatives, schedule=WIDER)],
            Break(model),
        )
    args = make_args(tmp_path, max_steps=2)
    batches, _ = train(model, hard_negatives.as_dataset(), args, [MiningCallback(hard_negatives, mining_steps=1)])
    assert [batch.width for batch in batches] == [3, 3]


def test_checkpoints_and_model_cards_do_not_mind_hidden_negatives(model, tmp_path):
    """A checkpoint that is written while one negative is shown has a model card, and the best model can be loaded."""
    hard_negatives = make_negatives(3)
    evaluated = hard_negatives.to_dataset("n-tuple")
    args = make_args(
        tmp_path,
        max_steps=6,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
    )
    batches: list[Batch] = noted(loss := MultipleNegativesRankingLoss(model), model)
    SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=hard_negatives.as_dataset(),
        eval_dataset=evaluated,
        loss=loss,
        callbacks=[MiningCallback(hard_negatives, mining_steps=2, schedule=WIDER)],
    ).train()
    assert (tmp_path / "checkpoint-2" / "README.md").is_file()
    # What is trained on has 1 and 2 negatives; what is evaluated on, a frozen copy, always 3.
    assert {batch.width for batch in batches[:2]} == {1} and 3 in {batch.width for batch in batches}


# --- resuming ---------------------------------------------------------------------------------------------------------

SMALL_EPOCHS = {"per_device_train_batch_size": 20, "max_steps": 12}  # 4 steps an epoch
RESUMED = [
    Stage("easy", 1, range_min=6, range_max=18, num_negatives=1),
    Stage("medium", 1, range_min=3, range_max=12, num_negatives=2),
    Stage("hard", 1, range_max=9),
]


def resumable(folder, resume=None, schedule=RESUMED, mining_steps=3, config=None, **options):
    """Train by real search, from the start or a checkpoint: what reaches the loss, negatives, callback."""
    callback = MiningCallback(mining_steps=mining_steps, schedule=schedule)
    config = {"num_negatives": 3, **(config or {})}
    return test_resume.run(folder, resume, callback=callback, config=config, **{**SMALL_EPOCHS, **options})


@pytest.mark.parametrize(
    ("schedule", "mining_steps", "options", "cuts"),
    [
        (RESUMED, 3, {}, (2, 4, 9)),
        # A refresh in the last step of an epoch is seen by the first batch of the next one.
        ({"range_min": Linear(6, 0), **WIDER}, 4, {}, (4, 5)),
        (RESUMED, 3, {"batch_sampler": TopicAwareBatchSampler, "config": {"num_topics": 4}}, (3, 8)),
        pytest.param(RESUMED, 3, {}, range(1, 12), marks=pytest.mark.slow),
        pytest.param(
            RESUMED,
            3,
            {"batch_sampler": TopicAwareBatchSampler, "config": {"num_topics": 4}},
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
        assert (resumed.negative_ids == negatives.negative_ids).all()
        for name in ("step", "stage", "stage_number", "in_force", "config"):
            assert [getattr(report, name) for report in later.reports] == [
                getattr(report, name) for report in callback.reports
            ]
        assert resumed.num_active == 3


def test_workers_that_resume_serve_nothing_from_before_a_boundary(tmp_path):
    """At an epoch boundary nothing was fetched ahead, so with workers, too, the resumed batches are the same."""
    options = {"schedule": {"range_min": Linear(6, 0)}, "mining_steps": 4, "dataloader_num_workers": 2, "max_steps": 8}
    whole, _, _ = resumable(tmp_path / "whole", **options)
    for step in (4, 5):
        cut = str(tmp_path / "whole" / f"checkpoint-{step}")
        batches, _, _ = resumable(tmp_path / "again", cut, save_strategy="no", **options)
        assert batches == whole[step:], f"resumed from step {step}"


def test_what_does_not_fit_a_checkpoint_is_refused(tmp_path):
    """Another schedule, with both named; and topics that are damaged."""
    options = {"config": {"num_topics": 4}, "batch_sampler": TopicAwareBatchSampler, "max_steps": 5}
    resumable(tmp_path, **options)
    changed = [*RESUMED[:2], Stage("hard", 1, range_max=10)]
    with pytest.raises(ValueError, match=r"Expected the schedule with which .*'range_max', 9.*got .*'range_max', 10"):
        resumable(tmp_path, True, schedule=changed, **options)
    with pytest.raises(ValueError, match=r"Expected the schedule with which .*, got None\."):
        resumable(tmp_path, True, schedule=None, **options)

    (folder,) = (tmp_path / "checkpoint-5" / "hard_negatives").iterdir()
    assert set(checkpoint._epoch_topics(str(folder), 80)) == {0, 1, 2, 3}
    one = [1] * 79
    wrong = [
        {"epoch_topics": pa.array(one, pa.int32())},
        {"epoch_topics": pa.array(["a"] * 80)},
        {"epoch_topics": pa.array([0.5, *one])},
        {"other": pa.array([1, *one], pa.int32())},
        *({"epoch_topics": pa.array([first, *one], pa.int32())} for first in (None, -1, 80, 10**9)),
    ]
    for columns in wrong:
        shutil.rmtree(folder / "topics")
        dataset_of(pa.table(columns)).save_to_disk(folder / "topics")
        with pytest.raises(ValueError, match="got a damaged one"):
            checkpoint._epoch_topics(str(folder), 80)
    with pytest.raises(ValueError, match="got a damaged one"):
        resumable(tmp_path, True, **options)
    for file in (folder / "topics").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match="got a damaged one"):
        checkpoint._epoch_topics(str(folder), 80)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (3, TypeError, "Expected `schedule` to map fields of MiningConfig to schedules, or to be a list of stages"),
        ("linear", TypeError, "Expected `schedule` to map fields"),
        (Linear(0, 1), TypeError, "Expected `schedule` to map fields"),
        (Stage("one", 1), TypeError, "Expected `schedule` to map fields"),
        ([], ValueError, "Expected a curriculum of at least one stage, got none"),
        ([Stage("one", 1), {"range_min": 3}], TypeError, "Expected stages, got dict"),
        ({"random_rat": 0.1}, ValueError, r"got 'random_rat'.*Did you mean 'random_rate'\?"),
        ({3: 0.1}, ValueError, "Expected fields of MiningConfig in a schedule, got 3"),
        ({"sampling_strategy": "top"}, ValueError, r"Expected fields of numbers in a schedule.*Only a stage can"),
        ({"use_faiss": 1}, ValueError, "Expected fields of numbers in a schedule, got 'use_faiss'"),
        ({"random_rate": "0.5"}, TypeError, "schedule of `random_rate` to be a number or a function"),
        ({"random_rate": True}, TypeError, "schedule of `random_rate` to be a number or a function"),
        ({"random_rate": None}, TypeError, "schedule of `random_rate` to be a number or a function"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, error, message):
    """Without any dataset at hand."""
    with pytest.raises(error, match=message):
        MiningCallback(schedule=schedule)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Exponential(1.0, 0.0), ValueError, "start` and `end` of an exponential schedule to have one sign"),
        (lambda: Exponential(-1.0, 1.0), ValueError, "to have one sign"),
        (lambda: Exponential("1", 2.0), TypeError, "Expected `start` to be a number, got '1'"),
        (lambda: Step({0.5: 1.0}), ValueError, "Expected shares of the training from 0 to 1, the first of them 0"),
        (lambda: Step({}), ValueError, "the first of them 0"),
        (lambda: Step({0.0: 1.0, 1.5: 2.0}), ValueError, "Expected shares of the training from 0 to 1"),
        (lambda: Step([0.3, 0.1]), TypeError, "Expected `values` to map shares of the training to numbers, got list"),
        (lambda: Step({0: 1, "half": 2}), TypeError, "Expected `values` to map shares of the training to numbers"),
        (lambda: Step({0: "much"}), TypeError, "Expected `values` to map shares of the training to numbers"),
        (lambda: Linear("0.8", 0.0), TypeError, "Expected `start` to be a number, got '0.8'"),
        (lambda: Cosine(0.8, None), TypeError, "Expected `end` to be a number, got None"),
        (lambda: Constant([1]), TypeError, r"Expected `value` to be a number, got \[1\]"),
        (lambda: PerEpoch(1, limit="8"), TypeError, "Expected `limit` to be a number, got '8'"),
        (lambda: Linear(0.0, float("nan")), ValueError, "Expected `end` to be a finite number, got nan"),
        (lambda: Stage("one", 0), ValueError, "Expected a stage of at least 1 whole epoch, got 0"),
        (lambda: Stage("one", 1.5), ValueError, "Expected a stage of at least 1 whole epoch, got 1.5"),
        (lambda: Stage("one", True), ValueError, "Expected a stage of at least 1 whole epoch, got True"),
        (lambda: Stage(1, 2), TypeError, "Expected the name of a stage to be a string, got 1"),
        (lambda: Stage("one", 1, range_mim=3), ValueError, r"got 'range_mim'.*Did you mean 'range_min'\?"),
        (lambda: Curriculum([]), ValueError, "Expected a curriculum of at least one stage"),
        (lambda: Curriculum([3]), TypeError, "Expected stages, got int"),
        (lambda: Curriculum(Stage("one", 1)), TypeError, "Expected `stages` to be a list of stages, got Stage"),
    ],
)
def test_schedules_are_checked_when_they_are_made(make, error, message):
    """Wrong kinds and values are told at once, by the name of the argument."""
    with pytest.raises(error, match=message):
        make()


def broken(progress):
    """A user's function with a mistake."""
    return 0.0 / (1 - progress)


INVALID = {
    "window": ({"range_min": Linear(0, 11)}, r"at 9\d% .*window from `range_min=11`"),
    "window-stage": ([Stage("a", 1), Stage("b", 1, range_min=11)], r"epoch 1\): .*window from `range_min=11`"),
    "margin": ({"relative_margin": Linear(0.1, -0.1)}, "Expected `relative_margin` to stay at 0 or above, got -0.00"),
    "margin-stage": ([Stage("a", 1, absolute_margin=-0.1)], r"epoch 0\): .*`absolute_margin` to stay at 0 or above"),
    "scores": ({"min_score": Linear(0.0, 0.9), "max_score": Linear(1.0, 0.5)}, "Expected `min_score` to be at most"),
    "rate": ({"random_rate": Linear(0.5, 1.5)}, "Expected `random_rate` to be from 0 to 1, got 1.0"),
    "none": ({"num_negatives": 0}, r"at 0% of it \(epoch 0\): Expected at least 1 negative to be shown, got 0"),
    "none-later": ({"num_negatives": Linear(2, 0)}, "Expected at least 1 negative to be shown, got 0"),
    "none-stage": ([Stage("a", 1, num_negatives=0)], "Expected at least 1 negative to be shown, got 0"),
    "function": ({"random_rate": broken}, r"at 100% .*the schedule of `random_rate` .*ZeroDivisionError"),
    "type-stage": ([Stage("a", 1, absolute_margin="wide")], "Expected `absolute_margin` to be a finite number"),
    "source-stage": ([Stage("a", 1), Stage("b", 1, sources={"far": 2})], r"epoch 1\): .*got \['far'\]"),
    "quota-stage": ([Stage("a", 1, sources={"random": 1})], "Expected the quotas in `sources` to add up"),
    "spaces-stage": ([Stage("a", 1, search_spaces=("corpus", "anchors"))], "to search the anchors, too"),
    "topics": ({"num_topics": Linear(2, 100)}, "Expected `num_topics` to be at most the number of queries, 32"),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_schedule_that_becomes_invalid_is_refused_before_anything_is_encoded(model, tmp_path, monkeypatch, name):
    """When the callback is made, if it has the dataset; else when the training begins. The point is named."""
    schedule, message = INVALID[name]
    hard_negatives = make_negatives(range_max=12)
    before = hard_negatives.negative_ids

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
    assert (hard_negatives.negative_ids == before).all() and hard_negatives.num_active == 2


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
