"""Who really refreshes? Count how many new negatives reach the loss, for four ways to mine anew during training.

Each way mines one negative a row before a training of 64 steps, and again after step 40, with the weights of that moment.
Rows whose negative that changes are counted once the dataloader's workers have had time to fetch them: does the loss get
the new one?

- a swapped dataset: a callback sets ``trainer.train_dataset`` to what ``mine_hard_negatives`` returns;
- a changed attribute: a transform reads negatives from an attribute that a callback replaces; two dataloader workers;
- a cache: the last 24 steps are a training of their own, on what ``mine_hard_negatives(cache_folder=...)`` returns anew;
- this package: a live view and ``MiningCallback``; two dataloader workers.

    python examples/who_refreshes.py

Offline, on the docstrings of Python's standard library and a static embedding, in about a minute.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from datasets import Dataset, disable_progress_bars
from docstring_pairs import standard_library_pairs
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives
from torch import Tensor
from train_with_refresh import static_model
from transformers import TrainerCallback

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig

PAIRS, BATCH, STEPS, STEP, WORKERS = 1024, 32, 64, 40, 2
# What two workers have fetched ahead is old.
FROM = STEP + 1 + WORKERS * 2
Tokens = tuple[int, ...]


class Recorder(MultipleNegativesRankingLoss):
    """The loss, which notes the anchor and the negative of every row that it is given."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__(model)
        self.batches: list[list[tuple[Tokens, Tokens]]] = []

    def forward(self, sentence_features: Any, labels: Tensor) -> Tensor:
        """Note what has arrived, and go on."""
        anchors, _, negatives = (tokens_of(features) for features in sentence_features)
        self.batches.append(list(zip(anchors, negatives, strict=True)))
        return super().forward(sentence_features, labels)


def tokens_of(features: dict[str, Tensor]) -> list[Tokens]:
    """Return the token ids of each text of a batch."""
    ids, starts = features["input_ids"].tolist(), features["offsets"].tolist()
    return [tuple(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


class AfterStep(TrainerCallback):
    """Calls a function after one step, with the trainer."""

    trainer: Any = None

    def __init__(self, do: Callable[[Any], None]) -> None:
        self.do = do

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Call it."""
        if state.global_step == STEP:
            self.do(self.trainer)


def train(
    model: SentenceTransformer, dataset: Dataset, *, steps: int = STEPS, workers: int = 0, callback: Any = None
) -> Recorder:
    """Train with the stock trainer."""
    loss = Recorder(model)
    with tempfile.TemporaryDirectory() as output:
        args = SentenceTransformerTrainingArguments(
            output,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=0.02,
            dataloader_num_workers=workers,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
        )
        trainer = SentenceTransformerTrainer(
            model, args, dataset, loss=loss, callbacks=[callback] if callback else None
        )
        if isinstance(callback, AfterStep):
            callback.trainer = trainer
        trainer.train()
    return loss


def mine(pairs: Dataset, model: SentenceTransformer, **more: Any) -> Dataset:
    """Mine one negative a row with Sentence Transformers' function."""
    return mine_hard_negatives(pairs, model, num_negatives=1, verbose=False, batch_size=256, **more)


def swapped_dataset(pairs: Dataset, model: SentenceTransformer) -> tuple[Recorder, Dataset, Dataset]:
    """Replace ``trainer.train_dataset`` in a callback."""
    old, new = mine(pairs, model), []

    def swap(trainer: Any) -> None:
        new.append(mine(pairs, model))
        trainer.train_dataset = new[0]

    return train(model, old, callback=AfterStep(swap)), old, new[0]


class ReadsAttribute:
    """A transform that reads the negatives from an attribute."""

    def __init__(self, rows: Dataset) -> None:
        self.negatives = rows["negative"][:]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Put the negatives beside anchors and positives."""
        negatives = [self.negatives[row] for row in batch["row"]]
        return {"anchor": batch["anchor"], "positive": batch["positive"], "negative": negatives}


def changed_attribute(pairs: Dataset, model: SentenceTransformer) -> tuple[Recorder, Dataset, Dataset]:
    """Replace the attribute of a transform in a callback."""
    old, new = mine(pairs, model), []
    transform = ReadsAttribute(old)
    rows = old.remove_columns("negative").add_column("row", list(range(len(old))))
    rows = rows.add_column("negative", old["negative"][:])  # the trainer wants to see the column
    rows.set_transform(transform)

    def change(_: Any) -> None:
        new.append(mine(pairs, model))
        transform.negatives = new[0]["negative"][:]

    args = {"workers": WORKERS, "callback": AfterStep(change)}
    return train(model, rows, **args), old, new[0]


def cache(pairs: Dataset, model: SentenceTransformer) -> tuple[Recorder, Dataset, Dataset]:
    """Mine twice with a cache folder; what follows the second mining is a training of its own."""
    with tempfile.TemporaryDirectory() as folder:
        old = mine(pairs, model, cache_folder=folder)
        first = train(model, old, steps=STEP)
        again = mine(pairs, model, cache_folder=folder)
        new = mine(pairs, model)
        second = train(model, again, steps=STEPS - STEP)
    second.batches = first.batches + second.batches
    return second, old, new


def this_package(pairs: Dataset, model: SentenceTransformer) -> tuple[Recorder, Dataset, Dataset]:
    """Train on a live view, with a ``MiningCallback``."""
    hard_negatives = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=1), batch_size=256)
    hard_negatives.mine(model, show_progress_bar=False)
    old = hard_negatives.to_dataset("triplet")
    callback = MiningCallback(hard_negatives, mining_steps=STEP)
    loss = train(model, hard_negatives.as_dataset(), workers=WORKERS, callback=callback)
    return loss, old, hard_negatives.to_dataset("triplet")


WAYS = {
    "a swapped dataset": swapped_dataset,
    "a changed attribute": changed_attribute,
    "a cache": cache,
    "this package": this_package,
}


def count(model: SentenceTransformer, loss: Recorder, old: Dataset, new: Dataset) -> tuple[int, int]:
    """Return how many rows that came to the loss have a new negative, and how many of them came with it."""

    def by_anchor(rows: Dataset) -> dict[Tokens, Tokens]:
        encoded = [
            model[0].tokenizer.encode_batch(rows[name][:], add_special_tokens=False) for name in ("anchor", "negative")
        ]
        return {tuple(anchor.ids): tuple(negative.ids) for anchor, negative in zip(*encoded, strict=True)}

    before, now = by_anchor(old), by_anchor(new)
    rows = [row for batch in loss.batches[FROM:] for row in batch]
    changed = [(a, negative) for a, negative in rows if a in before and a in now and before[a] != now[a]]
    return len(changed), sum(negative == now[a] for a, negative in changed)


def main() -> None:
    """Try the four ways and print the table."""
    pairs, corpus, _, _ = standard_library_pairs()
    pairs = pairs.select(range(PAIRS))
    base = static_model([*pairs["anchor"], *corpus["text"]])
    print(f"{'':<22}{'rows with a new negative':>26}{'the loss got it':>18}")
    for name, way in WAYS.items():
        model = copy.deepcopy(base)
        changed, arrived = count(model, *way(pairs, model))
        print(f"{name:<22}{changed:>26,}{arrived:>18,}")


if __name__ == "__main__":
    disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    main()
