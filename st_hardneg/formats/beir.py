"""Reading BEIR's layout: a corpus, queries, and graded judgements of which text answers which query."""

from __future__ import annotations

import gzip
import io
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset

from st_hardneg.formats.columns import laid_out, storable

logger = logging.getLogger(__name__)

BeirTable: TypeAlias = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Mapping[str, Any] | Dataset
"""A path to a ``.jsonl`` or ``.tsv`` file (also ``.gz``), a list of dictionaries, a Dataset, or a dictionary by id as
BEIR's ``GenericDataLoader`` returns it."""

_ID_NAMES = ("_id", "id")
_GRADE_NAMES = ("score", "relevance", "label", "rel", "grade")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Faults:
    """What is amiss with single rows of one table: said in one warning per kind, or raised if no row is left."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.places: dict[str, list[str]] = {}
        self.refusal: str | None = None

    def add(self, kind: str, place: str, refusal: str | None = None) -> None:
        """Note a row; ``refusal`` is the error, should this be the first one and no row be left."""
        self.places.setdefault(kind, []).append(place)
        self.refusal = self.refusal or refusal

    def close(self, *, is_any_left: bool) -> None:
        """Raise if nothing is left, or warn."""
        if self.refusal and not is_any_left:
            raise ValueError(self.refusal)
        for kind, places in self.places.items():
            more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
            logger.warning(f"`{self.table}`: {len(places):,} {kind}: {', '.join(places[:3])}{more}.")


def read_beir(
    corpus: BeirTable, queries: BeirTable, qrels: BeirTable, *, title_separator: str = ". "
) -> tuple[Dataset, Dataset]:
    """Turn BEIR's three tables into (anchor, positive) rows and a corpus.

    Args:
        corpus: Rows of ``_id``, ``text`` and, optionally, ``title`` and others.
        queries: Rows of ``_id`` and ``text``.
        qrels: Rows of ``query-id``, ``corpus-id`` and ``score``. Scores above 0 make a pair; the others are dropped.
            The grade may also be named ``relevance``, ``label``, ``rel`` or ``grade``; with the two ids alone it is 1.
        title_separator: What stands between title and text; a text without a title stands alone.

    Returns:
        The pairs, one row per judged pair of ids in the order of ``qrels``: ``anchor``, ``positive``, ``query-id``,
        ``corpus-id``, ``score`` (the grade) and ``weight`` (the grade as a share of the highest one). And the corpus:
        ``_id``, ``text`` (title and text) and its other columns.

    Raises:
        ValueError: If a column is missing, an id occurs twice with different texts, or no judgement is left. Single rows
            that cannot be used are left out with a warning: judgements that name an unknown id, are cut short or have no
            number as score, lines that are no JSON, texts that are missing or no valid Unicode; also columns of the
            corpus that hold values of several types.
    """
    texts, documents = _documents(corpus, title_separator)
    anchors = _queries(queries)
    pairs: dict[str, list[Any]] = {name: [] for name in ("anchor", "positive", "query-id", "corpus-id", "score")}
    unusable: list[str] = []
    dropped = 0
    for (query_id, corpus_id), score in _judgements(qrels, anchors, texts).items():
        if score <= 0:
            dropped += 1
            continue
        if missing := _first_missing(anchors, query_id, texts, corpus_id):
            unusable.append(missing)
            continue
        for name, value in zip(pairs, (anchors[query_id], texts[corpus_id], query_id, corpus_id, score), strict=True):
            pairs[name].append(value)
    if dropped:
        logger.info(f"{dropped:,} judgements with a score of 0 or less are dropped; they make no pair.")
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
        raise ValueError(
            "Expected judgements with a score above 0 in `qrels`, got none. Check the file, its header line and its split."
        )
    highest = max(pairs["score"])
    pairs["weight"] = [score / highest for score in pairs["score"]]
    return Dataset.from_dict(pairs), storable(documents)


def _judgements(qrels: BeirTable, anchors: Mapping[str, str], texts: Mapping[str, str]) -> dict[tuple[str, str], float]:
    """Return the grade of every judged pair of ids, each pair once.

    Of grades that contradict each other the highest counts: a right answer must not be mined as a negative.
    """
    grades: dict[tuple[str, str], float] = {}
    repeated, contradicting = 0, dict[tuple[str, str], None]()
    faults = _Faults("qrels")
    for place, row in _rows(qrels, faults):
        if lacking := next((name for name in ("query-id", "corpus-id") if _is_empty(row.get(name))), None):
            refusal = _refusal_of_ids(row, lacking, place, anchors, texts)
            faults.add("judgements without both ids are left out", place, refusal)
            continue
        if (score := _score(row, place, faults)) is None:
            continue
        pair = (_known_id(row["query-id"], anchors), _known_id(row["corpus-id"], texts))
        if pair in grades:
            repeated += 1
            if grades[pair] != score:
                contradicting[pair] = None
        grades[pair] = max(score, grades.get(pair, score))
    faults.close(is_any_left=bool(grades))
    if repeated:
        logger.warning(f"{repeated:,} judgements repeat a pair of ids that is judged already, and count once.")
    if contradicting:
        logger.warning(
            f"{len(contradicting):,} pairs of ids have grades that contradict each other, such as "
            f"{next(iter(contradicting))}; the highest one counts."
        )
    return grades


def _refusal_of_ids(
    row: Mapping[str, Any], lacking: str, place: str, anchors: Mapping[str, str], texts: Mapping[str, str]
) -> str:
    """Return the error for a judgement without an id; where no judgement has one, its keys may be the first line."""
    if lacking in row:
        return f"Expected both ids in every row of `qrels`, got no {lacking!r} in {place}. Correct the row."
    words = [word for name in row for word in (str(name), *str(name).split())]
    if not {"query-id", "corpus-id"} & set(row) and any(
        word in anchors or word in texts or _number(word) is not None for word in words
    ):
        return (
            f"Expected the columns of `qrels` to be named, got no header line: expected query-id, corpus-id, score; the "
            f"first line is {list(row)}. Add it."
        )
    return _no_column(row, lacking, "qrels")


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


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


def _documents(corpus: BeirTable, title_separator: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    def text_of(row: Mapping[str, Any]) -> str:
        title, text = (str(row.get(name) or "") for name in ("title", "text"))
        if not title.strip():
            return text if text.strip() else ""
        return title_separator.join(part for part in (title.strip(), text.strip()) if part)

    return _texts(corpus, "corpus", text_of, "documents without title and text")


def _queries(queries: BeirTable) -> dict[str, str]:
    def text_of(row: Mapping[str, Any]) -> str:
        text = row.get("text")
        return text if isinstance(text, str) and text.strip() else ""

    return _texts(queries, "queries", text_of, "queries without a text")[0]


def _texts(
    table: BeirTable, name: str, text_of: Callable[[Mapping[str, Any]], str], without: str
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return every row's text by id, and the rows of those that have one."""
    texts: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    faults, has_text, first = _Faults(name), False, None
    for place, row in _rows(table, faults):
        has_text, first = has_text or "text" in row, row if first is None else first
        text = text_of(row)
        if (identifier := _new_id(row, place, text, texts, faults)) is None:
            continue
        texts[identifier] = text
        if text:
            rows.append({**laid_out(row), "_id": identifier, "text": text})
            if "text" not in row:
                faults.add("documents have no 'text'; their title alone is taken", repr(identifier))
    if texts and first is not None and not has_text:
        raise ValueError(_no_column(first, "text", name))
    faults.close(is_any_left=bool(texts))
    if empty := [identifier for identifier, text in texts.items() if not text]:
        logger.warning(f"{len(empty):,} {without} are left out, such as {empty[0]!r}.")
    return texts, rows


