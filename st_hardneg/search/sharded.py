"""Exact search of vectors that do not fit into memory: shard by shard, with a running best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from st_hardneg.search.protocol import Searcher

# Texts a shard.
_SHARD = 16_384
# Queries that are compared with a shard at once.
_QUERIES = 1_024


class ShardedSearcher:
    """Lets another searcher look into one shard at a time, and keeps the best of all of them.

    Every search reads the whole corpus once, so it is asked for as many queries as possible at once.

    Args:
        searcher: An exact searcher, which indexes one shard after the other.
    """

    is_exact = True
    reads_everything = True

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher

    @property
    def score_function(self) -> Callable[[Any, Any], Tensor] | None:
        """A similarity to use in place of the one that :meth:`index` names."""
        return getattr(self.searcher, "score_function", None)

    @score_function.setter
    def score_function(self, function: Callable[[Any, Any], Tensor] | None) -> None:
        if hasattr(self.searcher, "score_function"):
            self.searcher.score_function = function

    def index(self, corpus_embeddings: Any, similarity_fn_name: str) -> None:
        """Take in the corpus, :class:`~st_hardneg.encoders.rows.Rows` of shape ``(num_corpus, dim)``."""
        self._corpus, self._similarity = corpus_embeddings, similarity_fn_name

    def search(self, query_embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the ``k`` nearest corpus rows of each query; see :class:`~st_hardneg.search.Searcher`."""
        num_queries = len(query_embeddings)
        best_ids, best = torch.full((num_queries, k), -1), torch.full((num_queries, k), -torch.inf)
        first = 0
        for shard in self._corpus.split(_SHARD):
            self.searcher.index(shard, self._similarity)
            width = min(k, len(shard))
            for start in range(0, num_queries, _QUERIES):
                rows = slice(start, start + _QUERIES)
                ids, scores = self.searcher.search(query_embeddings[rows], width)
                scores = torch.cat([best[rows], scores.cpu().masked_fill(ids.cpu() < 0, -torch.inf)], dim=1)
                ids = torch.cat([best_ids[rows], ids.cpu() + first], dim=1)
                best[rows], order = scores.topk(k, dim=1)
                best_ids[rows] = ids.gather(1, order).masked_fill(best[rows].isneginf(), -1)
            first += len(shard)
        return best_ids, best
