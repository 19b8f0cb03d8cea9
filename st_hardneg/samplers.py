"""Batches without duplicate anchors and positives, mixed or from one topic each."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from st_hardneg.corpus.identity import same_text_key
from st_hardneg.hosts import DefaultBatchSampler
from st_hardneg.live.dataset import live_topics

logger = logging.getLogger(__name__)

_READ_ROWS = 10_000
_MAX_PASSES = 10


class NoDuplicatePairsBatchSampler(DefaultBatchSampler):
    """Batches in which no anchor or positive occurs twice, whatever the negatives are at the moment.

    Sentence Transformers' ``BatchSamplers.NO_DUPLICATES`` looks at every column, negatives included: with negatives that
    are refreshed, the plan of batches changes under the training, and a resumed run draws other batches than the
    uninterrupted one. ``NO_DUPLICATES_HASHED`` hashes the negatives once and goes on with the first round's. This one
    looks at the first two columns only, which a refresh never changes, and compares texts as the mining does
    (case, whitespace and Unicode form do not count).

    Use:
        ::

            args = SentenceTransformerTrainingArguments(..., batch_sampler=NoDuplicatePairsBatchSampler)

    Args:
        dataset: The dataset; its first two columns that are no labels are anchor and positive.
        batch_size: Rows per batch.
        drop_last: Whether to drop the last incomplete batch.
        valid_label_columns: Names of label columns, which are not looked at.
        generator: Random number generator for shuffling.
        seed: Seed for the generator.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            valid_label_columns=valid_label_columns,
            generator=generator,
            seed=seed,
        )
        labels = [name for name in dataset.column_names if name in (valid_label_columns or [])]
        self.dataset = dataset.remove_columns(labels) if labels else dataset
        self._pair_hashes: np.ndarray | None = None

    def _hash_pairs(self) -> np.ndarray:
        # At the first iteration only: a refresh never changes anchors and positives.
        if self._pair_hashes is None:
            self._pair_hashes = pair_hashes(self.dataset)
        return self._pair_hashes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of an epoch, as row numbers; what is left over makes smaller ones unless it is dropped."""
        if self.generator is not None and self.seed is not None:
            self.generator.manual_seed(self.seed + self.epoch)
        rows = torch.randperm(len(self.dataset), generator=self.generator).tolist()
        for batch in self._batches(rows):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        """Cut rows into batches, each taking the earliest rows left that repeat none of its texts.

        A row that would repeat a text waits with the others of this text, of which only the first can enter the next
        batch. So a batch looks at its own rows and at one row per text that is waited for, not at all that wait.
        """
        hashes = self._hash_pairs()
        waiting: dict[int, list[int]] = {}
        place = 0
        while place < len(rows) or waiting:
            batch: list[int] = []
            texts: set[int] = set()
            heads = [(heap[0], text) for text, heap in waiting.items()]
            heapq.heapify(heads)
            while len(batch) < self.batch_size and (heads or place < len(rows)):
                if heads:
                    number, text = heapq.heappop(heads)
                    if text in texts:
                        continue  # all that wait for this text wait on
                    heapq.heappop(waiting[text])
                else:
                    number, text, place = place, None, place + 1
                own = hashes[rows[number]].tolist()
                blocking = next((one for one in own if one in texts), None)
                if blocking is None:
                    batch.append(rows[number])
                    texts.update(own)
                else:
                    heapq.heappush(waiting.setdefault(blocking, []), number)
                if text is not None:
                    if not waiting[text]:
                        del waiting[text]
                    elif text not in texts:
                        heapq.heappush(heads, (waiting[text][0], text))
            yield batch


class TopicAwareBatchSampler(NoDuplicatePairsBatchSampler):
    """Batches of anchors about one topic each, so that in-batch negatives are hard, too.

    Topics are clusters of the anchors' embeddings, made anew at each mining: pass ``num_topics`` to the dataset. Every
    epoch, the rows of each topic are shuffled and cut into batches; what is left over of one topic shares a batch with
    the next one; the order of batches is random. Topics that a refresh has found hold from the next epoch on. No anchor
    or positive occurs twice in a batch, as with :class:`NoDuplicatePairsBatchSampler`. Where duplicates leave too few
    whole batches for ``drop_last``, some rows are drawn again.

    Source: topic-aware sampling, TAS-Balanced, https://huggingface.co/papers/2104.06967 (about 200 queries a topic and
    batches from one topic), here without replacement within an epoch.

    Use:
        ::

            hard_negatives = HardNegativeDataset(pairs, num_topics=len(pairs) // 200)
            args = SentenceTransformerTrainingArguments(..., batch_sampler=TopicAwareBatchSampler)

    Args:
        dataset: A live view of a dataset that was mined with ``num_topics``.
        batch_size: Rows per batch.
        drop_last: Whether to drop the last incomplete batch.
        valid_label_columns: Names of label columns, which are not looked at.
        generator: Random number generator for shuffling.
        seed: Seed for the generator.
    """

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of an epoch, as row numbers.

        Raises:
            ValueError: If the dataset has no topics.
        """
        if self.generator is not None and self.seed is not None:
            self.generator.manual_seed(self.seed + self.epoch)
        topics = torch.from_numpy(self._topics())
        yielded = 0
        # Duplicates may leave fewer whole batches than `len()` has promised, and with it the end of the epoch.
        for again in range(_MAX_PASSES):
            for batch in self._one_pass(topics):
                yield batch
                yielded += 1
                if again and yielded == len(self):
                    break
            if yielded >= len(self):
                return
        logger.warning(
            f"There are only {yielded:,} batches without duplicates where {len(self):,} were to be expected. Lower the "
            "batch size: the anchors or the positives have too few different texts for it."
        )

    def _one_pass(self, topics: torch.Tensor) -> Iterator[list[int]]:
        rows = torch.randperm(len(topics), generator=self.generator)
        place = torch.randperm(int(topics.max()) + 1, generator=self.generator)
        rows = rows[place[topics[rows].long()].argsort(stable=True)]
        batches = list(self._batches(rows.tolist()))
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        order = torch.randperm(len(full), generator=self.generator).tolist()
        yield from (full[number] for number in order)
        yield from ([] if self.drop_last else rest)

    def _topics(self) -> np.ndarray:
        topics = live_topics(self.dataset)
        if topics is not None:
            return topics
        raise ValueError(
            "Expected a live view of a dataset that was mined with topics, got a dataset without any. Set "
            "`HardNegativeDataset(num_topics=...)`, mine, and train on `hard_negatives.as_dataset()`."
        )


def pair_hashes(dataset: Dataset) -> np.ndarray:
    """Return int64 of shape ``(num_rows, 2)``: a number that equal texts share, for anchor and positive of each row."""
    columns: Sequence[str] = [name for name in dataset.column_names if name != "dataset_name"][:2]
    pairs = dataset.select_columns(list(columns))
    hashes = np.empty((len(dataset), len(columns)), dtype=np.int64)
    for start in range(0, len(dataset), _READ_ROWS):
        batch: dict[str, list[Any]] = pairs[start : start + _READ_ROWS]
        for place, name in enumerate(columns):
            hashes[start : start + _READ_ROWS, place] = [_hash(value) for value in batch[name]]
    return hashes


def _hash(value: Any) -> int:
    key = same_text_key(value) if isinstance(value, str) else hashlib.blake2b(repr(value).encode()).digest()
    return int.from_bytes(key[:8], "little", signed=True)
