"""Checkpoints of the trainer: negatives are written beside the model, and read again where a training resumes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from st_hardneg.encoders.ranks import from_first_rank
from st_hardneg.hosts import output_dir, resumed_checkpoint
from st_hardneg.report import MiningReport
from st_hardneg.training.checkpoint import CheckpointState, read_checkpoint, write_checkpoint
from st_hardneg.training.targets import Target

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


def save(
    folder: str,
    target: Target,
    *,
    mined_at: int | None,
    asked_at: int | None,
    reports: Sequence[MiningReport],
    schedule: Any,
) -> None:
    """Write the state of a dataset into a checkpoint.

    Args:
        folder: The checkpoint.
        target: The dataset.
        mined_at: Step at which the last refresh of this training was put in force, or None.
        asked_at: Step at which the last one was begun, or None.
        reports: The reports of this training so far.
        schedule: What identifies the schedule.
    """
    hard_negatives = target.hard_negatives
    live = hard_negatives.live
    assert live.mining is not None  # the training reads a live view of it
    write_checkpoint(
        folder,
        target.name,
        CheckpointState(
            mining=live.mining,
            previous_ids=live.previous_ids,
            live_rows=np.arange(0) if live.rows is None else live.rows,
            num_minings=live.num_minings,
            mined_at=mined_at,
            asked_at=asked_at,
            reports=[_slim(report) for report in reports],
            config=hard_negatives.config.to_dict(),
            data_fingerprint=hard_negatives.data_fingerprint,
            schedule=schedule,
            epoch_topics=live.epoch_topics,
            previous_scores=live.previous_scores,
        ),
    )


def read(folder: str, target: Target, *, schedule: Any, state: TrainerState) -> CheckpointState | None:
    """Read the state of a dataset from a checkpoint, on rank 0, and bring it to every rank.

    Args:
        folder: The checkpoint.
        target: The dataset.
        schedule: What identifies the schedule.
        state: The trainer's state, as it was at the checkpoint.

    Returns:
        The state, or None if the checkpoint has none for this dataset; a warning says so.

    Raises:
        ValueError: If the checkpoint belongs to other data, another recipe or schedule, or is damaged.
    """
    hard_negatives = target.hard_negatives
    found: CheckpointState | None = None
    assert hard_negatives.live.mining is not None  # the training reads a live view of it
    if state.is_world_process_zero:
        found = read_checkpoint(
            folder,
            target.name,
            config=hard_negatives.config.to_dict(),
            data_fingerprint=hard_negatives.data_fingerprint,
            schedule=schedule,
            num_rows=len(hard_negatives),
            num_queries=hard_negatives.num_queries,
            num_corpus=len(hard_negatives.corpus),
            source_names=hard_negatives.live.mining.source_names,
            was_refreshed=any(key.startswith("mining/") for entry in state.log_history for key in entry),
        )
    found = from_first_rank(found)
    if found is None:
        logger.warning(
            f"The checkpoint {folder!r} holds no negatives for this dataset (it was written without a "
            "MiningCallback). Training goes on with the negatives that the dataset has now."
        )
    elif found.mined_at is not None and found.mined_at > state.global_step:
        raise ValueError(
            f"Expected a complete checkpoint in {folder!r}, got a damaged one: it was refreshed at step {found.mined_at}, "
            "after its own last step. Resume from another one."
        )
    return found


def say_what_is_in_force(found: CheckpointState) -> bool:
    """Log which mining a resumed training goes on with.

    Returns:
        Whether a refresh was under way in the background, which is to be begun anew.
    """
    weights_of, asked_at = found.weights_of, found.asked_at
    which = "mined before the training" if weights_of is None else f"mined with the weights of step {weights_of:,}"
    since = "" if found.mined_at in (None, weights_of) else f", in force since step {found.mined_at:,}"
    is_lost = asked_at is not None and asked_at > (-1 if weights_of is None else weights_of)
    lost = f" The refresh of step {asked_at:,} was not done; it is begun anew." if is_lost else ""
    logger.info(f"Resuming with the negatives {which}{since}.{lost}")
    return is_lost


def checkpoint_folder(trainer: Trainer | None, args: TrainingArguments, state: TrainerState) -> str:
    """Return the folder of the checkpoint of this step."""
    return os.path.join(args.output_dir if trainer is None else output_dir(trainer), f"checkpoint-{state.global_step}")


def folder_to_resume(trainer: Trainer | None, args: TrainingArguments, state: TrainerState) -> str:
    """Return the checkpoint from which the training that is beginning resumes."""
    return resumed_checkpoint() or checkpoint_folder(trainer, args, state)


def _slim(report: MiningReport) -> dict[str, Any]:
    """Return a report without texts, map and history: of hundreds of refreshes, they would outweigh the negatives."""
    values = report.to_dict()
    return {**values, "figures": {"histograms": values["figures"].get("histograms", {})}, "history": []}
