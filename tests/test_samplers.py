"""Batches without duplicate anchors and positives, whatever the negatives are; and batches about one topic."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.samplers import NoDuplicatePairsBatchSampler, TopicAwareBatchSampler
from tests.conftest import WORDS, word_model

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")


def batches(dataset, seed=0, batch_size=8):
    sampler = NoDuplicatePairsBatchSampler(
        dataset, batch_size, drop_last=False, generator=torch.Generator(), seed=seed, valid_label_columns=["label"]
    )
    return list(sampler)


def test_no_text_occurs_twice_in_a_batch():
    """Anchors and positives of a batch are all different, also but for case; every row is drawn once."""
    pairs = Dataset.from_dict(
        {"anchor": [f"a{i % 20}" for i in range(80)], "positive": [f"A{i % 30}" for i in range(80)]}
    )
    drawn = batches(pairs)
    assert sorted(row for batch in drawn for row in batch) == list(range(80))
    for batch in drawn:
        texts = [text.lower() for row in batch for text in set(pairs[row].values())]
        assert len({t.lower() for row in batch for t in pairs[row].values()}) == sum(
            len({t.lower() for t in pairs[row].values()}) for row in batch
        ), texts


def test_the_plan_does_not_change_with_the_negatives(bag_of_words, word_pairs):
    """After a refresh the same seed gives the same batches, with and without ids."""
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    before = batches(hard_negatives.as_dataset()), batches(hard_negatives.as_dataset(with_ids=True))
    other = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(5)))
    hard_negatives.mine(other, show_progress_bar=False)
    assert (batches(hard_negatives.as_dataset()), batches(hard_negatives.as_dataset(with_ids=True))) == before
    assert before[0] == before[1] == batches(word_pairs) != batches(word_pairs, seed=1)


# --- topics -----------------------------------------------------------------------------------------------------------

NUM_TOPICS, PER_TOPIC, BATCH = 6, 20, 8
PLANTED = [f"c{topic}_{number}" for topic in range(NUM_TOPICS) for number in range(PER_TOPIC)]
ANSWERS = [f"p{number}" for number in range(NUM_TOPICS * PER_TOPIC)]
OTHERS = [f"o{number}" for number in range(12)]


def planted_model(shift=0):
    """A model in which an anchor's direction is that of its planted topic, moved on by some rows, and a little noise."""
    torch.manual_seed(0)
    topics = torch.arange(len(PLANTED)).roll(shift) // PER_TOPIC
    anchors = torch.eye(16)[topics] + 0.05 * torch.randn(len(PLANTED), 16)
    return word_model([*PLANTED, *ANSWERS, *OTHERS], torch.cat([anchors, torch.randn(len(ANSWERS) + 12, 16)]))


def planted(**config) -> HardNegativeDataset:
    pairs = Dataset.from_dict({"anchor": PLANTED, "positive": ANSWERS})
    hard_negatives = HardNegativeDataset(
        pairs, OTHERS, MiningConfig(**{"num_negatives": 1, **config}), num_topics=NUM_TOPICS
    )
    hard_negatives.mine(planted_model(), show_progress_bar=False)
    return hard_negatives


def topic_batches(dataset, seed=0, epoch=0, drop_last=False, batch_size=BATCH, sampler_class=TopicAwareBatchSampler):
    sampler = sampler_class(dataset, batch_size, drop_last, generator=torch.Generator(), seed=seed)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    # Duplicates may leave smaller batches at the end, as with the samplers of Sentence Transformers.
    assert len([batch for batch in drawn if len(batch) == batch_size] if drop_last else drawn) >= len(sampler)
    assert not drop_last or len(drawn) == len(sampler)
    return drawn


def topic_of(text: str) -> int:
    return PLANTED.index(text) // PER_TOPIC


