"""Refreshes under the real trainer, judged by the negatives that reach the loss."""

from __future__ import annotations

import logging
import multiprocessing

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.samplers import NoDuplicatePairsBatchSampler
from st_hardneg.training.callback import training_encodings
from tests.conftest import WORDS, word_model

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")

NUM_ROWS = 160
PER_ROUND = 10
NEGATIVES = [f"n{number}" for number in range(200)]


class Rounds:
    """A searcher whose n-th round returns texts that no other round returns."""

    def __init__(self, first_negative: int) -> None:
        self.first_negative = first_negative
        self.round = -1

    def index(self, corpus_embeddings, similarity_fn_name):
        self.round += 1

    def search(self, query_embeddings, k):
        first = self.first_negative + PER_ROUND * self.round
        ids = torch.full((len(query_embeddings), k), -1)
        scores = torch.full((len(query_embeddings), k), -torch.inf)
        count = min(k, PER_ROUND)
        ids[:, :count] = torch.arange(first, first + count)
        scores[:, :count] = torch.linspace(0.5, 0.4, count)
        return ids, scores


class Recorder(MultipleNegativesRankingLoss):
    """A loss that notes, for every micro-batch, which rounds its negatives come from."""

    def __init__(self, model):
        super().__init__(model)
        self.rounds: list[set[int]] = []
        self.rows: list[list[int]] = []
        tokenizer = model.tokenizer
        self.round_of = {tokenizer.token_to_id(text): i // PER_ROUND for i, text in enumerate(NEGATIVES)}

    def forward(self, sentence_features, labels):
        features = list(sentence_features)
        tokens = [token for feature in features[2:] for token in feature["input_ids"].tolist()]
        self.rounds.append({self.round_of[token] for token in tokens})
        self.rows.append(features[0]["input_ids"].tolist())
        return super().forward(features, labels)


@pytest.fixture
def model():
    words = [*WORDS, *NEGATIVES]
    return word_model(words, torch.randn(len(words), 8, generator=torch.Generator().manual_seed(0)))


def make_negatives(num_rows: int = NUM_ROWS, **config) -> HardNegativeDataset:
    pairs = Dataset.from_dict(
        {
            "anchor": [f"{WORDS[i % 100]} {WORDS[i // 100]}" for i in range(num_rows)],
            "positive": [f"{WORDS[100 + i % 100]} {WORDS[i // 100]}" for i in range(num_rows)],
        }
    )
    return HardNegativeDataset(pairs, NEGATIVES, MiningConfig(num_negatives=2, **config), searcher=Rounds(0))


def make_args(tmp_path, **options) -> SentenceTransformerTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 14,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return SentenceTransformerTrainingArguments(output_dir=str(tmp_path), **{**defaults, **options})


def first_new(rounds: list[set[int]], number: int) -> int:
    """Return the first micro-batch, from 1, from which on no negative is older than this round."""
    old = [i for i, seen in enumerate(rounds, start=1) if min(seen) < number]
    return max(old, default=0) + 1


def run(model, hard_negatives, args, **callback_options):
    hard_negatives.mine(model, show_progress_bar=False)
    loss = Recorder(model)
    callback = MiningCallback(hard_negatives, **callback_options)
    trainer = SentenceTransformerTrainer(
        model=model, args=args, train_dataset=hard_negatives.as_dataset(), loss=loss, callbacks=[callback]
    )
    trainer.train()
    return loss, callback, trainer


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


def test_without_an_argument_every_live_view_is_refreshed(model, tmp_path):
    """`MiningCallback()` finds the live views in the train dataloader, by their names in the DatasetDict."""
    first, second = make_negatives(), make_negatives(num_rows=80)
    for hard_negatives in (first, second):
        hard_negatives.mine(model, show_progress_bar=False)
    callback = MiningCallback(mining_steps=4)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path, max_steps=6),
        train_dataset=DatasetDict({"a": first.as_dataset(), "b": second.as_dataset()}),
        loss={"a": Recorder(model), "b": Recorder(model)},
        callbacks=[callback],
    )
    trainer.train()
    assert first.report.step == second.report.step == 4
    assert {"mining/a/refresh", "mining/b/refresh"} <= {key for entry in trainer.state.log_history for key in entry}


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
        words = [*WORDS, *NEGATIVES]
        model = word_model(words, torch.randn(len(words), 8, generator=torch.Generator().manual_seed(0)))
        hard_negatives = make_negatives()
        hard_negatives._searcher.round = -1
        hard_negatives._searcher.index = lambda *_, rounds=hard_negatives._searcher: setattr(rounds, "round", 0)
        run(model, hard_negatives, make_args(tmp_path), mining_steps=mining_steps)
        ends.append(model[0].embedding.weight.detach().clone())
    assert torch.equal(*ends)


