"""What is in our files, described once: written, checked and read by it.

Columns of tables derive from :data:`st_hardneg.candidates.COLUMNS`. What a file lacks takes its default, so that files
outlive versions of this package; what a later version has written besides is named in a warning and left out.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import pyarrow as pa
import torch

from st_hardneg.candidates import BUILT_IN_SOURCES, COLUMNS, ORIGINS, Column

logger = logging.getLogger(__name__)

REQUIRED = object()
"""The default of what has to be in the file."""

_ARROW: dict[torch.dtype, pa.DataType] = {
    torch.int64: pa.int64(),
    torch.int32: pa.int32(),
    torch.float32: pa.float32(),
    torch.bool: pa.bool_(),
}
_VOCABULARIES = {"source_names": BUILT_IN_SOURCES, "ORIGINS": ORIGINS}


@dataclass(frozen=True)
class FileColumn:
    """One column of a table in our files.

    Args:
        dtype: Type of the tensor that it is read into.
        default: What stands for each value if the file lacks the column: a number, None for no column at all, or
            :data:`REQUIRED`.
        is_list: Whether each row holds a list, a value per slot.
        names: What its numbers are written as, if they are places in a list of names.
        missing: The number that has no name and is written as null.
        least: The lowest value that may stand there.
        limit: What the values have to stay below: a count that the reader knows, ``"corpus"`` or ``"queries"``.
        may_be_nan: Whether NaN may stand there.
    """

    dtype: torch.dtype
    default: Any = REQUIRED
    is_list: bool = False
    names: str | None = None
    missing: int = -1
    least: float | None = None
    limit: str | None = None
    may_be_nan: bool = False

    @property
    def value_type(self) -> pa.DataType:
        """Arrow's type of one value."""
        return pa.string() if self.names else _ARROW[self.dtype]


def _of_negatives(name: str, column: Column) -> FileColumn:
    return FileColumn(
        column.dtype,
        default=REQUIRED if name in ("ids", "similarities") else column.missing,
        is_list=True,
        names=column.names,
        missing=int(column.missing) if column.names else -1,
        least=None if column.dtype.is_floating_point else column.missing,
        limit="corpus" if name == "ids" else None,
        may_be_nan=isnan(column.missing),
    )


_TOPICS = FileColumn(torch.int32, default=None, least=0, limit="queries")

NEGATIVES: dict[str, FileColumn] = {
    **{name: _of_negatives(name, column) for name, column in COLUMNS.items()},
    "topics": _TOPICS,
}
"""One row per query: the columns of :class:`~st_hardneg.candidates.Negatives` in which something stands, and the topic."""

ROWS: dict[str, FileColumn] = {
    "positive_similarities": FileColumn(torch.float32),
    "positive_cross_encoder_scores": FileColumn(torch.float32, default=None),
    "positive_teacher_scores": FileColumn(torch.float32, default=None),
    "is_live": FileColumn(torch.bool, default=0),
}
"""One row per row of the wrapped dataset."""

SUSPECTS: dict[str, FileColumn] = {
    "query_ids": FileColumn(torch.int64, least=0, limit="queries"),
    "corpus_ids": FileColumn(torch.int64, least=0, limit="corpus"),
    "closeness": FileColumn(torch.float32),
}
"""One row per text that lies close to a right answer of a query, the closest first."""

IN_TRAINING: dict[str, FileColumn] = {
    "previous_ids": replace(NEGATIVES["ids"], default=None, least=None),
    "previous_scores": replace(NEGATIVES["teacher_scores"], default=None),
    "epoch_topics": _TOPICS,
}
"""One row per query, in checkpoints: what was in force before, as live tables hold it, and what the running epoch was
planned with."""


def vocabulary(names: str) -> tuple[str, ...]:
    """Return the names that this version knows for a column of names."""
    return _VOCABULARIES[names]


@dataclass(frozen=True)
class Key:
    """One key of a JSON file of ours.

    Args:
        is_good: Tells whether a value is of the kind that was written.
        default: What stands for it if the file lacks it, or :data:`REQUIRED`.
    """

    is_good: Callable[[Any], bool]
    default: Any = REQUIRED


