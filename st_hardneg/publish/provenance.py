"""Where every negative of every row comes from, as a plain dataset."""

from __future__ import annotations

from math import isnan

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from st_hardneg.candidates import COLUMNS, ORIGINS, Column, Mining
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.texts import Ids, dataset_of
from st_hardneg.files.tables import arrow_of, lists_of

_NAMES = {"similarities": "negative_scores", "origins": "negative_slots"}
"""What columns of negatives are called where it is not ``negative_`` and their name."""

_LEFT_OUT = ("first_similarities",)
"""What only a refresh has use for."""


def provenance_dataset(mining: Mining, row_query: Ids, row_positive: Ids, corpus: Corpus) -> Dataset:
    """Return one row per row with ids, scores, ranks and sources.

    Columns are ``row``, ``positive_id``, ``positive_score``, and for the negatives lists: ``negative_ids``,
    ``negative_scores`` (the model's similarities, as ``positive_score``), ``negative_ranks``, ``negative_sources``,
    ``negative_steps`` and ``negative_slots``; where there are any, ``positive_cross_encoder_score``,
    ``negative_cross_encoder_scores``, the same of a teacher, and ``negative_source_scores``.

    Args:
        mining: The mining.
        row_query: int64 of shape ``(num_rows,)``: the query of each row.
        row_positive: int64 of shape ``(num_rows,)``: the corpus id of each row's positive.
        corpus: The corpus, which knows the caller's ids.
    """
    columns = {
        "row": pa.array(np.arange(len(row_positive))),
        "positive_id": _external(row_positive, corpus),
        "positive_score": pa.array(mining.positive_similarities.numpy()),
    }
    rows = torch.from_numpy(row_query)
    for name in sorted(COLUMNS, key=_place):
        values: Tensor = getattr(mining.negatives, name)
        column = COLUMNS[name]
        if name not in _LEFT_OUT and _is_there(values, column):
            by_row = values[rows].numpy()
            words = {"source_names": mining.source_names, "ORIGINS": ORIGINS, None: None}[column.names]
            is_id = name == "ids"
            columns[_NAMES.get(name, f"negative_{name}")] = (
                _external(by_row, corpus) if is_id else arrow_of(by_row, words, int(column.missing) if words else -1)
            )
    for name in ("positive_cross_encoder_scores", "positive_teacher_scores"):
        if (scores := getattr(mining, name)) is not None:
            columns[name.removesuffix("s")] = pa.array(scores.numpy())
    return dataset_of(pa.table(columns))


def _place(name: str) -> tuple[bool, bool]:
    """Return what sorts columns: scores that only some recipes have at the end."""
    return isnan(COLUMNS[name].missing), name == "origins"


def _is_there(values: Tensor, column: Column) -> bool:
    """Tell whether a column says anything: scores that only some recipes have are NaN elsewhere."""
    return not isnan(column.missing) or not bool(values.isnan().all())


def _external(ids: Ids, corpus: Corpus) -> pa.Array:
    """Return the caller's own ids if there are some, and corpus ids otherwise."""
    if corpus.id_column is None:
        return arrow_of(ids)
    names = pa.array(corpus.external_ids(ids.reshape(-1)), type=pa.string())
    return names if ids.ndim == 1 else lists_of(names, ids.shape)
