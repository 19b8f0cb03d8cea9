"""Strategies as values: how negatives are drawn from the rank window, and which of them a refresh replaces.

Each is a small frozen dataclass whose plain form is a name, or a name and its numbers: ``"softmax"`` or
``{"name": "softmax", "temperature": 0.05}``. A new one is a class here and a line in its table; nothing else lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

DISTANCE_CUTOFF = 0.5
"""Distances below this weigh as much as this one (pytorch-metric-learning's ``cutoff``)."""

DISTANCE_MAX = 1.4
"""From this distance on nothing is drawn (pytorch-metric-learning's ``nonzero_loss_cutoff``)."""


@dataclass(frozen=True, eq=False)
class Window:
    """The candidates that a strategy weighs; ``q`` queries, ``k`` places each.

    Args:
        scores: float32 of shape ``(q, k)``.
        positive_scores: float32 of shape ``(q,)``: the lowest score among each query's positives.
        ranks: int64 of shape ``(q, k)``, from 0, counted as the recipe's ``rank_window`` says.
        distances: Returns the Euclidean distances of query and candidate as unit vectors, float64 of shape ``(q, k)``.
        dim: Dimensions of the embeddings.
    """

    scores: Tensor
    positive_scores: Tensor
    ranks: Tensor
    distances: Callable[[], Tensor]
    dim: int


def _check_number(strategy: Any, name: str, *, above: float | None = None, least: float | None = None) -> None:
    value = getattr(strategy, name)
    kind = type(strategy).__name__
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        raise TypeError(f"Expected `{name}` of {kind} to be a finite number, got {value!r}.")
    if above is not None and not float(value) > above:
        raise ValueError(f"Expected `{name}` of {kind} to be above {above:g}, got {value!r}.")
    if least is not None and not float(value) >= least:
        raise ValueError(f"Expected `{name}` of {kind} to be at least {least:g}, got {value!r}.")


# --- sampling strategies: log weights of shape (q, k), float64 --------------------------------------------------------


@dataclass(frozen=True)
class Uniform:
    """Every candidate of the window alike."""

    def log_weights(self, window: Window) -> Tensor:
        """Return zeros, float64 of shape ``(q, k)``."""
        return torch.zeros(window.scores.shape, dtype=torch.float64)


@dataclass(frozen=True)
class Softmax:
    """Draw by ``exp(s / temperature)``.

    Source: NV-Retriever, https://huggingface.co/papers/2407.15831 (footnote 13, at temperature 1).

    Args:
        temperature: Above 0; the lower, the nearer to taking the closest. Of cosines, 1 makes nearly uniform draws.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_number(self, "temperature", above=0)

    def log_weights(self, window: Window) -> Tensor:
        """Return ``s / temperature``, float64 of shape ``(q, k)``."""
        return window.scores.double() / self.temperature


@dataclass(frozen=True)
class SimANS:
    """Draw by ``exp(-a (s - s⁺ - b)²)``: most where a candidate scores ``b`` above the positive.

    Source: SimANS, https://huggingface.co/papers/2210.11773, equation 4, with the paper's sign of ``b`` (the released
    code has the other one).

    Args:
        a: From 0 up: how narrow the band is, in 1 / score². The paper's 0.5 is meant for dot products of tens; for cosine,
            multiply it by (spread of the dot products / spread of the cosines)². 50 is a fair start.
        b: Where the band lies above the positive.
    """

    a: float = 50.0
    b: float = 0.0

    def __post_init__(self) -> None:
        _check_number(self, "a", least=0)
        _check_number(self, "b")

    def log_weights(self, window: Window) -> Tensor:
        """Return ``-a (s - s⁺ - b)²``, float64 of shape ``(q, k)``."""
        gap = window.scores.double() - window.positive_scores.double()[:, None]
        return -self.a * (gap - self.b).square()


@dataclass(frozen=True)
class LogRank:
    """Draw by ``1 / log(1 + rank)``, with ranks from 1.

    Source: lightning-ir's ``log_random`` sampler.
    """

    def log_weights(self, window: Window) -> Tensor:
        """Return ``-log(log(1 + rank))``, float64 of shape ``(q, k)``."""
        return -torch.log(torch.log1p(window.ranks.clamp(min=0).double() + 1.0))


@dataclass(frozen=True)
class Distance:
    """Draw by the inverse of how many points of the unit sphere lie at a distance: all distances come alike.

    Source: Wu et al. 2017, "Sampling Matters in Deep Embedding Learning", https://huggingface.co/papers/1706.07567,
    section 4: on the unit sphere in ``dim`` dimensions, the density of the distance d is proportional to
    ``d^(dim-2) (1 - d²/4)^((dim-3)/2)``; the cut-offs are pytorch-metric-learning's. Weights stay logarithms, so that a
    near-duplicate of one query does not underflow those of others.

    Args:
        dim: Dimensions to reckon with, from 2 up; None takes the embeddings' own. In hundreds of dimensions this takes the
            closest that the cut-off allows; give the intrinsic dimension instead, such as 8 to 64.
    """

    dim: int | None = None

    def __post_init__(self) -> None:
        if self.dim is not None:
            _check_number(self, "dim", least=2)

    def log_weights(self, window: Window) -> Tensor:
        """Return the negative log density of each candidate's distance, float64 of shape ``(q, k)``."""
        dim = self.dim or window.dim
        distances = window.distances().double()
        d = distances.clamp(min=DISTANCE_CUTOFF)
        inside = (1.0 - 0.25 * d.square()).clamp(min=torch.finfo(torch.float64).tiny)
        log_weights = (2.0 - dim) * d.log() - (dim - 3.0) / 2.0 * inside.log()
        return log_weights.masked_fill(d >= DISTANCE_MAX, -torch.inf)


