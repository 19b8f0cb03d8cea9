"""The four output formats of Sentence Transformers' ``mine_hard_negatives``, built in Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets

from st_hardneg.candidates import LAST_RESORT, Mining
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids, TextColumn, dataset_of, distinct_ids
from st_hardneg.memory import large

OutputFormat = Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"]

# Rows built at once: texts are gathered into blocks, so that no second copy of the output is ever held.
_BLOCK_ROWS = 4_096
# A column with more texts than so many times those that are asked for gets no table of places.
_DENSE = 8


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows that are written, by number.

    Args:
        names: The anchor column and the positive column.
        anchors: The anchors that ``rows`` counts.
        texts: The texts that corpus ids count.
        rows: int64 of shape ``(m,)``: rows of the dataset.
        queries: int64 of shape ``(m,)``: the query of each.
        positives: int64 of shape ``(m,)``: the corpus id of each positive.
        positive_scores: float32 of shape ``(m,)``.
        negatives: int64 of shape ``(m, num_negatives)``: corpus ids; -1 where empty.
        scores: float32 of shape ``(m, num_negatives)``.
        is_stand_in: Boolean of shape ``(m, num_negatives)``: texts that only keep a tuple complete.
    """

    names: tuple[str, str]
    anchors: TextColumn
    texts: TextColumn
    rows: Ids
    queries: Ids
    positives: Ids
    positive_scores: npt.NDArray[np.float32]
    negatives: Ids
    scores: npt.NDArray[np.float32]
    is_stand_in: npt.NDArray[np.bool_]

    @property
    def is_negative(self) -> npt.NDArray[np.bool_]:
        """Boolean of shape ``(m, num_negatives)``: negatives that pass the rules."""
        return (self.negatives >= 0) & ~self.is_stand_in


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


def write_rows(
    output_format: OutputFormat,
    names: tuple[str, str],
    pairs: Pairs,
    corpus: Corpus,
    mining: Mining,
    rows: Ids,
    *,
    output_scores: bool,
) -> tuple[Dataset, Ids]:
    """Write rows in one of the formats; see ``HardNegativeDataset.to_dataset`` for the columns of each.

    Args:
        output_format: The format.
        names: Names of the anchor and the positive column.
        pairs: The rows and their queries.
        corpus: The texts that ids count.
        mining: The negatives.
        rows: int64 of shape ``(m,)``: which rows, in which order.
        output_scores: Whether to write scores: the cross encoder's if there is one, and else the similarities.

    Returns:
        The dataset, and for each of its rows the place in ``rows`` that it comes from.

    Raises:
        ValueError: If the format is unknown.
    """
    check_output_format(output_format)
    queries = pairs.row_query[rows]
    positive_scores, scores = mining.given_scores
    of_rows = torch.from_numpy(queries)
    negatives = mining.negatives
    written = _Rows(
        names,
        pairs.anchors,
        corpus.texts,
        rows,
        queries,
        pairs.row_positive[rows],
        positive_scores.numpy()[rows],
        negatives.ids[of_rows].numpy(),
        scores[of_rows].numpy(),
        (negatives.origins[of_rows] == LAST_RESORT).numpy(),
    )
    columns, source = _FORMATS[output_format](written, output_scores)
    return dataset_of(pa.table(columns)), source


def with_other_columns(dataset: Dataset, wrapped: Dataset, names: tuple[str, str], source: Ids) -> Dataset:
    """Return an output with the other columns of the wrapped dataset beside it.

    Args:
        dataset: The output.
        wrapped: The wrapped dataset.
        names: Names of the anchor and the positive column, which both have.
        source: int64 of shape ``(len(dataset),)``: the row of ``wrapped`` that each row comes from.

    Raises:
        ValueError: If both have another column of one name.
    """
    ours = [name for name in dataset.column_names if name not in names]
    if clash := sorted(set(ours) & set(wrapped.column_names)):
        raise ValueError(
            f"The dataset has columns {clash} of its own, and so has the output. Rename yours before the dataset is "
            "wrapped, with `dataset.rename_column`, or leave out `keep_columns` or `output_scores`."
        )
    others = [name for name in wrapped.column_names if name not in dataset.column_names]
    if not others:
        return dataset
    beside = wrapped.with_format(None).select_columns(others).select(source)
    return concatenate_datasets([dataset, beside], axis=1)


def _triplets(rows: _Rows, output_scores: bool) -> tuple[dict[str, Any], Ids]:
    source, slot = np.nonzero(rows.is_negative)
    columns = _anchor_and_positive(rows, source)
    columns["negative"] = _texts(rows.texts, rows.negatives[source, slot])
    if output_scores:
        scores = np.stack([rows.positive_scores[source], rows.scores[source, slot]], axis=1)
        columns["scores"] = _lists(scores.astype(np.float64))
    return columns, source


