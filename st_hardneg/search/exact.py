"""Exact search: Sentence Transformers' own ``semantic_search``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sentence_transformers import SimilarityFunction
from sentence_transformers.util import semantic_search
from torch import Tensor


class ExactSearcher:
    """Compares every query with every corpus text, with ``sentence_transformers.util.semantic_search``.

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

    def __init__(
        self, corpus_chunk_size: int = 100_000, score_function: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        self.corpus_chunk_size = corpus_chunk_size
        self.score_function = score_function

    def index(self, corpus_embeddings: Tensor, similarity_fn_name: str) -> None:
        """Take in the corpus, float of shape ``(num_corpus, dim)``."""
        self._corpus = corpus_embeddings
        self._similarity = self.score_function or SimilarityFunction.to_similarity_fn(similarity_fn_name)

    def search(self, query_embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the ``k`` nearest corpus rows of each query; see :class:`~st_hardneg.search.Searcher`."""
        with torch.inference_mode():
            hits = semantic_search(
                query_embeddings,
                self._corpus,
                query_chunk_size=len(query_embeddings),
                corpus_chunk_size=self.corpus_chunk_size,
                top_k=min(k, len(self._corpus)),
                score_function=self._similarity,
            )
        # Packed at once: the dictionaries cost 272 bytes a hit.
        ids = np.full((len(hits), k), -1, dtype=np.int64)
        scores = np.full((len(hits), k), -np.inf, dtype=np.float32)
        for row, found in enumerate(hits):
            ids[row, : len(found)] = [hit["corpus_id"] for hit in found]
            scores[row, : len(found)] = [hit["score"] for hit in found]
        return torch.from_numpy(ids), torch.from_numpy(scores)
