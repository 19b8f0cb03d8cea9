"""What a trainer's checkpoint has to hold, so that a resumed run goes on with the same negatives."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from st_hardneg.corpus.texts import Ids, dataset_of
from st_hardneg.files.save import (
    damaged,
    flat_lists,
    matrix_from,
    mining_from,
    negatives_dataset,
    read_part,
    topics_from,
    write_folder,
)
from st_hardneg.mining.engine import Mining
from st_hardneg.report import MiningReport

_FORMAT = 1
_FOLDER = "hard_negatives"
_STATE_FILE = "state.json"

SPEED = {"batch_size", "query_chunk_size", "corpus_chunk_size", "semi_hard_margin"}
"""Fields of the config that change no negative: a training may be resumed with others."""


@dataclass(frozen=True, eq=False)
class CheckpointState:
    """The state of one refreshed dataset at a checkpoint.

    Args:
        mining: The negatives in force.
        previous_ids: int64 of shape ``(num_rows, num_negatives)``: those that were in force before; batches that were
            fetched ahead of the last refresh have them.
        live_rows: int64: the rows of the live view.
        num_minings: How often the dataset was mined; part of every random draw.
        mined_at: Step of the last refresh of this training, or None.
        reports: The reports of this training so far, as dictionaries.
        config: The recipe, as a dictionary.
        data_fingerprint: What identifies rows and corpus.
        schedule: What identifies the schedule of the training, as plain JSON values.
        epoch_topics: int32 of shape ``(num_rows,)``: the topics that the batches of the running epoch were planned with.
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
    epoch_topics: npt.NDArray[np.int32] | None = None


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
    negatives_dataset(state.mining, state.live_rows).save_to_disk(os.path.join(folder, "negatives"))
    previous = dataset_of(pa.table({"previous_ids": flat_lists(state.previous_ids)}))
    previous.save_to_disk(os.path.join(folder, "previous"))
    if state.epoch_topics is not None:
        topics = dataset_of(pa.table({"epoch_topics": pa.array(state.epoch_topics)}))
        topics.save_to_disk(os.path.join(folder, "topics"))
    content = {
        "format": _FORMAT,
        "num_minings": state.num_minings,
        "mined_at": state.mined_at,
        "reports": state.reports,
        "report": state.mining.report.to_dict(),
        "config": state.config,
        "data_fingerprint": state.data_fingerprint,
        "schedule": state.schedule,
        "digest": _digest(state.mining.negative_ids, state.previous_ids, state.live_rows),
    }
    with open(os.path.join(folder, _STATE_FILE), "w", encoding="utf-8") as file:
        json.dump(content, file)


def _digest(*arrays: Ids) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return digest.hexdigest()


def read_checkpoint(
    checkpoint: str,
    dataset_name: str | None,
    *,
    config: dict[str, Any],
    data_fingerprint: str,
    schedule: Any,
    num_rows: int,
    num_corpus: int,
    num_sources: int,
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
        num_corpus: Texts in the corpus.
        num_sources: Sources that the dataset knows.
        was_refreshed: Whether it is known that the training had refreshed negatives before the checkpoint.

    Returns:
        The state, or None if the checkpoint has none for this dataset.

    Raises:
        ValueError: If config or data differ from those of the checkpoint (the difference is named), or the files are
            damaged, or writing them was interrupted.
    """
    folder = folder_of(checkpoint, dataset_name)
    state_file = os.path.join(folder, _STATE_FILE)
    if not os.path.isfile(state_file):
        # Another dataset's state beside it means that this one may never have been part of it.
        is_lost = was_refreshed and not os.path.isdir(os.path.join(checkpoint, _FOLDER))
        if is_lost or os.path.isdir(folder):
            raise ValueError(
                f"Expected the negatives in {checkpoint!r} with which the training went on, got none: writing them was "
                "interrupted (a full disk, a killed process), or they were deleted. Resume from an earlier checkpoint, "
                "with `resume_from_checkpoint=PATH`, or start a new training from this one's model."
            )
        return None
    content = _content(folder, state_file)
    _check_same(checkpoint, content, config, data_fingerprint, schedule)
    shape = (num_rows, int(config["num_negatives"]))
    negatives = read_part(folder, "negatives")
    mining, live_rows = mining_from(folder, negatives, content["report"], shape, num_corpus, num_sources)
    previous_ids = matrix_from(folder, read_part(folder, "previous"), "previous_ids", shape, np.int64)
    if previous_ids.min(initial=0) < -1 or previous_ids.max(initial=-1) >= num_corpus:
        raise damaged(folder, "earlier negative ids lie outside of the corpus")
    try:
        for report in content["reports"]:
            MiningReport(**report).metrics()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise damaged(folder, f"a report is not what was written ({error})") from None
    if _digest(mining.negative_ids, previous_ids, live_rows) != content["digest"]:
        raise damaged(folder, "the negatives are not those that were written")
    return CheckpointState(
        mining,
        previous_ids,
        live_rows,
        content["num_minings"],
        content["mined_at"],
        content["reports"],
        content["config"],
        content["data_fingerprint"],
        content["schedule"],
        _epoch_topics(folder, num_rows),
    )


def _epoch_topics(folder: str, num_rows: int) -> npt.NDArray[np.int32] | None:
    if not os.path.isdir(os.path.join(folder, "topics")):
        return None
    return topics_from(folder, read_part(folder, "topics"), "epoch_topics", num_rows)


def _content(folder: str, state_file: str) -> dict[str, Any]:
    try:
        with open(state_file, encoding="utf-8") as file:
            content = json.load(file)
        good = (
            content["format"] == _FORMAT
            and type(content["num_minings"]) is int
            and 1 <= content["num_minings"] < 2**31
            and (content["mined_at"] is None or (type(content["mined_at"]) is int and content["mined_at"] >= 0))
            and isinstance(content["reports"], list)
            and all(isinstance(report, dict) for report in content["reports"])
            and all(isinstance(content[name], dict) for name in ("report", "config"))
            and all(isinstance(content[name], str) for name in ("data_fingerprint", "digest"))
            and "schedule" in content
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise damaged(folder, f"{_STATE_FILE} cannot be read")
    return dict(content)


def _check_same(
    checkpoint: str, content: dict[str, Any], config: dict[str, Any], data_fingerprint: str, schedule: Any
) -> None:
    then = content["config"]
    changed = [
        f"`{name}` was {then.get(name)!r} and is {config.get(name)!r}"
        for name in sorted({*then, *config} - SPEED)
        if then.get(name) != config.get(name)
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
