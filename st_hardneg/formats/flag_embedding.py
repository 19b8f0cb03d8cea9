"""FlagEmbedding's files: JSON lines of query, pos, neg, pos_scores and neg_scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from st_hardneg.formats.columns import packed, unpacked
from st_hardneg.formats.records import Record, Text, list_in, number_or_none, read_lines, text_in


def line_of(record: Record) -> dict[str, Any] | None:
    """Return a query as a line; None for one without negatives, which FlagEmbedding cannot draw from."""
    if not record.negatives:
        return None
    line: dict[str, Any] = {
        "query": record.query,
        "pos": [one.text for one in record.positives],
        "neg": [one.text for one in record.negatives],
        "pos_scores": [one.score for one in record.positives],
        "neg_scores": [one.score for one in record.negatives],
        "query_id": record.id,
        "pos_id": [one.id for one in record.positives],
        "neg_id": [one.id for one in record.negatives],
        "rows": [one.row for one in record.positives],
    }
    if all(one.weight is not None for one in record.positives):
        line["pos_weights"] = [one.weight for one in record.positives]
    if any(one.columns for one in record.positives):
        line["pos_columns"] = [packed(one.columns) for one in record.positives]
    if any(one.metadata for one in (*record.positives, *record.negatives)):
        line["pos_metadata"] = [packed(one.metadata) for one in record.positives]
        line["neg_metadata"] = [packed(one.metadata) for one in record.negatives]
    return line


def read_records(path: str) -> Iterator[Record]:
    """Yield the queries of a file; ids, rows and scores are read where there are some.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not in this layout; its number is named.
    """
    for number, row in read_lines(path):
        query = text_in(row, "query", path, number)
        pos, neg = (list_in(row, name, path, number) for name in ("pos", "neg"))
        if pos is None:
            raise ValueError(
                f"Expected right answers as 'pos' in line {number} of {path!r}, got the keys {sorted(row)}."
            )
        identifier = row.get("query_id", row.get("id"))
        yield Record(
            query,
            None if identifier is None else str(identifier),
            list(_texts(row, "pos", pos, path, number)),
            list(_texts(row, "neg", neg or [], path, number)),
        )


def _texts(row: dict[str, Any], name: str, texts: list[Any], path: str, number: int) -> Iterator[Text]:
    def beside(key: str, is_there: bool = True) -> list[Any]:
        values = list_in(row, key, path, number, len(texts)) if is_there else None
        return values or [None] * len(texts)

    is_right = name == "pos"
    ids, scores, metadata = beside(f"{name}_id"), beside(f"{name}_scores"), beside(f"{name}_metadata")
    rows, weights = beside("rows", is_right), beside("pos_weights", is_right)
    columns = beside("pos_columns", is_right)
    place_of = f"line {number} of {path!r}"
    for place, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"Expected texts in {name!r} of {place_of}, got {text!r}.")
        identifier, of_row = ids[place], rows[place]
        yield Text(
            text,
            None if identifier is None else str(identifier),
            number_or_none(scores[place]),
            of_row if isinstance(of_row, int) else None,
            number_or_none(weights[place]),
            columns=unpacked(columns[place], place_of),
            metadata=unpacked(metadata[place], place_of),
        )