def _n_tuples(rows: _Rows, output_scores: bool) -> tuple[dict[str, Any], Ids]:
    source = np.flatnonzero((rows.negatives >= 0).all(axis=1))
    columns = _anchor_and_positive(rows, source)
    for i in range(rows.negatives.shape[1]):
        columns[f"negative_{i + 1}"] = _texts(rows.texts, rows.negatives[source, i])
    if output_scores:
        scores = np.concatenate([rows.positive_scores[source, None], rows.scores[source]], axis=1)
        columns["scores"] = _lists(scores.astype(np.float64))
    return columns, source


def _labeled_pairs(rows: _Rows, output_scores: bool) -> tuple[dict[str, Any], Ids]:
    """Each row's positive, and after a query's last row its negatives, once."""
    num_rows = len(rows.negatives)
    last = np.zeros(num_rows, dtype=bool)
    last[num_rows - 1 - np.unique(rows.queries[::-1], return_index=True)[1]] = True
    is_written = np.concatenate([np.ones((num_rows, 1), bool), (rows.is_negative & last[:, None])], axis=1)
    source, place = np.nonzero(is_written)
    ids = np.concatenate([rows.positives[:, None], rows.negatives], axis=1)[source, place]
    columns: dict[str, Any] = {
        rows.names[0]: _texts(rows.anchors, rows.rows[source]),
        rows.names[1]: _texts(rows.texts, ids),
    }
    if output_scores:
        scores = np.concatenate([rows.positive_scores[:, None], rows.scores], axis=1)[source, place]
        columns["score"] = pa.array(scores.astype(np.float64))
    else:
        columns["label"] = pa.array((place == 0).astype(np.int64))
    return columns, source


def _labeled_lists(rows: _Rows, output_scores: bool) -> tuple[dict[str, Any], Ids]:
    present = rows.is_negative
    source = np.flatnonzero(present.any(axis=1))
    is_written = np.concatenate([np.ones((len(source), 1), bool), present[source]], axis=1)
    offsets = np.concatenate([[0], np.cumsum(is_written.sum(axis=1))])
    ids = np.concatenate([rows.positives[source, None], rows.negatives[source]], axis=1)[is_written]
    columns: dict[str, Any] = {
        rows.names[0]: _texts(rows.anchors, rows.rows[source]),
        rows.names[1]: _ragged(_texts(rows.texts, ids).combine_chunks(), offsets),
    }
    if output_scores:
        scores = np.concatenate([rows.positive_scores[source, None], rows.scores[source]], axis=1)
        columns["scores"] = _ragged(pa.array(scores[is_written].astype(np.float64)), offsets)
    else:
        labels = np.zeros(len(ids), dtype=np.int64)
        labels[offsets[:-1]] = 1
        columns["labels"] = _ragged(pa.array(labels), offsets)
    return columns, source


def _anchor_and_positive(rows: _Rows, source: Ids) -> dict[str, Any]:
    return {
        rows.names[0]: _texts(rows.anchors, rows.rows[source]),
        rows.names[1]: _texts(rows.texts, rows.positives[source]),
    }


def _texts(column: TextColumn, ids: Ids) -> pa.ChunkedArray:
    """Gather texts by number, block by block; each text that is used is read once."""
    if len(ids) * _DENSE < len(column):
        used = distinct_ids(ids)
        place = np.searchsorted(used, ids)
    else:
        is_used = np.zeros(len(column), dtype=bool)
        is_used[ids] = True
        used = np.flatnonzero(is_used)
        place = ids if len(used) == len(column) else (np.cumsum(is_used) - 1)[ids]
    return pa.chunked_array(list(_blocks(column.array(used), place)), type=pa.string())


def _blocks(texts: pa.Array, place: Ids) -> Iterator[pa.Array]:
    """Yield the texts at these places, in arrays whose bytes lie one after the other in one piece of memory.

    Texts are gathered into memory that Arrow has already, and copied from there: to be given new memory in small pages
    takes three times as long as to write to it.
    """
    size = int(pc.binary_length(texts).to_numpy().astype(np.int64)[place].sum())
    memory, first = large(size, np.uint8), 0
    whole = pa.py_buffer(memory)
    for start in range(0, len(place), _BLOCK_ROWS):
        some = texts.take(pa.array(place[start : start + _BLOCK_ROWS])).cast(pa.string())
        _, offsets, data = some.buffers()
        length = int(np.frombuffer(offsets, dtype=np.int32)[len(some)])
        if length:
            memory[first : first + length] = np.frombuffer(data, dtype=np.uint8, count=length)
        yield pa.StringArray.from_buffers(len(some), offsets, whole.slice(first, length))
        first += length


def _lists(values: npt.NDArray[np.float64]) -> pa.Array:
    offsets = np.arange(len(values) + 1) * values.shape[1]
    return _ragged(pa.array(values.reshape(-1)), offsets)


def _ragged(values: pa.Array, offsets: Ids) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), values)


_FORMATS: dict[str, Callable[[_Rows, bool], tuple[dict[str, Any], Ids]]] = {
    "triplet": _triplets,
    "n-tuple": _n_tuples,
    "labeled-pair": _labeled_pairs,
    "labeled-list": _labeled_lists,
}
