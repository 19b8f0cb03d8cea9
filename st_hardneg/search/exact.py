"""Exact search: every query against every text, block by block, with a running best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from sentence_transformers import SimilarityFunction
from torch import Tensor

from st_hardneg.hosts import computes_bfloat16
from st_hardneg.search.bfloat16 import RoundedCorpus

# A block of scores holds at most this many floats (128 MB), and on a CPU, where more are no gain, what fits its cache.
_MAX_FLOATS = 32_000_000
_CACHED_FLOATS = 8_000_000
# Queries that are compared with a block at once on a CPU.
_QUERIES = 1_024
# Scores of so many texts are looked at together for the highest, where that leaves out most of them.
_GROUP = 16
_UNIT = 1e-6
# If for a larger share of queries the nearest cannot be proven from scores in bfloat16, none are computed any more.
_UNPROVEN = 0.25


class ExactSearcher:
    """Compares every query with every corpus text.

    The scores are those of ``sentence_transformers.util.semantic_search``, which makes a dictionary of every hit, and for
    cosines normalises the whole corpus anew for every block of queries. Here a cosine is a dot product that is divided by
    the texts' lengths, which are computed once; nothing is held twice. Where the hardware multiplies bfloat16 natively,
    cosines and dot products of float32 vectors are searched in it, and the nearest are scored in float32: only where that
    provably finds the same (:mod:`st_hardneg.search.bfloat16`); the other queries are searched in float32.

    Args:
        corpus_chunk_size: Corpus texts compared at once; bounds memory.
        score_function: A similarity of embeddings ``(q, dim), (c, dim) -> (q, c)`` to use in place of the one that
            :meth:`index` names.

    Example:
        >>> searcher = ExactSearcher()
        >>> searcher.index(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "dot")
        >>> searcher.search(torch.tensor([[0.1, 0.9]]), k=1)[0].tolist()
        [[1]]
    """

    is_exact = True
    queries_at_once = _QUERIES

    def __init__(
        self, corpus_chunk_size: int = 100_000, score_function: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        self.corpus_chunk_size = corpus_chunk_size
        self.score_function = score_function

    def index(self, corpus_embeddings: Tensor, similarity_fn_name: str) -> None:
        """Take in the corpus, float of shape ``(num_corpus, dim)``."""
        self._corpus = corpus_embeddings
        self._is_cosine = self.score_function is None and similarity_fn_name == "cosine"
        self._is_product = self._is_cosine or (self.score_function is None and similarity_fn_name == "dot")
        self._function = self.score_function or SimilarityFunction.to_similarity_fn(similarity_fn_name)
        self._inverse_lengths = self._lengths() if self._is_cosine else None
        self._rounded: RoundedCorpus | None = None
        self._may_round = self._is_product and corpus_embeddings.dtype == torch.float32
        # By kind of device: queries may be on another one than the corpus.
        kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        self._rounding_devices = {kind for kind in kinds if self._may_round and computes_bfloat16(kind)}

    def _lengths(self) -> Tensor | None:
        """Return one over the length of each text's vector, or None where all of them are unit vectors."""
        blocks = self._corpus.split(self.corpus_chunk_size)
        lengths = torch.cat([torch.linalg.vector_norm(block.float(), dim=1) for block in blocks])
        if bool(((lengths - 1.0).abs() < _UNIT).all()):
            return None
        return 1.0 / lengths.clamp(min=1e-12)

    def search(self, query_embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the ``k`` nearest corpus rows of each query; see :class:`~st_hardneg.search.Searcher`."""
        k = min(k, len(self._corpus))
        num_queries = len(query_embeddings)
        best_ids = torch.full((num_queries, k), -1)
        best = torch.full((num_queries, k), -torch.inf)
        rounded = self._rounded_for(query_embeddings, k)
        width_for = k if rounded is None else rounded.num_candidates(k)
        step, width = self._block_shape(num_queries, width_for, query_embeddings.device.type == "cpu")
        scratch = query_embeddings.new_empty(min(step, num_queries) * width) if self._is_product else None
        with torch.no_grad():
            for start in range(0, num_queries, step):
                queries = query_embeddings[start : start + step]
                if self._is_cosine:
                    queries = torch.nn.functional.normalize(queries.float(), dim=1)
                rows = slice(start, start + step)
                if rounded is not None and self._may_round:
                    best_ids[rows], best[rows] = self._nearest_by_rounding(rounded, queries, k, width, scratch)
                else:
                    best_ids[rows], best[rows] = self._nearest(queries, k, width, scratch)
        return best_ids, best

    def _rounded_for(self, queries: Tensor, k: int) -> RoundedCorpus | None:
        """Return what searches in bfloat16 first, where that may be a gain."""
        if not self._may_round or queries.dtype != torch.float32 or queries.device.type not in self._rounding_devices:
            return None
        if self._rounded is None:
            self._rounded = RoundedCorpus(self._corpus, self._inverse_lengths, self.corpus_chunk_size)
        return self._rounded if self._rounded.gains(k) else None

    def _block_shape(self, num_queries: int, k: int, on_cpu: bool) -> tuple[int, int]:
        """Return how many queries are compared with how many texts at once."""
        width = max(1, min(self.corpus_chunk_size, len(self._corpus)))
        step = max(1, _MAX_FLOATS // width)
        if on_cpu and self._is_product:
            # Blocks that stay in the cache until the highest are taken out, and memory that is used again: to be given
            # 100 MB anew takes half as long as to multiply. Of few texts it takes longer to find the highest.
            step = min(step, _QUERIES)
            fitting = max(_CACHED_FLOATS // max(1, min(step, num_queries)), 2 * _GROUP * k)
            width = min(width, -(-fitting // _GROUP) * _GROUP)
        return step, width

    def _nearest_by_rounding(
        self, rounded: RoundedCorpus, queries: Tensor, k: int, width: int, scratch: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        halved = queries.bfloat16()
        near = self._highest_of(queries, rounded.num_candidates(k), width, partial(rounded.scores, halved))
        ids, best, is_proven = rounded.nearest(queries, *near, k)
        rest = (~is_proven).nonzero().flatten()
        self._may_round = len(rest) <= _UNPROVEN * len(queries)
        ids, best = ids.cpu(), best.cpu()
        if len(rest):
            ids[rest.cpu()], best[rest.cpu()] = self._nearest(queries[rest], k, width, scratch)
        return ids, best

    def _nearest(self, queries: Tensor, k: int, width: int, scratch: Tensor | None) -> tuple[Tensor, Tensor]:
        ids, best = self._highest_of(queries, k, width, partial(self._scores, queries, scratch=scratch))
        return ids.cpu(), best.cpu()

    def _highest_of(
        self, queries: Tensor, k: int, width: int, scores_of: Callable[[Tensor, int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the ``k`` texts with the highest scores, which are computed of a block of texts and its first row."""
        best = best_ids = None
        for first in range(0, len(self._corpus), width):
            scores = scores_of(self._corpus[first : first + width], first)
            if best is None or best_ids is None:
                best, best_ids = _highest(scores, min(k, scores.shape[1]))
                best_ids += first
                continue
            floor = best[:, -1:] if best.shape[1] == k else None
            found, places = _highest(scores, min(k, scores.shape[1]), floor)
            if not found.shape[1]:
                continue
            both, both_ids = torch.cat([best, found], dim=1), torch.cat([best_ids, places + first], dim=1)
            best, order = both.topk(min(k, both.shape[1]), dim=1)
            best_ids = both_ids.gather(1, order)
        assert best is not None and best_ids is not None
        return best_ids, best.float()

    def _scores(self, queries: Tensor, block: Tensor, first: int, scratch: Tensor | None) -> Tensor:
        block = block.to(queries.device)
        if not self._is_product:
            return self._function(queries, block)
        shape = len(queries), len(block)
        if scratch is not None and scratch.dtype == queries.dtype:
            scores = scratch[: shape[0] * shape[1]].view(shape)
            torch.mm(queries, block.T.to(queries.dtype), out=scores)
        else:
            scores = queries @ block.T.to(queries.dtype)
        if self._inverse_lengths is not None:
            scores *= self._inverse_lengths[first : first + len(block)].to(scores.device)
        return scores


def _highest(scores: Tensor, k: int, floor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the ``k`` highest of each row and their places, of shape ``(q, k)``, highest first; faster than ``topk``.

    The highest are in the ``k`` groups with the highest maxima, and the maxima take one quick pass.

    Args:
        scores: float of shape ``(q, width)``.
        k: How many.
        floor: float of shape ``(q, 1)``: what is no higher may be left out; the shape is then ``(q, at most k)``.
    """
    num_queries, width = scores.shape
    num_groups = width // _GROUP
    whole = num_groups * _GROUP
    if num_groups < 2 * k and (floor is None or not num_groups):
        return scores.topk(k, dim=1)
    groups = scores[:, :whole].unflatten(1, (_GROUP, num_groups))
    maxima, num_best = groups.amax(dim=1), k
    if floor is not None:
        # Not `maxima > floor`, so that what is no number is found and reported.
        num_best = min(k, int((~(maxima <= floor)).sum(dim=1).max()))
        if num_groups < 2 * num_best:
            return scores.topk(k, dim=1)
    best = maxima.topk(num_best, dim=1, sorted=False).indices
    few = groups.gather(2, best[:, None, :].expand(-1, _GROUP, -1)).flatten(1)
    places = (best[:, None, :] + torch.arange(_GROUP, device=scores.device)[:, None] * num_groups).flatten(1)
    if whole < width:  # what is left over
        few = torch.cat([few, scores[:, whole:]], dim=1)
        rest = torch.arange(whole, width, device=scores.device).expand(num_queries, -1)
        places = torch.cat([places, rest], dim=1)
    found, at = few.topk(min(k, few.shape[1]), dim=1)
    return found, places.gather(1, at)
