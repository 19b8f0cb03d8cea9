"""One record per query, what other projects' files are written from and read into: right answers, negatives, scores."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from st_hardneg.candidates import LAST_RESORT, Mining
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.rows import Rows
from st_hardneg.corpus.texts import Ids, dataset_of, distinct_ids
from st_hardneg.errors import writing
from st_hardneg.formats.columns import Further, together

# Queries whose texts are looked up at once.
_BLOCK = 512
_QUERY_IDS = ("query-id", "query_id", "qid")


@dataclass
class Text:
    """A right answer or a negative.

    Args:
        text: The text.
        id: Its id, if it has one.
        score: The model's similarity to the query, if it is known.
        row: For right answers, the row of the dataset.
        weight: For right answers, the row's weight, if it has one.
        query_id: For right answers, the id of the query in that row, if it has one of its own.
        columns: For right answers, what else the row says.
        metadata: What else the corpus says of the text.
    """

    text: str
    id: str | None = None
    score: float | None = None
    row: int | None = None
    weight: float | None = None
    query_id: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """A query with its right answers and negatives.

    Args:
        query: Its text.
        id: Its id, if it has one.
        positives: Its right answers, one per row of the dataset.
        negatives: Its negatives, in the order of the slots.
    """

    query: str
    id: str | None = None
    positives: list[Text] = field(default_factory=list)
    negatives: list[Text] = field(default_factory=list)


def records_of(mining: Mining, pairs: Pairs, corpus: Corpus, rows: Rows) -> Iterator[Record]:
    """Yield every query with all of its rows and the negatives that pass the rules; texts that only stand in are left out.

    A query has the id that its first row has for it, or the number of that row.

    Args:
        mining: The negatives.
        pairs: The queries.
        corpus: The texts that ids count.
        rows: The rows, which may have ids for queries, weights, and further columns.
    """
    negatives = mining.negatives
    keep = (negatives.is_present & (negatives.origins != LAST_RESORT)).numpy()
    ids, scores = negatives.ids.numpy(), negatives.scores.numpy()
    order = np.argsort(pairs.row_query, kind="stable")
    starts = np.searchsorted(pairs.row_query[order], np.arange(pairs.num_queries + 1))
    similarities = mining.positive_similarities.numpy()
    own_ids, weights = _query_ids(rows, pairs), _weights(rows)
    beside = Further.of(rows.dataset, (rows.anchor_name, rows.positive_name), "rows")
    about = Further.of(corpus.given, (corpus.text_column, corpus.id_column), "corpus")
    for start in range(0, pairs.num_queries, _BLOCK):
        stop = min(start + _BLOCK, pairs.num_queries)
        of_block = order[starts[start] : starts[stop]]
        used = distinct_ids(np.concatenate([pairs.row_positive[of_block], ids[start:stop][keep[start:stop]]]))
        texts = dict(zip(used.tolist(), _texts(corpus, about, used), strict=True))
        columns = dict(zip(of_block.tolist(), beside.take(of_block), strict=True))
        for query in range(start, stop):
            numbers = order[starts[query] : starts[query + 1]].tolist()
            yield Record(
                pairs.anchors.take(numbers[:1])[0],
                str(numbers[0]) if own_ids is None else own_ids[numbers[0]],
                [
                    replace(
                        texts[int(pairs.row_positive[row])],
                        score=float(similarities[row]),
                        row=row,
                        weight=None if weights is None else float(weights[row]),
                        query_id=None if own_ids is None else own_ids[row],
                        columns=columns[row],
                    )
                    for row in numbers
                ],
                [
                    replace(texts[one], score=float(score))
                    for one, score in zip(ids[query][keep[query]].tolist(), scores[query][keep[query]], strict=True)
                ],
            )


def _texts(corpus: Corpus, about: Further, ids: Ids) -> list[Text]:
    """Return some texts of the corpus, with their ids and what else it says of them."""
    names = corpus.external_ids(ids) if corpus.id_column else ids.tolist()
    metadata = about.take(ids[ids < corpus.num_given])  # ids ascend: what is not of the corpus comes last
    metadata += [about.nothing() for _ in range(len(ids) - len(metadata))]
    return [
        Text(text, str(name), metadata=one)
        for text, name, one in zip(corpus.texts.take(ids), names, metadata, strict=True)
    ]


def _query_ids(rows: Rows, pairs: Pairs) -> list[str] | None:
    """Return the ids that the rows have for their queries; None unless each stands for one text."""
    name = next((name for name in _QUERY_IDS if name in rows.dataset.column_names), None)
    if name is None or name in (rows.anchor_name, rows.positive_name):
        return None
    values = rows.dataset.with_format(None)[name][:]
    if not all(isinstance(value, (str, int)) and str(value).strip() for value in values):
        return None
    found = [str(value) for value in values]
    query_of: dict[str, int] = {}
    is_one = all(
        query_of.setdefault(one, query) == query for one, query in zip(found, pairs.row_query.tolist(), strict=True)
    )
    return found if is_one else None


def _weights(rows: Rows) -> Any:
    dataset = rows.dataset.with_format(None)
    return dataset["weight"][:] if "weight" in dataset.column_names else None


def wrapped_from(records: Sequence[Record], path: str) -> tuple[Dataset, Dataset]:
    """Return rows and a corpus of what was read: a row per right answer, in the order of the rows if they are numbered.

    The rows have the columns ``anchor``, ``positive``, ``negative_1`` … (None where a query has fewer), ``query_id``,
    ``positive_score`` and ``negative_scores``, and ``weight`` where the file has weights; and the further columns that
    were written. The corpus holds every text of the file once, under its id, or under a number where the file has none,
    and its further columns.

    Raises:
        ValueError: If there is no right answer at all, one id stands for two texts, or a further column holds values of
            several kinds.
    """
    rows = [(record, positive) for record in records for positive in record.positives]
    if not rows:
        raise ValueError(f"Expected queries with a right answer in {path!r}, got none. Check the file and its layout.")
    if all(positive.row is not None for _, positive in rows):
        rows.sort(key=lambda row: row[1].row or 0)
    width = max(len(record.negatives) for record, _ in rows)
    columns: dict[str, Any] = {
        "anchor": [record.query for record, _ in rows],
        "positive": [positive.text for _, positive in rows],
    }
    for slot in range(width):
        columns[f"negative_{slot + 1}"] = [
            record.negatives[slot].text if slot < len(record.negatives) else None for record, _ in rows
        ]
    columns["query_id"] = [record.id for record, _ in rows]
    columns["positive_score"] = pa.array([positive.score for _, positive in rows], pa.float64())
    columns["negative_scores"] = [[one.score for one in record.negatives] for record, _ in rows]
    if all(positive.weight is not None for _, positive in rows):
        columns["weight"] = [positive.weight for _, positive in rows]
    texts = _texts_by_id(records, path)
    of_corpus = {"_id": list(texts), "text": [one.text for one in texts.values()]}
    about = together([one.metadata for one in texts.values()], path)
    columns |= without(together([positive.columns for _, positive in rows], path), ("anchor", "positive"))
    return dataset_of(pa.table(columns)), dataset_of(pa.table(without(about, of_corpus) | of_corpus))


def without(columns: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return columns but for some."""
    return {name: column for name, column in columns.items() if name not in names}


