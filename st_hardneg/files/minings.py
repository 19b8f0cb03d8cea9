"""A mining as tables, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor

from st_hardneg.candidates import COLUMNS, LAST_RESORT, ORIGINS, Mining, Negatives
from st_hardneg.corpus.texts import Ids
from st_hardneg.files.schema import IN_TRAINING, NEGATIVES, REQUIRED, ROWS, SUSPECTS, damaged
from st_hardneg.files.tables import TableReader, has_table, read_table, table_of, write_table
from st_hardneg.report import MiningReport

logger = logging.getLogger(__name__)


def write_mining(folder: str, mining: Mining, live_rows: Ids | None, **in_training: Tensor | None) -> None:
    """Write ``negatives.arrow``, a row per query, and ``rows.arrow``, a row per row; the report goes elsewhere.

    Args:
        folder: Where.
        mining: The mining.
        live_rows: int64: the rows of the live view, or None if there is none.
        **in_training: Columns of :data:`~st_hardneg.files.schema.IN_TRAINING`.
    """
    per_query = _columns_of(mining.negatives) | {"topics": mining.topics} | in_training
    write_table(folder, "negatives", table_of({**NEGATIVES, **IN_TRAINING}, per_query, mining.source_names))
    is_live = torch.zeros(len(mining.positive_similarities), dtype=torch.bool)
    if live_rows is not None:
        is_live[torch.from_numpy(live_rows)] = True
    per_row = {
        "positive_similarities": mining.positive_similarities,
        "positive_cross_encoder_scores": mining.positive_cross_encoder_scores,
        "positive_teacher_scores": mining.positive_teacher_scores,
        "is_live": is_live,
    }
    write_table(folder, "rows", table_of(ROWS, per_row, ()))
    if mining.suspects is not None and len(mining.suspects[0]):
        write_table(folder, "suspects", table_of(SUSPECTS, dict(zip(SUSPECTS, mining.suspects, strict=True)), ()))


def _columns_of(negatives: Negatives) -> dict[str, Tensor | None]:
    """Return the columns, None for those that hold nothing: read back, they do so by default."""
    columns: dict[str, Tensor | None] = {}
    for name, column in COLUMNS.items():
        values = getattr(negatives, name)
        is_nothing = values.isnan() if isnan(column.missing) else values == column.missing
        may_lack = NEGATIVES[name].default is not REQUIRED
        columns[name] = None if may_lack and bool(is_nothing.all()) else values
    return columns


def read_mining(
    folder: str,
    report: Mapping[str, Any],
    *,
    num_rows: int,
    num_queries: int,
    num_negatives: int,
    num_corpus: int,
    source_names: Sequence[str],
) -> tuple[Mining, Ids, dict[str, Tensor | None]]:
    """Read and check what :func:`write_mining` wrote.

    Args:
        folder: Where.
        report: The report, as a dictionary.
        num_rows: Rows that are expected.
        num_queries: Queries that are expected.
        num_negatives: Slots per query that are expected.
        num_corpus: Texts in the corpus.
        source_names: The sources of the reader; names that it does not know are kept behind them.

    Returns:
        The mining, the rows of the live view as int64, and the columns of a checkpoint, each None where there is none.

    Raises:
        ValueError: If the files are damaged, or are not those of such a dataset.
    """
    limits = {"corpus": num_corpus, "queries": max(1, num_queries)}
    reader = TableReader(
        folder,
        read_table(folder, "negatives"),
        num_rows=num_queries,
        width=num_negatives,
        limits=limits,
        source_names=source_names,
    )
    found = reader.columns({**NEGATIVES, **IN_TRAINING})
    found["origins"] = _known_origins(folder, found["origins"], reader.words["ORIGINS"])
    rows = TableReader(folder, read_table(folder, "rows"), num_rows=num_rows, width=0, limits=limits).columns(ROWS)
    mining = Mining(
        negatives=Negatives(**{name: found[name] for name in COLUMNS}),
        positive_similarities=rows["positive_similarities"],
        positive_cross_encoder_scores=rows["positive_cross_encoder_scores"],
        source_names=tuple(reader.words["source_names"]),
        report=report_from(folder, report),
        topics=found["topics"],
        positive_teacher_scores=rows["positive_teacher_scores"],
        suspects=_suspects(folder, limits),
    )
    live_rows: Ids = rows["is_live"].nonzero().squeeze(1).numpy()
    return mining, live_rows, {name: found[name] for name in IN_TRAINING}


def _suspects(folder: str, limits: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor] | None:
    if not has_table(folder, "suspects"):
        return None
    table = read_table(folder, "suspects")
    found = TableReader(folder, table, num_rows=table.num_rows, width=0, limits=limits).columns(SUSPECTS)
    return found["query_ids"], found["corpus_ids"], found["closeness"]


def _known_origins(folder: str, origins: Tensor, words: list[str]) -> Tensor:
    """Let slots that a later version has filled in its own way be last resorts, which losses mask."""
    if len(words) > len(ORIGINS):
        logger.warning(
            f"{folder!r} holds slots that were filled as {words[len(ORIGINS) :]}, which this version of st_hardneg does "
            "not know. They count as a last resort; losses mask them until the next mining."
        )
    return torch.where(origins >= len(ORIGINS), LAST_RESORT, origins).to(origins.dtype)


def report_from(folder: str, values: Any) -> MiningReport:
    """Return a report that was written as a dictionary.

    Raises:
        ValueError: If it is not what was written.
    """
    try:
        report = MiningReport.from_dict(values)
        report.metrics(), str(report)  # what cannot be printed is not what was written
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise damaged(folder, f"a report is not what was written ({error})") from None
    return report
