"""Datasets in the layouts of other projects, wrapped."""

from __future__ import annotations

from typing import Any, TypeVar

from st_hardneg.config import MiningConfig
from st_hardneg.formats.beir import BeirTable, read_beir

Self = TypeVar("Self", bound="FromLayouts")


class FromLayouts:
    """The part of :class:`~st_hardneg.HardNegativeDataset` that wraps what others have written."""

    @classmethod
    def from_beir(
        cls: type[Self],
        corpus: BeirTable,
        queries: BeirTable,
        qrels: BeirTable,
        config: MiningConfig | None = None,
        *,
        title_separator: str = ". ",
        **options: Any,
    ) -> Self:
        """Wrap a labelled retrieval set in BEIR's layout.

        Args:
            corpus: ``corpus.jsonl``: rows of ``_id``, ``title``, ``text``; as a path (also ``.gz``), a list of
                dictionaries or a Dataset.
            queries: ``queries.jsonl``: rows of ``_id`` and ``text``.
            qrels: ``qrels/train.tsv``: rows of ``query-id``, ``corpus-id`` and ``score``. Grades are kept in the column
                ``score`` and, as a share of the highest, in ``weight``; judgements of 0 are no positives.
            config: Which negatives are wanted; :meth:`MiningConfig.recommended` if None.
            title_separator: What stands between title and text of a document.
            **options: Further arguments of :class:`HardNegativeDataset`.

        Raises:
            ValueError: If a table lacks a column or repeats an id, or no judgement names ids of both tables.
        """
        pairs, documents = read_beir(corpus, queries, qrels, title_separator=title_separator)
        return cls(pairs, documents, config, **options)  # type: ignore[call-arg]