def is_string(value: Any) -> bool:
    """Tell whether it is a string."""
    return isinstance(value, str)


def is_strings(value: Any) -> bool:
    """Tell whether it is a list of strings."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def is_mapping(value: Any) -> bool:
    """Tell whether it is a dictionary."""
    return isinstance(value, dict)


def is_optional(is_good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the check that lets None through, too."""
    return lambda value: value is None or is_good(value)


def is_count(value: Any) -> bool:
    """Tell whether it is an integer from 0 up that can count refreshes or steps."""
    return type(value) is int and 0 <= value < 2**31


def checked_keys(path: str, content: Any, keys: Mapping[str, Key], file: str) -> dict[str, Any]:
    """Return the values of a JSON file; missing ones take their defaults, unknown ones are named in a warning.

    Raises:
        ValueError: If a value is of another kind than what was written, or a required one is missing.
    """
    if not isinstance(content, dict):
        raise damaged(path, f"{file} cannot be read")
    for name, key in keys.items():
        if name in content and not key.is_good(content[name]):
            raise damaged(path, f"{name!r} is of the wrong kind in {file}")
        if name not in content and key.default is REQUIRED:
            raise damaged(path, f"{name!r} is missing in {file}")
    warn_of_unknown(path, set(content) - set(keys))
    return {name: content[name] if name in content else copy(key.default) for name, key in keys.items()}


def warn_of_unknown(path: str, names: set[str]) -> None:
    """Name what this version does not read."""
    if names:
        logger.warning(
            f"{path!r} holds {sorted(names)}, which this version of st_hardneg does not know and leaves out. A later "
            "version wrote it."
        )


def damaged(path: str, why: str) -> ValueError:
    """Return the error for files that are not what was written."""
    return ValueError(f"Expected a complete save in {path!r}, got a damaged one: {why}. Save the dataset anew.")


def write_json(folder: str, file: str, content: Mapping[str, Any]) -> None:
    """Write one of our JSON files."""
    with open(os.path.join(folder, file), "w", encoding="utf-8") as target:
        json.dump(content, target, indent=2)


def read_json(folder: str, file: str, form: int) -> Any:
    """Read one of our JSON files.

    Args:
        folder: Where.
        file: Its name.
        form: The number of the form that this version reads.

    Raises:
        ValueError: If it is damaged, or of a form that this version does not know.
    """
    try:
        with open(os.path.join(folder, file), encoding="utf-8") as source:
            content = json.load(source)
        found = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged(folder, f"{file} cannot be read") from None
    if type(found) is not int or found != form:
        raise ValueError(
            f"Expected a save of format {form} in {folder!r}, got {found!r}. Read it with the version of this "
            "package that wrote it, or a later one."
        )
    return content


def seal(folder: str) -> dict[str, list[Any]]:
    """Return what tells whether Arrow files are those that were written: sizes, and digests of our own tables.

    Texts take long to read; numbers do not.
    """
    found = {}
    for inner, _, files in os.walk(folder):
        for file in sorted(files):
            if file.endswith(".arrow"):
                path = os.path.join(inner, file)
                name = os.path.relpath(path, folder).replace(os.sep, "/")
                found[name] = [os.path.getsize(path), None if "/" in name else _file_digest(path)]
    return found


def _file_digest(path: str) -> str:
    digest = 0
    with open(path, "rb") as file:
        while some := file.read(1 << 20):
            digest = zlib.crc32(some, digest)  # against accidents; five times as fast as what is safe from forgery
    return f"{digest:08x}"


def check_seal(folder: str, sealed: Mapping[str, Any]) -> None:
    """Raise unless the Arrow files are those that :func:`seal` has seen.

    Raises:
        ValueError: If they are not.
    """
    found = seal(folder) if sealed else {}
    # Others are no concern: `datasets` puts the files of its own cache beside those of a dataset.
    if changed := sorted(name for name in sealed if found.get(name) != sealed[name]):
        raise damaged(folder, f"{changed} are not the files that were written")