def _score(row: Mapping[str, Any], place: str, faults: _Faults) -> float | None:
    """Return the grade of a judgement, or None if it is no number."""
    column = next((name for name in _GRADE_NAMES if name in row), None)
    if column is None:
        if others := [name for name in row if name not in ("query-id", "corpus-id")]:
            raise ValueError(
                f"Expected the grade in `qrels` in a column named 'score' (or {', '.join(map(repr, _GRADE_NAMES[1:]))}), "
                f"got the column {others[0]!r}. Rename it, or leave it out if every judgement is a right answer."
            )
        return 1.0
    score = _number(row[column])
    if score is None:
        refusal = f"Expected numbers as scores in `qrels`, got {row[column]!r} in {place}. Correct the row."
        faults.add("judgements whose score is no number are left out", place, refusal)
    return score


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _rows(table: BeirTable, faults: _Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every row of a table with its place: its line, its number or its id."""
    name = faults.table
    if isinstance(table, Mapping):
        yield from _rows_of_mapping(table, name)
    elif isinstance(table, (str, os.PathLike)):
        yield from _read(os.fspath(table), faults)
    elif isinstance(table, Dataset) or (isinstance(table, Sequence) and not isinstance(table, (bytes, Mapping))):
        for number, row in enumerate(table):
            if not isinstance(row, Mapping):
                raise TypeError(
                    f"Expected `{name}` to hold dictionaries, got {type(row).__name__}. Pass a path, a list of "
                    "dictionaries or a Dataset."
                )
            yield f"row {number}", row
    else:
        raise TypeError(
            f"Expected `{name}` to be a path, a list of dictionaries or a Dataset, got {type(table).__name__}."
        )


def _rows_of_mapping(table: Mapping[Any, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of what BEIR's ``GenericDataLoader`` returns: texts, documents or judgements by id."""
    if isinstance(next(iter(table.values()), None), (Dataset, IterableDataset)):
        raise TypeError(
            f"Expected `{name}` to be one table, got a {type(table).__name__} with the splits {list(table)}: pass one "
            f"split, such as {name}[{next(iter(table))!r}]."
        )
    for key, value in table.items():
        if name == "qrels" and isinstance(value, Mapping):
            for corpus_id, score in value.items():
                place = f"({str(key)!r}, {str(corpus_id)!r})"
                yield place, {"query-id": str(key), "corpus-id": str(corpus_id), "score": score}
        elif name != "qrels" and isinstance(value, str):
            yield repr(key), {"_id": str(key), "text": value}
        elif name != "qrels" and isinstance(value, Mapping):
            yield repr(key), {**value, "_id": str(key)}
        else:
            wanted = "judgements by corpus id" if name == "qrels" else "texts or documents"
            raise TypeError(f"Expected `{name}` to map ids to {wanted}, got {type(value).__name__} for the id {key!r}.")


def _read(path: str, faults: _Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    stem = path.lower().removesuffix(".gz")
    if faults.table == "qrels" and not stem.endswith((".tsv", ".jsonl", ".json")):
        raise ValueError(
            f"Expected `qrels` as a `.tsv` file (or `.jsonl`, each also with `.gz`), got {path!r}. Write it with a tab "
            "between the columns, and name it `.tsv`."
        )
    raw = gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")
    with raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as lines:
        try:
            yield from _parse_tsv(lines) if stem.endswith(".tsv") else _parse_json(path, lines, faults)
        except UnicodeDecodeError as error:
            raise ValueError(f"Expected UTF-8 in {path!r}, got another encoding ({error}). Convert it.") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"Expected a whole gzip file in {path!r}, got a damaged one ({error}). Download or write it again."
            ) from None


def _parse_tsv(lines: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield lines by the names in the first one; what is cut off is None, what has no name is kept together."""
    names: list[str] | None = None
    for number, line in enumerate(lines, start=1):
        if not (line := line.rstrip("\r\n")):
            continue
        cells = line.split("\t")
        if names is None:
            names = cells
            continue
        row: dict[str, Any] = dict.fromkeys(names) | dict(zip(names, cells, strict=False))
        if rest := "\t".join(cells[len(names) :]).strip():
            row["(no name)"] = rest
        yield f"line {number}", row


def _parse_json(path: str, lines: Iterable[str], faults: _Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield f"line {number}", row
            continue
        refusal = f"Expected one JSON object per line in {path!r}, got something else in line {number}. Correct it."
        faults.add("lines that are no JSON object are left out", f"line {number}", refusal)


def _no_column(row: Mapping[str, Any], column: str, name: str) -> str:
    return f"Expected `{name}` to have a column {column!r}, got {list(row)}. Rename or add it."


def _new_id(row: Mapping[str, Any], place: str, text: str, known: Mapping[str, str], faults: _Faults) -> str | None:
    """Return the id of a row that is to be taken, or None; the reason is noted."""
    name = faults.table
    column = next((column for column in _ID_NAMES if column in row), None)
    if column is None or _is_empty(row[column]):
        refusal = (
            _no_column(row, "_id", name) if column is None else f"Expected an id in {place} of `{name}`, got none."
        )
        faults.add("rows without an id are left out", place, refusal)
        return None
    identifier = _id_text(row[column])
    if _SURROGATE.search(identifier + text):
        refusal = (
            f"Expected valid Unicode in `{name}`, got a lone surrogate in the row of the id {identifier!r}. Correct it."
        )
        faults.add("rows with a lone surrogate, which is no valid Unicode, are left out", repr(identifier), refusal)
        return None
    if identifier not in known:
        return identifier
    if known[identifier] != text:
        raise ValueError(
            f"Expected every id in `{name}` once, got {identifier!r} twice, with different texts. Remove one of the rows."
        )
    faults.add("rows repeat an id with the same text, and count once", repr(identifier))
    return None
