"""What is looked at whenever negatives were refreshed: an evaluator's metrics beside those of the mining."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_hardneg.hosts import calling_trainer, is_sharded
from st_hardneg.training.refresh import log_metrics


class RefreshEvaluator(TrainerCallback):
    """Runs an evaluator at the beginning of a training and after every refresh, and logs what it finds under ``mining/``.

    Stands beside a :class:`~st_hardneg.MiningCallback` in the trainer's ``callbacks``. The evaluators that the trainer is
    given run at its ``eval_steps``, which need not be those of the refreshes.

    Args:
        evaluator: An evaluator of Sentence Transformers, such as a :class:`~st_hardneg.evaluation.NeighbourEvaluator`.

    Raises:
        TypeError: If it cannot be called.
    """

    def __init__(self, evaluator: Any) -> None:
        if not callable(evaluator):
            raise TypeError(f"Expected an evaluator of Sentence Transformers, got {type(evaluator).__name__}.")
        self.evaluator = evaluator

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate the model as it begins."""
        if state.global_step == 0:
            self._evaluate(state, control, kwargs["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate if it is a refresh that is logged."""
        names = kwargs.get("logs") or {}
        if any(name.startswith("mining/") and name.endswith("/refresh") for name in names):
            self._evaluate(state, control, kwargs["model"])

    def _evaluate(self, state: TrainerState, control: TrainerControl, model: Any) -> None:
        trainer = calling_trainer()
        if not state.is_world_process_zero and not is_sharded(trainer):
            return
        was_training = model.training
        try:
            found = self.evaluator(model, epoch=state.epoch or 0, steps=state.global_step)
        finally:
            model.train(was_training)
        metrics = found if isinstance(found, dict) else {self.evaluator.primary_metric or "score": found}
        if state.is_world_process_zero:
            log_metrics({f"mining/{name}": float(value) for name, value in metrics.items()}, trainer, state, control)
