"""The four output formats of Sentence Transformers' ``mine_hard_negatives``, built in Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from st_hardneg.corpus.texts import Ids, TextColumn, dataset_of

OutputFormat = Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"]
Scores = npt.NDArray[np.float32]

# Rows built at once: texts are gathered into blocks, so that no second copy of the output is ever held.
_BLOCK_ROWS = 16_384


@dataclass(frozen=True, eq=False)
class Tuples:
    """(anchor, positive, negatives) rows by number, ready to be written in any format.

    Args:
        anchor_name: Name of the anchor column.
        positive_name: Name of the positive column.
        anchors: The texts that ``anchor_rows`` counts.
        corpus: The texts that corpus ids count.
        row_query: int64 of shape ``(num_rows,)``: the query of each row.
        anchor_rows: int64 of shape ``(num_rows,)``: where each row's anchor stands in ``anchors``.
        positive_ids: int64 of shape ``(num_rows,)``.
        positive_scores: float32 of shape ``(num_rows,)``.
        negative_ids: int64 of shape ``(num_rows, num_negatives)``; -1 where empty. Rows of one query have the same.
        negative_scores: float32 of shape ``(num_rows, num_negatives)``.
    """

    anchor_name: str
    positive_name: str
    anchors: TextColumn
    corpus: TextColumn
    row_query: Ids
    anchor_rows: Ids
    positive_ids: Ids
    positive_scores: Scores
    negative_ids: Ids
    negative_scores: Scores


def check_output_format(output_format: str) -> None:
    """Raise unless the format is one of the four.

    Raises:
        ValueError: If it is not.
    """
    if output_format not in get_args(OutputFormat):
        raise ValueError(
            f"Invalid output_format: {output_format}. Must be one of 'triplet', 'n-tuple', 'labeled-pair', or "
            "'labeled-list'."
        )


def build(tuples: Tuples, output_format: OutputFormat, output_scores: bool) -> tuple[Dataset, Ids]:
    """Write rows in one of the formats; see ``HardNegativeDataset.to_dataset`` for the columns of each.

    Returns:
        The dataset, and for each of its rows the row of ``tuples`` that it comes from.

    Raises:
        ValueError: If the format is unknown.
    """
    check_output_format(output_format)
    columns, source = {
        "triplet": _triplets,
        "n-tuple": _n_tuples,
        "labeled-pair": _labeled_pairs,
        "labeled-list": _labeled_lists,
    }[output_format](tuples, output_scores)
    return dataset_of(pa.table(columns)), source


def _triplets(tuples: Tuples, output_scores: bool) -> tuple[dict[str, Any], Ids]:
    source, slot = np.nonzero(tuples.negative_ids >= 0)
    columns = _anchor_and_positive(tuples, source)
    columns["negative"] = _texts(tuples.corpus, tuples.negative_ids[source, slot])
    if output_scores:
        scores = np.stack([tuples.positive_scores[source], tuples.negative_scores[source, slot]], axis=1)
        columns["scores"] = _lists(scores.astype(np.float64))
    return columns, source


def _n_tuples(tuples: Tuples, output_scores: bool) -> tuple[dict[str, Any], Ids]:
    source = np.flatnonzero((tuples.negative_ids >= 0).all(axis=1))
    columns = _anchor_and_positive(tuples, source)
    for i in range(tuples.negative_ids.shape[1]):
        columns[f"negative_{i + 1}"] = _texts(tuples.corpus, tuples.negative_ids[source, i])
    if output_scores:
        scores = np.concatenate([tuples.positive_scores[source, None], tuples.negative_scores[source]], axis=1)
        columns["scores"] = _lists(scores.astype(np.float64))
    return columns, source


def _labeled_pairs(tuples: Tuples, output_scores: bool) -> tuple[dict[str, Any], Ids]:
    """Each row's positive, and after a query's last row its negatives, once."""
    num_rows = len(tuples.negative_ids)
    last = np.zeros(num_rows, dtype=bool)
    last[num_rows - 1 - np.unique(tuples.row_query[::-1], return_index=True)[1]] = True
    is_written = np.concatenate([np.ones((num_rows, 1), bool), (tuples.negative_ids >= 0) & last[:, None]], axis=1)
    source, place = np.nonzero(is_written)
    ids = np.concatenate([tuples.positive_ids[:, None], tuples.negative_ids], axis=1)[source, place]
    columns: dict[str, Any] = {
        tuples.anchor_name: _texts(tuples.anchors, tuples.anchor_rows[source]),
        tuples.positive_name: _texts(tuples.corpus, ids),
    }
    if output_scores:
        scores = np.concatenate([tuples.positive_scores[:, None], tuples.negative_scores], axis=1)[source, place]
        columns["score"] = pa.array(scores.astype(np.float64))
    else:
        columns["label"] = pa.array((place == 0).astype(np.int64))
    return columns, source


def _labeled_lists(tuples: Tuples, output_scores: bool) -> tuple[dict[str, Any], Ids]:
    present = tuples.negative_ids >= 0
    source = np.flatnonzero(present.any(axis=1))
    is_written = np.concatenate([np.ones((len(source), 1), bool), present[source]], axis=1)
    offsets = np.concatenate([[0], np.cumsum(is_written.sum(axis=1))])
    ids = np.concatenate([tuples.positive_ids[source, None], tuples.negative_ids[source]], axis=1)[is_written]
    columns: dict[str, Any] = {
        tuples.anchor_name: _texts(tuples.anchors, tuples.anchor_rows[source]),
        tuples.positive_name: _ragged(_texts(tuples.corpus, ids).combine_chunks(), offsets),
    }
    if output_scores:
        scores = np.concatenate([tuples.positive_scores[source, None], tuples.negative_scores[source]], axis=1)
        columns["scores"] = _ragged(pa.array(scores[is_written].astype(np.float64)), offsets)
    else:
        labels = np.zeros(len(ids), dtype=np.int64)
        labels[offsets[:-1]] = 1
        columns["labels"] = _ragged(pa.array(labels), offsets)
    return columns, source


def _anchor_and_positive(tuples: Tuples, source: Ids) -> dict[str, Any]:
    return {
        tuples.anchor_name: _texts(tuples.anchors, tuples.anchor_rows[source]),
        tuples.positive_name: _texts(tuples.corpus, tuples.positive_ids[source]),
    }


def _texts(column: TextColumn, ids: Ids) -> pa.ChunkedArray:
    """Gather texts by number, block by block; each text that is used is read once."""
    used, place = np.unique(ids, return_inverse=True)
    texts = pa.array(column.take(used), type=pa.large_string())
    return pa.chunked_array(list(_blocks(texts, place)), type=pa.string())


def _blocks(texts: pa.Array, place: Ids) -> Iterator[pa.Array]:
    for start in range(0, len(place), _BLOCK_ROWS):
        yield texts.take(pa.array(place[start : start + _BLOCK_ROWS])).cast(pa.string())


def _lists(values: npt.NDArray[np.float64]) -> pa.Array:
    offsets = np.arange(len(values) + 1) * values.shape[1]
    return _ragged(pa.array(values.reshape(-1)), offsets)


def _ragged(values: pa.Array, offsets: Ids) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), values)
