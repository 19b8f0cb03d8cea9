"""Every loss trains in the stock trainer: alone, under MatryoshkaLoss, with gradient accumulation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MatryoshkaLoss
from sentence_transformers.util import pairwise_cos_sim
from torch import nn

from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.losses import (
    LossDiagnosticsCallback,
    SemiHardCachedMultipleNegativesRankingLoss,
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
)
from st_hardneg.losses.diagnostics import SHARE_NAMES, pop_diagnostics

pytestmark = pytest.mark.training


def _weighted_sum(model: SentenceTransformer) -> WeightedSumLoss:
    ranking, contrastive = SemiHardMultipleNegativesRankingLoss(model), SemiHardContrastiveLoss(model)
    return WeightedSumLoss(
        model,
        {"ranking": (0.6, ranking), "contrastive": (0.3, contrastive), "cosine": (0.1, CosineSimilarityLoss(model))},
    )


LOSSES: dict[str, Callable[[SentenceTransformer], nn.Module]] = {
    "ranking": SemiHardMultipleNegativesRankingLoss,
    "cached": lambda model: SemiHardCachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
    "triplet": SemiHardTripletLoss,
    "contrastive": SemiHardContrastiveLoss,
    "sum": _weighted_sum,
}


def _train(
    model: SentenceTransformer, loss: Any, data: Any, path: Path, callback: bool = True, **arguments: Any
) -> SentenceTransformerTrainer:
    settings = {"max_steps": 6, "per_device_train_batch_size": 8, "logging_steps": 2, "learning_rate": 0.02}
    args = SentenceTransformerTrainingArguments(
        output_dir=str(path), report_to="none", save_strategy="no", use_cpu=True, **(settings | arguments)
    )
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=loss)
    if callback:
        trainer.add_callback(LossDiagnosticsCallback(trainer))
    trainer.train()
    return trainer


def _gap(model: SentenceTransformer, rows: Dataset) -> float:
    anchors, positives, negatives = (
        model.encode(rows[name][:], convert_to_tensor=True) for name in ("anchor", "positive", "negative_1")
    )
    return (pairwise_cos_sim(anchors, positives) - pairwise_cos_sim(anchors, negatives)).mean().item()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("setting", ["alone", "matryoshka", "accumulation", "bf16"])
def test_every_loss_trains(
    build_static_model: Callable[..., SentenceTransformer],
    build_transformer_model: Callable[[], SentenceTransformer],
    rows: Dataset,
    tmp_path: Path,
    name: str,
    setting: str,
) -> None:
    """The positives move away from the negatives, and the log line holds the shares of what is left out."""
    model = build_transformer_model() if name == "cached" else build_static_model()
    loss = LOSSES[name](model)
    if setting == "matryoshka":
        loss = MatryoshkaLoss(model, loss, [16, 8])
    steps = 2 if setting == "accumulation" else 1
    before = _gap(model, rows)
    trainer = _train(model, loss, rows, tmp_path, gradient_accumulation_steps=steps, bf16=setting == "bf16")
    assert _gap(model, rows) > before + 0.01
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    prefixes = ["ranking/", "contrastive/"] if name == "sum" else [""]
    for entry in logged:
        for share in (prefix + share for prefix in prefixes for share in SHARE_NAMES):
            assert 0.0 <= entry[share] <= 1.0
        if name == "sum":
            parts = entry["ranking"] + entry["contrastive"] + entry["cosine"]
            assert parts == pytest.approx(entry["loss"], abs=0.02 if setting == "bf16" else 2e-3)


def test_accumulated_gradients_equal_those_of_the_whole_batch(static_model: SentenceTransformer, rows: Dataset) -> None:
    """Weighted rows add up over micro-batches: the mean of the parts is the loss of the whole."""
    loss = SemiHardContrastiveLoss(static_model, mask_hard=False)
    names, weights = rows.column_names, torch.linspace(0, 2, 16)
    parts = [
        loss([static_model.preprocess(rows[name][start : start + 4]) for name in names], weights[start : start + 4])
        for start in range(0, 16, 4)
    ]
    whole = loss([static_model.preprocess(rows[name][:16]) for name in names], weights)
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_ids_arrive_through_the_collator(static_model: SentenceTransformer, rows: Dataset, tmp_path: Path) -> None:
    """A label column of ids reaches the loss as int64, and rows of one query mask each other."""
    known = KnownPositives.from_lists([[0]], identities=[0, *range(1, 64)])
    label = [[row, 0, 0, 10**6, 1 + row % 63, -1] for row in range(64)]
    loss = SemiHardMultipleNegativesRankingLoss(static_model, known_positives=known)
    trainer = _train(static_model, loss, rows.add_column("label", label), tmp_path)
    shares = [entry["masked_known_positive"] for entry in trainer.state.log_history if "loss" in entry]
    # Each row masks the 7 other positives of its batch, of 23 negatives.
    assert shares == [pytest.approx(7 / 23, abs=1e-4)] * 3


def test_ids_as_wide_as_the_embeddings_are_reported(
    build_static_model: Callable[..., SentenceTransformer], rows: Dataset
) -> None:
    """MatryoshkaLoss cuts labels of the embedding dimension, which the loss notices."""
    model = build_static_model(dim=6)
    loss = MatryoshkaLoss(model, SemiHardMultipleNegativesRankingLoss(model), [6, 4])
    features = [model.preprocess(rows[name][:8]) for name in rows.column_names]
    with pytest.raises(
        ValueError, match=r"the model's embeddings have 6 dimensions, .* mine another number of negatives than 2"
    ):
        loss(features, torch.ones(8, 6, dtype=torch.int64))


def test_losses_by_dataset_are_logged_by_dataset(
    static_model: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    """With a dictionary of losses the shares carry the dataset's name."""
    data = DatasetDict({"first": rows, "second": rows})
    losses = {"first": SemiHardTripletLoss(static_model), "second": SemiHardContrastiveLoss(static_model)}
    trainer = _train(static_model, losses, data, tmp_path, logging_strategy="epoch", max_steps=-1, num_train_epochs=1)
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {f"{name}/{share}" for name in losses for share in SHARE_NAMES} <= set(entry)


