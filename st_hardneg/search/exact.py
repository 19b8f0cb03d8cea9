"""Exact search: every query against every text, block by block, with a running best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sentence_transformers import SimilarityFunction
from torch import Tensor

# A block of scores holds at most this many floats (128 MB).
_MAX_FLOATS = 32_000_000
# Scores of so many texts are looked at together for the highest, where that leaves out most of them.
_GROUP = 16
_UNIT = 1e-6


class ExactSearcher:
    """Compares every query with every corpus text.

    The scores are those of ``sentence_transformers.util.semantic_search``, which makes a dictionary of every hit, and for
    cosines normalises the whole corpus anew for every block of queries. Here a cosine is a dot product that is divided by
    the texts' lengths, which are computed once; nothing is held twice.

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
        step = max(1, _MAX_FLOATS // max(1, min(self.corpus_chunk_size, len(self._corpus))))
        with torch.no_grad():
            for start in range(0, num_queries, step):
                queries = query_embeddings[start : start + step]
                best_ids[start : start + step], best[start : start + step] = self._nearest(queries, k)
        return best_ids, best

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self._is_cosine:
            queries = torch.nn.functional.normalize(queries.float(), dim=1)
        best = best_ids = None
        for first in range(0, len(self._corpus), self.corpus_chunk_size):
            block = self._corpus[first : first + self.corpus_chunk_size].to(queries.device)
            scores = self._scores(queries, block, first)
            found, places = _highest(scores, min(k, scores.shape[1]))
            places += first
            if best is None or best_ids is None:
                best, best_ids = found, places
                continue
            both, both_ids = torch.cat([best, found], dim=1), torch.cat([best_ids, places], dim=1)
            best, order = both.topk(min(k, both.shape[1]), dim=1)
            best_ids = both_ids.gather(1, order)
        assert best is not None and best_ids is not None
        return best_ids.cpu(), best.float().cpu()

    def _scores(self, queries: Tensor, block: Tensor, first: int) -> Tensor:
        if not self._is_product:
            return self._function(queries, block)
        scores = queries @ block.T.to(queries.dtype)
        if self._inverse_lengths is not None:
            scores *= self._inverse_lengths[first : first + len(block)].to(scores.device)
        return scores


def _highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` highest of each row and their places, of shape ``(q, k)``, highest first; faster than ``topk``.

    The highest are in the ``k`` groups with the highest maxima, and the maxima take one quick pass.
    """
    num_queries, width = scores.shape
    num_groups = width // _GROUP
    if num_groups < 2 * k:
        return scores.topk(k, dim=1)
    whole = num_groups * _GROUP
    groups = scores[:, :whole].unflatten(1, (_GROUP, num_groups))
    best = groups.amax(dim=1).topk(k, dim=1, sorted=False).indices
    few = groups.gather(2, best[:, None, :].expand(-1, _GROUP, -1)).flatten(1)
    places = (best[:, None, :] + torch.arange(_GROUP, device=scores.device)[:, None] * num_groups).flatten(1)
    if whole < width:  # what is left over
        few = torch.cat([few, scores[:, whole:]], dim=1)
        rest = torch.arange(whole, width, device=scores.device).expand(num_queries, -1)
        places = torch.cat([places, rest], dim=1)
    found, at = few.topk(k, dim=1)
    return found, places.gather(1, at)
