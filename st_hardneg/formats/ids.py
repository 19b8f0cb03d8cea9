"""The layout of ids that Sentence Transformers' ``resolve_ids`` reads: rows of ids and scores, and the texts by id."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset

from st_hardneg.candidates import BUILT_IN_SOURCES, Pool, PoolPart
from st_hardneg.corpus.texts import dataset_of
from st_hardneg.formats.columns import packed, together, unpacked
from st_hardneg.formats.records import Record, Text, number_or_none, without

# A list of somebody else's is all there is: no recipe asks for more of it.
_ALL = 2**31


def tables_of(records: Iterable[Record]) -> dict[str, Dataset]:
    """Return ``train`` (``query_id``, ``document_ids``, ``scores`` and others), ``queries`` and ``documents``.

    Right answers come first in ``document_ids``, ``num_positives`` of them; ``rows`` are the rows they come from, and
    ``columns`` what else these say. What else is said of documents is a table of its own, ``metadata``: beside one column
    of texts, ``resolve_ids`` knows by itself what is meant.
    """
    names = ("query_id", "document_ids", "scores", "num_positives", "rows", "weights", "columns")
    train: dict[str, list[Any]] = {name: [] for name in names}
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for record in records:
        texts = [*record.positives, *record.negatives]
        documents.update({str(one.id): one.text for one in texts})
        metadata.update({str(one.id): one.metadata for one in texts if one.metadata})
        queries[str(record.id)] = record.query
        values = (
            str(record.id),
            [one.id for one in texts],
            [one.score for one in texts],
            len(record.positives),
            [one.row for one in record.positives],
            [one.weight for one in record.positives],
            [packed(one.columns) if one.columns else None for one in record.positives],
        )
        for name, value in zip(names, values, strict=True):
            train[name].append(value)
    for name in ("weights", "columns"):
        if any(value is None for values in train[name] for value in values):
            del train[name]
    about = {"metadata": _table(metadata)} if metadata else {}
    return about | {
        "train": Dataset.from_dict(train),
        "queries": Dataset.from_dict({"query_id": list(queries), "query": list(queries.values())}),
        "documents": Dataset.from_dict({"document_id": list(documents), "document": list(documents.values())}),
    }


def _table(metadata: Mapping[str, Mapping[str, Any]]) -> Dataset:
    """Return values by document as a table; a corpus has no further column ``_id``, as that holds its ids."""
    columns = without(together(list(metadata.values()), "metadata"), ["_id"])
    return dataset_of(pa.table({"_id": list(metadata), **columns}))


def records_by_id(train: Dataset, queries: Any, documents: Any, metadata: Dataset | None = None) -> Iterator[Record]:
    """Yield the queries of rows of ids.

    Args:
        train: Rows of ``query_id`` and ``document_ids``, with ``scores`` if there are some. Without ``num_positives``, the
            first document is the right answer. Or rows of ``query_id``, ``positive_id`` and ``negative_id``,
            ``negative_1_id`` or ``negative_ids``.
        queries: Texts by id: a dictionary, or a Dataset of two columns.
        documents: The same of documents.
        metadata: What else is said of documents: a column ``_id`` and others.

    Raises:
        ValueError: If a column is missing, an id has no text, or lists are of different lengths.
    """
    about = {} if metadata is None else {str(row.pop("_id")): row for row in metadata.with_format(None)}
    of_queries, of_documents = (_by_id(table, name) for table, name in ((queries, "queries"), (documents, "documents")))
    columns = train.column_names
    if "query_id" not in columns or not {"document_ids", "positive_id"} & set(columns):
        raise ValueError(
            f"Expected columns `query_id` and `document_ids` (or `positive_id`), as `resolve_ids` reads them, got "
            f"{columns}. Rename them with `dataset.rename_column`."
        )
    for number, row in enumerate(train.with_format(None)):
        ids, count = _ids_of(row, number)
        scores = _listed(row.get("scores"), number) if row.get("scores") is not None else [None] * len(ids)
        if len(scores) != len(ids) or not 0 < count <= len(ids):
            raise ValueError(
                f"Expected as many scores as documents, and a right answer among them, in row {number}, got {len(ids)} "
                f"documents, {len(scores)} scores and {count} right answers. Correct the row."
            )
        rows, weights, beside = (row.get(name) or [] for name in ("rows", "weights", "columns"))
        texts = [
            Text(
                _text(of_documents, name, number, "documents"),
                str(name),
                number_or_none(score),
                rows[place] if place < len(rows) else None,
                weights[place] if place < len(weights) else None,
                columns=unpacked(beside[place], f"row {number}") if place < len(beside) else {},
                metadata=about.get(str(name), {}),
            )
            for place, (name, score) in enumerate(zip(ids, scores, strict=True))
        ]
        query = _text(of_queries, row["query_id"], number, "queries")
        yield Record(query, str(row["query_id"]), texts[:count], texts[count:])


def pool_of(records: Sequence[Record], pairs: Dataset, corpus: Dataset) -> Pool | None:
    """Return what was read as candidates, best first; None unless every document has a score.

    Args:
        records: What was read; records of one query text are one query.
        pairs: The rows that were made of them.
        corpus: The texts by ``_id``.
    """
    found: dict[str, dict[str, float]] = {query: {} for query in pairs["anchor"][:]}
    for record in records:
        texts = [*record.positives, *record.negatives]
        if any(one.score is None or one.id is None for one in texts):
            return None
        found[record.query].update({str(one.id): float(one.score or 0.0) for one in texts})
    row_of = {name: number for number, name in enumerate(corpus["_id"][:])}
    width = max(map(len, found.values()))
    numbers, scores = torch.full((len(found), width), -1), torch.full((len(found), width), -torch.inf)
    for query, theirs in enumerate(found.values()):
        best = sorted(theirs.items(), key=lambda one: (-one[1], row_of[one[0]]))
        numbers[query, : len(best)] = torch.tensor([row_of[name] for name, _ in best])
        scores[query, : len(best)] = torch.tensor([score for _, score in best])
    codes = torch.where(numbers < 0, -1, BUILT_IN_SOURCES.index("dense")).to(torch.int8)
    of_rows = torch.tensor(pairs["positive_score"][:], dtype=torch.float32)
    return Pool(_ALL, {"dense": PoolPart(numbers, scores, codes)}, "score", 0, None, None, of_rows, None, {})


def _ids_of(row: Mapping[str, Any], number: int) -> tuple[Sequence[Any], int]:
    if row.get("document_ids") is not None:
        ids = _listed(row["document_ids"], number)
        return ids, int(row.get("num_positives") or 1)
    negatives = _listed(row["negative_ids"], number) if row.get("negative_ids") is not None else []
    single = [
        row[name] for name in row if name.startswith("negative") and name.endswith("_id") and row[name] is not None
    ]
    return [row["positive_id"], *negatives, *single], 1


def _listed(value: Any, number: int) -> list[Any]:
    """Return a list; some sets hold lists as strings."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"Expected a list in row {number}, got {value[:60]!r}. Correct the row.") from None
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"Expected a list in row {number}, got {value!r}. Correct the row.")
    return list(value)


