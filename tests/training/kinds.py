"""Small trainings of dense, sparse and multi-vector models in their stock trainers, with what reaches the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import multi_vector_encoder, sentence_transformer, sparse_encoder
from sentence_transformers.multi_vector_encoder import losses as multi_vector_losses
from sentence_transformers.sentence_transformer import losses as dense_losses
from sentence_transformers.sparse_encoder import losses as sparse_losses

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from tests import tiny_models
from tests.conftest import random_texts

TEXTS = list(dict.fromkeys(random_texts(300, seed=3, length=3)))
NUM_ROWS = 60

TRAINERS = {
    "dense": (
        sentence_transformer.SentenceTransformerTrainer,
        sentence_transformer.SentenceTransformerTrainingArguments,
    ),
    "sparse": (sparse_encoder.SparseEncoderTrainer, sparse_encoder.SparseEncoderTrainingArguments),
    "multi-vector": (
        multi_vector_encoder.MultiVectorEncoderTrainer,
        multi_vector_encoder.MultiVectorEncoderTrainingArguments,
    ),
}
MODELS = {"dense": tiny_models.dense, "sparse": tiny_models.splade, "multi-vector": tiny_models.colbert}


def ranking_loss(kind: str, model: Any) -> Any:
    """Return the usual loss of a kind."""
    if kind == "dense":
        return dense_losses.MultipleNegativesRankingLoss(model)
    if kind == "multi-vector":
        return multi_vector_losses.MultiVectorMultipleNegativesRankingLoss(model)
    return splade_loss(model, sparse_losses.SparseMultipleNegativesRankingLoss(model))


def splade_loss(model: Any, inner: Any, **options: Any) -> Any:
    """Return the loss that sparse losses are used in."""
    weights = {"document_regularizer_weight": 3e-5, "query_regularizer_weight": 5e-5}
    return sparse_losses.SpladeLoss(model, inner, **weights, **options)


def make_negatives(model: Any, **config: Any) -> HardNegativeDataset:
    """Return 60 rows, mined by a draw from the 12 nearest of all texts unless the config says otherwise."""
    pairs = Dataset.from_dict({"anchor": TEXTS[:NUM_ROWS], "positive": TEXTS[NUM_ROWS : 2 * NUM_ROWS]})
    options = {name: config.pop(name) for name in ("teacher", "cross_encoder") if name in config}
    recipe = MiningConfig(**{"num_negatives": 2, "sampling_strategy": "random", "range_max": 12, **config})
    found = HardNegativeDataset(pairs, TEXTS[2 * NUM_ROWS :], recipe, **options)
    found.mine(model, show_progress_bar=False)
    return found


class Recorder:
    """Notes the words of every column that a loss gets."""

    def __init__(self, loss: Any) -> None:
        self.batches: list[list[tuple[str, ...]]] = []
        self.labels: list[Any] = []
        words = [*tiny_models.SPECIAL, *tiny_models.WORDS]
        real = loss.forward

        def forward(sentence_features: Any, labels: Any = None) -> Any:
            features = list(sentence_features)
            columns = [[_text(words, ids) for ids in one["input_ids"].tolist()] for one in features]
            self.batches.append(list(zip(*columns, strict=True)))
            self.labels.append(None if labels is None else labels.tolist())
            return real(features, labels)

        loss.forward = forward


def _text(words: list[str], ids: list[int]) -> str:
    return " ".join(words[number] for number in ids if number >= len(tiny_models.SPECIAL))


class Watched(MiningCallback):
    """Notes the texts of every row's negatives after each mining, by the step at which it was."""

    def __init__(self, hard_negatives: HardNegativeDataset, **options: Any) -> None:
        super().__init__(hard_negatives, **options)
        self.negatives = {0: texts_of(hard_negatives)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before = len(self.reports)
        super().on_step_end(args, state, control, **kwargs)
        if len(self.reports) > before:
            self.negatives[state.global_step] = texts_of(self.hard_negatives)


def texts_of(hard_negatives: HardNegativeDataset) -> dict[str, tuple[str, ...]]:
    """Return the negatives of every anchor."""
    ids = hard_negatives.negative_ids.tolist()
    return {
        anchor: tuple(hard_negatives.corpus.texts.take(row)) for anchor, row in zip(TEXTS[:NUM_ROWS], ids, strict=True)
    }


def run(
    kind: str,
    folder: Path,
    *,
    make_model: Callable[[Path], Any] | None = None,
    make_loss: Callable[[Any], Any] | None = None,
    config: dict[str, Any] | None = None,
    callback: dict[str, Any] | None = None,
    view: dict[str, Any] | None = None,
    resume: Any = None,
    encoded: list[int] | None = None,
    **options: Any,
) -> tuple[Recorder, Watched, Any]:
    """Train from the start, or from a checkpoint, with everything made anew as a restarted script does.

    Args:
        kind: ``"dense"``, ``"sparse"`` or ``"multi-vector"``.
        folder: For the model and for checkpoints.
        make_model: Makes another model than the usual one.
        make_loss: Makes another loss than the usual one.
        config: Fields of the recipe.
        callback: Arguments of the callback.
        view: Arguments of ``as_dataset``.
        resume: A checkpoint.
        encoded: Takes the number of texts of every call of the model while it trains.
        **options: Training arguments.

    Returns:
        What reached the loss, the callback, and the trainer.
    """
    model = (make_model or MODELS[kind])(folder / "model")
    hard_negatives = make_negatives(model, **(config or {}))
    if encoded is not None:
        infer = model._inference
        model._inference = lambda inputs, **given: encoded.append(len(inputs)) or infer(inputs, **given)
    callback = dict(callback or {})
    if callable(getattr(callback.get("retriever"), "found_for", None)):
        callback["retriever"] = callback["retriever"].found_for(model)
    loss = ranking_loss(kind, model) if make_loss is None else make_loss(model)
    recorder, watched = Recorder(loss), Watched(hard_negatives, **{"mining_steps": 3, **callback})
    trainer_class, args_class = TRAINERS[kind]
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "use_cpu": True,
    }
    trainer = trainer_class(
        model=model,
        args=args_class(output_dir=str(folder / "out"), **{**defaults, **options}),
        train_dataset=hard_negatives.as_dataset(**(view or {})),
        loss=loss,
        callbacks=[watched],
    )
    trainer.train(resume_from_checkpoint=resume)
    return recorder, watched, trainer
