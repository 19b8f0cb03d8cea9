"""A field of the config as a function of training progress; a curriculum as a list of stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import partial
from itertools import accumulate
from numbers import Real
from typing import Any

from st_hardneg.config import FIELD_TYPES, MiningConfig


class Progress(float):
    """How far a training is: the share of its steps that are done, from 0 to 1, and ``epoch``, whole epochs done."""

    epoch: int

    def __new__(cls, fraction: float, epoch: int = 0) -> Progress:
        """Make one of the share of steps and the number of epochs."""
        progress = super().__new__(cls, fraction)
        progress.epoch = epoch
        return progress


Schedule = Callable[[Progress], float]
"""Gives the value of a field at a :class:`Progress`, which is a number from 0 to 1."""


class _Numbers:
    """Makes sure that the arguments of a schedule are numbers."""

    def __post_init__(self) -> None:
        for part in fields(self):  # type: ignore[arg-type]
            value = getattr(self, part.name)
            if value is None and part.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"Expected `{part.name}` to be a number, got {value!r}. Pass the value of a field.")
            if not math.isfinite(value):
                raise ValueError(f"Expected `{part.name}` to be a finite number, got {value!r}. Choose another value.")


@dataclass(frozen=True)
class Constant(_Numbers):
    """One value throughout."""

    value: float

    def __call__(self, progress: float) -> float:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class Linear(_Numbers):
    """A straight line from ``start``, at the beginning of the training, to ``end``.

    Example:
        >>> [Linear(0.8, 0.0)(t) for t in (0.0, 0.5, 1.0)]
        [0.8, 0.4, 0.0]
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """Return the value at a share of the training."""
        return self.start * (1.0 - progress) + self.end * progress


@dataclass(frozen=True)
class Cosine(_Numbers):
    """Half a cosine wave from ``start`` to ``end``: slow at both ends."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """Return the value at a share of the training."""
        weight = (1.0 + math.cos(math.pi * progress)) / 2.0
        return self.start * weight + self.end * (1.0 - weight)


@dataclass(frozen=True)
class Exponential(_Numbers):
    """From ``start`` to ``end`` by the same factor in every part of the training; both above 0, or both below.

    Raises:
        ValueError: If one of them is 0, or they have different signs.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start * self.end <= 0:
            raise ValueError(
                f"Expected `start` and `end` of an exponential schedule to have one sign, got {self.start} and "
                f"{self.end}. Use `Linear` or `PerEpoch` to reach 0."
            )

    def __call__(self, progress: float) -> float:
        """Return the value at a share of the training."""
        return self.start * (self.end / self.start) ** progress


@dataclass(frozen=True)
class Step:
    """Values that hold from a share of the training on.

    Args:
        values: From which share on which value holds, such as ``{0.0: 0.3, 0.5: 0.1}``; the first share is 0.

    Raises:
        ValueError: If no value holds from the beginning on, or a share is not in [0, 1].
        TypeError: If it is no mapping of numbers.
    """

    values: Mapping[float, float]

    def __post_init__(self) -> None:
        pairs = self.values.items() if isinstance(self.values, Mapping) else [(None, None)]
        if not all(isinstance(one, Real) and not isinstance(one, bool) for pair in pairs for one in pair):
            raise TypeError(
                f"Expected `values` to map shares of the training to numbers, got {type(self.values).__name__} "
                f"{self.values!r}. Write `Step({{0.0: 0.3, 0.5: 0.1}})`, for example."
            )
        if 0 not in self.values or not all(0 <= share <= 1 for share in self.values):
            raise ValueError(
                f"Expected shares of the training from 0 to 1, the first of them 0, got {dict(self.values)}. Write "
                "`Step({0.0: 0.3, 0.5: 0.1})`, for example."
            )

    def __call__(self, progress: float) -> float:
        """Return the value at a share of the training."""
        return self.values[max(share for share in self.values if share <= progress)]


@dataclass(frozen=True)
class PerEpoch(_Numbers):
    """A value that changes from epoch to epoch: ``start * times ** epoch + add * epoch``, up to ``limit``.

    ``PerEpoch(0.8, add=-0.02, limit=0)`` is the random rate that the first dual-space mining was described with;
    ``PerEpoch(3, times=1.2, limit=8)`` grows by 20 % an epoch.

    Args:
        start: The value of the first epoch.
        add: What every epoch adds.
        times: By what every epoch multiplies.
        limit: Where the change ends, if it does.

    Example:
        >>> schedule = PerEpoch(0.8, add=-0.02, limit=0.0)
        >>> [round(schedule(Progress(0.0, epoch)), 2) for epoch in (0, 1, 5, 20, 40, 41)]
        [0.8, 0.78, 0.7, 0.4, 0.0, 0.0]
    """

    start: float
    add: float = 0.0
    times: float = 1.0
    limit: float | None = None

    def __call__(self, progress: float) -> float:
        """Return the value in the epoch of a :class:`Progress`; a plain number counts as epoch 0."""
        epoch = getattr(progress, "epoch", 0)
        value = self.start * self.times**epoch + self.add * epoch
        if self.limit is None:
            return value
        return min(value, self.limit) if self.limit >= self.start else max(value, self.limit)