def _texts_by_id(records: Sequence[Record], path: str) -> dict[str, Text]:
    found: dict[str, Text] = {}
    known: dict[str, str] = {}
    every = [one for record in records for one in (*record.positives, *record.negatives)]
    for one in every:
        name = one.id if one.id is not None else known.setdefault(one.text, f"text-{len(known)}")
        if (first := found.setdefault(name, one)).text != one.text:
            raise ValueError(
                f"Expected one text per id in {path!r}, got two for {name!r}: {first.text[:60]!r} and {one.text[:60]!r}. "
                "Correct the file."
            )
    return found


def write_lines(path: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines under another name first: under its own, the file is complete, or what it was before.

    Raises:
        OSError: If it cannot be written.
    """
    with writing(path):
        _write_lines(path, lines)


def _write_lines(path: str, lines: Iterable[Mapping[str, Any]]) -> None:
    partial = f"{path}.partial"
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                # U+2028 and the like end a line for some readers; JSON can do without them.
                file.write(json.dumps(line, ensure_ascii=True) + "\n")
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise


def read_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of every line and the object in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no JSON object, or the file is not in UTF-8; the line is named.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Expected a file of JSON lines, got none at {path!r}. Check the path.")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"Expected UTF-8 in {path!r}, got another encoding in line {number} ({error.reason}). Convert it."
                ) from None
            except (ValueError, RecursionError):
                raise ValueError(
                    f"Expected JSON in every line of {path!r}, got none in line {number}. Correct it."
                ) from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"Expected a JSON object in every line of {path!r}, got {type(row).__name__} in line {number}."
                )
            yield number, row


def text_in(row: Mapping[str, Any], name: str, path: str, number: int) -> str:
    """Return a text of a line.

    Raises:
        ValueError: If it is missing, or no text.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        got = f"the keys {sorted(row)}" if name not in row else repr(value)
        raise ValueError(f"Expected a text as {name!r} in line {number} of {path!r}, got {got}.")
    return value


def list_in(row: Mapping[str, Any], name: str, path: str, number: int, length: int | None = None) -> list[Any] | None:
    """Return a list of a line, or None if there is none.

    Raises:
        ValueError: If it is something else, or of another length than what it belongs to.
    """
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or (length is not None and len(value) != length):
        wanted = "a list" if length is None else f"a list of {length}"
        got = f"{len(value)} values" if isinstance(value, list) else repr(value)
        raise ValueError(f"Expected {wanted} as {name!r} in line {number} of {path!r}, got {got}.")
    return value


def number_or_none(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
