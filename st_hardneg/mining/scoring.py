"""The score of any query with any corpus text, and how a query's positives score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

from st_hardneg.candidates import Candidates, Found
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.dense import Encodings, encode
from st_hardneg.mining.rescoring import cross_encoder_scores

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

# Pairs are compared in blocks of at most this many floats (256 MB).
_MAX_FLOATS = 64_000_000


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of all queries and of all corpus texts that can be a negative or are a positive.

    Args:
        queries: float32 of shape ``(num_queries, dim)``.
        corpus: float32 of shape ``(num_encoded, dim)``; the texts that are searched come first. Anchors that are searched
            stand here with their embeddings as queries.
        corpus_row: int64 of shape ``(num_corpus,)``: where in ``corpus`` each corpus id is, or -1.
        pairwise: The similarity of row i with row i: ``(m, dim), (m, dim) -> (m,)``.
    """

    queries: Tensor
    corpus: Tensor
    corpus_row: Tensor
    pairwise: Callable[[Tensor, Tensor], Tensor]

    def similarity_of_pairs(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return the similarity of each query with its own row of corpus texts, float32 of shape ``(q, k)``."""
        return self._compare(self.queries[query_ids.to(self.queries.device)], corpus_ids)

    def similarity_among_texts(self, one_each: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return the similarity of one text each, ``(q,)``, with a row of others, ``(q, k)``, of shape ``(q, k)``."""
        return self._compare(self._of_texts(one_each), corpus_ids)

    def distances_of_pairs(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return the Euclidean distance of each query and its own row of texts, as unit vectors, of shape ``(q, k)``."""
        cosine = replace(self, pairwise=pairwise_cos_sim).similarity_of_pairs(query_ids, corpus_ids)
        return (2.0 - 2.0 * cosine.double().clamp(-1.0, 1.0)).sqrt()

    def of_texts(self, corpus_ids: Ids) -> Tensor:
        """Return the embeddings of some corpus texts, int64 of shape ``(m,)``, of shape ``(m, dim)``."""
        rows = self.corpus_row[torch.from_numpy(corpus_ids)]
        if len(rows) and int(rows[0]) == 0 and bool((rows.diff() == 1).all()):
            return self.corpus[: len(rows)]  # no copy of the whole corpus
        return self.corpus[rows.to(self.corpus.device)]

    def _of_texts(self, corpus_ids: Tensor) -> Tensor:
        rows = self.corpus_row[corpus_ids.clamp(min=0)]
        return self.corpus[rows.clamp(min=0).to(self.corpus.device)]

    def _compare(self, left: Tensor, corpus_ids: Tensor) -> Tensor:
        similarity = torch.empty(corpus_ids.shape)
        width = corpus_ids.shape[1]
        step = max(1, _MAX_FLOATS // max(1, width * left.shape[1]))
        for start in range(0, len(corpus_ids), step):
            block = corpus_ids[start : start + step]
            others = self._of_texts(block.flatten())
            ours = left[start : start + step].to(others.device).repeat_interleave(width, dim=0)
            similarity[start : start + step] = self.pairwise(ours, others).float().cpu().view(block.shape)
        return similarity.masked_fill_(corpus_ids < 0, -torch.inf)


def embed(
    pairs: Pairs,
    corpus: Corpus,
    model: SentenceTransformer,
    encodings: Encodings,
    pairwise: Callable[[Tensor, Tensor], Tensor],
    *,
    show_progress_bar: bool = False,
) -> Embeddings:
    """Encode all queries, and the corpus texts that can be a negative or are a positive."""
    encoded, corpus_row = encoded_texts(pairs, corpus)
    texts = encode(model, corpus.texts.take(encoded), encodings.corpus, show_progress_bar=show_progress_bar)
    queries = encode(model, pairs.query_texts(), encodings.queries, show_progress_bar=show_progress_bar)
    if len(corpus.anchor_ids):
        # As negatives they are searched in the anchors' own space.
        corpus_row[torch.from_numpy(corpus.anchor_ids)] = len(texts) + torch.arange(len(queries))
        texts = torch.cat([texts, queries.to(texts.device)])
    return Embeddings(queries, texts, corpus_row, pairwise)


def encoded_texts(pairs: Pairs, corpus: Corpus) -> tuple[Ids, Tensor]:
    """Return the corpus ids to encode, those that are searched first, and the place of each corpus id among them."""
    wanted = np.unique(np.concatenate([pairs.positive_ids, corpus.synthetic_ids, *corpus.parts.values()]))
    others = np.setdiff1d(wanted, corpus.searched)
    encoded = np.concatenate([corpus.searched, others])
    corpus_row = np.full(len(corpus), -1, dtype=np.int64)
    corpus_row[encoded] = np.arange(len(encoded))
    return encoded, torch.from_numpy(corpus_row)


@dataclass(frozen=True, eq=False)
class Scoring:
    """Scores as the filters see them: the model's similarity, or a cross encoder's score where there is one.

    Args:
        embeddings: Embeddings of queries and corpus.
        pairs: The queries and their positives.
        corpus: The corpus.
        cross_encoder: Rescores every pair, if given.
        batch_size: Pairs that the cross encoder scores at once.
        cross_encoder_pool: A multi-process pool of the cross encoder's.
        with_positive_similarity: Whether candidates are also compared with the query's positives.
        rescore_known: Whether the cross encoder also scores candidates that can never be a negative.
        guide: Another model's embeddings of the same texts, which may veto a candidate.
    """

    embeddings: Embeddings
    pairs: Pairs
    corpus: Corpus
    cross_encoder: CrossEncoder | None = None
    batch_size: int = 32
    cross_encoder_pool: Any = None
    with_positive_similarity: bool = False
    rescore_known: bool = False
    guide: Embeddings | None = None

    @cached_property
    def positive_query(self) -> Tensor:
        """int64 of shape ``(m,)``: the queries, each as often as it has positives."""
        return torch.from_numpy(np.repeat(np.arange(self.pairs.num_queries), self.pairs.num_positives))

    @cached_property
    def positive_of_query(self) -> Tensor:
        """int64 of shape ``(m,)``: the corpus id of each query's positives, in the order of ``positive_query``."""
        counts = self.pairs.num_positives
        first = self.pairs.positive_offsets[self.pairs.group]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return torch.from_numpy(self.pairs.positive_ids[np.repeat(first, counts) + within])

    @cached_property
    def positive_similarities(self) -> Tensor:
        """float32 of shape ``(m,)``: the model's similarity of each query with each of its positives."""
        ids = self.positive_of_query[:, None]
        return self.embeddings.similarity_of_pairs(self.positive_query, ids).squeeze(1)

    @cached_property
    def positive_scores(self) -> Tensor:
        """float32 of shape ``(m,)``: the scores that margins are measured from."""
        if self.cross_encoder is None:
            return self.positive_similarities
        return self._rescore(self.positive_query, self.positive_of_query)

    @cached_property
    def lowest_positive_scores(self) -> Tensor:
        """float32 of shape ``(num_queries,)``."""
        return self._lowest(self.positive_scores)

    @cached_property
    def _lowest_guide_scores(self) -> Tensor:
        assert self.guide is not None
        ids = self.positive_of_query[:, None]
        return self._lowest(self.guide.similarity_of_pairs(self.positive_query, ids).squeeze(1))

    def _lowest(self, scores: Tensor) -> Tensor:
        lowest = torch.full((self.pairs.num_queries,), torch.inf)
        return lowest.scatter_reduce_(0, self.positive_query, scores, "amin")

    def candidates(self, found: Found) -> Candidates:
        """Score what a source proposes, best first; ties by the lower id."""
        query_ids, corpus_ids, similarities = found.query_ids, found.corpus_ids, found.similarities
        if similarities is None:
            similarities = self.embeddings.similarity_of_pairs(query_ids, corpus_ids)
        candidates = Candidates(
            query_ids,
            corpus_ids,
            similarities,
            similarities,
            found.ranks,
            self.lowest_positive_scores[query_ids],
            sources=found.sources,
            source_scores=found.source_scores,
        )
        if self.cross_encoder is not None:
            candidates = self._rescored(candidates, in_order=found.is_ranked)
        if self.with_positive_similarity:
            candidates = replace(candidates, positive_similarity=self._positive_similarity(candidates))
        if self.guide is not None:
            guided = self.guide.similarity_of_pairs(query_ids, candidates.corpus_ids)
            candidates = replace(candidates, guide_gap=guided - self._lowest_guide_scores[query_ids][:, None])
        return candidates

    def _rescored(self, found: Candidates, *, in_order: bool) -> Candidates:
        # What can never be a negative is not worth a forward pass.
        wanted = found.is_present
        if not self.rescore_known:
            wanted = wanted & ~self.pairs.known.contains(found.query_ids, found.corpus_ids)
        rows, places = wanted.nonzero(as_tuple=True)
        scores = found.similarities.clone()
        scores[rows, places] = self._rescore(found.query_ids[rows], found.corpus_ids[rows, places])
        if in_order:
            return replace(found, scores=scores)
        by_id = found.corpus_ids.argsort(dim=1, stable=True)
        order = by_id.gather(1, scores.gather(1, by_id).argsort(dim=1, descending=True, stable=True))
        names = ("corpus_ids", "similarities", "ranks", "sources", "source_scores")
        arranged = {name: getattr(found, name) for name in names}
        moved = {name: values.gather(1, order) for name, values in arranged.items() if values is not None}
        return replace(found, scores=scores.gather(1, order), **moved)

    def _rescore(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        assert self.cross_encoder is not None
        queries = self.pairs.anchors.take(self.pairs.first_row[query_ids.numpy()])
        texts = self.corpus.texts.take(corpus_ids.numpy())
        pairs = list(zip(queries, texts, strict=True))
        return cross_encoder_scores(self.cross_encoder, pairs, self.batch_size, self.cross_encoder_pool)

    def _positive_similarity(self, found: Candidates) -> Tensor:
        nearest = torch.full(found.corpus_ids.shape, -torch.inf)
        offsets = torch.from_numpy(self.pairs.positive_offsets)
        group = torch.from_numpy(self.pairs.group)[found.query_ids]
        first, count = offsets[group], offsets[group + 1] - offsets[group]
        ids = torch.from_numpy(self.pairs.positive_ids)
        # The i-th positive of every query that has so many: a query with 200 does not inflate the others.
        for i in range(int(count.max()) if len(count) else 0):
            has = (count > i).nonzero().flatten()
            similarity = self.embeddings.similarity_among_texts(ids[first[has] + i], found.corpus_ids[has])
            nearest[has] = torch.maximum(nearest[has], similarity)
        return nearest
