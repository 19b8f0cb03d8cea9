"""Trainings in which the rank of a negative can be read off its text, in what reaches the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningConfig
from tests.conftest import WORDS, word_model

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


def make_negatives(num_negatives: int = 2, num_rows: int = NUM_ROWS, *, num_topics=None, **config):
    pairs = Dataset.from_dict({"anchor": WORDS[:num_rows], "positive": WORDS[100 : 100 + num_rows]})
    config = MiningConfig(num_negatives=num_negatives, **config)
    hard_negatives = HardNegativeDataset(pairs, NEGATIVES, config, searcher=Ranked(), num_topics=num_topics)
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
