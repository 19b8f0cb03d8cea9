"""A cross encoder trained on two ranks: who scores which pairs at a refresh, and what every rank reads and ends with.

Argument: output folder, in which the model is.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import disable_progress_bars
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, losses
from transformers import TrainerCallback

from st_hardneg import MiningCallback
from tests.conftest import other_model, run_and_leave
from tests.training.test_cross_encoder import LAYOUTS, TEXTS, make_args, make_negatives, pairs_of

LOSSES = (
    "BinaryCrossEntropyLoss",
    "LambdaLoss",
    "MultipleNegativesRankingLoss",
    "CachedMultipleNegativesRankingLoss",
)


class Refreshes(TrainerCallback):
    """Notes at each refresh what is in force, which pairs this rank scored, and what the model says of those in force."""

    def __init__(self, model: Any, found: Any) -> None:
        self.model, self.found = model, found
        self.states: dict[int, list[list[str]]] = {0: self.negatives()}
        self.scored: dict[int, list[tuple[str, str]]] = {}
        self.scores: dict[int, tuple[list[float], list[float]]] = {}
        self._now: list[tuple[str, str]] | None = []
        infer = model._inference

        def counted(inputs: list[Any], **options: Any) -> Any:
            if self._now is not None:
                self._now += [tuple(pair) for pair in inputs]
            return infer(inputs, **options)

        model._inference = counted

    def negatives(self) -> list[list[str]]:
        """Return the texts in force."""
        return [self.found.corpus.texts.take(row) for row in self.found.negative_ids]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note what has changed, if there was a refresh."""
        step = state.global_step
        if step not in (3, 6):
            return
        self.states[step], self.scored[step] = self.negatives(), list(self._now or [])
        self._now = None  # what follows is not of the mining
        pairs = [(anchor, text) for anchor, row in zip(TEXTS[:40], self.states[step], strict=True) for text in row]
        was_training = self.model.training
        expected = self.model.predict(pairs, show_progress_bar=False)
        self.model.train(was_training)
        given = self.found.live.mining.negatives.cross_encoder_scores.flatten()
        self.scores[step] = (given.tolist(), [float(score) for score in expected])
        self._now = []


def train(folder: Path, name: str, *, world: int = 1, rank: int = 0, **options: Any) -> dict[str, Any]:
    """Train seven steps, with refreshes at 3 and 6, and return what this rank has seen."""
    model = CrossEncoder(str(folder / "model"), num_labels=1, device="cpu")
    model._create_model_card = lambda *_, **__: None  # type: ignore[method-assign]
    dense = other_model(1)
    found = make_negatives(dense)
    loss = getattr(losses, name)(model)
    batches: list[Any] = []
    loss.register_forward_pre_hook(lambda _, args: batches.append(args[0]))
    refreshes = Refreshes(model, found)
    callback = MiningCallback(found, 3, retriever=dense)
    trainer = CrossEncoderTrainer(
        model=model,
        args=make_args(folder / f"{name}{rank}", max_steps=7, per_device_train_batch_size=8 // world, **options),
        train_dataset=found.as_dataset(LAYOUTS[name]),
        loss=loss,
        callbacks=[callback, refreshes],
    )
    trainer.train()
    return {
        "steps": [report.step for report in callback.reports],
        "states": refreshes.states,
        "scored": refreshes.scored,
        "scores": refreshes.scores,
        "rows": [list(zip(*inputs, strict=True)) for inputs in batches],
        "negatives": [pairs_of(LAYOUTS[name], inputs) for inputs in batches],
        "weights": torch.cat([one.detach().flatten() for one in model.parameters()]).tolist(),
        "is_training": model.training,
    }


def main() -> None:
    """Train with each loss, after a training that cannot work as the trainers' defaults are."""
    torch.set_num_threads(1)
    disable_progress_bars()
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    try:
        train(folder, LOSSES[0], world=2, rank=rank)
    except ValueError as error:
        results: dict[str, Any] = {"refused": str(error)}
    for name in LOSSES:
        results[name] = train(folder, name, world=2, rank=rank, ddp_find_unused_parameters=False)
    (folder / f"cross{rank}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    run_and_leave(main)
