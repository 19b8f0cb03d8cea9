"""Curricula, and what of the recipe is in force at a point of a training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import accumulate
from numbers import Real
from typing import TYPE_CHECKING, Any

from st_hardneg.config import MiningConfig, numeric_fields
from st_hardneg.training.schedules import Progress, Schedule, described

if TYPE_CHECKING:
    from st_hardneg.dataset import HardNegativeDataset

logger = logging.getLogger(__name__)

NUM_SHOWN = "num_shown"
"""How many negatives of each row are shown: no field of the recipe, which says how many are mined."""

_STRATEGIES = ("sampling_strategy", "replacement")  # values with numbers of their own, such as Softmax(temperature)
_MARGINS = ("absolute_margin", "relative_margin")


@dataclass(frozen=True, init=False)
class Stage:
    """A stage of a curriculum: for so many epochs, these fields of the config have these values.

    Args:
        name: What reports call it.
        epochs: How many epochs it lasts; the last stage goes on to the end.
        **values: Fields of :class:`~st_hardneg.MiningConfig`, except ``num_negatives``; and ``num_shown``, how many
            negatives of each row are shown.

    Raises:
        ValueError: If ``epochs`` is below 1, or there is no such field.
        TypeError: If ``name`` is no string.
    """

    name: str
    epochs: int
    values: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, name: str, epochs: int, **values: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"Expected the name of a stage to be a string, got {name!r}. Write `Stage('easy', 2, …)`.")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"Expected a stage of at least 1 whole epoch, got {epochs!r}. Give a number from 1 up.")
        _check_names(values, [part.name for part in fields(MiningConfig)])
        for attribute, value in (("name", name), ("epochs", epochs), ("values", values)):
            object.__setattr__(self, attribute, value)


@dataclass(frozen=True)
class Curriculum:
    """Stages that follow each other.

    Example:
        >>> curriculum = Curriculum([Stage("easy", 2, range_min=30), Stage("hard", 1, range_min=0)])
        >>> [curriculum.stage_at(epoch)[1].name for epoch in range(4)]
        ['easy', 'easy', 'hard', 'hard']

    Args:
        stages: The stages, in order.

    Raises:
        ValueError: If there is none.
        TypeError: If one of them is something else.
    """

    stages: Sequence[Stage]

    def __post_init__(self) -> None:
        if not isinstance(self.stages, Sequence):
            raise TypeError(
                f"Expected `stages` to be a list of stages, got {type(self.stages).__name__}. Pass "
                "`[Stage('easy', 2, ...), …]`."
            )
        if not self.stages:
            raise ValueError(
                "Expected a curriculum of at least one stage, got none. Pass `[Stage('easy', 2, ...), …]`."
            )
        for stage in self.stages:
            if not isinstance(stage, Stage):
                raise TypeError(f"Expected stages, got {type(stage).__name__}. Write `Stage('easy', 2, range_min=30)`.")

    def stage_at(self, epoch: int) -> tuple[int, Stage]:
        """Return the number, from 1, and the stage of an epoch, counted from 0."""
        for number, stage in enumerate(self.stages, start=1):
            if epoch < stage.epochs:
                return number, stage
            epoch -= stage.epochs
        return len(self.stages), self.stages[-1]

    def changes_at(self, epoch: int) -> bool:
        """Tell whether a stage begins with an epoch, counted from 0."""
        return self.stage_at(epoch)[0] != self.stage_at(epoch - 1)[0]


CheckedSchedules = Mapping[str, "Schedule | float"] | Curriculum
"""Schedules by field, or a curriculum."""

Schedules = CheckedSchedules | Sequence[Stage]
"""What ``MiningCallback(schedule=...)`` takes: schedules by field, or a curriculum, or its stages."""


@dataclass(frozen=True)
class InForce:
    """What holds at one point of a training.

    Args:
        config: The recipe; as many negatives are mined as the dataset's table is wide.
        values: The fields that the schedule has set, with their values as plain JSON; for the report.
        num_shown: How many negatives of each row are shown.
        stage: Name of the curriculum's stage.
        stage_number: Its number, from 1.
    """

    config: MiningConfig
    values: Mapping[str, Any]
    num_shown: int
    stage: str | None = None
    stage_number: int | None = None

    def showing(self, number: int) -> InForce:
        """Return the same with another number of negatives shown, if the schedule sets it at all."""
        if NUM_SHOWN not in self.values:
            return self
        return replace(self, values={**self.values, NUM_SHOWN: number}, num_shown=number)


def checked_schedules(schedule: Any) -> CheckedSchedules | None:
    """Return the schedules by field, or the curriculum.

    Raises:
        TypeError: If it is something else, or a field's schedule is neither a number nor a function.
        ValueError: If there is no such field, or only a stage can change it.
    """
    if schedule is None or isinstance(schedule, Curriculum):
        return schedule
    if isinstance(schedule, Sequence) and not isinstance(schedule, str):
        return Curriculum(list(schedule))
    if not isinstance(schedule, Mapping):
        raise TypeError(
            f"Expected `schedule` to map fields of MiningConfig to schedules, or to be a list of stages, got "
            f"{type(schedule).__name__}. Pass `{{'random_rate': Linear(0.8, 0.0)}}`, for example."
        )
    _check_names(schedule, [*numeric_fields(), *_STRATEGIES])
    for name, values in schedule.items():
        if callable(values):
            continue
        if name in _STRATEGIES:
            raise TypeError(
                f"Expected the schedule of `{name}` to be a function from the training's progress, from 0 to 1, to a "
                f"strategy, got {values!r}. Write `lambda progress: Softmax(1.0 - 0.5 * progress)`, for example; or set "
                f"it in a stage: `[Stage('first', 2, {name}=...), …]`."
            )
        if isinstance(values, bool) or not isinstance(values, Real):
            raise TypeError(
                f"Expected the schedule of `{name}` to be a number or a function of the training's progress from 0 to 1, "
                f"got {type(values).__name__}. Use `Linear(start, end)`, for example."
            )
    return schedule


def _check_names(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise unless all keys are among the fields that can be changed."""
    known = [NUM_SHOWN, *(name for name in names if name != "num_negatives")]
    for name in values:
        if name == "num_negatives":
            raise ValueError(
                "`num_negatives` is how many negatives are mined, and stays the same throughout a training. How many of "
                f"them are shown can change: `{NUM_SHOWN}`."
            )
        if name in known:
            continue
        if name in {part.name for part in fields(MiningConfig)}:
            raise ValueError(
                f"Expected fields of numbers in a schedule, got {name!r}. Only a stage can change it: "
                f"`[Stage('first', 2, {name}=...), …]`."
            )
        close = get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Expected fields of MiningConfig in a schedule, got {name!r}. Fields are {known}.{hint}")


