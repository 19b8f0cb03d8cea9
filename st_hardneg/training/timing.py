"""When things happen in a training: its steps and epochs, and which batches were fetched ahead of them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from st_hardneg.training.schedules import Progress

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

MiningStrategy = Literal["steps", "epoch"]

# accelerate reads one micro-batch ahead of the one that is trained.
_READ_AHEAD = 1


def num_fetched_ahead(args: TrainingArguments) -> int:
    """Return how many micro-batches are fetched before the one that is trained is done, at most.

    One is fetched ahead by accelerate, and ``prefetch_factor`` by each worker.
    """
    return _READ_AHEAD + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)


def first_step_seen(step: int, args: TrainingArguments) -> int:
    """Return the first optimizer step all of whose batches have the negatives mined at the end of ``step``.

    At the boundary between two epochs it is earlier, see :meth:`Timing.first_step_seen`.
    """
    accumulation = args.gradient_accumulation_steps
    return math.ceil((step * accumulation + num_fetched_ahead(args)) / accumulation) + 1


@dataclass(frozen=True)
class Timing:
    """The steps of one training.

    Args:
        args: The training arguments.
        max_steps: Optimizer steps of the training.
        steps_per_epoch: Optimizer steps of each epoch.
        refresh_every: A refresh is due every so many steps; None if refreshes come between epochs only.
    """

    args: TrainingArguments
    max_steps: int
    steps_per_epoch: int
    refresh_every: int | None

    @classmethod
    def of(cls, args: TrainingArguments, max_steps: int, loader: Any, mining_steps: float | None) -> Timing:
        """Read them from a training that begins.

        Args:
            args: The training arguments.
            max_steps: Optimizer steps of the training.
            loader: Its dataloader.
            mining_steps: Refresh every so many steps; below 1, that share of all; None for between epochs only.
        """
        every = mining_steps
        if every is not None:
            every = int(every) if every >= 1 else max(1, math.ceil(max_steps * every))
        return cls(args, max_steps, max(1, math.ceil(len(loader) / args.gradient_accumulation_steps)), every)

    def is_boundary(self, step: int) -> bool:
        """Tell whether an epoch ends with this step, and another one begins."""
        return step % self.steps_per_epoch == 0

    def is_due(self, step: int) -> bool:
        """Tell whether a refresh is due at the end of this step."""
        return self.refresh_every is not None and step % self.refresh_every == 0

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, of the step after ``step`` steps."""
        return step // self.steps_per_epoch

    def first_step_of_epoch(self, step: int) -> int:
        """Return how many steps were done when the epoch of a step began."""
        return self.epoch_of(step) * self.steps_per_epoch

    def progress(self, step: int) -> Progress:
        """Return how far the training is after so many steps."""
        # The end belongs to the last epoch, as none follows.
        epoch = self.epoch_of(min(step, max(0, self.max_steps - 1)))
        return Progress(min(1.0, step / max(1, self.max_steps)), epoch)

    def refresh_points(self) -> list[Progress]:
        """Return all points of the training at which there may be a refresh."""
        steps = (step for step in range(self.max_steps + 1) if self.is_boundary(step) or self.is_due(step))
        return [self.progress(step) for step in steps]

    def first_step_seen(self, step: int) -> int:
        """Return the first step all of whose batches have the negatives that were mined at the end of ``step``."""
        # Nothing is fetched ahead over the boundary of an epoch.
        return step + 1 if self.is_boundary(step) else first_step_seen(step, self.args)

    def say_when(self, mining_steps: float, warmup_steps: int = 0) -> None:
        """Log when the first refresh will be seen, and warn if there will be none.

        Args:
            mining_steps: What the caller asked for.
            warmup_steps: No refresh before this step.
        """
        every, args = self.refresh_every, self.args
        if every is not None:
            logger.info(
                f"Mining every {every} steps. With {args.dataloader_num_workers} dataloader workers and "
                f"{args.gradient_accumulation_steps} gradient accumulation steps, negatives mined at step {every} fill "
                f"whole batches from step {self.first_step_seen(every)} on."
            )
        if self._refreshes(warmup_steps):
            return
        if self._refreshes():
            logger.warning(
                f"`mining_warmup_steps={warmup_steps}` leaves no refresh in the {self.max_steps} steps of this training: "
                "nothing will be refreshed. Lower it."
            )
        elif every is None:
            logger.warning(
                "`mining_strategy='epoch'` refreshes before every epoch but the first, and this training has only one: "
                "nothing will be refreshed. Train for more epochs, or set `mining_steps`."
            )
        else:
            logger.warning(
                f"`mining_steps={mining_steps}` is not below the {self.max_steps} steps of this training: nothing will be "
                "refreshed. Lower `mining_steps`."
            )

    def _refreshes(self, warmup_steps: int = 0) -> bool:
        """Tell whether a refresh is due anywhere between this step and the last, after which there is none."""
        is_due = self.is_boundary if self.refresh_every is None else self.is_due
        return any(is_due(step) for step in range(max(1, warmup_steps), self.max_steps))

    def num_old_batches(self, mined_at: int | None, step: int) -> int:
        """Return how many batches after a checkpoint were fetched before the last refresh.

        With workers it is how many there were at most: how far they had got is not known.

        Args:
            mined_at: Step of the last refresh, or None.
            step: Step of the checkpoint.
        """
        if mined_at is None or self.is_boundary(mined_at):
            return 0
        ahead = num_fetched_ahead(self.args)
        return max(0, (mined_at - step) * self.args.gradient_accumulation_steps + ahead)


def check_numbers(mining_steps: Any, mining_strategy: Any, mining_warmup_steps: Any) -> None:
    """Raise unless the callback's plain arguments are in range."""
    if isinstance(mining_steps, bool) or not isinstance(mining_steps, (int, float)):
        raise TypeError(f"Expected `mining_steps` to be a number, got {mining_steps!r}. Pass steps, or a share.")
    is_whole = math.isfinite(mining_steps) and (mining_steps < 1 or mining_steps == int(mining_steps))
    if not is_whole or mining_steps <= 0:
        raise ValueError(
            f"Expected `mining_steps` to be a whole number from 1 up, or a share of all steps below 1, got "
            f"{mining_steps!r}."
        )
    if mining_strategy not in get_args(MiningStrategy):
        raise ValueError(
            f"Expected `mining_strategy` to be one of {list(get_args(MiningStrategy))}, got {mining_strategy!r}."
        )
    if isinstance(mining_warmup_steps, bool) or not isinstance(mining_warmup_steps, int) or mining_warmup_steps < 0:
        raise ValueError(f"Expected `mining_warmup_steps` to be a whole number from 0 up, got {mining_warmup_steps!r}.")
