"""Search with FAISS: exact with a flat index, approximate with any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers import SimilarityFunction
from torch import Tensor

from st_hardneg.errors import require_extra

# Candidates are rescored in blocks of at most this many floats (256 MB).
_MAX_FLOATS = 64_000_000
_BLAS_FROM = 20
# Vectors that are scaled to unit length, compared or added at once.
_BLOCK = 65_536
_UNIT = 1e-6


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

    queries_at_once = 1_024

    def __init__(self, factory: str = "Flat") -> None:
        require_extra("faiss", "faiss", "`use_faiss=True`")
        parts = factory.split(",") if isinstance(factory, str) else [str(factory)]
        self.factory = ",".join(part for part in parts if "=" not in part)
        self.is_exact = self.factory == "Flat"
        self.search_parameters = ",".join(part.strip() for part in parts if "=" in part)

    def __getstate__(self) -> dict[str, Any]:
        # Without what it has indexed, which is large: another process indexes its own.
        return {name: value for name, value in self.__dict__.items() if name not in ("_corpus", "_index")}

    def index(self, corpus_embeddings: Tensor, similarity_fn_name: str) -> None:
        """Take in the corpus, float of shape ``(num_corpus, dim)``.

        The flat index is none at all: FAISS compares queries with the vectors where they are, so nothing is held twice.

        Raises:
            ValueError: If FAISS cannot serve the similarity with this kind of index, or does not know the index.
        """
        import faiss

        self._corpus = corpus_embeddings
        self._pairwise = SimilarityFunction.to_similarity_pairwise_fn(similarity_fn_name)
        self._normalize = similarity_fn_name == "cosine" and not self._are_unit_vectors(corpus_embeddings)
        self._is_cosine = similarity_fn_name == "cosine"
        self._is_inner_product = similarity_fn_name in ("cosine", "dot")
        self._metric_type = self._metric(faiss, similarity_fn_name)
        if self.is_exact and self.search_parameters:
            raise ValueError(
                f"The FAISS index {self.factory!r} does not take the search parameters {self.search_parameters!r}: it "
                "compares everything. Leave them out."
            )
        # FAISS compares without an index by inner products and squared distances only.
        self._index = None if self.is_exact and similarity_fn_name != "manhattan" else self._built(faiss)

    def _built(self, faiss: Any) -> Any:
        """Return the index, trained and filled block by block."""
        try:
            index = faiss.index_factory(self._corpus.shape[1], self.factory, self._metric_type)
        except RuntimeError as error:
            raise ValueError(
                f"Expected a FAISS index factory string, got {self.factory!r} "
                f"({str(error).splitlines()[-1]}). Use 'Flat' for exact search, or see the FAISS wiki."
            ) from None
        if not index.is_trained:
            try:
                index.train(self._vectors(self._corpus))
            except RuntimeError as error:
                raise ValueError(
                    f"Expected a corpus that is large enough to train the FAISS index {self.factory!r}, got "
                    f"{len(self._corpus)} texts ({str(error).splitlines()[-1]}). Use a smaller index, or 'Flat'."
                ) from None
        for block in self._corpus.split(_BLOCK):
            index.add(self._vectors(block))
        if self.search_parameters:
            try:
                faiss.ParameterSpace().set_index_parameters(index, self.search_parameters)
            except RuntimeError as error:
                raise ValueError(
                    f"The FAISS index {self.factory!r} does not take the search parameters {self.search_parameters!r} "
                    f"({str(error).splitlines()[-1]}). `nprobe` is for IVF indexes, `efSearch` for HNSW."
                ) from None
        return index

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
                f"Expected the index 'Flat' with the model's similarity 'manhattan', got {self.factory!r}, which FAISS "
                "cannot search by it. Use 'Flat', or search exactly."
            )
        return int(metrics[similarity_fn_name])

    def _vectors(self, embeddings: Tensor, *, normalize: bool | None = None) -> Any:
        vectors = embeddings.detach().float().cpu()
        if self._normalize if normalize is None else normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.contiguous().numpy()

    def _are_unit_vectors(self, embeddings: Tensor) -> bool:
        lengths = (torch.linalg.vector_norm(block.float(), dim=1) for block in embeddings.split(_BLOCK))
        return all(bool(((some - 1.0).abs() < _UNIT).all()) for some in lengths)

    def search(self, query_embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the ``k`` nearest corpus rows of each query; see :class:`~st_hardneg.search.Searcher`."""
        import faiss

        # Below this many queries (by default 128 000 / dim) FAISS leaves matrix products, and is ten times as slow.
        usual = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = min(usual, _BLAS_FROM)
        try:
            queries = self._vectors(query_embeddings, normalize=self._is_cosine)
            scores, found = self._compared(faiss, queries, k) if self._index is None else self._index.search(queries, k)
        finally:
            faiss.cvar.distance_compute_blas_threshold = usual
        ids = torch.from_numpy(found)
        if self.is_exact and self._is_inner_product:
            # These are the similarities themselves; to compute them again took longer than the search.
            return ids, torch.from_numpy(scores).masked_fill_(ids < 0, -torch.inf)
        return ids, self._rescored(query_embeddings, ids, k)

    def _compared(self, faiss: Any, queries: Any, k: int) -> tuple[Any, Any]:
        """Compare queries with the corpus, block by block, and keep the best of all blocks."""
        best: tuple[Any, Any] | None = None
        for number, block in enumerate(self._corpus.split(_BLOCK)):
            scores, ids = faiss.knn(queries, self._vectors(block), min(k, len(block)), metric=self._metric_type)
            ids += number * _BLOCK
            if best is not None:
                scores, ids = np.concatenate([best[0], scores], axis=1), np.concatenate([best[1], ids], axis=1)
                order = np.argsort(-scores if self._is_inner_product else scores, axis=1, kind="stable")[:, :k]
                scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
            best = scores, ids
        assert best is not None
        missing = k - best[0].shape[1]
        return np.pad(best[0], ((0, 0), (0, missing))), np.pad(best[1], ((0, 0), (0, missing)), constant_values=-1)

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
