"""How many negatives the losses leave out, from the losses to the trainer's log line."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_hardneg.losses.masking import LeftOut

SHARE_NAMES = ("masked_known_positive", "masked_near_positive", "masked_hard", "masked_easy")
"""What a loss counts: the negatives left out as known positives, as near-copies of one, as too hard, as too easy."""


class MaskingDiagnostics:
    """Counts the negatives that a loss leaves out, since it was last asked.

    The counts stay on the device, so that counting never waits for it; :meth:`pop` does.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None

    def add(self, left_out: LeftOut, num_negatives: int) -> None:
        """Count the negatives of one computation of the loss.

        Evaluation is not counted.

        Args:
            left_out: What was left out.
            num_negatives: Of how many.
        """
        if not torch.is_grad_enabled():
            return
        masks = (left_out.known_positive, left_out.near_positive, left_out.hard, left_out.easy)
        counts = torch.stack([*(mask.sum() for mask in masks), masks[0].new_tensor(num_negatives, dtype=torch.int64)])
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts

    def pop_counts(self) -> Tensor:
        """Return the counts and start anew.

        Returns:
            int64 of shape ``(5,)``: the negatives left out for each reason of ``SHARE_NAMES``, and all negatives.
        """
        counts, self._counts = self._counts, None
        return torch.zeros(len(SHARE_NAMES) + 1, dtype=torch.int64) if counts is None else counts

    def pop(self) -> dict[str, float]:
        """Return which share of the negatives was left out for each reason, and start anew."""
        return shares(self.pop_counts())


def shares(counts: Tensor) -> dict[str, float]:
    """Turn counts into shares.

    Args:
        counts: int64 of shape ``(5,)`` as from :meth:`MaskingDiagnostics.pop_counts`.

    Returns:
        A share between 0 and 1 for each of ``SHARE_NAMES``.
    """
    *left_out, total = counts.tolist()
    return {name: count / max(total, 1) for name, count in zip(SHARE_NAMES, left_out, strict=True)}


def diagnostics_of(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, MaskingDiagnostics]:
    """Find the counters of a loss, of the losses that it wraps, or of a trainer's losses by dataset name.

    Args:
        loss: What a trainer holds as its ``loss``.

    Returns:
        The counters by a prefix for the log: empty if there is but one, else the name of the part or dataset.
    """
    found: dict[int, tuple[str, MaskingDiagnostics]] = {}
    for name, module in _named_losses(loss):
        counter = getattr(module, "diagnostics", None)
        if isinstance(counter, MaskingDiagnostics) and id(counter) not in found:
            found[id(counter)] = (name, counter)
    prefix = "" if len(found) == 1 else "{}/"
    return {prefix.format(name): counter for name, counter in found.values()}


def pop_diagnostics(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, float]:
    """Return the shares of negatives left out since the last call, averaged over all ranks, ready to be logged.

    Under distributed training every rank must call this at the same step.

    Args:
        loss: What a trainer holds as its ``loss``.

    Returns:
        Shares between 0 and 1 under the ``SHARE_NAMES``, such as ``masked_hard``; prefixed with the
        part's or dataset's name where several losses count. Empty if none of the losses counts.
    """
    counts = _pop_counts(loss)
    return {prefix + name: share for prefix, row in counts.items() for name, share in shares(row).items()}


def track_diagnostics(trainer: Any) -> None:
    """Put the shares of negatives left out into the next log line of a trainer.

    Call it on every rank just before the trainer logs: in ``on_step_end`` and ``on_epoch_end`` if
    ``control.should_log``. A second call before the same line changes nothing.

    Args:
        trainer: A ``SentenceTransformerTrainer``.
    """
    counts = _pop_counts(trainer.loss)
    components = trainer.accum_loss_components["train"]
    steps = int(components.get("steps", 0))
    values = {
        prefix + name: torch.tensor(share, device=row.device)
        for prefix, row in counts.items()
        for name, share in shares(row).items()
    }
    if values and not steps:
        trainer.track_loss_components(values)
    elif any(bool(row[-1]) for row in counts.values()):
        # The trainer divides every sum by the one number of steps that it counts for the parts of the loss.
        components.update({name: value * steps for name, value in values.items()})


class LossDiagnosticsCallback(TrainerCallback):
    """Logs the share of negatives that the losses of this package leave out, in the trainer's normal log line.

    Args:
        trainer: The trainer whose losses to watch. A trainer hands itself to no callback, so this one is added after
            the trainer was built.

    Example:
        ::

            trainer = SentenceTransformerTrainer(model=model, train_dataset=train_dataset, loss=loss)
            trainer.add_callback(LossDiagnosticsCallback(trainer))
            trainer.train()  # {'loss': 0.31, ..., 'masked_known_positive': 0.01, 'masked_hard': 0.04, ...}
    """

    def __init__(self, trainer: Any) -> None:
        # Weakly, for the trainer holds its callbacks: in a circle, both would outlive the training.
        self._trainer = weakref.ref(trainer)

    @property
    def trainer(self) -> Any:
        """The trainer, as long as it is there."""
        return self._trainer()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand the shares over if this step is logged."""
        if control.should_log:
            track_diagnostics(self.trainer)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand the shares over if this epoch is logged."""
        if control.should_log:
            track_diagnostics(self.trainer)


def _pop_counts(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, Tensor]:
    counters = diagnostics_of(loss)
    if not counters:
        return {}
    device = _device_of(loss)
    counts = torch.stack([counter.pop_counts().to(device) for counter in counters.values()])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
    return dict(zip(counters, counts, strict=True))


def _named_losses(loss: nn.Module | Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(loss, Mapping):
        for dataset_name, inner in loss.items():
            for name, module in _named_losses(inner):
                yield f"{dataset_name}/{name}".rstrip("/"), module
        return
    for path, module in loss.named_modules():
        parts = [part for part in path.split(".") if part not in ("loss", "parts")]
        yield "/".join(parts), module


def _device_of(loss: nn.Module | Mapping[str, nn.Module]) -> torch.device:
    modules = loss.values() if isinstance(loss, Mapping) else [loss]
    return next((parameter.device for module in modules for parameter in module.parameters()), torch.device("cpu"))
