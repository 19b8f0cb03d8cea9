"""How many of the mined negatives are shown: it changes between epochs only, whatever fetches the batches."""

from __future__ import annotations

import multiprocessing

import pytest
from datasets import DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from st_hardneg import MiningCallback
from st_hardneg.losses import (
    SemiHardCachedMultipleNegativesRankingLoss,
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
)
from st_hardneg.samplers import TopicAwareBatchSampler
from st_hardneg.training.curriculum import Stage
from st_hardneg.training.schedules import Linear, PerEpoch, Step
from tests.conftest import WORDS
from tests.training.ranked import (
    NEGATIVES,
    PER_EPOCH,
    Batch,
    logged,
    make_args,
    make_model,
    make_negatives,
    noted,
    train,
)
from tests.training.runs import HOST_WARNINGS

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


@pytest.fixture
def model():
    return make_model()


WIDER = {"num_shown": PerEpoch(1, add=1)}  # 1, 2, 3 and no more in a table of three


WIDER_STAGES = [Stage("one", 1, num_shown=1), Stage("two", 1, num_shown=2), Stage("all", 1)]


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
    for step, number in logged(trainer, "num_shown"):
        assert number == shown[step // per_epoch]
    assert {step for step, _ in logged(trainer, "num_shown")} >= {0, per_epoch, 2 * per_epoch}
    # After the training, all that were mined are there again.
    assert len(view[0]) == 2 + 3 + with_ids and hard_negatives.live.num_shown == 3


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
    callback = MiningCallback(hard_negatives, mining_steps=1, schedule={"num_shown": Linear(1, 4)})
    batches, trainer = train(model, hard_negatives.as_dataset(), make_args(tmp_path), [callback])
    check_widths(batches, [1, 2, 3], PER_EPOCH, with_ids=False)  # 1 + 3 s / 12 at s = 0, 4, 8
    assert [report.in_force["num_shown"] for report in callback.reports] == [1] * 3 + [2] * 4 + [3] * 4
    assert {(step, number) for step, number in logged(trainer, "num_shown")} == {
        (step, 1 + step // 4) for step in range(12)
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_two_datasets_with_schedules_of_their_own(model, tmp_path, workers):
    """In a DatasetDict, each dataset has its own number of negatives, in whole batches, and its own lines in the log."""
    first, second, third = make_negatives(3), make_negatives(2, num_rows=24), make_negatives(2, num_rows=24)
    callbacks = [
        MiningCallback({"first": first}, mining_steps=4, schedule=WIDER),
        MiningCallback(
            {"second": second, "third": third}, mining_steps=5, schedule={"num_shown": Step({0: 2, 0.5: 1})}
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
    assert (first.live.num_shown, second.live.num_shown, third.live.num_shown) == (3, 2, 2)
    assert logged(trainer, "second/num_shown")[-1][1] == logged(trainer, "third/num_shown")[-1][1] == 1


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
