"""Candidates as a plain dataset, in the layout of ids that Sentence Transformers' ``resolve_ids`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset

from st_hardneg.candidates import Mining, Pool, is_repeated
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids, dataset_of

_POSITIVE = "positive"


def candidates_dataset(pool: Pool, source_names: Sequence[str], pairs: Pairs, corpus: Corpus) -> Dataset:
    """Return a row per query: ``query_id``, ``document_ids``, ``scores``, ``num_positives``, ``ranks``, ``sources``.

    Right answers come first, then what each source found, best first; what is known to be right is no candidate, and what
    two sources found stands once.

    Args:
        pool: The candidates.
        source_names: What the numbers of sources stand for.
        pairs: The queries.
        corpus: The texts that ids count.
    """
    table = _right_answers(pool, pairs).followed_by(_found(pool, pairs))
    order = np.argsort(table.queries, kind="stable")
    counts = np.bincount(table.queries, minlength=pairs.num_queries)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    names = np.array([*source_names, _POSITIVE], dtype=object)

    def lists(values: Any) -> pa.Array:
        return pa.LargeListArray.from_arrays(offsets, pa.array(values))

    columns = {
        "query_id": pa.array(query_names(pairs)),
        "document_ids": lists(document_names(table.ids[order], corpus)),
        "scores": lists(table.scores[order]),
        "num_positives": pa.array(np.bincount(table.queries[table.sources < 0], minlength=pairs.num_queries)),
        "ranks": lists(table.ranks[order]),
        "sources": lists(names[table.sources[order]].tolist()),
    }
    for name, values in (("cross_encoder_scores", table.cross_encoder), ("source_scores", table.own)):
        if not np.isnan(values).all():
            columns[name] = lists(values[order])
    return dataset_of(pa.table(columns))


def candidates_by_ids(mining: Mining, pairs: Pairs, corpus: Corpus) -> dict[str, Dataset]:
    """Return ``candidates`` and the texts that it names: ``queries`` and ``documents``."""
    assert mining.pool is not None
    ids = torch.cat([part.ids.flatten() for part in mining.pool.parts.values()]).unique().numpy()
    ids = np.union1d(ids[ids >= 0], pairs.row_positive)
    return {
        "candidates": candidates_dataset(mining.pool, mining.source_names, pairs, corpus),
        "queries": texts_dataset(query_names(pairs), pairs.query_texts(), "query_id", "query"),
        "documents": texts_dataset(document_names(ids, corpus), corpus.texts.take(ids), "document_id", "document"),
    }


def query_names(pairs: Pairs) -> list[str]:
    """Return what each query is called: the number of its first row."""
    return [str(row) for row in pairs.first_row.tolist()]


def document_names(corpus_ids: Ids, corpus: Corpus) -> list[str]:
    """Return what texts are called: the caller's own ids, or corpus ids."""
    if corpus.id_column is None:
        return [str(number) for number in corpus_ids.tolist()]
    return [str(name) for name in corpus.external_ids(corpus_ids)]


def texts_dataset(names: Sequence[str], texts: Sequence[str], id_column: str, text_column: str) -> Dataset:
    """Return a table of texts by id, as ``resolve_ids`` looks them up."""
    return dataset_of(pa.table({id_column: pa.array(names), text_column: pa.array(texts, pa.large_string())}))


class _Table:
    """Documents of queries: flat arrays of one length."""

    def __init__(
        self,
        queries: Ids,
        ids: Ids,
        scores: npt.NDArray[np.float32],
        ranks: Ids,
        sources: Ids,
        cross_encoder: npt.NDArray[np.float32],
        own: npt.NDArray[np.float32],
    ) -> None:
        self.queries, self.ids, self.scores, self.ranks, self.sources = queries, ids, scores, ranks, sources
        self.cross_encoder, self.own = cross_encoder, own

    def followed_by(self, other: _Table) -> _Table:
        return _Table(*(np.concatenate([mine, theirs]) for mine, theirs in zip(self, other, strict=True)))

    def __iter__(self) -> Any:
        return iter((self.queries, self.ids, self.scores, self.ranks, self.sources, self.cross_encoder, self.own))


def _right_answers(pool: Pool, pairs: Pairs) -> _Table:
    """Return each query's positives, each once, in order of appearance."""
    keys = pairs.row_query * (int(pairs.row_positive.max(initial=0)) + 1) + pairs.row_positive
    rows = np.sort(np.unique(keys, return_index=True)[1])
    none, nothing = np.full(len(rows), -1, dtype=np.int64), np.full(len(rows), np.nan, dtype=np.float32)
    rescored = pool.positive_cross_encoder_scores
    return _Table(
        pairs.row_query[rows],
        pairs.row_positive[rows],
        pool.positive_similarities.numpy()[rows],
        none,
        none,
        nothing if rescored is None else rescored.numpy()[rows],
        nothing,
    )


def _found(pool: Pool, pairs: Pairs) -> _Table:
    parts = list(pool.parts.values())
    ids = torch.cat([part.ids for part in parts], dim=1)
    ranks = torch.cat([torch.arange(part.ids.shape[1]).expand(part.ids.shape) for part in parts], dim=1)

    def beside(name: str) -> torch.Tensor:
        empty = (torch.full(part.ids.shape, torch.nan) for part in parts)
        values = [getattr(part, name) for part in parts]
        return torch.cat(
            [value if value is not None else none for value, none in zip(values, empty, strict=True)], dim=1
        )

    keep = (ids >= 0) & ~is_repeated(ids) & ~pairs.known.contains(torch.arange(len(ids)), ids)
    queries, places = keep.nonzero(as_tuple=True)
    names = ("similarities", "sources", "cross_encoder_scores", "source_scores")
    scores, sources, rescored, own = (beside(name)[queries, places].numpy() for name in names)
    return _Table(
        queries.numpy(),
        ids[queries, places].numpy(),
        scores,
        ranks[queries, places].numpy(),
        sources.astype(np.int64),
        rescored,
        own,
    )
