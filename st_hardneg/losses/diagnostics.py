"""How many negatives the losses leave out, and how that reaches the trainer's log line."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_hardneg.hosts import loss_components
from st_hardneg.losses.masking import LeftOut

SHARE_NAMES = ("masked_unfilled", "masked_known_positive", "masked_near_positive", "masked_hard", "masked_easy")
"""What a loss counts: negatives left out because they only complete their row, because they are known positives or
near-copies of the positive, or because they are too hard or too easy."""


class MaskingDiagnostics:
    """Counts the negatives that a loss has left out since the last :meth:`pop`.

    The counts stay on the device, because reading them would make every step wait for it.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None

    def add(self, left_out: LeftOut, num_negatives: int) -> None:
        """Count the negatives of one call of the loss, unless it was for evaluation.

        Args:
            left_out: The negatives that were left out.
            num_negatives: The number of all negatives.
        """
        if not torch.is_grad_enabled():
            return
        masks = (left_out.unfilled, left_out.known_positive, left_out.near_positive, left_out.hard, left_out.easy)
        counts = torch.stack([*(mask.sum() for mask in masks), masks[0].new_tensor(num_negatives, dtype=torch.int64)])
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts

    def pop_counts(self) -> Tensor:
        """Return the counts and reset them.

        Returns:
            int64: the negatives left out for each reason of ``SHARE_NAMES``, and then the number of all negatives.
        """
        counts, self._counts = self._counts, None
        return torch.zeros(len(SHARE_NAMES) + 1, dtype=torch.int64) if counts is None else counts

    def pop(self) -> dict[str, float]:
        """Return the share of the negatives left out for each reason of ``SHARE_NAMES``, and reset the counts."""
        return shares(self.pop_counts())


def shares(counts: Tensor) -> dict[str, float]:
    """Turn counts into shares.

    Args:
        counts: int64 as from :meth:`MaskingDiagnostics.pop_counts`.

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
        The counters by the prefix that they have in the log: none if there is only one counter, otherwise the name of
        the dataset or part.
    """
    found: dict[int, tuple[str, MaskingDiagnostics]] = {}
    for name, module in _named_losses(loss):
        counter = getattr(module, "diagnostics", None)
        if isinstance(counter, MaskingDiagnostics) and id(counter) not in found:
            found[id(counter)] = (name, counter)
    prefix = "" if len(found) == 1 else "{}/"
    return {prefix.format(name): counter for name, counter in found.values()}


def pop_diagnostics(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, float]:
    """Return the shares of negatives left out on all ranks since the last call, under their names in the log.

    In distributed training every rank must call this at the same step.

    Args:
        loss: What a trainer holds as its ``loss``.

    Returns:
        Shares between 0 and 1 under the ``SHARE_NAMES``, such as ``masked_hard``, prefixed with the name of the dataset
        or part if there are several losses. Empty if none of the losses counts.
    """
    counts = _pop_counts(loss)
    return {prefix + name: share for prefix, row in counts.items() for name, share in shares(row).items()}


def track_diagnostics(trainer: Any) -> None:
    """Put the shares of negatives left out into the next log line of a trainer.

    Call it on every rank just before the trainer logs: in ``on_step_end`` and ``on_epoch_end``, if
    ``control.should_log``. A second call before the same log line changes nothing.

    Args:
        trainer: A ``SentenceTransformerTrainer``.
    """
    counts = _pop_counts(trainer.loss)
    components = loss_components(trainer)
    steps = int(components.get("steps", 0))
    values = {
        prefix + name: torch.tensor(share, device=row.device)
        for prefix, row in counts.items()
        for name, share in shares(row).items()
    }
    if values and not steps:
        trainer.track_loss_components(values)
    elif any(bool(row[-1]) for row in counts.values()):
        # The trainer divides this by the number of steps, which it has counted for the parts of the loss.
        components.update({name: value * steps for name, value in values.items()})


class LossDiagnosticsCallback(TrainerCallback):
    """Adds the share of negatives that the losses of this package leave out to the trainer's normal log line.

    Args:
        trainer: The trainer to log for. A callback is not told its trainer, so build the trainer first and add this
            with ``trainer.add_callback``.

    Example:
        ::

            trainer = SentenceTransformerTrainer(model=model, train_dataset=train_dataset, loss=loss)
            trainer.add_callback(LossDiagnosticsCallback(trainer))
            trainer.train()  # {'loss': 0.31, ..., 'masked_known_positive': 0.01, 'masked_hard': 0.04, ...}
    """

    def __init__(self, trainer: Any) -> None:
        # A weak reference, because the trainer holds its callbacks, and a cycle would keep both in memory.
        self._trainer = weakref.ref(trainer)

    @property
    def trainer(self) -> Any:
        """The trainer, or None if it is gone."""
        return self._trainer()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the shares if this step is logged."""
        if control.should_log:
            track_diagnostics(self.trainer)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the shares if the end of this epoch is logged."""
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