# --- replacement ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Easy:
    """A refresh replaces only negatives that have become easy: ``ratio * now < first`` and ``|now| < score``.

    Source: the dynamic hard negatives of Conan-embedding, https://huggingface.co/papers/2408.15710, which replaces a
    negative as soon as ``1.15 s < s0`` and ``|s| < 0.8``.

    Args:
        ratio: By how much a similarity has to have fallen since the negative was mined.
        score: A negative that scores this much, either way, is not easy.

    Example:
        >>> Easy().is_easy(torch.tensor([0.60, 0.60, 0.85]), torch.tensor([0.70, 0.65, 0.99])).tolist()
        [True, False, False]
    """

    ratio: float = 1.15
    score: float = 0.8

    def __post_init__(self) -> None:
        _check_number(self, "ratio", above=0)
        _check_number(self, "score", least=0)

    def is_easy(self, now: Tensor, first: Tensor) -> Tensor:
        """Tell which negatives have become easy.

        Args:
            now: float of any shape: similarities of queries and negatives today.
            first: float of the same shape: similarities when the negatives were mined.
        """
        return (self.ratio * now < first) & (now.abs() < self.score)


# --- bounds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adaptive:
    """A bound whose strength follows how far the model can be trusted on these data, and that is measured from chance.

    Where many unlabelled texts outrank the right answer before training, some of them are right answers that nobody has
    labelled, and the bound is ``doubted``; where hardly any do, it is ``trusted``; in between it is interpolated by the
    logarithm of the right answer's typical rank (see :mod:`st_hardneg.mining.trust`). Similarities are counted from the
    mean similarity of random texts, as a model's random pairs may score high.

    Args:
        trusted: The bound where the right answer comes first.
        doubted: The bound where it typically ranks tenth or lower.
    """

    trusted: float
    doubted: float

    def __post_init__(self) -> None:
        _check_number(self, "trusted", least=0)
        _check_number(self, "doubted", least=0)

    def at(self, doubt: float) -> float:
        """Return the bound for a doubt from 0 to 1."""
        return self.trusted + (self.doubted - self.trusted) * doubt


SAMPLING: dict[str, type] = {
    "random": Uniform,
    "softmax": Softmax,
    "simans": SimANS,
    "log_rank": LogRank,
    "distance": Distance,
}
"""Sampling strategies by name; ``"top"``, the closest, draws nothing."""

REPLACEMENT: dict[str, type] = {"easy": Easy}
"""Rules of replacement by name; ``"all"`` keeps nothing."""

BOUNDS: dict[str, type] = {"adaptive": Adaptive}
"""Bounds that are no plain numbers, by name."""

# As in ST, two strategies are plain names, and look no deeper than ST does.
PLAIN_NAMES = ("top", "random", "all")


def checked_strategy(value: Any, table: Mapping[str, type], default: str, field: str) -> Any:
    """Return a strategy as the value it stands for.

    Args:
        value: A strategy, its name, or its plain form.
        table: The strategies by name.
        default: The name that stands for no strategy at all.
        field: What to call the field in errors.

    Returns:
        ``default``, ``"random"``, or an instance of one of the table's classes.

    Raises:
        ValueError: If there is no strategy of this name.
        TypeError: If it is of another kind, or its numbers are.
    """
    if type(value) in table.values():
        return "random" if isinstance(value, Uniform) else value
    numbers: dict[str, Any] = {}
    name = value
    if isinstance(value, Mapping):
        numbers = dict(value)
        name = numbers.pop("name", None)
    names = [default, *table]
    if not isinstance(name, str):
        kinds = ", ".join(one.__name__ for one in table.values())
        raise TypeError(f"Expected `{field}` to be one of {names} or a {kinds}, got {value!r}.")
    if name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Expected `{field}` to be one of {names}, got {name!r}.{hint}")
    known = [] if name == default else [part.name for part in fields(table[name])]
    if unknown := sorted(set(numbers) - set(known)):
        raise ValueError(f"The strategy {name!r} has no {unknown}; it has {known or 'no numbers'}.")
    return name if name in PLAIN_NAMES else table[name](**numbers)


def plain_strategy(value: Any, table: Mapping[str, type]) -> Any:
    """Return a strategy as plain JSON: its name, or a dictionary of its name and numbers."""
    if isinstance(value, str):
        return value
    name = next(name for name, kind in table.items() if type(value) is kind)
    return {"name": name, **asdict(value)} if fields(value) else name
