"""What the benchmarks of refreshes share: a training of four epochs, with a clock around everything a callback does."""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "examples")]

from train_with_refresh import argument_parser, evaluator, load, make_config, make_model, train

from st_hardneg import HardNegativeDataset, MiningCallback
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss
from tests.conftest import WORDS, random_texts, word_model


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options: those of the example, and a small form without data."""
    options = argument_parser(description)
    options.add_argument("--small", action="store_true", help="a toy, to see that the benchmark runs")
    options.add_argument("--threads", type=int, default=1, help="threads of torch")
    return options


@dataclass
class Figures:
    """What one training took.

    Args:
        seconds: Of the whole training.
        stops: Seconds that the loop stood still in the callback, by refresh.
        cpu_seconds: Of the whole training, on the processor; of the training's own thread, as those that follow.
        cpu_stops: The same of its stops, on a busy machine a better measure.
        encoded: Texts that each refresh encoded.
        staleness: Steps between the weights of each refresh and its being put in force.
        ages: Mean age of the corpus' vectors at each refresh.
        ndcg: nDCG@10 on test queries.
        epochs: Epochs.
    """

    epochs: int
    seconds: float = 0.0
    stops: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    cpu_stops: list[float] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    ndcg: float = 0.0

    @property
    def epoch(self) -> tuple[float, float]:
        """Seconds of an epoch without what the callback takes, by the clock and on the processor."""
        own, own_cpu = self.seconds - sum(self.stops), self.cpu_seconds - sum(self.cpu_stops)
        return own / self.epochs, own_cpu / self.epochs

    @property
    def stop(self) -> tuple[float, float]:
        """Seconds that the loop stands still for a refresh, in the median, by the clock and on the processor."""
        return statistics.median(self.stops or [0.0]), statistics.median(self.cpu_stops or [0.0])


def now() -> np.ndarray:
    """Return the time by the clock, and that which this thread has spent on the processor."""
    return np.array([time.perf_counter(), time.thread_time()])


class Clocked(MiningCallback):
    """Notes the seconds in its events, from one refresh to the next; other events take microseconds."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.figures: Figures | None = None
        self.begun: list[np.ndarray] = []

    def _clocked(self, name: str, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        before, asked = now(), self._asked_at
        getattr(super(), name)(*given, **options)
        spent = now() - before
        if self._asked_at != asked:
            self.begun.append(np.zeros(2))
        if self.begun:
            self.begun[-1] += spent

    def on_train_begin(self, *given: Any, **options: Any) -> None:
        self.begun = []
        super().on_train_begin(*given, **options)
        self.started = now()

    def on_epoch_begin(self, *given: Any, **options: Any) -> None:
        self._clocked("on_epoch_begin", given, options)

    def on_pre_optimizer_step(self, *given: Any, **options: Any) -> None:
        self._clocked("on_pre_optimizer_step", given, options)

    def on_step_end(self, *given: Any, **options: Any) -> None:
        self._clocked("on_step_end", given, options)

    def on_train_end(self, *given: Any, **options: Any) -> None:
        self.seconds = now() - self.started
        self.log = [entry for entry in self.trainer.state.log_history if "mining/refresh" in entry]
        super().on_train_end(*given, **options)


class Bench:
    """Data, a model to begin with, and trainings."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        torch.set_num_threads(arguments.threads)
        if arguments.small:
            texts = list(dict.fromkeys(random_texts(700, seed=3, length=6)))
            self.pairs = Dataset.from_dict({"anchor": texts[:160], "positive": texts[160:320]})
            self.corpus: Any = texts[320:600]
            queries, relevant = {str(i): texts[i] for i in range(40)}, {str(i): {str(160 + i)} for i in range(40)}
            self.evaluate = evaluator(queries, {str(i): text for i, text in enumerate(texts)}, relevant)
            vectors = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
            self.base = word_model(WORDS, vectors)
        else:
            self.pairs, self.corpus, self.evaluate = load(arguments.data, arguments.limit)
            self.base = make_model(arguments, [*self.pairs["anchor"], *self.corpus["text"]])

    def ndcg(self, model: SentenceTransformer) -> float:
        """Return nDCG@10 on the test queries."""
        return next(value for name, value in self.evaluate(model).items() if name.endswith("ndcg@10"))

    def train(self, seed: int, **mining: Any) -> Figures:
        """Train with refreshes, or without if nothing is said of them."""
        arguments, model = self.arguments, copy.deepcopy(self.base)
        # A corpus of its own: one that several datasets share is encoded for the first of them only.
        corpus = self.corpus.select(range(len(self.corpus))) if isinstance(self.corpus, Dataset) else self.corpus
        hard_negatives = HardNegativeDataset(self.pairs, corpus, make_config(arguments), batch_size=256)
        hard_negatives.mine(model, show_progress_bar=False)
        callback = Clocked(hard_negatives, **(mining or {"mining_strategy": "epoch", "mining_warmup_steps": 10**9}))
        loss = SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives)
        train(model, hard_negatives.as_dataset(with_ids=True), arguments, seed, [callback], loss)
        clock, processor = (list(column) for column in np.array([callback.seconds, *callback.begun]).T)
        return Figures(
            epochs=arguments.epochs,
            seconds=clock[0],
            stops=clock[1:],
            cpu_seconds=processor[0],
            cpu_stops=processor[1:],
            encoded=[report.num_encoded or 0 for report in callback.reports],
            staleness=[entry["mining/staleness"] for entry in callback.log],
            ages=[entry["mining/vector_age"] for entry in callback.log if "mining/vector_age" in entry],
            ndcg=self.ndcg(model),
        )


def mean(values: list[float]) -> float:
    """Return the mean, or 0 of nothing."""
    return statistics.mean(values) if values else 0.0
