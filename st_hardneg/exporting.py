"""Files that other tools read: FlagEmbedding's, Tevatron's, BEIR's, ids for ``resolve_ids``, and ST's four formats."""

from __future__ import annotations

import csv
import functools
import logging
import os
from typing import Any, Literal, get_args

from datasets import Dataset

from st_hardneg.candidates import Mining
from st_hardneg.errors import writing
from st_hardneg.files.folders import write_folder
from st_hardneg.formats import flag_embedding, ids, tevatron
from st_hardneg.formats.beir_folder import write_beir
from st_hardneg.formats.records import records_of, write_lines
from st_hardneg.wrapping import Wrapped

Layout = Literal["flag-embedding", "tevatron", "ids", "beir", "triplet", "n-tuple", "labeled-pair", "labeled-list"]

_ENDINGS = (".jsonl", ".json", ".parquet", ".csv")
# Whole texts that pandas, and so `load_dataset("csv", ...)`, takes for a missing value.
_READ_AS_MISSING = frozenset(
    [
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ]
)

logger = logging.getLogger(__name__)


class ExportedDataset:
    """The part of :class:`~st_hardneg.HardNegativeDataset` that writes files for other tools."""

    _wrapped: Wrapped

    def export(self, path: str | os.PathLike[str], layout: Layout = "flag-embedding") -> str:
        """Write the negatives as other tools read them. Texts come back exactly as they are.

        Args:
            path: A file: JSON lines for ``"flag-embedding"`` and ``"tevatron"``; `.jsonl`, `.parquet` or `.csv` for the
                four formats of Sentence Transformers. A folder for ``"ids"`` (`train`, `queries` and `documents`
                as Parquet) and for
                ``"beir"`` (`corpus.jsonl`, `queries.jsonl`, `qrels/train.tsv`, the negatives in `negatives.tsv`, and what
                else the rows say in `rows.jsonl`).
            layout: Which. In those of other projects a line is a query with all of its right answers and negatives; rows,
                ids, scores, weights and the further columns of rows and corpus stand beside the texts, dates among them as
                texts. Texts that only stand in are left out. A query has the id that the rows have for it (``query-id``,
                ``query_id`` or ``qid``), or the number of its first row.

        Returns:
            The path.

        Raises:
            NotMinedError: If nothing was mined yet.
            ValueError: If there is no such layout, or the file's ending says another kind.
            FileExistsError: If the folder holds something else.
            OSError: If it cannot be written; what was there before stays.
        """
        mining: Mining = self._mined("export()")  # type: ignore[attr-defined]
        path = os.fspath(path)
        if layout not in get_args(Layout):
            raise ValueError(f"Expected `layout` to be one of {list(get_args(Layout))}, got {layout!r}.")
        wrapped = self._wrapped
        records = records_of(mining, wrapped.pairs, wrapped.corpus, wrapped.rows)
        if layout == "flag-embedding" and not path.endswith((".json", ".jsonl")):
            logger.warning(f"FlagEmbedding passes over files that do not end in .json or .jsonl, such as {path!r}.")
        if layout in ("flag-embedding", "tevatron"):
            line_of = {"flag-embedding": flag_embedding.line_of, "tevatron": tevatron.line_of}[layout]
            write_lines(path, (line for line in map(line_of, records) if line is not None))
        elif layout == "ids":
            _write_new_folder(path, lambda folder: _write_tables(folder, ids.tables_of(records)))
        elif layout == "beir":
            _write_new_folder(path, lambda folder: write_beir(folder, list(records)))
        else:
            with writing(path):
                _write_table(path, self.to_dataset(layout))  # type: ignore[attr-defined]
        return path


def _write_new_folder(path: str, write: Any) -> None:
    if os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
        raise FileExistsError(f"Expected {path!r} to be a new or empty folder, got one with content. Name another one.")
    write_folder(path, write)


def _write_tables(folder: str, tables: dict[str, Dataset]) -> None:
    for name, table in tables.items():
        table.to_parquet(os.path.join(folder, f"{name}.parquet"))


def _write_table(path: str, dataset: Dataset) -> None:
    ending = os.path.splitext(path)[1]
    if ending not in _ENDINGS:
        raise ValueError(f"Expected a file that ends in one of {list(_ENDINGS)}, got {path!r}.")
    partial = f"{path}.partial"
    try:
        {".parquet": dataset.to_parquet, ".csv": functools.partial(write_csv, dataset)}.get(ending, dataset.to_json)(
            partial
        )
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise


def write_csv(dataset: Dataset, path: str) -> None:
    """Write a CSV file that `csv` and `load_dataset` read as it was: every text stands in quotes.

    Without them, a carriage return or a NUL within a text would end its row.

    Raises:
        ValueError: If a column holds lists.
    """
    if lists := [name for name, kind in dataset.features.items() if _is_nested(kind)]:
        raise ValueError(f"A CSV file cannot hold the lists in {lists}. Write `.jsonl` or `.parquet`.")
    dataset.to_csv(path, quoting=csv.QUOTE_NONNUMERIC)
    texts = [
        name for name, kind in dataset.features.items() if getattr(kind, "dtype", None) in ("string", "large_string")
    ]
    odd = sorted({text for name in texts for text in dataset.unique(name) if text in _READ_AS_MISSING})
    if odd:
        logger.warning(
            f"The text {odd[0]!r} is read from CSV as a missing value by pandas. Pass `keep_default_na=False` to "
            '`load_dataset("csv", ...)`, or write `.jsonl` or `.parquet`.'
        )


def _is_nested(kind: Any) -> bool:
    return not hasattr(kind, "dtype") or not isinstance(kind.dtype, str) or kind.dtype in ("list", "dict")