@dataclass(frozen=True, init=False)
class Stage:
    """A stage of a curriculum: for so many epochs, these fields of the config have these values.

    Args:
        name: What reports call it.
        epochs: How many epochs it lasts; the last stage goes on to the end.
        **values: Fields of :class:`~st_hardneg.MiningConfig`; ``num_negatives`` is how many negatives of each row are
            shown.

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
        _check_fields(values, numeric_only=False)
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


Schedules = Mapping[str, Schedule | float] | Curriculum | Sequence[Stage]
"""What ``MiningCallback(schedule=...)`` takes: schedules by field, or a curriculum, or its stages."""


@dataclass(frozen=True)
class InForce:
    """What holds at one point of a training.

    Args:
        config: The recipe; as many negatives are mined as the dataset's table is wide.
        values: The fields that the schedule has set, with their values.
        num_active: How many negatives of each row are shown.
        stage: Name of the curriculum's stage.
        stage_number: Its number, from 1.
    """

    config: MiningConfig
    values: Mapping[str, Any]
    num_active: int
    stage: str | None = None
    stage_number: int | None = None


def checked_schedules(schedule: Any) -> Mapping[str, Schedule | float] | Curriculum | None:
    """Return the schedules by field, or the curriculum.

    Raises:
        TypeError: If it is something else, or a field's schedule is neither a number nor a function.
        ValueError: If a field is unknown or holds no number.
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
    _check_fields(schedule, numeric_only=True)
    for name, values in schedule.items():
        if isinstance(values, bool) or not (callable(values) or isinstance(values, Real)):
            raise TypeError(
                f"Expected the schedule of `{name}` to be a number or a function of the training's progress from 0 to 1, "
                f"got {type(values).__name__}. Use `Linear(start, end)`, for example."
            )
    return schedule


def _check_fields(values: Mapping[str, Any], *, numeric_only: bool) -> None:
    kinds = FIELD_TYPES
    numeric = [name for name, kind in kinds.items() if kind.startswith(("int", "float"))]
    known = numeric if numeric_only else list(kinds)
    for name in values:
        if name not in kinds:
            close = get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Expected fields of MiningConfig in a schedule, got {name!r}. Fields are {known}.{hint}")
        if name not in known:
            raise ValueError(
                f"Expected fields of numbers in a schedule, got {name!r}. Only a stage can change it: "
                f"`[Stage('first', 2, {name}=...), …]`."
            )


def in_force(
    schedule: Mapping[str, Schedule | float] | Curriculum | None, config: MiningConfig, progress: Progress
) -> InForce:
    """Return what holds at a point of the training.

    Args:
        schedule: What :func:`checked_schedules` returned.
        config: The dataset's own recipe.
        progress: The point.

    Raises:
        ValueError: If the values do not make a valid config, or a margin is negative.
    """
    stage = number = None
    if schedule is None:
        values: dict[str, Any] = {}
    elif isinstance(schedule, Curriculum):
        number, stage = schedule.stage_at(progress.epoch)
        values = dict(stage.values)
    else:
        values = {name: _value(name, one, progress) for name, one in schedule.items()}
    changed = replace(config, **{name: value for name, value in values.items() if name != "num_negatives"})
    for name in ("absolute_margin", "relative_margin", "guide_margin"):
        if name in values and values[name] is not None and values[name] < 0:
            raise ValueError(
                f"Expected `{name}` to stay at 0 or above, got {values[name]:g}: candidates that score above the positive "
                "would pass. End the schedule at 0."
            )
    num_active = values.get("num_negatives", config.num_negatives)
    if isinstance(num_active, bool) or not isinstance(num_active, int) or num_active < 1:
        raise ValueError(f"Expected at least 1 negative to be shown, got {num_active!r}. Start `num_negatives` at 1.")
    num_active = min(num_active, config.num_negatives)
    if "num_negatives" in values:
        values["num_negatives"] = num_active
    return InForce(changed, values, num_active, None if stage is None else stage.name, number)


def _value(name: str, schedule: Schedule | float, progress: Progress) -> Any:
    """Return a field's value, rounded if it is one of whole numbers."""
    try:
        value = schedule(progress) if callable(schedule) else schedule
    except Exception as error:  # a caller's own function can fail in any way
        raise ValueError(
            f"Expected the schedule of `{name}` to give a number, got {type(error).__name__}: {error}"
        ) from error
    kind = FIELD_TYPES[name]
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"Expected the schedule of `{name}` to give finite numbers, got {value!r}.")
    return math.floor(float(value) + 0.5) if kind.startswith("int") else float(value)


def points_of(schedule: Mapping[str, Schedule | float] | Curriculum | None) -> list[Progress]:
    """Return points at which a schedule can be checked before the training is known: shares of it, or all stages."""
    if not isinstance(schedule, Curriculum):
        return [Progress(number / 100) for number in range(101)]
    epochs = sum(stage.epochs for stage in schedule.stages)
    begins = accumulate((stage.epochs for stage in schedule.stages[:-1]), initial=0)
    return [Progress(epoch / epochs, epoch) for epoch in begins]


def check_throughout(
    schedule: Mapping[str, Schedule | float] | Curriculum | None,
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


def describe(schedule: Mapping[str, Schedule | float] | Curriculum | None) -> Any:
    """Return what a checkpoint keeps of a schedule, to tell it from another one: plain text.

    A function of the caller's is known by its name only, and another callable by that of its class: what they print may
    hold an address in memory, which is another one in the resumed process.
    """
    if schedule is None:
        return None
    if isinstance(schedule, Curriculum):
        return [f"{stage.name}, {stage.epochs} epochs, {sorted(stage.values.items())}" for stage in schedule.stages]
    return {name: _described(one) for name, one in sorted(schedule.items())}


def _described(schedule: Schedule | float) -> str:
    if isinstance(schedule, (Real, Step, _Numbers)):
        return repr(schedule)
    if isinstance(schedule, partial):
        plain = (str, int, float, bool, type(None))
        given = [*schedule.args, *sorted(schedule.keywords.items())]
        shown = [one if isinstance(one, plain) or isinstance(one, tuple) else type(one).__qualname__ for one in given]
        return f"partial of {_described(schedule.func)} with {shown}"
    return str(getattr(schedule, "__qualname__", None) or type(schedule).__qualname__)