def pure(drawn, dataset, shift=0) -> list[bool]:
    """Tell of each batch whether all of its anchors are of one planted topic."""
    anchors = dataset["anchor"]
    topics = [{(PLANTED.index(anchors[row]) - shift) % len(PLANTED) // PER_TOPIC for row in batch} for batch in drawn]
    return [len(found) == 1 for found in topics]


def test_batches_are_from_one_topic():
    """Of 15 batches only the 3 at boundaries between topics are mixed; with shuffled rows, not one is pure."""
    view = planted().as_dataset()
    drawn = topic_batches(view)
    mixed = [batch for batch, is_pure in zip(drawn, pure(drawn, view), strict=True) if not is_pure]
    # Six topics of 20 rows in batches of 8: 4 rows are left of the first topic, and share a batch with the second's.
    assert len(drawn) == 15 and len(mixed) == 3
    assert all(len({row // PER_TOPIC for row in batch}) == 2 for batch in mixed)
    assert sorted(row for batch in drawn for row in batch) == list(range(120))
    # Their order is random, not topic after topic.
    order = [batch[0] // PER_TOPIC for batch in drawn]
    assert sum(one == other for one, other in pairwise(order)) < 7
    control = topic_batches(view, sampler_class=NoDuplicatePairsBatchSampler)
    assert not any(pure(control, view))


def test_batches_of_topics_change_from_epoch_to_epoch_and_with_the_seed():
    """The same seed and epoch give the same batches; another epoch or seed gives others, which are as pure."""
    view = planted().as_dataset()
    drawn = topic_batches(view, seed=3, epoch=1)
    assert drawn == topic_batches(planted().as_dataset(with_ids=True), seed=3, epoch=1)
    sets = {frozenset(batch) for batch in drawn}
    for other in (topic_batches(view, seed=3, epoch=2), topic_batches(view, seed=4, epoch=1)):
        assert sum(pure(other, view)) >= 12
        assert len(sets & {frozenset(batch) for batch in other}) < 3
        # Also which topics share a batch differs.
    mixed = {
        frozenset(row // PER_TOPIC for row in batch)
        for epoch in range(8)
        for batch in topic_batches(view, epoch=epoch)
        if len({row // PER_TOPIC for row in batch}) == 2
    }
    assert len(mixed) > 5


def test_the_last_batch_of_topics():
    """What does not fill a batch comes last, or is dropped; `len()` is right in both cases."""
    view = planted().as_dataset()
    drawn = topic_batches(view, batch_size=9)
    assert [len(batch) for batch in drawn] == [9] * 13 + [3]
    drawn = topic_batches(view, batch_size=9, drop_last=True)
    assert [len(batch) for batch in drawn] == [9] * 13


def test_topics_of_a_part_of_the_rows():
    """Selected, shuffled, filtered and split views have the topics of their own rows."""
    view = planted().as_dataset()
    parts = [
        view.shuffle(seed=5),
        view.select(range(20, 84)),
        view.shuffle(seed=5).select(range(64)),
        view.select(range(10, 70)).shuffle(seed=2).select(range(0, 60, 2)),
        view.train_test_split(0.25, seed=1)["train"],
        view.filter(lambda row: topic_of(row["anchor"]) in (1, 4)),
    ]
    for part in parts:
        drawn = topic_batches(part, batch_size=4)
        assert sorted(row for batch in drawn for row in batch) == list(range(len(part)))
        # Each of at most six topics leaves at most one batch that is mixed with the next one.
        assert sum(not is_pure for is_pure in pure(drawn, part)) <= NUM_TOPICS


@pytest.mark.parametrize("drop_last", [False, True])
def test_no_text_occurs_twice_in_a_batch_of_topics(drop_last):
    """With anchors of several positives and positives of several anchors; as many batches as the trainer counts on."""
    anchors = [PLANTED[number] for number in range(60) for _ in range(1 + number % 3)]
    positives = [ANSWERS[number % 50].upper() if number % 2 else ANSWERS[number % 50] for number in range(len(anchors))]
    hard_negatives = HardNegativeDataset(
        Dataset.from_dict({"anchor": anchors, "positive": positives}),
        OTHERS,
        MiningConfig(num_negatives=1),
        num_topics=3,
    )
    hard_negatives.mine(planted_model(), show_progress_bar=False)
    view = hard_negatives.as_dataset()
    drawn = topic_batches(view, drop_last=drop_last)
    rows = [row for batch in drawn for row in batch]
    if drop_last:
        assert len(rows) == 120 // BATCH * BATCH and len(set(rows)) > 100
    else:
        assert sorted(rows) == list(range(len(view)))
    for batch in drawn:
        texts = [{anchors[row].lower(), positives[row].lower()} for row in batch]
        assert len(set().union(*texts)) == 2 * len(batch)


def test_as_many_batches_as_the_trainer_counts_on():
    """Where duplicates leave too few whole batches, rows are drawn again, so that epochs end where the trainer thinks."""
    anchors = [PLANTED[0]] * 12 + PLANTED[1:29]
    hard_negatives = HardNegativeDataset(
        Dataset.from_dict({"anchor": anchors, "positive": ANSWERS[:40]}),
        OTHERS,
        MiningConfig(num_negatives=1),
        num_topics=2,
    )
    hard_negatives.mine(planted_model(), show_progress_bar=False)
    drawn = topic_batches(hard_negatives.as_dataset(), drop_last=True)
    assert len(drawn) == 5 and {len(batch) for batch in drawn} == {8}
    assert all(len({anchors[row] for row in batch}) == 8 for batch in drawn)


def test_a_dataset_without_topics_is_refused(word_pairs, bag_of_words):
    """A plain dataset, and a view that was mined without topics."""
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=1))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    for dataset in (word_pairs, hard_negatives.as_dataset(), hard_negatives.to_dataset()):
        with pytest.raises(ValueError, match=r"a dataset without any\. Set `HardNegativeDataset\(num_topics=\.\.\.\)`"):
            topic_batches(dataset)


def test_topics_are_saved_with_the_dataset(tmp_path):
    """A loaded dataset draws the same batches."""
    hard_negatives = planted()
    hard_negatives.save_to_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    assert topic_batches(loaded.as_dataset()) == topic_batches(hard_negatives.as_dataset())


class Anchors(MultipleNegativesRankingLoss):
    """A loss that notes the anchors of every batch."""

    def __init__(self, model):
        super().__init__(model)
        self.batches: list[list[int]] = []

    def forward(self, sentence_features, labels):
        features = list(sentence_features)
        # The vocabulary begins with the unknown word, and goes on with the anchors.
        self.batches.append([token - 1 for token in features[0]["input_ids"].tolist()])
        return super().forward(features, labels)


def topics_args(tmp_path, **options):
    defaults = {"per_device_train_batch_size": BATCH, "num_train_epochs": 3, "learning_rate": 1e-9, "report_to": "none"}
    defaults |= {"batch_sampler": TopicAwareBatchSampler, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    return SentenceTransformerTrainingArguments(output_dir=str(tmp_path), **{**defaults, **options})


@pytest.mark.training
@pytest.mark.parametrize("workers", [0, 2])
def test_topics_of_a_refresh_hold_from_the_next_epoch_on(tmp_path, workers):
    """A teacher with other topics mines in the first epoch: its batches stay as planned, the next epochs' are new."""
    model, hard_negatives, shift = planted_model(), planted(), PER_TOPIC // 2
    loss = Anchors(model)
    SentenceTransformerTrainer(
        model=model,
        args=topics_args(tmp_path, dataloader_num_workers=workers),
        train_dataset=hard_negatives.as_dataset(),
        loss=loss,
        callbacks=[MiningCallback(hard_negatives, mining_steps=7, retriever=planted_model(shift))],
    ).train()
    assert len(loss.batches) == 45

    def share(epoch, moved):
        drawn = loss.batches[15 * epoch : 15 * epoch + 15]
        assert sorted(row for batch in drawn for row in batch) == list(range(120))
        return sum(len({(row - moved) % 120 // PER_TOPIC for row in batch}) == 1 for batch in drawn)

    assert [share(epoch, 0) >= 12 for epoch in range(3)] == [True, False, False]
    assert [share(epoch, shift) >= 12 for epoch in range(3)] == [False, True, True]


@pytest.mark.training
def test_topics_in_a_dataset_dict(tmp_path):
    """Each dataset's batches are from one of its own topics."""
    model, first = planted_model(), planted()
    losses = {"first": Anchors(model), "second": Anchors(model)}
    SentenceTransformerTrainer(
        model=model,
        args=topics_args(tmp_path, num_train_epochs=1),
        train_dataset=DatasetDict(
            {"first": first.as_dataset(with_ids=True), "second": planted().as_dataset().select(range(40, 120))}
        ),
        loss=losses,
        callbacks=[MiningCallback(mining_steps=6)],
    ).train()
    for name, count, least in (("first", 15, 12), ("second", 10, 8)):
        drawn = losses[name].batches
        assert len(drawn) == count
        assert sum(len({row // PER_TOPIC for row in batch}) == 1 for batch in drawn) >= least