@pytest.mark.parametrize("build", [SemiHardTripletLoss, _weighted_sum])
def test_a_second_callback_changes_nothing(
    build_static_model: Callable[..., SentenceTransformer], rows: Dataset, tmp_path: Path, build: Any
) -> None:
    """Where two callbacks hand over the same counts, the log is that of one."""
    logs = []
    for callbacks in (1, 2):
        model = build_static_model()
        args = SentenceTransformerTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, logging_steps=2)
        args.max_steps, args.save_strategy = 4, "no"
        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=rows, loss=build(model))
        for _ in range(callbacks):
            trainer.add_callback(LossDiagnosticsCallback(trainer))
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert logs[0] == logs[1]
    assert any("masked_hard" in name and share > 0 for name, share in logs[0][0].items())


def test_a_part_logs_the_shares_that_it_logs_alone(
    static_model: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    """Parts of the loss in the log line do not change the shares beside them."""
    logs = []
    for in_sum in (False, True):
        loss: Any = SemiHardTripletLoss(static_model, triplet_margin=0.5)
        if in_sum:
            loss = WeightedSumLoss(
                static_model, {"triplet": (1.0, loss), "cosine": (0.1, CosineSimilarityLoss(static_model))}
            )
        trainer = _train(static_model, loss, rows, tmp_path, learning_rate=0.0, logging_steps=3)
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        logs.append([{name: entry[name] for name in SHARE_NAMES} for entry in logged])
    assert logs[0] == logs[1]
    assert all(entry["masked_hard"] > 0 and entry["masked_easy"] > 0 for entry in logs[0])


def test_without_the_callback_the_shares_wait_to_be_asked_for(
    static_model: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    """The counts go on until they are popped, evaluation is not counted, and other losses count nothing."""
    loss = SemiHardTripletLoss(static_model)
    _train(static_model, loss, rows, tmp_path, callback=False, max_steps=2)
    with torch.no_grad():
        loss([static_model.preprocess(rows[name][:8]) for name in rows.column_names], None)
    assert loss.diagnostics.pop_counts()[-1].item() == 2 * 8 * 2
    assert pop_diagnostics(loss) == dict.fromkeys(SHARE_NAMES, 0.0)
    assert pop_diagnostics(CosineSimilarityLoss(static_model)) == {}


def test_the_trainer_accepts_a_loss_that_counts_nothing(
    static_model: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    """The callback leaves the log line alone where no loss of this package trains."""
    data = rows.select_columns(["anchor", "positive"]).add_column("score", [1.0] * 64)
    trainer = _train(static_model, CosineSimilarityLoss(static_model), data, tmp_path, max_steps=2)
    assert not set(SHARE_NAMES) & set(trainer.state.log_history[0])


@pytest.mark.parametrize("name", ["ranking", "cached", "triplet", "contrastive", "sum"])
def test_the_model_card_names_the_loss(
    build_static_model: Callable[..., SentenceTransformer],
    build_transformer_model: Callable[[], SentenceTransformer],
    rows: Dataset,
    tmp_path: Path,
    name: str,
) -> None:
    """The written model card holds the loss, its settings and its papers."""
    model = build_transformer_model() if name == "cached" else build_static_model()
    loss = LOSSES[name](model)
    _train(model, loss, rows, tmp_path, max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the card asks of the Hub is not this test's subject
        card = model._create_model_card(str(tmp_path)) or (tmp_path / "README.md").read_text()
    assert type(loss).__name__ in card
    assert "mask_hard" in card
    assert "schroff2015facenet" in card
