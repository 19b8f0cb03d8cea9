"""Datasets in the layouts of other projects, wrapped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset

from st_hardneg.config import MiningConfig
from st_hardneg.formats import flag_embedding, ids, tevatron
from st_hardneg.formats.beir import BeirTable, read_beir
from st_hardneg.formats.beir_folder import with_what_lies_beside
from st_hardneg.formats.records import wrapped_from

Self = TypeVar("Self", bound="FromLayouts")


class FromLayouts:
    """The part of :class:`~st_hardneg.HardNegativeDataset` that wraps what others have written."""

    @classmethod
    def from_beir(
        cls: type[Self],
        corpus: BeirTable,
        queries: BeirTable | None = None,
        qrels: BeirTable | None = None,
        config: MiningConfig | None = None,
        *,
        split: str = "train",
        title_separator: str = ". ",
        **options: Any,
    ) -> Self:
        """Wrap a labelled retrieval set in BEIR's layout.

        A folder that ``export(folder, "beir")`` has written comes back row by row, with its negatives as given ones, their
        scores, and the further columns of its rows and corpus.

        Args:
            corpus: The folder of the set; or ``corpus.jsonl``: rows of ``_id``, ``title``, ``text``, as a path (also
                ``.gz``), a list of dictionaries or a Dataset.
            queries: ``queries.jsonl``: rows of ``_id`` and ``text``.
            qrels: ``qrels/train.tsv``: rows of ``query-id``, ``corpus-id`` and ``score``. Grades are kept in the column
                ``score`` and, as a share of the highest, in ``weight``; judgements of 0 are no positives.
            config: Which negatives are wanted; :meth:`MiningConfig.recommended` if None.
            split: Which file of the folder's ``qrels`` is read.
            title_separator: What stands between title and text of a document.
            **options: Further arguments of :class:`HardNegativeDataset`.

        Raises:
            ValueError: If a table lacks a column or repeats an id, or no judgement names ids of both tables.
            FileNotFoundError: If the folder lacks a file.
            TypeError: If there are tables beside a folder, or a table is missing.
        """
        tables = beir_tables(corpus, queries, qrels, split)
        pairs, documents = read_beir(*tables, title_separator=title_separator)
        pairs = with_what_lies_beside(pairs, documents, corpus)
        return cls(pairs, documents, config, **options)  # type: ignore[call-arg]

    @classmethod
    def from_flag_embedding(
        cls: type[Self], path: str | os.PathLike[str], config: MiningConfig | None = None, **options: Any
    ) -> Self:
        """Wrap a file of FlagEmbedding's: JSON lines of ``query``, ``pos``, ``neg`` and, if there are, scores and ids.

        The corpus is every text of the file. Its negatives are given ones: ``sources={"given": 3}`` takes them,
        ``sources={"dense": 2, "given": 1}`` mixes them with mined ones.

        Args:
            path: The file.
            config: Which negatives are wanted; :meth:`MiningConfig.recommended` if None.
            **options: Further arguments of :class:`HardNegativeDataset`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a line is not in this layout; its number is named.
        """
        path = os.fspath(path)
        pairs, corpus = wrapped_from(list(flag_embedding.read_records(path)), path)
        return cls(pairs, corpus, config, **options)  # type: ignore[call-arg]

    @classmethod
    def from_tevatron(
        cls: type[Self],
        path: str | os.PathLike[str],
        config: MiningConfig | None = None,
        *,
        title_separator: str = ". ",
        **options: Any,
    ) -> Self:
        """Wrap a file of Tevatron's: JSON lines of ``query``, ``positive_passages`` and ``negative_passages``.

        Corpus and negatives are as for :meth:`from_flag_embedding`.

        Args:
            path: The file.
            config: Which negatives are wanted; :meth:`MiningConfig.recommended` if None.
            title_separator: What stands between title and text of a passage.
            **options: Further arguments of :class:`HardNegativeDataset`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a line is not in this layout; its number is named.
        """
        path = os.fspath(path)
        pairs, corpus = wrapped_from(list(tevatron.read_records(path, title_separator=title_separator)), path)
        return cls(pairs, corpus, config, **options)  # type: ignore[call-arg]

    @classmethod
    def from_ids(
        cls: type[Self],
        train: Dataset | str | os.PathLike[str],
        queries: Any = None,
        documents: Any = None,
        config: MiningConfig | None = None,
        **options: Any,
    ) -> Self:
        """Wrap rows of ids and the texts that they stand for, as Sentence Transformers' ``resolve_ids`` reads them.

        Where every document has a score, the lists are candidates: ``choose`` picks negatives from them without a model,
        as if there were no other texts, and ``candidates()`` returns them.

        Args:
            train: Rows of ``query_id``, ``document_ids`` (right answers first, ``num_positives`` of them or one) and
                ``scores``; or of ``query_id``, ``positive_id`` and ``negative_id`` or ``negative_ids``. Or the folder that
                ``export(path, "ids")`` wrote.
            queries: Texts of queries: ``{id: text}``, or a Dataset of an id column and a text column.
            documents: Texts of documents, likewise.
            config: Which negatives are wanted; :meth:`MiningConfig.recommended` if None.
            **options: Further arguments of :class:`HardNegativeDataset`.

        Raises:
            ValueError: If a column is missing, an id has no text, or lists are of different lengths.
            TypeError: If a table is of another kind.
            FileNotFoundError: If the folder lacks a file.
        """
        metadata = None
        if isinstance(train, (str, os.PathLike)):
            folder = Path(train)
            train, queries, documents = (
                Dataset.from_parquet(_file(folder, f"{name}.parquet")) for name in ("train", "queries", "documents")
            )
            if (folder / "metadata.parquet").is_file():
                metadata = Dataset.from_parquet(str(folder / "metadata.parquet"))
        records = list(ids.records_by_id(train, queries, documents, metadata))
        pairs, corpus = wrapped_from(records, "train")
        made = cls(pairs, corpus, config, **options)  # type: ignore[call-arg]
        made.keep_pool(ids.pool_of(records, pairs, corpus))  # type: ignore[attr-defined]
        return made


def beir_tables(corpus: Any, queries: Any, qrels: Any, split: str) -> tuple[BeirTable, BeirTable, BeirTable]:
    """Return the tables of a set in BEIR's layout, found in a folder if one is given.

    Raises:
        FileNotFoundError: If the folder lacks a file.
        TypeError: If there are tables beside a folder, or a table is missing.
    """
    is_folder = isinstance(corpus, (str, os.PathLike)) and os.path.isdir(corpus)
    if is_folder and queries is None and qrels is None:
        folder = Path(corpus)
        return tuple(_file(folder, name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"))  # type: ignore[return-value]
    if is_folder:
        raise TypeError("Expected a folder alone, or three tables, got a folder and tables. Pass `from_beir(folder)`.")
    if missing := [name for name, table in (("queries", queries), ("qrels", qrels)) if table is None]:
        what = f", and {os.fspath(corpus)!r} is no folder" if isinstance(corpus, (str, os.PathLike)) else ""
        raise TypeError(
            f"Expected a folder, or the tables `corpus`, `queries` and `qrels`, got no `{missing[0]}`{what}. Pass "
            "`from_beir(corpus, queries, qrels)`, or the path of the folder that holds them."
        )
    return corpus, queries, qrels


def _file(folder: Path, name: str) -> str:
    for found in (folder / name, folder / f"{name}.gz"):
        if found.is_file():
            return str(found)
    beside = sorted(path.name for path in (folder / name).parent.glob("*")) if (folder / name).parent.is_dir() else []
    hint = " Name another one with `split`." if name.startswith("qrels/") and beside else ""
    raise FileNotFoundError(
        f"Expected `{name}` in {str(folder)!r}, as BEIR lays a set out, got {beside or 'nothing'} there.{hint}"
    )
