"""MiningReport: what a mining run did, as data that prints as a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import Candidates

_QUANTILES = {"min": 0.0, "25%": 0.25, "50%": 0.5, "75%": 0.75, "max": 1.0}


@dataclass(frozen=True)
class MiningReport:
    """What one mining run found, removed, and left empty. ``str(report)`` is a table, :meth:`to_dict` is JSON.

    Args:
        refresh: 0 for the first mining of a dataset, 1 for the next, and so on.
        step: Optimizer step of the training at which it was mined, if any.
        num_rows: Rows of the dataset.
        num_queries: Unique anchors.
        num_corpus: Corpus texts searched.
        num_negatives: Slots per row.
        num_candidates: Candidates retrieved for all queries together.
        num_kept: Candidates that passed every filter.
        removed: For each rule, how many candidates it removes.
        removed_alone: For each rule, how many candidates it removes that no other rule removes ("only this rule").
        num_slots: Slots of all queries together; rows of one query share their negatives.
        num_mined: Slots that this run filled.
        num_carried_over: Slots that kept an earlier negative which still passes every filter.
        num_last_resort: Slots that kept an earlier negative which a filter would remove today, because a live view
            needs the row.
        num_random: Slots filled by ``shortfall="random"``.
        num_repeated: Slots filled by ``shortfall="repeat"``.
        num_missing: Slots left empty.
        num_incomplete_rows: Rows with at least one empty slot.
        scores: For ``"positive"``, ``"negative"`` and ``"difference"`` (lowest positive minus negative): count, mean,
            std, min, 25%, 50%, 75%, max.
        hardness: Shares of ``"easy"``, ``"semi_hard"`` and ``"hard"`` negatives, see :mod:`st_hardneg.hardness`.
        semi_hard_margin: The margin behind ``hardness``.
        churn: Share of filled slots whose negative was not among the row's negatives before; None at first.
        seconds: Seconds spent on ``"encoding"``, ``"search"`` and ``"rest"``.
        peak_memory_mb: Peak resident memory of this process so far, in MB; None where the system does not tell.
        similarity: Name of the model's similarity function.
        config: The recipe in force, as ``MiningConfig.to_dict()``.
        sources: For each source, how many slots hold a negative from it.
        stage: Name of the curriculum's stage, if there is one.
        in_force: The fields that a schedule has set for this mining.
        stage_number: Number of that stage, from 1.
    """

    refresh: int
    step: int | None
    num_rows: int
    num_queries: int
    num_corpus: int
    num_negatives: int
    num_candidates: int
    num_kept: int
    removed: Mapping[str, int]
    removed_alone: Mapping[str, int]
    num_slots: int
    num_mined: int
    num_carried_over: int
    num_last_resort: int
    num_random: int
    num_repeated: int
    num_missing: int
    num_incomplete_rows: int
    scores: Mapping[str, Mapping[str, float]]
    hardness: Mapping[str, float]
    semi_hard_margin: float
    churn: float | None
    seconds: Mapping[str, float]
    peak_memory_mb: float | None
    similarity: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    stage: str | None = None
    stage_number: int | None = None
    in_force: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """Return the figures worth a line in a training log, under names that start with ``mining/``."""
        values = {
            "refresh": self.refresh,
            "filled": (self.num_slots - self.num_missing) / max(1, self.num_slots),
            "last_resort": self.num_last_resort / max(1, self.num_slots),
            "churn": self.churn,
            "positive_score": self.scores["positive"]["mean"],
            "negative_score": self.scores["negative"]["mean"],
            "difference": self.scores["difference"]["mean"],
            **self.hardness,
            "seconds": sum(self.seconds.values()),
            "stage": self.stage_number,
            **{name: value for name, value in self.in_force.items() if isinstance(value, (int, float))},
        }
        return {f"mining/{name}": round(float(value), 4) for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        when = f"refresh {self.refresh}" if self.refresh else "first mining"
        when += "" if self.stage is None else f", stage {self.stage!r}"
        at = "" if self.step is None else f", step {self.step:,}"
        lines = [
            f"Hard negatives: {when}{at}",
            f"  {self.num_rows:,} rows, {self.num_queries:,} queries, {self.num_corpus:,} corpus texts, "
            f"{self.num_negatives} negatives per row, {self.similarity} similarity",
            "",
            f"  {'candidates':<26}{'count':>12}{'share':>9}{'only this rule':>17}",
            f"  {'retrieved':<26}{self.num_candidates:>12,}",
        ]
        for rule, count in self.removed.items():
            lines.append(
                f"  {'- ' + rule:<26}{count:>12,}{_share(count, self.num_candidates):>9}{self.removed_alone[rule]:>17,}"
            )
        lines.append(f"  {'kept':<26}{self.num_kept:>12,}{_share(self.num_kept, self.num_candidates):>9}")
        lines += ["", f"  {'slots, per query':<26}{'count':>12}{'share':>9}"]
        for name, count in (
            ("mined", self.num_mined),
            ("carried over", self.num_carried_over),
            ("last resort", self.num_last_resort),
            ("random", self.num_random),
            ("repeated", self.num_repeated),
            ("empty", self.num_missing),
        ):
            if count or name in ("mined", "empty"):
                lines.append(f"  {name:<26}{count:>12,}{_share(count, self.num_slots):>9}")
        lines.append(
            f"  {'rows with empty slots':<26}{self.num_incomplete_rows:>12,}"
            f"{_share(self.num_incomplete_rows, self.num_rows):>9}"
        )
        if set(self.sources) - {"dense"}:
            shares = ", ".join(f"{name} {count:,}" for name, count in self.sources.items())
            lines.append(f"  sources     {shares}")
        if self.in_force:
            values = ", ".join(f"{name}={_shown(value)}" for name, value in self.in_force.items())
            lines.append(f"  in force    {values}")
        lines += ["", f"  {'score':<12}" + "".join(f"{name:>9}" for name in ("mean", "std", *_QUANTILES))]
        for name, summary in self.scores.items():
            lines.append(f"  {name:<12}" + "".join(f"{summary[key]:>9.4f}" for key in ("mean", "std", *_QUANTILES)))
        shares = ", ".join(f"{name.replace('_', '-')} {share:.1%}" for name, share in self.hardness.items())
        lines += ["", f"  hardness    {shares} (margin {self.semi_hard_margin:g})"]
        if self.churn is not None:
            lines.append(f"  churn       {self.churn:.1%} of the negatives are new to their row")
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        memory = "" if self.peak_memory_mb is None else f"; peak memory {self.peak_memory_mb:,.0f} MB"
        lines.append(f"  time        {spent}{memory}")
        return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


class Tally:
    """Counts, chunk by chunk, what the filters remove."""

    def __init__(self) -> None:
        self.num_candidates = 0
        self.num_kept = 0
        self.removed: dict[str, int] = {}
        self.removed_alone: dict[str, int] = {}

    def count(self, candidates: Candidates, masks: Mapping[str, Tensor], keep: Tensor) -> None:
        """Add one chunk: its candidates, each rule's keep-mask, and all of them together."""
        present = candidates.is_present
        self.num_candidates += int(present.sum())
        self.num_kept += int(keep.sum())
        removed_by = torch.zeros(present.shape, dtype=torch.int16)
        for mask in masks.values():
            removed_by += ~mask
        for rule, mask in masks.items():
            removes = ~mask & present
            self.removed[rule] = self.removed.get(rule, 0) + int(removes.sum())
            self.removed_alone[rule] = self.removed_alone.get(rule, 0) + int((removes & (removed_by == 1)).sum())


def summarize(values: Tensor) -> dict[str, float]:
    """Return count, mean, std and quantiles of finite values; NaN where there are none."""
    values = values[values.isfinite()].double()
    summary = {"count": float(len(values))}
    if not len(values):
        return summary | dict.fromkeys(("mean", "std", *_QUANTILES), float("nan"))
    summary["mean"] = float(values.mean())
    summary["std"] = float(values.std()) if len(values) > 1 else 0.0
    # torch.quantile refuses more than 16 M values; NumPy does not.
    for name, value in zip(_QUANTILES, np.quantile(values.numpy(), list(_QUANTILES.values())), strict=True):
        summary[name] = float(value)
    return summary


def peak_memory_mb() -> float | None:
    """Return the peak resident memory of this process so far, in MB, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0 if sys.platform != "darwin" else 1024.0**2)
