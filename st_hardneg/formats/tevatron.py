"""Tevatron's files: JSON lines of query_id, query, positive_passages and negative_passages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from st_hardneg.formats.columns import packed, unpacked
from st_hardneg.formats.records import Record, Text, list_in, number_or_none, read_lines, text_in


def line_of(record: Record) -> dict[str, Any] | None:
    """Return a query as a line; None for one without negatives, which Tevatron cannot draw from."""
    if not record.negatives:
        return None
    return {
        "query_id": record.id,
        "query": record.query,
        "positive_passages": [_passage(one) for one in record.positives],
        "negative_passages": [_passage(one) for one in record.negatives],
    }


def _passage(one: Text) -> dict[str, Any]:
    passage: dict[str, Any] = {"docid": one.id, "title": "", "text": one.text, "score": one.score}
    further: dict[str, Any] = {"row": one.row, "weight": one.weight}
    for name, values in (("columns", one.columns), ("metadata", one.metadata)):
        further[name] = packed(values) if values else None
    return {**passage, **{name: value for name, value in further.items() if value is not None}}


def read_records(path: str, *, title_separator: str = ". ") -> Iterator[Record]:
    """Yield the queries of a file.

    Args:
        path: The file.
        title_separator: What stands between title and text of a passage.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not in this layout; its number is named.
    """
    for number, row in read_lines(path):
        query = text_in(row, "query", path, number)
        identifier = row.get("query_id")
        parts = {}
        for name in ("positive_passages", "negative_passages"):
            passages = list_in(row, name, path, number)
            if passages is None and name == "positive_passages":
                raise ValueError(f"Expected {name!r} in line {number} of {path!r}, got the keys {sorted(row)}.")
            parts[name] = [_text(one, name, path, number, title_separator) for one in passages or []]
        yield Record(
            query,
            None if identifier is None else str(identifier),
            parts["positive_passages"],
            parts["negative_passages"],
        )


def _text(passage: Any, name: str, path: str, number: int, title_separator: str) -> Text:
    if not isinstance(passage, dict):
        raise ValueError(f"Expected objects in {name!r} of line {number} of {path!r}, got {passage!r}.")
    text, title = text_in(passage, "text", path, number), passage.get("title")
    if isinstance(title, str) and title.strip():
        text = f"{title.strip()}{title_separator}{text}"
    identifier, row = passage.get("docid"), passage.get("row")
    return Text(
        text,
        None if identifier is None else str(identifier),
        number_or_none(passage.get("score")),
        row if isinstance(row, int) else None,
        number_or_none(passage.get("weight")),
        columns=unpacked(passage.get("columns"), f"line {number} of {path!r}"),
        metadata=unpacked(passage.get("metadata"), f"line {number} of {path!r}"),
    )