def _by_id(table: Any, what: str) -> dict[str, str]:
    if isinstance(table, Mapping):
        return {str(name): text for name, text in table.items()}
    if not isinstance(table, Dataset):
        raise TypeError(f"Expected `{what}` as a dictionary by id or a Dataset, got {type(table).__name__}.")
    ids = [name for name in table.column_names if name in ("id", "_id") or name.endswith("_id")]
    if len(ids) != 1:
        raise ValueError(f"Expected one column of ids in `{what}`, named `id` or ending in `_id`, got {ids or 'none'}.")
    others = [name for name in table.column_names if name != ids[0]]
    named = [name for name in others if name in ("text", "query", "document", "passage")] or others
    if len(named) != 1:
        raise ValueError(f"Expected one column of texts in `{what}`, got {others}. Name it `text`.")
    plain = table.with_format(None)
    found: dict[str, str] = {}
    for name, text in zip(plain[ids[0]][:], plain[named[0]][:], strict=True):
        if found.setdefault(str(name), text) != text:
            raise ValueError(f"Expected one text per id in `{what}`, got two for {name!r}. Correct the table.")
    return found


def _text(texts: Mapping[str, str], name: Any, number: int, what: str) -> str:
    text = texts.get(str(name))
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"Expected a text in `{what}` for the id {name!r} of row {number}, got {text!r}. Add it.")
    return text
