"""Files of rows, read with the number of the line that is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")


def read_table(path: str) -> Dataset:
    """Return a file's rows.

    Args:
        path: A file that ends in one of :data:`ENDINGS`, all but Parquet also with ``.gz`` behind.

    Raises:
        ValueError: If a line is broken or in another encoding than UTF-8, or there are no rows; the line is named.
        OSError: If it cannot be read.
    """
    ending = os.path.splitext(path.removesuffix(".gz"))[1].lower()
    if ending == ".parquet":
        try:
            return Dataset(pq.read_table(path))
        except pa.ArrowException as error:
            raise ValueError(f"{path} is no Parquet file ({error}).") from None
    if ending not in _READERS:
        raise ValueError(f"Expected a file that ends in one of {list(ENDINGS)}, got {path!r}.")
    rows = list(_READERS[ending](path, _text(path)))
    if not rows:
        raise ValueError(f"{path} holds no rows.")
    try:
        return Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})
    except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
        raise ValueError(f"{path}: a column holds values of several kinds, or no valid Unicode ({error}).") from None


def _text(path: str) -> str:
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}).") from None
    except OSError as error:
        raise OSError(f"Cannot read {path!r} ({error.strerror or error}).") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: expected UTF-8, got the byte 0x{content[error.start]:02x}. Save the file as UTF-8."
        ) from None


def _csv_rows(path: str, text: str, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = next(reader, [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise ValueError(f"{path}, line 1: the column {twice[0]!r} is there twice.")
        other = next((mark for mark in (";", "\t", ",", "|") if len(header) == 1 and mark in header[0]), None)
        if other is not None:
            raise ValueError(
                f"{path}, line 1: expected columns that are separated by {delimiter!r}, got {header[0]!r} with "
                f"{other!r} in it. Save the file as .csv with commas, or as .tsv with tabs."
            )
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields, as in the first line "
                    f"({', '.join(header)}), got {len(fields)}. Put texts that hold a {delimiter!r} in double quotes."
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: this is no CSV ({error}).") from None


def _tsv_rows(path: str, text: str) -> Iterator[dict[str, Any]]:
    return _csv_rows(path, text, "\t")


def _jsonl_rows(path: str, text: str) -> Iterator[dict[str, Any]]:
    first: dict[str, Any] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: this is no JSON ({error}).") from None
        first = _checked(f"{path}, line {number}", row, first)
        yield row


def _json_rows(path: str, text: str) -> Iterator[dict[str, Any]]:
    if not text.lstrip().startswith("["):  # JSON lines often have this ending, too
        yield from _jsonl_rows(path, text)
        return
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON ({error}).") from None
    first: dict[str, Any] | None = None
    for number, row in enumerate(rows):
        first = _checked(f"{path}, entry {number}", row, first)
        yield row


def _checked(place: str, row: Any, first: dict[str, Any] | None) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f'{place}: expected an object such as {{"anchor": …, "positive": …}}, got {type(row).__name__}.'
        )
    if first is not None and set(row) != set(first):
        odd = sorted(set(row) ^ set(first))
        raise ValueError(f"{place}: expected the keys {list(first)}, as before; {odd[0]!r} is missing or new.")
    return row if first is None else first


def _text_rows(path: str, text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.strip():
            yield {"text": line}


_READERS: dict[str, Callable[[str, str], Iterator[dict[str, Any]]]] = {
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".txt": _text_rows,
}