def in_force(schedule: CheckedSchedules | None, config: MiningConfig, progress: Progress) -> InForce:
    """Return what holds at a point of the training.

    Args:
        schedule: What :func:`checked_schedules` returned.
        config: The dataset's own recipe.
        progress: The point.

    Raises:
        ValueError: If the values do not make a valid config, or a margin is negative.
    """
    stage = number = None
    values: dict[str, Any] = {}
    if isinstance(schedule, Curriculum):
        number, stage = schedule.stage_at(progress.epoch)
        values = dict(stage.values)
    elif schedule is not None:
        values = {name: _value(name, one, progress) for name, one in schedule.items()}
    num_shown = _checked_num_shown(values.pop(NUM_SHOWN, None), config)
    changed = replace(config, **values)
    for name in _MARGINS:
        # An `Adaptive` is never below 0.
        if isinstance(values.get(name), Real) and values[name] < 0:
            raise ValueError(
                f"Expected `{name}` to stay at 0 or above, got {values[name]:g}: candidates that score above the positive "
                "would pass. End the schedule at 0."
            )
    plain = changed.to_dict()
    shown = {name: plain[name] for name in values}
    if num_shown is not None:
        shown[NUM_SHOWN] = num_shown
    return InForce(
        changed,
        shown,
        config.num_negatives if num_shown is None else num_shown,
        stage=None if stage is None else stage.name,
        stage_number=number,
    )


