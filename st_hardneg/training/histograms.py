"""Histograms of scores for the reporters that draw them: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from st_hardneg.report import MiningReport
from st_hardneg.training.refresh import Request, log_metrics
from st_hardneg.training.targets import Target
from st_hardneg.training.timing import Timing

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState


def log_first_histograms(targets: Sequence[Target], trainer: Any, step: int) -> None:
    """Hand on the histograms of what a training begins with."""
    for target in targets:
        log_histograms(target.hard_negatives.report, trainer, step, target)


def log_refresh(
    report: MiningReport,
    request: Request,
    timing: Timing,
    trainer: Any,
    state: TrainerState,
    control: TrainerControl,
) -> None:
    """Put the metrics of a refresh into the trainer's log, and its histograms where they are drawn.

    Args:
        report: The report of the refresh.
        request: What asked for it, and when.
        timing: The training's steps.
        trainer: The trainer, or None.
        state: The trainer's state.
        control: The trainer's control.
    """
    step, target = state.global_step, request.target
    since = {"mining/staleness": step - request.step, "mining/seen_from_step": timing.first_step_seen(step)}
    log_metrics(target.logged({**report.metrics(), **since}), trainer, state, control)
    log_histograms(report, trainer, step, target)


def log_histograms(report: MiningReport, trainer: Any, step: int, target: Target | None = None) -> None:
    """Hand the histograms of a mining to every reporter of a trainer that takes them; the others are passed over.

    Args:
        report: The report of the mining.
        trainer: The trainer, or None.
        step: The training's step.
        target: Gives metrics names that no other dataset of the training has.
    """
    if trainer is None or not trainer.is_world_process_zero():
        return
    for callback in trainer.callback_handler.callbacks:
        kind = type(callback).__name__
        for name, drawn in report.figures.get("histograms", {}).items():
            if kind in _REPORTERS:
                whole = f"mining/{name}_scores"
                whole = whole if target is None else next(iter(target.logged({whole: 0.0})))
                _REPORTERS[kind](callback, whole, drawn, step)


def _to_tensorboard(callback: Any, name: str, drawn: Mapping[str, Any], step: int) -> None:
    writer = getattr(callback, "tb_writer", None)
    if writer is None:
        return
    counts, edges = _counts_and_edges(drawn)
    middles = (edges[1:] + edges[:-1]) / 2
    writer.add_histogram_raw(
        name,
        min=float(edges[0]),
        max=float(edges[-1]),
        num=int(counts.sum()),
        sum=float((counts * middles).sum()),
        sum_squares=float((counts * middles**2).sum()),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )


def _to_wandb(callback: Any, name: str, drawn: Mapping[str, Any], step: int) -> None:
    _to_run(getattr(callback, "_wandb", None), name, drawn, step)


def _to_trackio(callback: Any, name: str, drawn: Mapping[str, Any], step: int) -> None:
    _to_run(getattr(callback, "_trackio", None), name, drawn, step)


def _to_run(library: Any, name: str, drawn: Mapping[str, Any], step: int) -> None:
    # Both have one class and one function; older versions of Trackio have no histograms.
    if hasattr(library, "Histogram"):
        library.log({name: library.Histogram(np_histogram=_counts_and_edges(drawn)), "train/global_step": step})


def _counts_and_edges(drawn: Mapping[str, Any]) -> tuple[Any, Any]:
    counts = np.asarray(drawn["counts"])
    return counts, np.linspace(drawn["low"], drawn["high"], len(counts) + 1)


_REPORTERS = {
    "TensorBoardCallback": _to_tensorboard,
    "WandbCallback": _to_wandb,
    "TrackioCallback": _to_trackio,
}
