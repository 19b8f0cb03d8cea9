"""Search with FAISS: exact with a flat index, approximate with any other."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SimilarityFunction
from torch import Tensor

from st_hardneg.errors import require_extra

# Candidates are rescored in blocks of at most this many floats (256 MB).
_MAX_FLOATS = 64_000_000
_BLAS_FROM = 20


class FaissSearcher:
    """Searches a FAISS index; its scores are the model's own similarities, whatever the index stores.

    A flat index over inner products returns the similarities themselves. What any other index returns is scored again
    with the embeddings, so that compressed indexes and FAISS's squared or approximated distances cannot shift a margin.

    Args:
        factory: Index factory string (``"Flat"``, ``"IVF1024,Flat"``, ``"HNSW32"``, …), see the FAISS wiki. Search
            parameters follow: ``"IVF1024,Flat,nprobe=32"``, ``"HNSW32,efSearch=128"``. Without ``nprobe``, an
            inverted-file index looks into one list only, which finds little.

    Raises:
        MissingExtraError: If FAISS is not installed.
    """

    def __init__(self, factory: str = "Flat") -> None:
        require_extra("faiss", "faiss", "`use_faiss=True`")
        parts = factory.split(",") if isinstance(factory, str) else [str(factory)]
        self.factory = ",".join(part for part in parts if "=" not in part)
        self.is_exact = self.factory == "Flat"
        self.search_parameters = ",".join(part.strip() for part in parts if "=" in part)

    def index(self, corpus_embeddings: Tensor, similarity_fn_name: str) -> None:
        """Take in the corpus, float of shape ``(num_corpus, dim)``.

        Raises:
            ValueError: If FAISS cannot serve the similarity with this kind of index, or does not know the index.
        """
        import faiss

        self._corpus = corpus_embeddings
        self._pairwise = SimilarityFunction.to_similarity_pairwise_fn(similarity_fn_name)
        self._normalize = similarity_fn_name == "cosine"
        self._is_inner_product = similarity_fn_name in ("cosine", "dot")
        metric = self._metric(faiss, similarity_fn_name)
        vectors = self._vectors(corpus_embeddings)
        try:
            self._index = faiss.index_factory(vectors.shape[1], self.factory, metric)
        except RuntimeError as error:
            raise ValueError(
                f"Expected `faiss_index` to be a FAISS index factory string, got {self.factory!r} "
                f"({str(error).splitlines()[-1]}). Use 'Flat' for exact search, or see the FAISS wiki."
            ) from None
        if not self._index.is_trained:
            try:
                self._index.train(vectors)
            except RuntimeError as error:
                raise ValueError(
                    f"Expected a corpus that is large enough to train the FAISS index {self.factory!r}, got "
                    f"{len(vectors)} texts ({str(error).splitlines()[-1]}). Use a smaller index, or 'Flat'."
                ) from None
        self._index.add(vectors)
        if self.search_parameters:
            try:
                space: Any = faiss.ParameterSpace()
                space.set_index_parameters(self._index, self.search_parameters)
            except RuntimeError as error:
                raise ValueError(
                    f"The FAISS index {self.factory!r} does not take the search parameters {self.search_parameters!r} "
                    f"({str(error).splitlines()[-1]}). `nprobe` is for IVF indexes, `efSearch` for HNSW."
                ) from None

    def _metric(self, faiss: Any, similarity_fn_name: str) -> int:
        metrics = {
            "cosine": faiss.METRIC_INNER_PRODUCT,
            "dot": faiss.METRIC_INNER_PRODUCT,
            "euclidean": faiss.METRIC_L2,
            "manhattan": faiss.METRIC_L1,
        }
        if similarity_fn_name not in metrics:
            raise ValueError(
                f"Expected a similarity that FAISS can search by, one of {list(metrics)}, got "
                f"{similarity_fn_name!r}. Set `use_faiss=False`."
            )
        if similarity_fn_name == "manhattan" and self.factory != "Flat":
            raise ValueError(
                f"Expected `faiss_index='Flat'` with the model's similarity 'manhattan', got {self.factory!r}, which "
                "FAISS cannot search by it. Use 'Flat', or `use_faiss=False`."
            )
        return int(metrics[similarity_fn_name])

    def _vectors(self, embeddings: Tensor) -> Any:
        vectors = embeddings.detach().float().cpu()
        if self._normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.contiguous().numpy()

    def search(self, query_embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the ``k`` nearest corpus rows of each query; see :class:`~st_hardneg.search.Searcher`."""
        import faiss

        # Below this many queries (by default 128 000 / dim) FAISS leaves matrix products, and is ten times as slow.
        usual = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = min(usual, _BLAS_FROM)
        try:
            scores, found = self._index.search(self._vectors(query_embeddings), k)
        finally:
            faiss.cvar.distance_compute_blas_threshold = usual
        ids = torch.from_numpy(found)
        if self.factory == "Flat" and self._is_inner_product:
            # These are the similarities themselves; to compute them again took longer than the search.
            return ids, torch.from_numpy(scores).masked_fill_(ids < 0, -torch.inf)
        return ids, self._rescored(query_embeddings, ids, k)

    def _rescored(self, query_embeddings: Tensor, ids: Tensor, k: int) -> Tensor:
        """Return the model's similarity of each query and what was found for it, of shape ``(q, k)``."""
        rescored = torch.full(ids.shape, -torch.inf)
        step = max(1, _MAX_FLOATS // max(1, k * self._corpus.shape[1]))
        for start in range(0, len(ids), step):
            block = ids[start : start + step]
            documents = self._corpus[block.clamp(min=0).flatten().to(self._corpus.device)]
            queries = query_embeddings[start : start + step].repeat_interleave(k, dim=0)
            rescored[start : start + step] = self._pairwise(queries, documents).float().cpu().view(block.shape)
        return rescored.masked_fill_(ids < 0, -torch.inf)
