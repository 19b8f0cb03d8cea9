"""Reading BEIR's layout: a corpus, queries, and graded judgements of which text answers which query."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from datasets import Dataset

BeirTable: TypeAlias = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Dataset
"""A path to a ``.jsonl`` or ``.tsv`` file (also ``.gz``), a list of dictionaries, or a Dataset."""

_ID_NAMES = ("_id", "id")


def read_beir(
    corpus: BeirTable, queries: BeirTable, qrels: BeirTable, *, title_separator: str = ". "
) -> tuple[Dataset, Dataset]:
    """Turn BEIR's three tables into (anchor, positive) rows and a corpus.

    Args:
        corpus: Rows of ``_id``, ``text`` and, optionally, ``title`` and others.
        queries: Rows of ``_id`` and ``text``.
        qrels: Rows of ``query-id``, ``corpus-id`` and ``score``. Scores above 0 make a pair; the others are dropped.
        title_separator: What stands between title and text; a text without a title stands alone.

    Returns:
        The pairs, one row per judgement in the order of ``qrels``: ``anchor``, ``positive``, ``query-id``,
        ``corpus-id``, ``score`` (the grade) and ``weight`` (the grade as a share of the highest one). And the corpus:
        ``_id``, ``text`` (title and text) and its other columns.

    Raises:
        ValueError: If a column is missing, an id occurs twice, or a judgement names an unknown id.
    """
    texts: dict[str, str] = {}
    documents: list[dict[str, Any]] = []
    for row in _rows(corpus, "corpus"):
        title, body = str(row.get("title") or "").strip(), str(_get(row, "text", "corpus") or "").strip()
        text = title_separator.join(part for part in (title, body) if part)
        documents.append({**row, "_id": _new_id(row, texts, "corpus"), "text": text})
        texts[documents[-1]["_id"]] = text
    anchors: dict[str, str] = {}
    for row in _rows(queries, "queries"):
        anchors[_new_id(row, anchors, "queries")] = str(_get(row, "text", "queries"))

    pairs: dict[str, list[Any]] = {name: [] for name in ("anchor", "positive", "query-id", "corpus-id", "score")}
    for row in _rows(qrels, "qrels"):
        query_id, corpus_id = str(_get(row, "query-id", "qrels")), str(_get(row, "corpus-id", "qrels"))
        score = float(row.get("score", 1))
        if score <= 0:
            continue
        for name, known, wanted in (("query", anchors, query_id), ("corpus", texts, corpus_id)):
            if wanted not in known:
                raise ValueError(
                    f"Expected every judgement in `qrels` to name known ids, got the {name} id {wanted!r}, which is "
                    "not among them. Pass the tables of one data set, complete."
                )
        for name, value in zip(pairs, (anchors[query_id], texts[corpus_id], query_id, corpus_id, score), strict=True):
            pairs[name].append(value)
    if not pairs["anchor"]:
        raise ValueError("Expected judgements with a score above 0 in `qrels`, got none. Check the file and its split.")
    highest = max(pairs["score"])
    pairs["weight"] = [score / highest for score in pairs["score"]]
    return Dataset.from_dict(pairs), Dataset.from_list(documents)


def _rows(table: BeirTable, name: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(table, (str, os.PathLike)):
        yield from _read(os.fspath(table))
    elif isinstance(table, Dataset) or (isinstance(table, Sequence) and not isinstance(table, (bytes, Mapping))):
        for row in table:
            if not isinstance(row, Mapping):
                raise TypeError(
                    f"Expected `{name}` to hold dictionaries, got {type(row).__name__}. Pass a path, a list of "
                    "dictionaries or a Dataset."
                )
            yield row
    else:
        raise TypeError(
            f"Expected `{name}` to be a path, a list of dictionaries or a Dataset, got {type(table).__name__}."
        )


def _read(path: str) -> Iterator[Mapping[str, Any]]:
    raw = gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")
    with raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as lines:
        stem = path.removesuffix(".gz")
        if stem.endswith(".tsv"):
            yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"Expected one JSON object per line in {path!r}, got something else in line {number} ({error})."
                    ) from None


def _get(row: Mapping[str, Any], column: str, name: str) -> Any:
    if column not in row:
        raise ValueError(f"Expected `{name}` to have a column {column!r}, got {list(row)}. Rename or add it.")
    return row[column]


def _new_id(row: Mapping[str, Any], known: Mapping[str, str], name: str) -> str:
    column = next((column for column in _ID_NAMES if column in row), None)
    if column is None:
        raise ValueError(f"Expected `{name}` to have a column '_id', got {list(row)}. Rename or add it.")
    identifier = str(row[column])
    if identifier in known:
        raise ValueError(f"Expected every id in `{name}` once, got {identifier!r} twice. Remove one of the rows.")
    return identifier
