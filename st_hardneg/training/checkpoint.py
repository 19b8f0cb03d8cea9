"""What a trainer's checkpoint has to hold, so that a resumed run goes on with the same negatives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from st_hardneg.candidates import Mining
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.texts import Ids
from st_hardneg.files.folders import settle, write_folder
from st_hardneg.files.minings import read_mining, report_from, write_mining
from st_hardneg.files.schema import (
    Key,
    check_seal,
    checked_keys,
    damaged,
    is_count,
    is_mapping,
    is_optional,
    is_string,
    read_json,
    seal,
    write_json,
)
from st_hardneg.live.negatives import marked_ids

_FORMAT = 1
_FOLDER = "hard_negatives"
_STATE_FILE = "state.json"

KEYS: dict[str, Key] = {
    "format": Key(is_count),
    "num_minings": Key(lambda value: is_count(value) and value >= 1, default=1),
    "mined_at": Key(is_optional(is_count), default=None),
    "asked_at": Key(is_optional(is_count), default=None),
    "reports": Key(lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value), default=[]),
    "report": Key(is_mapping, default={}),
    "config": Key(is_mapping),
    "data_fingerprint": Key(is_string),
    "schedule": Key(lambda value: True, default=None),
    "files": Key(is_mapping, default={}),
}
"""The keys of a checkpoint's ``state.json``."""

_KEPT = ("num_minings", "mined_at", "asked_at", "reports", "config", "data_fingerprint", "schedule")


@dataclass(frozen=True, eq=False)
class CheckpointState:
    """The state of one refreshed dataset at a checkpoint.

    Args:
        mining: The negatives in force.
        previous_ids: int64 of shape ``(num_queries, num_negatives)``: those that were in force before, as
            :func:`~st_hardneg.live.negatives.marked_ids` has them; batches that were fetched ahead of the last refresh
            have them.
        live_rows: int64: the rows of the live view.
        num_minings: How often the dataset was mined; part of every random draw.
        mined_at: Step at which the last refresh of this training was put in force, or None.
        reports: The reports of this training so far, as dictionaries.
        config: The recipe, as a dictionary.
        data_fingerprint: What identifies rows and corpus.
        schedule: What identifies the schedule of the training, as plain JSON values.
        epoch_topics: int32 of shape ``(num_queries,)``: the topics that the batches of the running epoch were planned
            with, or None.
        asked_at: Step at which the last refresh was begun, or None. One that is later than what is in force was under way.
    """

    mining: Mining
    previous_ids: Ids
    live_rows: Ids
    num_minings: int
    mined_at: int | None
    reports: list[dict[str, Any]]
    config: dict[str, Any]
    data_fingerprint: str
    schedule: Any = None
    epoch_topics: Tensor | None = None
    previous_scores: Tensor | None = None
    asked_at: int | None = None

    @property
    def weights_of(self) -> int | None:
        """Step of the weights with which the negatives in force were mined; None before the training."""
        return self.mining.report.step


