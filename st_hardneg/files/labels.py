"""Labels that people have given: a CSV or JSON lines file, read with the place of every mistake."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

LABELS = {"positive": "right answers", "exclude": "exclusions", "negative": "certain negatives"}
"""The labels, and what they are called together."""

_COLUMNS = ("row", "corpus_id", "anchor", "text", "label")


@dataclass(frozen=True)
class Label:
    """What was said of one text.

    Args:
        place: Where it stands, for errors.
        row: A row of its anchor.
        corpus_id: The text's corpus id.
        anchor: The anchor.
        text: The text.
        label: One of :data:`LABELS`.
        is_proposal: Whether a rule has said it, and no person.
    """

    place: str
    row: int
    corpus_id: int
    anchor: str
    text: str
    label: str
    is_proposal: bool = False


def read_labels(
    labels: str | os.PathLike[str] | Sequence[Mapping[str, Any]], *, accept_proposals: bool = False
) -> list[Label]:
    """Read labels.

    Args:
        labels: The path of a ``.csv`` or ``.jsonl`` file, or rows.
        accept_proposals: Take the proposal where there is no label.

    Returns:
        The labels that there are, each pair of anchor and text once.

    Raises:
        ValueError: If something is wrong with them; the line is named.
        FileNotFoundError: If there is no such file.
    """
    rows = list(_rows_of_file(os.fspath(labels)) if isinstance(labels, (str, os.PathLike)) else _numbered(labels))
    found: dict[tuple[int, int], Label] = {}
    for place, row in rows:
        one = _label(place, row, accept_proposals)
        if one is None:
            continue
        earlier = found.setdefault((one.row, one.corpus_id), one)
        if earlier.label != one.label:
            raise ValueError(
                f"{one.place}: labelled {one.label!r}, and {earlier.label!r} in {earlier.place}. Keep one of the two."
            )
    if not found:
        raise ValueError(
            f"Expected labels, got {len(rows):,} rows and none of them labelled. Write one of {list(LABELS)} into the "
            "column `label`."
        )
    return list(found.values())


def _label(place: str, row: Mapping[str, Any], accept_proposals: bool) -> Label | None:
    if missing := [name for name in _COLUMNS if row.get(name) is None]:
        raise ValueError(
            f"{place}: there is no `{missing[0]}`. Keep the columns {list(_COLUMNS)} as they were written."
        )
    label, is_proposal = str(row["label"]).strip().casefold(), False
    if not label and accept_proposals and row.get("proposal"):
        label, is_proposal = str(row["proposal"]), True
    if not label:
        return None
    if label not in LABELS:
        close = get_close_matches(label, LABELS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{place}: expected `label` to be one of {list(LABELS)} or empty, got {row['label']!r}.{hint}")
    numbers = []
    for name in ("row", "corpus_id"):
        try:
            numbers.append(int(str(row[name])))
        except ValueError:
            raise ValueError(f"{place}: expected a whole number as `{name}`, got {row[name]!r}.") from None
    return Label(place, numbers[0], numbers[1], str(row["anchor"]), str(row["text"]), label, is_proposal)


def _numbered(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"Expected labels as dictionaries, got {type(row).__name__} at place {number}.")
        yield f"label {number}", row


def _rows_of_file(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".csv", ".jsonl"):
        raise ValueError(f"Expected a file of labels that ends in .csv or .jsonl, got {path!r}.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {path!r}. Save the labels first, or check the path.")
    with open(path, "rb") as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: expected UTF-8, got another encoding. Save the file as UTF-8."
        ) from None
    yield from (_csv_rows if ending == ".csv" else _json_rows)(path, text)


def _csv_rows(path: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        for fields in reader:
            if not fields:
                continue
            place = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                raise ValueError(f"{place}: expected {len(header)} fields, as in the first line, got {len(fields)}.")
            yield place, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: this is no CSV ({error}).") from None


def _json_rows(path: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: this is no JSON ({error}).") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object with the columns {list(_COLUMNS)}.")
        yield f"{path}, line {number}", row
