"""Schedules: a field of the recipe as a function of the training's progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from numbers import Real
from typing import Any


class Progress(float):
    """How far a training is: the share of its steps that are done, from 0 to 1, and ``epoch``, whole epochs done."""

    epoch: int

    def __new__(cls, fraction: float, epoch: int = 0) -> Progress:
        """Make one of the share of steps and the number of epochs."""
        progress = super().__new__(cls, fraction)
        progress.epoch = epoch
        return progress


Schedule = Callable[[Progress], Any]
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
                raise ValueError(f"Expected `{part.name}` to be a finite number, got {value!r}.")


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


def described(schedule: Any) -> str:
    """Return what tells one schedule from another, the same text in every process.

    A function of the caller's is known by its name only, and another callable by that of its class: what they print may
    hold an address in memory, which is another one in the resumed process.

    Args:
        schedule: A schedule, or a number.
    """
    if isinstance(schedule, (Real, Step, _Numbers)):
        return repr(schedule)
    if isinstance(schedule, partial):
        plain = (str, int, float, bool, type(None))
        given = [*schedule.args, *sorted(schedule.keywords.items())]
        shown = [one if isinstance(one, plain) or isinstance(one, tuple) else type(one).__qualname__ for one in given]
        return f"partial of {described(schedule.func)} with {shown}"
    return str(getattr(schedule, "__qualname__", None) or type(schedule).__qualname__)