def folder_of(checkpoint: str, dataset_name: str | None) -> str:
    """Return where in a checkpoint a dataset's state lies. A name of the user's never becomes a path."""
    digest = hashlib.blake2b((dataset_name or "").encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return os.path.join(checkpoint, _FOLDER, digest)


def write_checkpoint(checkpoint: str, dataset_name: str | None, state: CheckpointState) -> None:
    """Write a dataset's state into a checkpoint folder; it is there whole, or as an empty folder that tells of the try."""
    folder = folder_of(checkpoint, dataset_name)
    os.makedirs(folder, exist_ok=True)
    write_folder(folder, lambda partial: _write(partial, state))


def _write(folder: str, state: CheckpointState) -> None:
    topics = None if state.epoch_topics is None else torch.as_tensor(state.epoch_topics)
    in_training = {
        "previous_ids": torch.as_tensor(state.previous_ids),
        "previous_scores": state.previous_scores,
        "epoch_topics": topics,
    }
    write_mining(folder, state.mining, state.live_rows, **in_training)
    content = {
        "format": _FORMAT,
        **{name: getattr(state, name) for name in _KEPT},
        "report": state.mining.report.to_dict(),
        "files": seal(folder),
    }
    write_json(folder, _STATE_FILE, content)


def read_checkpoint(
    checkpoint: str,
    dataset_name: str | None,
    *,
    config: dict[str, Any],
    data_fingerprint: str,
    schedule: Any,
    num_rows: int,
    num_queries: int,
    num_corpus: int,
    source_names: Sequence[str],
    was_refreshed: bool = False,
) -> CheckpointState | None:
    """Read a dataset's state from a checkpoint folder, and make sure that it belongs to the dataset.

    Args:
        checkpoint: The folder.
        dataset_name: The trainer's name of the dataset, if it trains on several.
        config: The recipe, as a dictionary.
        data_fingerprint: What identifies rows and corpus.
        schedule: What identifies the schedule of the training.
        num_rows: Rows that are expected.
        num_queries: Queries that are expected.
        num_corpus: Texts in the corpus.
        source_names: Names of the sources that the dataset knows.
        was_refreshed: Whether it is known that the training had refreshed negatives before the checkpoint.

    Returns:
        The state, or None if the checkpoint has none for this dataset.

    Raises:
        ValueError: If config or data differ from those of the checkpoint (the difference is named), or the files are
            damaged, or writing them was interrupted.
    """
    folder = folder_of(checkpoint, dataset_name)
    if not _is_there(checkpoint, folder, was_refreshed):
        return None
    content = checked_keys(folder, read_json(folder, _STATE_FILE, _FORMAT), KEYS, _STATE_FILE)
    _check_same(checkpoint, content, config, data_fingerprint, schedule)
    check_seal(folder, content["files"])
    mining, live_rows, in_training = read_mining(
        folder,
        content["report"],
        num_rows=num_rows,
        num_queries=num_queries,
        num_negatives=int(config["num_negatives"]),
        num_corpus=num_corpus,
        source_names=source_names,
    )
    for report in content["reports"]:
        report_from(folder, report)
    kept = {name: content[name] for name in _KEPT}
    previous_ids = _previous_ids(folder, in_training["previous_ids"], mining, num_corpus)
    topics, scores = in_training["epoch_topics"], in_training["previous_scores"]
    return CheckpointState(mining, previous_ids, live_rows, epoch_topics=topics, previous_scores=scores, **kept)


def _is_there(checkpoint: str, folder: str, was_refreshed: bool) -> bool:
    """Tell whether a checkpoint has a state for a dataset.

    Raises:
        ValueError: If it had one, or should have.
    """
    settle(folder)
    if os.path.isfile(os.path.join(folder, _STATE_FILE)):
        return True
    # Another dataset's state beside it means that this one may never have been part of it.
    is_lost = was_refreshed and not os.path.isdir(os.path.join(checkpoint, _FOLDER))
    if is_lost or os.path.isdir(folder):
        raise ValueError(
            f"Expected the negatives in {checkpoint!r} with which the training went on, got none: writing them was "
            "interrupted (a full disk, a killed process), or they were deleted. Resume from an earlier checkpoint, "
            "with `resume_from_checkpoint=PATH`, or start a new training from this one's model."
        )
    return False


def _previous_ids(folder: str, found: Tensor | None, mining: Mining, num_corpus: int) -> Ids:
    """Return what was in force before, checked; an earlier version may not have written it."""
    previous_ids: Ids = marked_ids(mining.negatives) if found is None else found.numpy()
    if previous_ids.min(initial=0) < -num_corpus - 1:  # -2 stands for the text 0
        raise damaged(folder, "'previous_ids' holds numbers outside of the corpus")
    return previous_ids


def _check_same(
    checkpoint: str, content: dict[str, Any], config: dict[str, Any], data_fingerprint: str, schedule: Any
) -> None:
    # A field that there was not yet when the checkpoint was written had no effect: its default.
    defaults = MiningConfig().to_dict()
    then, now = {**defaults, **content["config"]}, {**defaults, **config}
    changed = [
        f"`{name}` was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"Expected the MiningConfig with which {checkpoint!r} was trained, got another one: {'; '.join(changed)}. "
            "Resume with the same config, or start a new training from the checkpoint's model."
        )
    if content["data_fingerprint"] != data_fingerprint:
        raise ValueError(
            f"Expected the rows and the corpus with which {checkpoint!r} was trained, got others: texts, or their "
            "order, differ. Resume with the same data, or start a new training from the checkpoint's model."
        )
    if content["schedule"] != schedule:
        raise ValueError(
            f"Expected the schedule with which {checkpoint!r} was trained, {content['schedule']}, got {schedule}. Resume "
            "with the same schedule, or start a new training from the checkpoint's model."
        )
