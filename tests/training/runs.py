"""Small trainings with refreshes, for the tests of this folder: what reaches the loss, and what is left afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from tests.conftest import WORDS, random_texts, word_model

TEXTS = list(dict.fromkeys(random_texts(400, seed=3, length=2)))

HOST_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.*:FutureWarning"),
]
"""Marks for tests that train: warnings of the hosts about themselves."""


class Recorder(MultipleNegativesRankingLoss):
    """A loss that notes the tokens of every column it gets."""

    def __init__(self, model):
        super().__init__(model)
        self.batches: list[tuple] = []

    def forward(self, sentence_features, labels):
        features = list(sentence_features)
        self.batches.append(tuple(tuple(feature["input_ids"].tolist()) for feature in features))
        return super().forward(features, labels)


def make_model(seed: int = 0):
    """Return a model of 200 words, whose checkpoints have no card."""
    model = word_model(WORDS, torch.randn(200, 8, generator=torch.Generator().manual_seed(seed)))
    model._create_model_card = lambda *_, **__: None  # most of what a checkpoint of a small model takes
    return model


def make_negatives(model, *, num_topics=None, batch_size=32, **config) -> HardNegativeDataset:
    """Return 80 rows, mined by a draw from the 12 nearest of 240 texts unless the config says otherwise."""
    pairs = Dataset.from_dict({"anchor": TEXTS[:80], "positive": TEXTS[80:160]})
    recipe = MiningConfig(**{"num_negatives": 2, "sampling_strategy": "random", "range_max": 12, **config})
    hard_negatives = HardNegativeDataset(pairs, TEXTS[160:], recipe, num_topics=num_topics, batch_size=batch_size)
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


def make_args(folder, **options) -> SentenceTransformerTrainingArguments:
    """Return the arguments of a training of 12 steps on a CPU, with a checkpoint after each."""
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return SentenceTransformerTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def run(folder, resume=None, *, callback=None, config=None, num_topics=None, batch_size=32, **options):
    """Train from the start, or from a checkpoint, with everything made anew as a restarted script does.

    Returns:
        What reached the loss, the dataset, and the callback.
    """
    model = make_model()
    hard_negatives = make_negatives(model, num_topics=num_topics, batch_size=batch_size, **(config or {}))
    loss = Recorder(model)
    strategy = options.pop("mining_strategy", "steps")
    callback = callback or MiningCallback(hard_negatives, mining_steps=3, mining_strategy=strategy)
    callback.hard_negatives = hard_negatives
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(folder, **options),
        train_dataset=hard_negatives.as_dataset(),
        loss=loss,
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    return loss.batches, hard_negatives, callback


def train(folder, callbacks, dataset, model, loss=None, **options) -> list[dict]:
    """Train without checkpoints, and return the trainer's log."""
    trainer = SentenceTransformerTrainer(
        model=model,
        args=make_args(folder, **{"save_strategy": "no", **options}),
        train_dataset=dataset,
        loss=MultipleNegativesRankingLoss(model) if loss is None else loss,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer.state.log_history


def ids_of(hard_negatives: HardNegativeDataset) -> list[list[int]]:
    """Return the corpus ids of the negatives of every query."""
    return hard_negatives.live.mining.negatives.ids.tolist()


def table_of(hard_negatives: HardNegativeDataset, *, previous: bool = False) -> list[list[int]]:
    """Return what the live view reads for every row."""
    return hard_negatives.live.view.table.read(np.arange(len(hard_negatives)), previous=previous).tolist()
