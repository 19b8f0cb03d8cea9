"""MiningReport: what a mining run did, as data that prints as a table."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from math import nan
from typing import Any

import numpy as np
from torch import Tensor

from st_hardneg.pages.figures import report_figures
from st_hardneg.pages.projection import Projection
from st_hardneg.pages.report import report_page, short_form
from st_hardneg.pages.write import write_page

_QUANTILES = {"min": 0.0, "25%": 0.25, "50%": 0.5, "75%": 0.75, "max": 1.0}


@dataclass(frozen=True)
class MiningReport:
    """What one mining found, removed, and left empty. ``str(report)`` is a table, :meth:`to_dict` is JSON.

    Args:
        refresh: 0 for the first mining of a dataset, 1 for the next, and so on.
        step: Optimizer step of the training at which it was mined, if any.
        num_rows: Rows of the dataset.
        num_queries: Unique anchors.
        num_corpus: Corpus texts searched.
        num_negatives: Slots per row.
        num_candidates: Candidates retrieved for all queries together.
        num_kept: Candidates that passed every rule.
        removed: For each rule, how many candidates it removes.
        removed_alone: For each rule, how many candidates it removes that no other rule removes ("only this rule").
        num_slots: Slots of all queries together; rows of one query share their negatives.
        num_mined: Slots that this mining filled.
        num_carried_over: Slots that kept an earlier negative which still passes every rule.
        num_last_resort: Slots that hold a text which a rule removes today, because nothing else was found and the row
            has to stay complete. Losses mask them.
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
        stage_number: Number of that stage, from 1.
        in_force: The fields that a schedule has set for this mining.
        num_positives: Distinct positives of the dataset.
        num_positives_in_corpus: How many of them the given corpus holds; None without a corpus.
        num_merged_texts: Texts that count as the same text as an earlier one, by the recipe's ``identity``.
        recall: Share of the nearest texts that the searcher found, on a sample of queries, where it is approximate; None
            where the search is exact.
        typical_rank: The typical rank of the right answer among unlabelled texts (geometric mean over a sample of
            queries), from 1; None where no bound of the recipe follows it.
        doubt: The strength of adaptive bounds that follows from it, from 0 (the model is trusted) to 1; it never falls
            from one mining to the next.
        model: The model that was mined with: ``kind``, ``name`` and ``weights``, as far as they can be told.
        num_encoded: Texts that were encoded, queries and corpus; None where it was not counted.
        vector_age: Mean age of the corpus' vectors, in steps, where only a share of them was encoded anew.
        columns: Names of the anchor and the positive column.
        notes: What deserves attention, in words.
        risk: Share of the negatives, over a sample of queries, that score at least as high as a right answer or are closer
            to one than their anchor is, both counted from chance; None where it was not counted.
        outdated: By how much these negatives are more similar to their anchors than those before them, by the model of
            now; None at first.
        figures: What :meth:`save` and :meth:`plot` draw.
        history: Of every mining before this one, what :meth:`brief` says.
        further: What a later version of this package has noted besides.
    """

    refresh: int = 0
    step: int | None = None
    num_rows: int = 0
    num_queries: int = 0
    num_corpus: int = 0
    num_negatives: int = 0
    num_candidates: int = 0
    num_kept: int = 0
    removed: Mapping[str, int] = field(default_factory=dict)
    removed_alone: Mapping[str, int] = field(default_factory=dict)
    num_slots: int = 0
    num_mined: int = 0
    num_carried_over: int = 0
    num_last_resort: int = 0
    num_random: int = 0
    num_repeated: int = 0
    num_missing: int = 0
    num_incomplete_rows: int = 0
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    hardness: Mapping[str, float] = field(default_factory=dict)
    semi_hard_margin: float = 0.2
    churn: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    similarity: str = "cosine"
    config: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    stage: str | None = None
    stage_number: int | None = None
    in_force: Mapping[str, Any] = field(default_factory=dict)
    num_positives: int = 0
    num_positives_in_corpus: int | None = None
    num_merged_texts: int = 0
    recall: float | None = None
    typical_rank: float | None = None
    doubt: float | None = None
    model: Mapping[str, str] = field(default_factory=dict)
    num_encoded: int | None = None
    vector_age: float | None = None
    columns: Sequence[str] = ()
    notes: Sequence[str] = ()
    risk: float | None = None
    outdated: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    further: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("notes", "columns", "history")}
        values = {**asdict(self), **lists}
        return {**values.pop("further"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MiningReport:
        """Make a report of what :meth:`to_dict` returned, in this version or another.

        What is missing takes its default; what this version does not know is kept in ``further``.

        Raises:
            TypeError: If it is no dictionary, or a value is of another kind than the default.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"Expected a report as a dictionary, got {type(values).__name__}.")
        names = {part.name: part for part in fields(cls) if part.name != "further"}
        for name, part in names.items():
            if name in values:
                _check_kind(name, values[name], part)
        known = {name: values[name] for name in names if name in values}
        for name in {"notes", "columns", "history"} & set(known):
            known[name] = tuple(known[name])  # JSON has no tuples
        return cls(**known, further={name: value for name, value in values.items() if name not in names})

    def metrics(self) -> dict[str, float]:
        """Return the figures worth a line in a training log, under names that start with ``mining/``."""
        values = {
            "refresh": self.refresh,
            "filled": (self.num_slots - self.num_missing) / max(1, self.num_slots),
            "last_resort": self.num_last_resort / max(1, self.num_slots),
            "churn": self.churn,
            **{
                name: self.scores.get(summary, {}).get("mean")
                for name, summary in (
                    ("positive_score", "positive"),
                    ("negative_score", "negative"),
                    ("difference", "difference"),
                )
            },
            "risk": self.risk,
            "outdated": self.outdated,
            "recall": self.recall,
            "typical_rank": self.typical_rank,
            "doubt": self.doubt,
            "vector_age": self.vector_age,
            **self.hardness,
            "seconds": sum(self.seconds.values()),
            "stage": self.stage_number,
            **{name: value for name, value in self.in_force.items() if isinstance(value, (int, float))},
        }
        return {f"mining/{name}": round(float(value), 4) for name, value in values.items() if value is not None}

    def brief(self) -> dict[str, Any]:
        """Return the figures that are followed over a training, and the step."""
        return {"step": self.step, **{name.removeprefix("mining/"): value for name, value in self.metrics().items()}}

    def save(self, path: str | os.PathLike[str], *, projection: Projection = "pca") -> None:
        """Write this report as one page of HTML that needs nothing else: no server, no script, no network.

        Args:
            path: The file, such as ``"report.html"``; an earlier one is replaced only once the new one is complete.
            projection: How anchors and texts are laid out in the plane: ``"pca"``, or ``"umap"``, which needs the extra
                ``umap``.

        Raises:
            MissingExtraError: If ``projection="umap"`` and UMAP is not installed.
            OSError: If the file cannot be written.
        """
        write_page(path, report_page(self.to_dict(), str(self), projection))

    def plot(self, *, projection: Projection = "pca") -> dict[str, Any]:
        """Return the figures of the page as matplotlib figures, by name. Needs the extra ``plots``.

        Args:
            projection: As for :meth:`save`.

        Raises:
            MissingExtraError: If matplotlib, or UMAP where it is asked for, is not installed.
        """
        return report_figures(self.to_dict(), projection)

    def _repr_html_(self) -> str:
        return short_form(self.to_dict())

    def __str__(self) -> str:
        lines = [*self._head(), "", *self._waterfall(), "", *self._slots(), "", *self._scores(), "", *self._rest()]
        return "\n".join(lines)

    def _head(self) -> list[str]:
        names = " -> ".join(map(repr, self.columns)) + ", " if self.columns else ""
        when = f"refresh {self.refresh}" if self.refresh else "first mining"
        when += "" if self.stage is None else f", stage {self.stage!r}"
        at = "" if self.step is None else f", step {self.step:,}"
        lines = [
            f"Hard negatives: {when}{at}",
            f"  {names}{self.num_rows:,} rows, {self.num_queries:,} queries, {self.num_corpus:,} corpus texts, "
            f"{self.num_negatives} negatives per row, {self.similarity} similarity",
        ]
        if self.num_positives_in_corpus is not None:
            lines.append(f"  {self.num_positives_in_corpus:,} of {self.num_positives:,} positives found in the corpus")
        if self.num_merged_texts:
            lines.append(f"  {self.num_merged_texts:,} of the texts are copies of another one (`identity`)")
        if self.typical_rank is not None:
            lines.append(
                f"  the right answer typically ranks {_ordinal(self.typical_rank)} among unlabelled texts: adaptive "
                f"bounds are {self.doubt or 0:.0%} of the way from trusted to doubted"
            )
        return lines + [f"  note: {note}" for note in self.notes]

    def _waterfall(self) -> list[str]:
        lines = [
            f"  {'candidates':<34}{'count':>12}{'share':>9}{'only this rule':>17}",
            f"  {'retrieved':<34}{self.num_candidates:>12,}",
        ]
        for rule, count in self.removed.items():
            share, alone = _share(count, self.num_candidates), self.removed_alone.get(rule, 0)
            lines.append(f"  {'- ' + rule:<34}{count:>12,}{share:>9}{alone:>17,}")
        return [*lines, f"  {'kept':<34}{self.num_kept:>12,}{_share(self.num_kept, self.num_candidates):>9}"]

    def _slots(self) -> list[str]:
        lines = [f"  {'slots, per query':<34}{'count':>12}{'share':>9}"]
        for name, count in (
            ("mined", self.num_mined),
            ("carried over", self.num_carried_over),
            ("last resort", self.num_last_resort),
            ("random, for want of others", self.num_random),
            ("repeated", self.num_repeated),
            ("empty", self.num_missing),
        ):
            if count or name in ("mined", "empty"):
                lines.append(f"  {name:<34}{count:>12,}{_share(count, self.num_slots):>9}")
        lines.append(
            f"  {'rows with empty slots':<34}{self.num_incomplete_rows:>12,}"
            f"{_share(self.num_incomplete_rows, self.num_rows):>9}"
        )
        if set(self.sources) - {"dense"}:
            shares = ", ".join(f"{name} {count:,}" for name, count in self.sources.items())
            lines.append(f"  sources     {shares}")
        if self.in_force:
            values = ", ".join(f"{name}={_shown(value)}" for name, value in self.in_force.items())
            lines.append(f"  in force    {values}")
        return lines

    def _scores(self) -> list[str]:
        lines = [f"  {'score':<12}" + "".join(f"{name:>9}" for name in ("mean", "std", *_QUANTILES))]
        for name, summary in self.scores.items():
            lines.append(
                f"  {name:<12}" + "".join(f"{summary.get(key, nan):>9.4f}" for key in ("mean", "std", *_QUANTILES))
            )
        return lines

    def _rest(self) -> list[str]:
        shares = ", ".join(f"{name.replace('_', '-')} {share:.1%}" for name, share in self.hardness.items())
        lines = [f"  hardness    {shares} (margin {self.semi_hard_margin:g})"]
        if self.churn is not None:
            lines.append(f"  churn       {self.churn:.1%} of the negatives are new to their row")
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        if self.recall is not None:
            lines.append(f"  recall      {self.recall:.3f} of the nearest texts are found (sampled)")
        if self.vector_age is not None:
            texts = f"{self.num_encoded:,} texts encoded; " if self.num_encoded is not None else ""
            lines.append(f"  vectors     {texts}those of the corpus are {self.vector_age:.1f} steps old in the mean")
        memory = "" if self.peak_memory_mb is None else f"; peak memory {self.peak_memory_mb:,.0f} MB"
        return [*lines, f"  time        {spent}{memory}"]


def _check_kind(name: str, value: Any, part: Field[Any]) -> None:
    """Raise a TypeError unless a value that was read is of the kind of its field's default."""
    default = part.default_factory() if part.default_factory is not MISSING else part.default
    if default is None or value is None:
        good = default is None and (value is None or isinstance(value, (str, int, float)))
    elif isinstance(default, Mapping):
        good = isinstance(value, Mapping)
    elif isinstance(default, str):
        good = isinstance(value, str)
    elif isinstance(default, tuple):
        kind = Mapping if name == "history" else str
        good = isinstance(value, (list, tuple)) and all(isinstance(one, kind) for one in value)
    else:
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good:
        raise TypeError(f"Expected `{name}` of a report to be like {default!r}, got {value!r}.")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ordinal(rank: float) -> str:
    if rank >= 100:
        return "below 100th"
    number = max(1, round(rank))
    ending = "th" if 10 < number % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


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
