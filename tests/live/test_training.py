"""Live views in the stock trainer of Sentence Transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from st_hardneg.corpus.texts import TextColumn
from st_hardneg.live.batches import read_in_batches
from st_hardneg.live.dataset import LiveDataset, live_topics, live_views
from st_hardneg.live.table import NegativeTable
from st_hardneg.live.view import LiveView
from st_hardneg.samplers import NoDuplicatePairsBatchSampler, TopicAwareBatchSampler, pair_hashes
from tests.conftest import WORDS

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")]

ROWS = 16
FIRST, SECOND = WORDS[40:100], WORDS[100:160]


def ids_of(refresh: int) -> np.ndarray:
    """Return corpus ids of which no two rows and no two refreshes share one."""
    return np.repeat(np.arange(ROWS)[:, None] + ROWS * refresh, 2, axis=1)


def refreshes_in(rows: list[dict], words: list[str]) -> set[int]:
    """Return from which refreshes the negatives of these rows are."""
    return {words.index(row[name]) // ROWS for row in rows for name in ("negative_1", "negative_2")}


def view_of(words: list[str]) -> LiveView:
    """Return a view of one-word texts, whose corpus is these words."""
    anchors, positives, row = TextColumn.of(WORDS[:ROWS]), TextColumn.of(WORDS[ROWS : 2 * ROWS]), np.arange(ROWS)
    return LiveView(
        anchors, positives, TextColumn.of(words), NegativeTable(ids_of(0)), "anchor", "positive", row, row, row
    )


def dataset_of(view: LiveView, *, with_ids: bool = False) -> LiveDataset:
    return LiveDataset.of(view, np.arange(ROWS), Dataset.from_dict({"anchor": ["a"]}), with_ids=with_ids)


class Refresh(TrainerCallback):
    """Writes the next negatives at the end of every epoch, and lets concatenations be read in batches."""

    def __init__(self, *views: LiveView) -> None:
        self.views = views
        self.found: list[Any] = []

    def on_train_begin(self, args, state, control, train_dataloader=None, **_: Any) -> None:
        self.found = list(live_views(train_dataloader.dataset))
        read_in_batches(train_dataloader.dataset)

    def on_epoch_end(self, args, state, control, **_: Any) -> None:
        for view in self.views:
            view.table.write(ids_of(view.table.generation + 1))


def train(
    model: SentenceTransformer, data: Any, path: Any, *views: LiveView, **options: Any
) -> tuple[list[list[dict]], Any]:
    """Train two epochs and return the rows of every batch, and the views that were found."""
    args = SentenceTransformerTrainingArguments(
        output_dir=str(path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        **options,
    )
    callback = Refresh(*views)
    loss = MultipleNegativesRankingLoss(model)
    loss = {name: loss for name in data} if isinstance(data, dict) else loss
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=loss, callbacks=[callback])
    collate, batches = trainer.data_collator, []

    def record(rows: list[dict]) -> Any:
        batches.append(rows)
        return collate(rows)

    record.valid_label_columns = collate.valid_label_columns
    trainer.data_collator = record
    trainer.train()
    return batches, callback.found


@pytest.mark.parametrize(
    "derive",
    [
        lambda dataset: dataset,
        lambda dataset: dataset.shuffle(seed=1).filter(lambda row: True),
        lambda dataset: dataset.map(lambda row: {"anchor": f"w0 {row['anchor']}"}),
    ],
)
@pytest.mark.parametrize("sampler", ["batch_sampler", NoDuplicatesBatchSampler, NoDuplicatePairsBatchSampler])
def test_what_is_trained_on_follows_refreshes(bag_of_words, tmp_path, derive, sampler):
    """The first epoch has the first negatives in every batch, the second those of the refresh, whatever the sampler."""
    view = view_of(FIRST)
    dataset = derive(dataset_of(view, with_ids=True))
    batches, found = train(bag_of_words, dataset, tmp_path, view, batch_sampler=sampler)
    assert found == [(None, view)] and len(batches) == 8
    for number, rows in enumerate(batches):
        assert refreshes_in(rows, FIRST) == {number // 4}
        assert all(FIRST[row["label"][5]] == row["negative_2"] for row in rows)


def test_the_members_of_a_dataset_dict_follow_refreshes(bag_of_words, tmp_path):
    """Each is found by its name, and trained on with its own loss."""
    views = {"a": view_of(FIRST), "b": view_of(SECOND)}
    data = DatasetDict({name: dataset_of(view) for name, view in views.items()})
    batches, found = train(bag_of_words, data, tmp_path, *views.values())
    assert found == list(views.items()) and len(batches) == 16
    for number, rows in enumerate(batches):
        (name,) = {row["dataset_name"] for row in rows}
        assert refreshes_in(rows, {"a": FIRST, "b": SECOND}[name]) == {number // 8}


def test_two_views_joined_as_one_train_on_their_texts(bag_of_words, tmp_path):
    """They hold the texts of when they were joined, so that no view is found that a refresh could reach."""
    first, second = view_of(FIRST), view_of(SECOND)
    both = concatenate_datasets([dataset_of(first), dataset_of(second)])
    assert both[0] == {"anchor": "w0", "positive": "w16", "negative_1": FIRST[0], "negative_2": FIRST[0]}
    batches, found = train(bag_of_words, both, tmp_path, first, second)
    assert found == [] and len(batches) == 16
    assert {row["negative_1"] for rows in batches for row in rows} == {*FIRST[:ROWS], *SECOND[:ROWS]}


def test_samplers_see_anchors_positives_and_topics():
    """The plan of batches goes by texts that a refresh never changes, and by the topics of the rows that there are."""
    view = view_of(FIRST)
    dataset = dataset_of(view).shuffle(seed=1)
    before = pair_hashes(dataset)
    assert (before == pair_hashes(Dataset.from_dict(dataset.select_columns(["anchor", "positive"]).to_dict()))).all()
    view.table.write(ids_of(1))
    assert (pair_hashes(dataset) == before).all() and len(np.unique(before)) == 2 * ROWS
    view.topics = np.arange(ROWS, dtype=np.int32) // 4
    sampler = TopicAwareBatchSampler(dataset, batch_size=4, drop_last=False, seed=0)
    topics = live_topics(dataset)
    assert all(len({int(topics[row]) for row in batch}) == 1 for batch in sampler)
    with pytest.raises(ValueError, match="Expected a live view of a dataset that was mined with topics"):
        list(TopicAwareBatchSampler(Dataset.from_dict({"a": ["x"], "b": ["y"]}), batch_size=1, drop_last=False))
