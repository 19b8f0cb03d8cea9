"""Trainings in which every mining finds texts that no other finds, so that a batch tells by which it was filled."""

from __future__ import annotations

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from tests.conftest import WORDS, word_model

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


def make_model():
    words = [*WORDS, *NEGATIVES]
    return word_model(words, torch.randn(len(words), 8, generator=torch.Generator().manual_seed(0)))


def make_negatives(num_rows: int = NUM_ROWS, *, searcher=None, **config) -> HardNegativeDataset:
    pairs = Dataset.from_dict(
        {
            "anchor": [f"{WORDS[i % 100]} {WORDS[i // 100]}" for i in range(num_rows)],
            "positive": [f"{WORDS[100 + i % 100]} {WORDS[i // 100]}" for i in range(num_rows)],
        }
    )
    return HardNegativeDataset(
        pairs, NEGATIVES, MiningConfig(num_negatives=2, **config), searcher=searcher or Rounds(0)
    )


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