def _checked_num_shown(number: Any, config: MiningConfig) -> int | None:
    """Return how many negatives are shown, at most as many as are mined; None if nothing is said of it."""
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"Expected at least 1 negative to be shown, got {number!r}. Start `{NUM_SHOWN}` at 1.")
    return min(number, config.num_negatives)


def _value(name: str, schedule: Schedule | float, progress: Progress) -> Any:
    """Return a field's value, rounded if it is one of whole numbers."""
    try:
        value = schedule(progress) if callable(schedule) else schedule
    except Exception as error:  # a caller's own function can fail in any way
        raise ValueError(
            f"Expected the schedule of `{name}` to return a value, got {type(error).__name__}: {error}"
        ) from error
    if name in _STRATEGIES:
        return value
    kind = int if name == NUM_SHOWN else numeric_fields()[name]
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"Expected the schedule of `{name}` to return finite numbers, got {value!r}.")
    return math.floor(float(value) + 0.5) if kind is int else float(value)


def points_of(schedule: CheckedSchedules | None) -> list[Progress]:
    """Return points at which a schedule can be checked before the training is known: shares of it, or all stages."""
    if not isinstance(schedule, Curriculum):
        return [Progress(number / 100) for number in range(101)]
    epochs = sum(stage.epochs for stage in schedule.stages)
    begins = accumulate((stage.epochs for stage in schedule.stages[:-1]), initial=0)
    return [Progress(epoch / epochs, epoch) for epoch in begins]


def check_throughout(
    schedule: CheckedSchedules | None,
    config: MiningConfig,
    points: Iterable[Progress],
    check_config: Callable[[MiningConfig], None],
) -> None:
    """Make sure that a schedule is valid at every point, before anything is encoded.

    Args:
        schedule: What :func:`checked_schedules` returned.
        config: The dataset's own recipe.
        points: The points at which it will be used.
        check_config: Raises a ValueError for a config that the dataset cannot be mined with.

    Raises:
        ValueError: If it is not valid somewhere; the point and the reason are named.
    """
    for progress in points:
        try:
            check_config(in_force(schedule, config, progress).config)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"Expected a schedule that is valid throughout the training, got an invalid one at {float(progress):.0%} "
                f"of it (epoch {progress.epoch}): {error}"
            ) from None


def check_whole_training(
    schedule: CheckedSchedules, datasets: Iterable[HardNegativeDataset], points: Sequence[Progress]
) -> None:
    """Make sure that a schedule is valid throughout a training, and warn of stages that it does not reach.

    Args:
        schedule: What :func:`checked_schedules` returned.
        datasets: What is refreshed.
        points: All points of the training at which there may be a refresh, in order.

    Raises:
        ValueError: If it is not valid somewhere; the point and the reason are named.
    """
    for hard_negatives in datasets:
        check_throughout(schedule, hard_negatives.config, points, hard_negatives.check_in_force)
    if isinstance(schedule, Curriculum):
        reached, _ = schedule.stage_at(points[-1].epoch)
        if left := [stage.name for stage in schedule.stages[reached:]]:
            logger.warning(
                f"The training ends after epoch {points[-1].epoch + 1}, before the stages {left} of the "
                "curriculum begin. Train for more epochs, or shorten the earlier stages."
            )


def describe(schedule: CheckedSchedules | None) -> Any:
    """Return what a checkpoint keeps of a schedule, to tell it from another one: plain text."""
    if schedule is None:
        return None
    if isinstance(schedule, Curriculum):
        return [f"{stage.name}, {stage.epochs} epochs, {sorted(stage.values.items())}" for stage in schedule.stages]
    return {name: described(one) for name, one in sorted(schedule.items())}
