"""Exact search: every query against every text, block by block, with a running best."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import SimilarityFunction
from torch import Tensor

from st_hardneg.hosts import computes_bfloat16
from st_hardneg.memory import LINE, large
from st_hardneg.search.bfloat16 import RoundedCorpus

# A block of scores holds at most this many floats (128 MB); on a CPU, where more are no gain, a quarter of it, unless so
# many are wanted of each query that they would be most of a block.
_MAX_FLOATS = 32_000_000
_CPU_FLOATS = 8_388_608
# Scores of so many texts are looked at together for the highest, where that leaves out most of them.
GROUP = 16
# Where more than one score in so many may be among the highest, all of them are looked at.
_FEW = 4
# Floats of a cache line.
_LINE = LINE // 4
# Queries that are compared with a block at once on a CPU.
_QUERIES = 1_024
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
        self._spare: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        # Without what it has indexed, which is large: another process indexes its own.
        indexed = ("_corpus", "_inverse_lengths", "_rounded")
        return {name: value for name, value in self.__dict__.items() if name not in indexed} | {"_spare": []}

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
        scratch = self._scratch(query_embeddings[:step], width)
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
        self._spare[:] = [] if scratch is None else [scratch]
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
            # Of few texts it takes longer to find the highest.
            fitting = max(_CPU_FLOATS // max(1, min(_QUERIES, num_queries)), 4 * GROUP * k)
            width = min(width, -(-fitting // GROUP) * GROUP)
            step = max(1, min(_QUERIES, _MAX_FLOATS // width))
        return step, width

    def _scratch(self, queries: Tensor, width: int) -> Tensor | None:
        """Return memory for the scores of a block on a CPU, which is used again: to be given it anew takes long."""
        if not self._is_product or queries.device.type != "cpu":
            return None
        size = (len(queries) + -len(queries) % _LINE) * width
        dtype = torch.float32 if self._is_cosine else queries.dtype
        with suppress(IndexError):
            spare = self._spare.pop()  # no other thread finds it while it is in use
            if spare.dtype == dtype and len(spare) >= size:
                return spare
        with torch.inference_mode(False):  # or it could not be used again outside of that mode
            return (
                torch.from_numpy(large(size, np.float32)) if dtype == torch.float32 else torch.empty(size, dtype=dtype)
            )

    def _nearest_by_rounding(
        self, rounded: RoundedCorpus, queries: Tensor, k: int, width: int, scratch: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        halved = queries.bfloat16()
        near = self._highest_of(rounded.num_candidates(k), width, partial(rounded.scores, halved))
        ids, best, is_proven = rounded.nearest(queries, *near, k)
        rest = (~is_proven).nonzero().flatten()
        self._may_round = len(rest) <= _UNPROVEN * len(queries)
        ids, best = ids.cpu(), best.cpu()
        if len(rest):
            ids[rest.cpu()], best[rest.cpu()] = self._nearest(queries[rest], k, width, scratch)
        return ids, best

    def _nearest(self, queries: Tensor, k: int, width: int, scratch: Tensor | None) -> tuple[Tensor, Tensor]:
        ids, best = self._highest_of(k, width, partial(self._scores, queries, scratch=scratch))
        return ids.cpu(), best.cpu()

    def _highest_of(self, k: int, width: int, scores_of: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the ``k`` texts with the highest scores, which are computed of a block of texts and its first row."""
        highest = Highest(k)
        for first in range(0, len(self._corpus), width):
            highest.add(scores_of(self._corpus[first : first + width], first), first)
        return highest.found()

    def _scores(self, queries: Tensor, block: Tensor, first: int, scratch: Tensor | None) -> Tensor:
        """Return scores of shape ``(num_texts, num_queries)``: that product takes less time than its mirror."""
        block = block.to(queries.device)
        if not self._is_product:
            return self._function(queries, block).T
        if scratch is None:
            scores = block.to(queries.dtype) @ queries.T
        else:
            rest = -len(queries) % _LINE
            padded = torch.nn.functional.pad(queries, (0, 0, 0, rest)) if rest else queries
            shape = len(block), len(padded)
            scores = torch.mm(block.to(queries.dtype), padded.T, out=scratch[: shape[0] * shape[1]].view(shape))
            scores = scores[:, : len(queries)]
        if self._inverse_lengths is not None:
            scores *= self._inverse_lengths[first : first + len(block), None].to(scores.device)
        return scores


