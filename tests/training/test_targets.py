"""What a callback refreshes is what the training reads; everything that cannot work is refused in words."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.sampler import GroupByLabelBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from torch.utils.data import ConcatDataset

from st_hardneg import MiningCallback
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss
from st_hardneg.training.targets import find_targets
from tests.training import runs
from tests.training.rounds import Recorder, make_args, make_model, make_negatives
from tests.training.runs import HOST_WARNINGS

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


@pytest.fixture
def model():
    return make_model()


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


OTHER_TEXTS = "The training would not read the texts that are mined for: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # `map` froze the negatives, or they were dropped
        (
            lambda view: view.map(lambda row: {name: text.upper() for name, text in row.items()}),
            "a refresh would change nothing",
        ),
        (lambda view: view.select_columns(["anchor", "positive"]), "a refresh would change nothing"),
        # what is trained is not what refreshes mine for
        (
            lambda view: view.map(lambda row: {"anchor": "w1 " + row["anchor"]}),
            rf"{OTHER_TEXTS}`map` has written \['anchor",
        ),
        (lambda view: view.map(lambda row: {"positive": "w1"}), rf"{OTHER_TEXTS}`map` has written \['positive'\]"),
        (
            lambda view: view.with_transform(lambda rows: {**rows, "anchor": rows["positive"]}),
            f"{OTHER_TEXTS}a transform",
        ),
    ],
)
def test_a_view_that_is_no_longer_what_is_mined_is_refused(model, tmp_path, change, message):
    """Without live negatives a refresh would change nothing; with other texts it would not know of them."""
    hard_negatives = make_negatives()
    hard_negatives.mine(model, show_progress_bar=False)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(tmp_path),
        train_dataset=change(hard_negatives.as_dataset()),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[MiningCallback(hard_negatives)],
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_a_live_evaluation_set_is_refused(tmp_path):
    """What is measured on it would change with every refresh; a frozen copy is fine."""
    model = runs.make_model()
    found, evaluation = runs.make_negatives(model), runs.make_negatives(model)
    for given, is_refused in ((evaluation.as_dataset(), True), (evaluation.to_dataset("n-tuple"), False)):
        trainer = SentenceTransformerTrainer(
            model=model,
            args=runs.make_args(tmp_path, save_strategy="no", max_steps=2),
            train_dataset=found.as_dataset(),
            eval_dataset=given,
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[MiningCallback(found, 1)],
        )
        with pytest.raises(ValueError, match="`eval_dataset` is a live view") if is_refused else nullcontext():
            trainer.train()


@pytest.mark.parametrize("sampler", [BatchSamplers.GROUP_BY_LABEL, GroupByLabelBatchSampler])
@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("in_dict", [True, False])
def test_groups_by_label_are_refused_when_the_trainer_is_made(tmp_path, sampler, with_ids, in_dict):
    """The trainer would fail before the training begins, over lists that cannot be hashed."""
    model = runs.make_model()
    view = runs.make_negatives(model).as_dataset(with_ids=with_ids)
    with pytest.raises(ValueError, match=r"has no classes in its label.*NoDuplicatePairsBatchSampler"):
        SentenceTransformerTrainer(
            model=model,
            args=runs.make_args(tmp_path, batch_sampler=sampler),
            train_dataset=DatasetDict({"a": view}) if in_dict else view,
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[MiningCallback()],
        )


def test_what_fit_copies_is_explained(model):
    """`model.fit` reads all rows into columns of its own names before it trains."""
    frozen = Dataset.from_dict({"sentence_0": ["a"], "sentence_1": ["b"]})
    for given in (None, make_negatives()):
        with pytest.raises(ValueError, match=r"a refresh would change nothing.*`model.fit` copies all rows"):
            find_targets(given, ConcatDataset([frozen]))
    with pytest.raises(ValueError, match="a refresh would change nothing") as error:
        find_targets(None, Dataset.from_dict({"anchor": ["a"]}))
    assert "fit" not in str(error.value)


def test_a_loss_for_another_dataset_is_refused(tmp_path):
    """Its ids would mean other texts: for one dataset, by name, and as one loss for two; an equal copy is fine."""
    model = runs.make_model()
    one, other = runs.make_negatives(model), runs.make_negatives(model)
    smaller = make_negatives(80)
    smaller.mine(make_model(), show_progress_bar=False)

    def train(dataset, loss):
        runs.train(tmp_path, [MiningCallback()], dataset, model, loss, max_steps=1)

    def loss_for(hard_negatives):
        return SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives)

    live = {"a": one.as_dataset(with_ids=True), "b": smaller.as_dataset(with_ids=True)}
    message = (
        "The SemiHardMultipleNegativesRankingLoss that is trained on {} was given the `known_positives` of another"
    )
    with pytest.raises(ValueError, match=message.format("the training")):
        train(live["a"], loss_for(smaller))
    with pytest.raises(ValueError, match=message.format("the dataset 'a'")):
        train(DatasetDict(live), {"a": loss_for(smaller), "b": loss_for(one)})
    with pytest.raises(ValueError, match=message.format("the dataset 'b'")):
        train(DatasetDict(live), loss_for(one))
    train(live["a"], loss_for(other))  # of the same rows and the same corpus


# --- names ------------------------------------------------------------------------------------------------------------


def keys_of(log) -> set[str]:
    return {key for entry in log for key in entry if key.startswith("mining/")}


@pytest.mark.parametrize("given", ["one callback each", "one callback", "nothing", "other names"])
def test_no_two_datasets_log_under_the_same_names(tmp_path, given):
    """Each figure can be told from the other dataset's, by the trainer's name for it."""
    model = runs.make_model()
    parts = {"one": runs.make_negatives(model), "two": runs.make_negatives(model, seed=5)}
    callbacks = {
        "one callback each": [MiningCallback(part, 2) for part in parts.values()],
        "one callback": [MiningCallback(parts, 2)],
        "nothing": [MiningCallback(mining_steps=2)],
        "other names": [MiningCallback({"x": part}, 2) for part in parts.values()],
    }[given]
    views = DatasetDict({name: part.as_dataset() for name, part in parts.items()})
    keys = keys_of(runs.train(tmp_path, callbacks, views, model, max_steps=4))
    assert {"mining/one/refresh", "mining/two/refresh"} <= keys
    assert all(key.startswith(("mining/one/", "mining/two/")) for key in keys)


def test_one_dataset_logs_plainly(tmp_path):
    """With a name or without, and beside one that cannot be refreshed."""
    model = runs.make_model()
    found = runs.make_negatives(model)
    both = DatasetDict({"one": found.as_dataset(), "frozen": found.to_dataset("n-tuple")})
    for callback, data in ((MiningCallback(found, 2), found.as_dataset()), (MiningCallback({"one": found}, 2), both)):
        keys = keys_of(runs.train(tmp_path, [callback], data, model, max_steps=4))
        assert "mining/refresh" in keys and all(key.count("/") == 1 for key in keys)


def test_views_without_names_are_numbered():
    """A concatenation that no trainer has made has no names: the datasets are told apart by their order in it."""
    model = make_model()
    one, two = make_negatives(80), make_negatives(40)
    for part in (one, two):
        part.mine(model, show_progress_bar=False)
    joined = ConcatDataset([one.as_dataset(), two.as_dataset()])
    names = [find_targets(given, joined)[0].name for given in (one, two)]
    assert names == ["dataset_0", "dataset_1"]
    assert [target.name for target in find_targets(None, joined)] == names
    assert find_targets(one, ConcatDataset([one.as_dataset()]))[0].name is None


def test_two_callbacks_for_one_dataset_are_refused(tmp_path):
    """Each would replace what the other has mined; one callback for each of two datasets is fine."""
    model = runs.make_model()
    one, two = runs.make_negatives(model), runs.make_negatives(model, seed=5)
    both = DatasetDict({"a": one.as_dataset(), "b": two.as_dataset()})
    with pytest.raises(ValueError, match="got two that refresh the same dataset, so that each would replace"):
        runs.train(tmp_path, [MiningCallback(one), MiningCallback()], one.as_dataset(), model, max_steps=1)
    with pytest.raises(ValueError, match="got two that refresh the same dataset, 'b'"):
        runs.train(tmp_path, [MiningCallback(), MiningCallback(two)], both, model, max_steps=1)
    runs.train(tmp_path, [MiningCallback(one), MiningCallback(two)], both, model, max_steps=1)
