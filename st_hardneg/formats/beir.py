"""Reading BEIR's layout: a corpus, queries, and graded judgements of which text answers which query."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
from datasets import Dataset

logger = logging.getLogger(__name__)

BeirTable: TypeAlias = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Mapping[str, Any] | Dataset
"""A path to a ``.jsonl`` or ``.tsv`` file (also ``.gz``), a list of dictionaries, a Dataset, or a dictionary by id as
BEIR's ``GenericDataLoader`` returns it."""

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
        The pairs, one row per judged pair of ids in the order of ``qrels``: ``anchor``, ``positive``, ``query-id``,
        ``corpus-id``, ``score`` (the grade) and ``weight`` (the grade as a share of the highest one). And the corpus:
        ``_id``, ``text`` (title and text) and its other columns.

    Raises:
        ValueError: If a column is missing, an id occurs twice, or no judgement is left. Judgements that name an unknown
            id, and queries and documents without a text, are left out with a warning.
    """
    texts, documents = _documents(corpus, title_separator)
    anchors = _queries(queries)
    pairs: dict[str, list[Any]] = {name: [] for name in ("anchor", "positive", "query-id", "corpus-id", "score")}
    unusable: list[str] = []
    for (query_id, corpus_id), score in _judgements(qrels, anchors, texts).items():
        if score <= 0:
            continue
        if missing := _first_missing(anchors, query_id, texts, corpus_id):
            unusable.append(missing)
            continue
        for name, value in zip(pairs, (anchors[query_id], texts[corpus_id], query_id, corpus_id, score), strict=True):
            pairs[name].append(value)
    if unusable:
        logger.warning(
            f"{len(unusable):,} judgements are left out, because they name an id that is not in the tables or has no "
            f"text, such as {unusable[0]}."
        )
    if unusable and not pairs["anchor"]:
        raise ValueError(
            f"Expected judgements in `qrels` that name ids of both tables, with a text, got none: the first names "
            f"{unusable[0]}. Pass the tables of one data set."
        )
    if not pairs["anchor"]:
        raise ValueError("Expected judgements with a score above 0 in `qrels`, got none. Check the file and its split.")
    highest = max(pairs["score"])
    pairs["weight"] = [score / highest for score in pairs["score"]]
    return _dataset(pairs, "queries"), _dataset(_columns(documents), "corpus")


def _judgements(qrels: BeirTable, anchors: Mapping[str, str], texts: Mapping[str, str]) -> dict[tuple[str, str], float]:
    """Return the grade of every judged pair of ids, each pair once.

    Of grades that contradict each other the highest counts: a right answer must not be mined as a negative.
    """
    grades: dict[tuple[str, str], float] = {}
    repeated, contradicting = 0, dict[tuple[str, str], None]()
    for row in _rows(qrels, "qrels"):
        pair = (
            _known_id(_get(row, "query-id", "qrels"), anchors),
            _known_id(_get(row, "corpus-id", "qrels"), texts),
        )
        score = _score(row)
        if pair in grades:
            repeated += 1
            if grades[pair] != score:
                contradicting[pair] = None
        grades[pair] = max(score, grades.get(pair, score))
    if repeated:
        logger.warning(f"{repeated:,} judgements repeat a pair of ids that is judged already, and count once.")
    if contradicting:
        logger.warning(
            f"{len(contradicting):,} pairs of ids have grades that contradict each other, such as "
            f"{next(iter(contradicting))}; the highest one counts."
        )
    return grades


def _known_id(value: Any, known: Mapping[str, str]) -> str:
    """Return an id as the tables have it: pandas turns whole numbers into floats where one is missing."""
    identifier = _id_text(value)
    if identifier not in known and identifier.endswith(".0") and identifier[:-2] in known:
        return identifier[:-2]
    return identifier


def _id_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _first_missing(anchors: Mapping[str, str], query_id: str, texts: Mapping[str, str], corpus_id: str) -> str | None:
    """Name the id of a judgement that has no text, or return None."""
    for name, known, wanted in (("query", anchors, query_id), ("corpus", texts, corpus_id)):
        if not known.get(wanted):
            return f"the {name} id {wanted!r}"
    return None


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _dataset(columns: dict[str, list[Any]], name: str) -> Dataset:
    try:
        return Dataset.from_dict(columns)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected `{name}` to hold columns of one type each, and valid Unicode, got something else ({error}). "
            "Clean the table, or leave the column out."
        ) from None


def _documents(corpus: BeirTable, title_separator: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return every document's text by id, and the rows of those that have one."""
    texts: dict[str, str] = {}
    documents: list[dict[str, Any]] = []
    for row in _rows(corpus, "corpus"):
        title, body = str(row.get("title") or "").strip(), str(_get(row, "text", "corpus") or "").strip()
        text = title_separator.join(part for part in (title, body) if part)
        identifier = _new_id(row, texts, "corpus")
        texts[identifier] = text
        if text:
            documents.append({**row, "_id": identifier, "text": text})
    if empty := [identifier for identifier, text in texts.items() if not text]:
        logger.warning(f"{len(empty):,} documents without title and text are left out, such as {empty[0]!r}.")
    return texts, documents


