"""What a schedule has in force at a step of the training: the recipe, and how many negatives are shown."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from st_hardneg.training.curriculum import NUM_SHOWN, CheckedSchedules, Curriculum, InForce, in_force
from st_hardneg.training.refresh import log_metrics

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState

    from st_hardneg.training.targets import Target
    from st_hardneg.training.timing import Timing

logger = logging.getLogger(__name__)


class ScheduledMining:
    """The half of a MiningCallback that follows its schedule."""

    schedule: CheckedSchedules | None
    mining_warmup_steps: int
    _targets: list[Target]
    _timing: Timing

    @property
    def trainer(self) -> Trainer | None:
        """The trainer that called last."""
        raise NotImplementedError  # pragma: no cover - the callback's

    def _in_force(self, target: Target, step: int) -> InForce:
        """Return what holds at this step; how many negatives are shown is settled by the epoch's first step."""
        config, timing = target.hard_negatives.config, self._timing
        now = in_force(self.schedule, config, timing.progress(step))
        first = in_force(self.schedule, config, timing.progress(timing.first_step_of_epoch(step)))
        return now.showing(first.num_shown)

    def _begins_stage(self, step: int) -> bool:
        return isinstance(self.schedule, Curriculum) and self.schedule.changes_at(self._timing.epoch_of(step))

    def _say_that_a_stage_waits(self, step: int) -> None:
        if isinstance(self.schedule, Curriculum) and self._timing.is_boundary(step):
            logger.warning(
                f"The stage that begins at step {step} is not mined for, as "
                f"`mining_warmup_steps={self.mining_warmup_steps}`. Lower it, or begin the curriculum later."
            )

    def _show(self, target: Target, state: TrainerState, control: TrainerControl) -> None:
        """Let the live view show as many negatives as are in force in this epoch."""
        if self.schedule is None:
            return
        live = target.hard_negatives.live
        number = self._in_force(target, state.global_step).num_shown
        if number != live.num_shown:
            live.num_shown = number
            log_metrics(target.logged({f"mining/{NUM_SHOWN}": number}), self.trainer, state, control)

    def _show_all(self) -> None:
        for target in self._targets:
            target.hard_negatives.live.num_shown = target.hard_negatives.config.num_negatives
