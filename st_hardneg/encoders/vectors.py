"""The vectors of all queries and corpus texts, and how similar any two of them are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from sentence_transformers import SimilarityFunction
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.room import fits, refuse, say_how_long
from st_hardneg.encoders.rows import Rows, concatenated
from st_hardneg.encoders.sampled import sampled_products
from st_hardneg.encoders.shared import searched_vectors
from st_hardneg.memory import large
from st_hardneg.search import Searcher

# Pairs are compared in blocks of at most this many floats: what fits a CPU's cache (4 MB) takes a tenth of the time.
_MAX_FLOATS = {"cpu": 1_000_000}
_MAX_FLOATS_ELSEWHERE = 64_000_000
_BLOCK = 16_384
_SAMPLE = 500
# One product of all with all is worth it up to so many times the pairs that are asked for: where pairs are read where
# they are, and where their rows are gathered.
_WORTH_A_PRODUCT, _WORTH_A_PRODUCT_GATHERED = 12, 200


@dataclass(frozen=True)
class Limits:
    """What vectors may take.

    Args:
        max_memory: GB of memory that the vectors of the corpus may take; most of what is free if None.
        folder: Where they are kept if they do not fit; None for nowhere.
        searcher: Makes what searches them; None where nothing does.
    """

    max_memory: float | None = None
    folder: str | None = None
    searcher: Callable[[], Searcher] | None = None


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of all queries and of all corpus texts that can be a negative or are a positive.

    Args:
        queries: :class:`~st_hardneg.encoders.rows.Rows`, such as float32 of shape ``(num_queries, dim)``.
        searched: The same of shape ``(num_searched, dim)``: the texts that are searched, in their order.
        others: The same of shape ``(num_others, dim)``: other texts that can be a negative or are a positive. Anchors that
            are searched stand here with their vectors as queries.
        corpus_row: int64 of shape ``(num_corpus,)``: where each corpus id is, in ``searched`` followed by ``others``; or
            -1.
        pairwise: The similarity of row i with row i: ``(m, dim), (m, dim) -> (m,)``.
        similarity: Name of that similarity.
        score_function: A similarity ``(q, dim), (c, dim) -> (q, c)`` to search by in place of it, or None.
    """

    queries: Any
    searched: Rows
    others: Rows
    corpus_row: Tensor
    pairwise: Callable[[Tensor, Tensor], Tensor]
    similarity: str
    score_function: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def dim(self) -> int:
        """Dimensions."""
        return self.queries.shape[1]

    def of_queries(self, query_ids: Tensor) -> Any:
        """Return the vectors of some queries, int64 of shape ``(m,)``, of shape ``(m, dim)``."""
        return self.queries[query_ids.to(self.queries.device)]

    def of_texts(self, corpus_ids: Ids) -> Any:
        """Return the vectors of some corpus texts, int64 of shape ``(m,)``, of shape ``(m, dim)``."""
        rows = self.corpus_row[torch.from_numpy(corpus_ids)]
        if len(rows) == len(self.searched) and int(rows[0]) == 0 and bool((rows.diff() == 1).all()):
            return self.searched  # no copy of the whole corpus
        return self._at(rows)

    def similarity_of_pairs(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return the similarity of each query with its own row of corpus texts, float32 of shape ``(q, k)``."""
        return self._compare(lambda places: self.of_queries(query_ids[places]), corpus_ids)

    def similarity_among_texts(self, one_each: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return the similarity of one text each, ``(q,)``, with a row of others, ``(q, k)``, of shape ``(q, k)``."""
        ours, texts = self._of_texts(one_each), self._readable_in_place(corpus_ids)
        if texts is None:
            return self._compare(lambda places: ours[places.to(ours.device)], corpus_ids)
        rows = self._rows_of(corpus_ids)
        found = sampled_products(ours, texts, rows)
        if self.similarity == "cosine":
            found = found / (_norms(ours)[:, None] * self._searched_norms[rows])
        return found.float().masked_fill_(corpus_ids < 0, -torch.inf)

    def worth_a_product(self, corpus_ids: Tensor) -> int:
        """Return up to how many times the pairs that are asked for one product of all texts with all is as fast.

        Args:
            corpus_ids: The texts that are asked for; -1 for none.
        """
        own: int | None = getattr(self.queries, "worth_a_product", None)
        if own is not None:
            return own
        return _WORTH_A_PRODUCT_GATHERED if self._readable_in_place(corpus_ids) is None else _WORTH_A_PRODUCT

    def _rows_of(self, corpus_ids: Tensor) -> Tensor:
        return self.corpus_row[corpus_ids.clamp(min=0)].clamp(min=0)

    def _readable_in_place(self, corpus_ids: Tensor) -> Tensor | None:
        """Return the searched texts, where torch can compare these of them without a copy; else None."""
        texts = self.searched
        if not (isinstance(texts, Tensor) and isinstance(self.others, Tensor)) or self.score_function is not None:
            return None
        is_plain = texts.layout == torch.strided and texts.device.type == "cpu" and texts.is_contiguous()
        is_exact = texts.dtype == self.others.dtype and texts.dtype in (torch.float32, torch.float64)
        is_product = self.similarity in ("cosine", "dot")
        if not (len(texts) and is_plain and is_exact and is_product):
            return None
        return None if bool((self._rows_of(corpus_ids) >= len(texts)).any()) else texts

    @cached_property
    def _searched_norms(self) -> Tensor:
        return torch.cat([_norms(block) for block in self.searched.split(_BLOCK)])

    def similarity_of_all(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the similarity of every text of one list with every one of another.

        Args:
            left: int64 of shape ``(m,)``.
            right: int64 of shape ``(c,)``; -1 for none.

        Returns:
            float32 of shape ``(m, c)``; -inf for none.
        """
        function = self.score_function or SimilarityFunction.to_similarity_fn(self.similarity)
        similarity = function(self._of_texts(left), self._of_texts(right)).float().cpu()
        similarity[:, right < 0] = -torch.inf
        return similarity

    def chance(self, vectors: Any) -> Tensor:
        """Return the mean similarity of some vectors, of shape ``(m, dim)``, and the searched texts, of shape ``(m,)``.

        Cosines and dot products have it from the mean vector; others from a sample of texts.
        """
        texts = self.searched if len(self.searched) else self.others
        if hasattr(texts, "mean_similarity") and self.similarity in ("cosine", "dot"):
            exact: Tensor = texts.mean_similarity(vectors, self.similarity)
            return exact
        blocks = vectors.split(_BLOCK)
        if self.score_function is None and self.similarity in ("cosine", "dot"):
            unit = torch.nn.functional.normalize if self.similarity == "cosine" else (lambda block, dim: block)
            sums = [unit(block.float(), dim=1).sum(dim=0) for block in texts.split(_BLOCK)]
            mean = torch.stack(sums).sum(dim=0) / len(texts)
            return torch.cat([(unit(block.float(), dim=1) @ mean.to(block.device)).cpu() for block in blocks])
        function = self.score_function or SimilarityFunction.to_similarity_fn(self.similarity)
        places = torch.linspace(0, len(texts) - 1, min(_SAMPLE, len(texts))).round().long()
        sample = texts[places.to(texts.device)].to(vectors.device)
        return torch.cat([function(some, sample).float().mean(dim=1).cpu() for some in blocks])

    def distances_of_pairs(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return the Euclidean distance of each query and its own row of texts, as unit vectors, of shape ``(q, k)``."""
        function = pairwise_cos_sim if isinstance(self.queries, Tensor) else self.queries.cosine
        cosine = replace(self, pairwise=function).similarity_of_pairs(query_ids, corpus_ids)
        return (2.0 - 2.0 * cosine.double().clamp(-1.0, 1.0)).sqrt()

    def are_twins(self, left: Ids, right: Ids) -> Tensor:
        """Tell which texts of two lists have the same vector, up to rounding; boolean of shape ``(m,)``."""
        ours, theirs = self.of_texts(left), self.of_texts(right)
        if not isinstance(ours, Tensor):
            equal: Tensor = ours.are_equal(theirs)
            return equal
        return ((ours - theirs).abs().amax(dim=1) <= 1e-5 * ours.abs().amax(dim=1)).cpu()

    def for_clustering(self) -> Tensor:
        """Return one dense vector of each query, float32 of shape ``(num_queries, dim)``, about as far apart as these."""
        matrix: Tensor = self.queries if isinstance(self.queries, Tensor) else self.queries.few_dimensions()
        return matrix

    def _of_texts(self, corpus_ids: Tensor) -> Any:
        return self._at(self._rows_of(corpus_ids))

    def _at(self, rows: Tensor) -> Any:
        rows, num_searched = rows.to(self.searched.device), len(self.searched)
        is_other = rows >= num_searched
        if not bool(is_other.any()):
            return self.searched[rows]
        if not num_searched:
            return self.others[rows]
        others = self.others[rows[is_other] - num_searched]
        if isinstance(others, Tensor):
            found = self.searched[rows.clamp(max=num_searched - 1)]
            found[is_other] = others
            return found
        both = concatenated([self.searched[rows[~is_other]], others])
        return both[torch.cat([(~is_other).nonzero().flatten(), is_other.nonzero().flatten()]).argsort()]

    def _compare(self, ours_at: Callable[[Tensor], Any], corpus_ids: Tensor) -> Tensor:
        """Return the similarity of vectors of ours, which are asked for by place, with a row of texts each."""
        similarity = torch.empty(corpus_ids.shape)
        width = corpus_ids.shape[1]
        most = _MAX_FLOATS.get(self.searched.device.type, _MAX_FLOATS_ELSEWHERE) // self.dim
        if not isinstance(self.queries, Tensor):
            most = self.queries.pairs_at_once
        step = max(1, most // max(1, width))
        for start in range(0, len(corpus_ids), step):
            block = corpus_ids[start : start + step]
            others = self._of_texts(block.flatten())
            ours = ours_at(torch.arange(start, start + len(block)).repeat_interleave(width))
            if isinstance(ours, Tensor):
                ours = ours.to(others.device)
            similarity[start : start + step] = self.pairwise(ours, others).float().cpu().view(block.shape)
        return similarity.masked_fill_(corpus_ids < 0, -torch.inf)


def _norms(vectors: Tensor) -> Tensor:
    """Return lengths of shape ``(m,)``, as ``normalize`` has them: no vector is shorter than 1e-12."""
    return torch.linalg.vector_norm(vectors, dim=1).clamp(min=1e-12)


def embed(
    pairs: Pairs,
    corpus: Corpus,
    encoder: Encoder,
    *,
    searched: Rows | None = None,
    limits: Limits = Limits(),
    show_progress_bar: bool = False,
) -> Vectors:
    """Encode all queries, and the corpus texts that can be a negative or are a positive.

    Args:
        pairs: The queries and their positives.
        corpus: The corpus.
        encoder: The encoder.
        searched: Vectors of the searched texts, where they are there already.
        limits: What vectors may take, and where those are kept that do not fit.
        show_progress_bar: Whether to show progress.
    """
    wanted = np.concatenate([pairs.positive_ids, pairs.given_ids, corpus.synthetic_ids, *corpus.parts.values()])
    is_other = np.zeros(len(corpus), dtype=bool)
    is_other[wanted] = True
    is_other[corpus.searched] = False
    others = np.flatnonzero(is_other)
    corpus_row = np.full(len(corpus), -1, dtype=np.int64)
    encoded = np.concatenate([corpus.searched, others])
    corpus_row[encoded] = np.arange(len(encoded))
    if searched is None:
        searched = searched_vectors(
            corpus, encoder, lambda ids: _encoded(corpus, ids, encoder, limits, show_progress_bar)
        )
    beside = _encoded(corpus, others, encoder, limits, show_progress_bar) if len(others) else searched[:0]
    queries = encoder.queries(pairs.query_texts(), show_progress_bar=show_progress_bar)
    if len(corpus.anchor_ids):
        # As negatives they are searched in the anchors' own space.
        corpus_row[corpus.anchor_ids] = len(encoded) + np.arange(len(corpus.anchor_ids))
        beside = concatenated([beside, queries])
    if isinstance(beside, Tensor):
        beside = beside.to(searched.device)
    return Vectors(
        queries,
        searched,
        beside,
        torch.from_numpy(corpus_row),
        encoder.pairwise,
        encoder.similarity,
        encoder.score_function,
    )


def _encoded(corpus: Corpus, corpus_ids: Ids, encoder: Encoder, limits: Limits, show_progress_bar: bool) -> Any:
    """Return the vectors of some texts: in memory where they fit, which the first shard tells, and else on disk."""
    texts, started = corpus.texts.some(corpus_ids), time.perf_counter()
    shards = encoder.corpus(texts, show_progress_bar=show_progress_bar)
    first = next(shards, None)
    if first is None:
        return torch.empty(0, 0)
    say_how_long(len(texts), len(first), time.perf_counter() - started)
    on_cpu = isinstance(first, Tensor) and first.device.type == "cpu"
    if on_cpu and not fits(len(texts), first.shape[1], limits.max_memory):
        if limits.folder is None:
            refuse(len(texts), first.shape[1], limits.max_memory)
        from st_hardneg.encoders.cached import on_disk
        from st_hardneg.encoders.store import check_reads_shards

        if limits.searcher is not None:
            check_reads_shards(limits.searcher())
        shards.close()  # type: ignore[attr-defined]
        return on_disk(encoder, texts, str(limits.folder), show_progress_bar=show_progress_bar)
    return stacked(chain([first], shards), len(corpus_ids))


def stacked(shards: Iterator[Any], num_rows: int) -> Any:
    """Put shards below each other into one table of so many rows; a matrix is allocated once.

    It is on the shards' device, or on the CPU where the device's memory does not suffice.
    """
    matrix: Tensor | None = None
    start = 0
    for shard in shards:
        if not isinstance(shard, Tensor):
            return concatenated([shard, *shards])
        if len(shard) == num_rows:
            return shard
        if matrix is None:
            matrix = _allocated(num_rows, shard)
        matrix[start : start + len(shard)] = shard
        start += len(shard)
    return torch.empty(num_rows, 0) if matrix is None else matrix


def _allocated(num_rows: int, like: Tensor) -> Tensor:
    shape = (num_rows, like.shape[1])
    if like.device.type == "cpu" and like.dtype == torch.float32:
        return torch.from_numpy(large(shape, np.float32))
    try:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    except torch.OutOfMemoryError:  # pragma: no cover - needs an accelerator
        return torch.empty(shape, dtype=like.dtype)