def _queries(queries: BeirTable) -> dict[str, str]:
    """Return every query's text by id."""
    anchors: dict[str, str] = {}
    empty: list[str] = []
    for row in _rows(queries, "queries"):
        identifier, text = _new_id(row, anchors, "queries"), _get(row, "text", "queries")
        if not isinstance(text, str) or not text.strip():
            anchors[identifier] = ""
            empty.append(identifier)
            continue
        anchors[identifier] = text
    if empty:
        logger.warning(f"{len(empty):,} queries without a text are left out, such as {empty[0]!r}.")
    return anchors


def _score(row: Mapping[str, Any]) -> float:
    given = row.get("score", 1)
    try:
        score = float(given)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"Expected numbers as scores in `qrels`, got {given!r} in {dict(row)!r}. Correct the row.")
    return score


def _rows(table: BeirTable, name: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(table, Mapping):
        yield from _rows_of_mapping(table, name)
    elif isinstance(table, (str, os.PathLike)):
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


def _rows_of_mapping(table: Mapping[Any, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of what BEIR's ``GenericDataLoader`` returns: texts, documents or judgements by id."""
    for key, value in table.items():
        if name == "qrels" and isinstance(value, Mapping):
            for corpus_id, score in value.items():
                yield {"query-id": str(key), "corpus-id": str(corpus_id), "score": score}
        elif name != "qrels" and isinstance(value, str):
            yield {"_id": str(key), "text": value}
        elif name != "qrels" and isinstance(value, Mapping):
            yield {**value, "_id": str(key)}
        else:
            wanted = "judgements by corpus id" if name == "qrels" else "texts or documents"
            raise TypeError(f"Expected `{name}` to map ids to {wanted}, got {type(value).__name__} for the id {key!r}.")


def _read(path: str) -> Iterator[Mapping[str, Any]]:
    raw = gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")
    with raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as lines:
        try:
            yield from _parse(path, lines)
        except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError) as error:
            raise ValueError(
                f"Expected a table in UTF-8 in {path!r}, got a damaged file or another encoding ({error}). Correct it."
            ) from None


def _parse(path: str, lines: io.TextIOWrapper) -> Iterator[Mapping[str, Any]]:
    stem = path.removesuffix(".gz")
    if stem.endswith(".tsv"):
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(
                    f"Expected one JSON object per line in {path!r}, got something else in line {number}. Correct "
                    "the file."
                )
            yield row


def _get(row: Mapping[str, Any], column: str, name: str) -> Any:
    if column not in row:
        raise ValueError(f"Expected `{name}` to have a column {column!r}, got {list(row)}. Rename or add it.")
    return row[column]


def _new_id(row: Mapping[str, Any], known: Mapping[str, str], name: str) -> str:
    column = next((column for column in _ID_NAMES if column in row), None)
    if column is None:
        raise ValueError(f"Expected `{name}` to have a column '_id', got {list(row)}. Rename or add it.")
    identifier = _id_text(row[column])
    if identifier in known:
        raise ValueError(f"Expected every id in `{name}` once, got {identifier!r} twice. Remove one of the rows.")
    return identifier