def test_the_trainer_s_prompts_and_routes_are_used(tmp_path):
    """Prompts by column, by dataset and column, and none at all; the config's own come first."""
    hard_negatives = make_negatives()
    args = make_args(tmp_path, prompts={"anchor": "query: ", "positive": "passage: "})
    encodings = training_encodings(hard_negatives, args, None)
    assert (encodings.queries.prompt, encodings.corpus.prompt) == ("query: ", "passage: ")
    nested = make_args(tmp_path, prompts={"mined": {"anchor": "q: "}}, router_mapping={"mined": {"anchor": "document"}})
    encodings = training_encodings(hard_negatives, nested, "mined")
    assert (encodings.queries.prompt, encodings.corpus.prompt) == ("q: ", "")
    assert (encodings.queries.task, encodings.corpus.task) == ("document", "document")
    own = training_encodings(make_negatives(query_prompt="own: "), args, None)
    assert (own.queries.prompt, own.corpus.prompt) == ("own: ", "passage: ")


def test_a_frozen_copy_as_train_dataset_is_refused(model, tmp_path):
    """Training on `to_dataset()` would never see a refresh, so it does not start."""
    hard_negatives = make_negatives()
    hard_negatives.mine(model, show_progress_bar=False)
    for given in (hard_negatives, None):
        trainer = SentenceTransformerTrainer(
            model=model,
            args=make_args(tmp_path),
            train_dataset=hard_negatives.to_dataset("n-tuple"),
            loss=Recorder(model),
            callbacks=[MiningCallback(given)],
        )
        with pytest.raises(ValueError, match="a refresh would change nothing"):
            trainer.train()


def test_an_iterable_dataset_is_refused(model, tmp_path):
    """A stream cannot be refreshed, and says so."""
    hard_negatives = make_negatives()
    hard_negatives.mine(model, show_progress_bar=False)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path),
        train_dataset=hard_negatives.to_dataset("n-tuple").to_iterable_dataset(),
        loss=Recorder(model),
        callbacks=[MiningCallback(hard_negatives)],
    )
    with pytest.raises(ValueError, match="got an IterableDataset"):
        trainer.train()


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


def test_a_teacher_mines_in_place_of_the_model(model, tmp_path):
    """With `model=`, negatives come from the teacher, however the student changes."""
    teacher = word_model(WORDS, torch.randn(len(WORDS), 8, generator=torch.Generator().manual_seed(9)))
    pairs = Dataset.from_dict({"anchor": WORDS[:50], "positive": WORDS[50:100]})
    hard_negatives = HardNegativeDataset(pairs, WORDS[100:], MiningConfig(num_negatives=2))
    hard_negatives.mine(model, show_progress_bar=False)
    callback = MiningCallback(hard_negatives, mining_steps=3, model=teacher)
    SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path, max_steps=5),
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[callback],
    ).train()
    alone = HardNegativeDataset(pairs, WORDS[100:], MiningConfig(num_negatives=2))
    alone.mine(teacher, show_progress_bar=False)
    assert (hard_negatives.negative_ids == alone.negative_ids).all()


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


@pytest.mark.parametrize(
    "change",
    [
        lambda view: view.map(lambda row: {name: text.lower() for name, text in row.items()}),
        lambda view: view.select_columns(["anchor", "positive"]),
    ],
)
def test_a_view_without_live_negatives_is_refused(model, tmp_path, change):
    """If `map` froze the negatives, or they were dropped, a refresh would change nothing: it does not start."""
    hard_negatives = make_negatives()
    hard_negatives.mine(model, show_progress_bar=False)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path),
        train_dataset=change(hard_negatives.as_dataset()),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[MiningCallback(hard_negatives)],
    )
    with pytest.raises(ValueError, match="a refresh would change nothing"):
        trainer.train()
