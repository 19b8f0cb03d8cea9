"""BEIR's layout as ours is written and read back: the negatives, and what else the rows say, lie beside its tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from st_hardneg.corpus.texts import dataset_of
from st_hardneg.formats.columns import packed, together, unpacked
from st_hardneg.formats.records import Record, Text, number_or_none, read_lines, without, write_lines

_NEGATIVES, _ROWS = "negatives.tsv", "rows.jsonl"


def write_beir(folder: str, records: list[Record]) -> None:
    """Write `corpus.jsonl`, `queries.jsonl` and `qrels/train.tsv`, and `negatives.tsv` and `rows.jsonl` beside them.

    Every row is a judgement of its own, in the order of the rows: where the same two ids are judged once more, the query
    stands there under another id, too.

    Raises:
        ValueError: If weights are no shares of whole grades, or one id stands for two texts.
    """
    texts = _unique(one for record in records for one in (*record.positives, *record.negatives))
    rows = _rows(records)
    queries = {name: record.query for name, record, _ in rows}
    lines = [{"_id": name, "title": "", "text": one.text} | _said(one.metadata) for name, one in texts.items()]
    write_lines(os.path.join(folder, "corpus.jsonl"), lines)
    write_lines(os.path.join(folder, "queries.jsonl"), ({"_id": name, "text": text} for name, text in queries.items()))
    os.makedirs(os.path.join(folder, "qrels"))
    grades = _grades([1.0 if one.weight is None else one.weight for _, _, one in rows])
    judged = [(name, one.id, max(grade, 1)) for (name, _, one), grade in zip(rows, grades, strict=True)]
    _write_tsv(os.path.join(folder, "qrels", "train.tsv"), judged)
    of_query = {name: record.negatives for name, record, _ in rows}
    _write_tsv(
        os.path.join(folder, _NEGATIVES), ((name, one.id, one.score) for name, some in of_query.items() for one in some)
    )
    write_lines(
        os.path.join(folder, _ROWS),
        (
            {"query-id": name, "corpus-id": one.id, "score": one.score, "weight": one.weight} | _said(one.columns)
            for name, _, one in rows
        ),
    )


def _said(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {"columns": packed(columns)} if columns else {}


def _unique(texts: Iterable[Text]) -> dict[str, Text]:
    found: dict[str, Text] = {}
    for one in texts:
        if found.setdefault(str(one.id), one).text != one.text:
            raise ValueError(
                f"Expected one text per id, got two for {one.id!r} in the corpus. Give each text an id of its own."
            )
    return found


def _rows(records: list[Record]) -> list[tuple[str, Record, Text]]:
    """Return the query's id, the query and the right answer of every row, no two ids twice."""
    rows = [(record, one) for record in records for one in record.positives]
    rows.sort(key=lambda row: row[1].row or 0)
    taken = {one.query_id or record.id for record, one in rows}
    found, judged = [], set()
    for place, (record, one) in enumerate(rows):
        name = one.query_id or record.id or str(place)
        if (name, one.id) in judged:
            again = (f"{name}-{number}" for number in range(2, len(rows) + 2))
            name = next(other for other in again if other not in taken)
            taken.add(name)
        judged.add((name, one.id))
        found.append((name, record, one))
    return found


def _grades(weights: list[float]) -> list[int]:
    """Return whole grades whose shares of the highest are these weights.

    Raises:
        ValueError: If there are none up to 1 000.
    """
    highest = max(weights, default=1.0) or 1.0
    for most in range(1, 1_001):
        grades = [weight / highest * most for weight in weights]
        if all(abs(grade - round(grade)) < 1e-6 for grade in grades):
            return [round(grade) for grade in grades]
    raise ValueError(
        "Expected weights that are shares of whole grades, as BEIR's `qrels` hold them, got others. Use another layout."
    )


def _write_tsv(path: str, rows: Iterable[tuple[Any, Any, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{query}\t{document}\t{json.dumps(score)}\n" for query, document, score in rows)


def with_what_lies_beside(pairs: Dataset, corpus: Dataset, folder: Any) -> Dataset:
    """Return pairs with the negatives, scores, weights and further columns that :func:`write_beir` has put beside them.

    The negatives are columns ``negative_1`` …, None where a query has fewer, and ``negative_scores``.

    Args:
        pairs: Rows of ``query-id``, ``corpus-id`` and others.
        corpus: The texts by ``_id``.
        folder: The folder that they were read from; what is no folder, or one of others, has nothing beside them.

    Raises:
        ValueError: If a file is damaged, or names an id that is not in the corpus; the line is named.
    """
    if not isinstance(folder, (str, os.PathLike)) or not os.path.isdir(folder):
        return pairs
    columns: dict[str, Any] = {}
    if (path := Path(folder) / _NEGATIVES).is_file():
        columns |= _negatives(pairs, dict(zip(corpus["_id"][:], corpus["text"][:], strict=True)), path)
    if (path := Path(folder) / _ROWS).is_file():
        columns |= _further(pairs, path)
    if not columns:
        return pairs
    table = pairs.with_format("arrow")[:]
    ours = without({name: table.column(name) for name in table.column_names}, columns)
    return dataset_of(pa.table(ours | columns))


def _negatives(pairs: Dataset, texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    found: dict[str, list[tuple[str, float | None]]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")
            if number == 1 or cells == [""]:
                continue
            if len(cells) != 3 or cells[1] not in texts:
                raise ValueError(
                    f"Expected a query id, an id of the corpus and a score in line {number} of {str(path)!r}, got "
                    f"{cells}. Correct the line, or remove the file."
                )
            found.setdefault(cells[0], []).append((texts[cells[1]], _score(cells[2])))
    theirs = [found.get(name, []) for name in pairs["query-id"][:]]
    columns: dict[str, Any] = {
        f"negative_{slot + 1}": pa.array([some[slot][0] if slot < len(some) else None for some in theirs], pa.string())
        for slot in range(max(map(len, theirs)))
    }
    scores = [[score for _, score in some] for some in theirs]
    return columns | {"negative_scores": pa.array(scores, pa.list_(pa.float64()))}


def _score(cell: str) -> float | None:
    try:
        return number_or_none(float(cell))
    except ValueError:
        return None


def _further(pairs: Dataset, path: Path) -> dict[str, Any]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, row in read_lines(str(path)):
        columns = unpacked(row.get("columns"), f"line {number} of {str(path)!r}")
        found[str(row.get("query-id")), str(row.get("corpus-id"))] = row | {"columns": columns}
    rows = [found.get(ids, {}) for ids in zip(pairs["query-id"][:], pairs["corpus-id"][:], strict=True)]
    columns = {"positive_score": pa.array([number_or_none(row.get("score")) for row in rows], pa.float64())}
    if all(number_or_none(row.get("weight")) is not None for row in rows):
        columns["weight"] = pa.array([float(row["weight"]) for row in rows], pa.float64())
    beside = together([row.get("columns", {}) for row in rows], str(path))
    return columns | without(beside, ("anchor", "positive"))