class Highest:
    """The ``k`` highest scores so far of each query, and the texts that have them.

    What cannot be among them is left out early, which is much faster than ``topk`` of everything: texts are looked at in
    groups, and a group whose highest score is too low is not looked at again. What is too low is known from the blocks
    before; in the first one, of the ``k`` best groups each has a text, so that the lowest of their maxima will do.

    Args:
        k: How many.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._scores: Tensor | None = None
        self._ids: Tensor | None = None

    def add(self, scores: Tensor, first: int) -> None:
        """Take in the scores of a block of texts.

        Args:
            scores: Of shape ``(num_texts, num_queries)``.
            first: The row of the first text.
        """
        scores = scores if scores.is_floating_point() else scores.float()
        found = self._above(scores)
        if found is None:
            found = scores.T.topk(min(self._k, len(scores)), dim=1)
        values, ids = found[0], found[1] + first
        if self._scores is not None and self._ids is not None:
            values, ids = torch.cat([self._scores, values], dim=1), torch.cat([self._ids, ids], dim=1)
        self._scores, order = values.topk(min(self._k, values.shape[1]), dim=1)
        self._ids = ids.gather(1, order)

    def found(self) -> tuple[Tensor, Tensor]:
        """Return ids, int64, and scores, float32, highest first, both of shape ``(num_queries, k)`` or less."""
        assert self._ids is not None and self._scores is not None
        return self._ids, self._scores.float()

    def _above(self, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what may be among the highest: scores and places, padded with -inf; None where that may be anything."""
        num_texts, num_queries = scores.shape
        num_groups = num_texts // GROUP
        whole = num_groups * GROUP
        if self._scores is None:
            if num_groups < 2 * self._k:
                return None
            maxima = _maxima(scores, num_groups)
            floor = maxima.topk(self._k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
            is_high = ~(maxima < floor)  # not `>=`, so that what is no number is found and reported
        else:
            if self._scores.shape[1] < self._k or not num_groups:
                return None
            floor = self._scores[:, -1:]
            is_high = ~(_maxima(scores, num_groups) <= floor)
        queries, groups = is_high.nonzero(as_tuple=True)
        # What is padded must not be taken for a score of -inf, which a function of the caller's may return.
        if len(queries) * GROUP * _FEW > scores.numel() or bool(floor.isneginf().any()):
            return None
        members = torch.arange(GROUP, device=scores.device)
        # `scores[rows, queries]` in a third of the time.
        down, across = scores.stride()
        size = 1 + (num_texts - 1) * down + (num_queries - 1) * across
        places = (groups * (GROUP * down) + queries * across)[:, None] + members * down
        values = scores.as_strided((size,), (1,)).index_select(0, places.flatten()).view(places.shape)
        high = (~(values < floor[queries])).flatten().nonzero().flatten()
        of, member = high // GROUP, high % GROUP
        found = _padded(queries[of], num_queries, values.flatten()[high], groups[of] * GROUP + member)
        if whole == num_texts:
            return found
        places = torch.arange(whole, num_texts, device=scores.device).expand(num_queries, -1)
        return torch.cat([found[0], scores[whole:].T], dim=1), torch.cat([found[1], places], dim=1)


def _maxima(scores: Tensor, num_groups: int) -> Tensor:
    """Return the highest score of each query in each group of texts, of shape ``(num_queries, num_groups)``."""
    return scores[: num_groups * GROUP].unflatten(0, (num_groups, GROUP)).amax(dim=1).T.contiguous()


def _padded(queries: Tensor, num_queries: int, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values and places of each query as rows, padded with -inf; queries are in ascending order."""
    counts = torch.bincount(queries, minlength=num_queries)
    column = torch.arange(len(queries), device=queries.device) - (counts.cumsum(0) - counts)[queries]
    shape = num_queries, int(counts.max()) if len(queries) else 0
    of_queries, of_places = values.new_full(shape, -torch.inf), places.new_zeros(shape)
    of_queries[queries, column], of_places[queries, column] = values, places
    return of_queries, of_places
