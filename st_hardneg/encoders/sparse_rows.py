"""Sparse vectors of many texts, in blocks of compressed rows, and how they compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from st_hardneg.search import ExactSearcher, FaissSearcher, Searcher

# Texts whose products with a block of queries are computed at once: an inverted index of so many is made on the way.
_TEXTS = 4_096
# Products are computed for at most so many pairs at once: 12 bytes each while they are sparse, and 4 once they are not.
_PAIRS = 1_000_000
_FEW_DIMENSIONS = 128


class SparseRows:
    """Sparse vectors, CSR: a text's dimensions that are not zero, and their weights.

    The blocks that an encoder yields are never joined, so that nothing is held twice: 100 000 texts with 150 dimensions
    each are 120 MB. No dense matrix of all dimensions is ever made.

    Args:
        parts: CSR matrices of shape ``(some, dim)``, one below the other, at least one.
    """

    device = torch.device("cpu")
    pairs_at_once, worth_a_product = 4_000, 30

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = [part for part in parts if part.shape[0]] or [parts[0]]
        self._starts = np.cumsum([0, *(part.shape[0] for part in self.parts)])

    @classmethod
    def of(cls, vectors: Any) -> SparseRows:
        """Return the rows of a tensor, sparse or dense, of an array, or of a matrix of SciPy's, of shape ``(m, dim)``."""
        return cls([_csr(vectors)])

    @classmethod
    def concatenated(cls, parts: Sequence[SparseRows]) -> SparseRows:
        """Put rows below each other, without copying them."""
        return cls([part for rows in parts for part in rows.parts])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of texts, and dimensions."""
        return int(self._starts[-1]), int(self.parts[0].shape[1])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, places: Any) -> SparseRows:
        """Return the rows at some places, int64 of shape ``(m,)``, or those of a slice; whole blocks are not copied."""
        if isinstance(places, slice):
            start, stop, _ = places.indices(len(self))
            first = int(np.searchsorted(self._starts, start, side="right")) - 1
            found = []
            for part, begins in zip(self.parts[first:], self._starts[first:-1], strict=True):
                if begins >= stop:
                    break
                low, high = max(0, start - begins), min(part.shape[0], stop - begins)
                found.append(part if high - low == part.shape[0] else part[low:high])
            return SparseRows(found or [self.parts[0][:0]])
        rows = np.asarray(places, dtype=np.int64)
        if len(self.parts) == 1:
            return SparseRows([self.parts[0][rows]])
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        bounds = np.searchsorted(ordered, self._starts)
        found = [
            part[ordered[low:high] - begins]
            for part, begins, low, high in zip(self.parts, self._starts, bounds, bounds[1:], strict=False)
            if high > low
        ]
        if not found:
            return SparseRows([self.parts[0][:0]])
        return SparseRows([sparse.vstack(found, format="csr")[np.argsort(order, kind="stable")]])

    def split(self, size: int) -> Iterator[SparseRows]:
        """Yield all rows in order, ``size`` texts at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, device: torch.device) -> SparseRows:
        """Return these rows; they stay on the CPU, whose sparse products are exact to the last digit but one."""
        return self

    def matrix(self) -> Any:
        """Return all rows as one CSR matrix."""
        return self.parts[0] if len(self.parts) == 1 else sparse.vstack(self.parts, format="csr")

    def unit(self) -> SparseRows:
        """Return the vectors scaled to unit length."""
        return SparseRows([_scaled(part) for part in self.parts])

    def mean_similarity(self, queries: SparseRows, name: str) -> Tensor:
        """Return the mean of the cosines, or of the dot products, of queries and all of these rows, of shape ``(m,)``."""
        ours, theirs = (self.unit(), queries.unit()) if name == "cosine" else (self, queries)
        total = sum(part.sum(axis=0, dtype=np.float64) for part in ours.parts) / len(self)
        return dot_of_all(theirs, SparseRows([sparse.csr_matrix(total)]))[:, 0]

    def few_dimensions(self) -> Tensor:
        """Return dense vectors of at most 128 dimensions, float32, whose angles are about those of these."""
        # Takes a second to import, which only sparse models need.
        from sklearn.random_projection import SparseRandomProjection

        few = min(_FEW_DIMENSIONS, self.shape[1])
        projection = SparseRandomProjection(few, random_state=0, dense_output=False).fit(self.parts[0][:1])
        return torch.from_numpy(np.concatenate([projection.transform(part).toarray() for part in self.parts])).float()

    @staticmethod
    def cosine(left: SparseRows, right: SparseRows) -> Tensor:
        """Return the cosine of row i and row i, float32 of shape ``(m,)``."""
        return dot_of_pairs(left.unit(), right.unit())

    def are_equal(self, other: SparseRows) -> Tensor:
        """Tell which rows are those of another block of the same shape, up to rounding; boolean of shape ``(m,)``."""
        ours, theirs = self.matrix(), other.matrix()
        if not len(self):
            return torch.zeros(0, dtype=torch.bool)
        apart, largest = abs(ours - theirs).max(axis=1).toarray(), abs(ours).max(axis=1).toarray()
        return torch.from_numpy((apart <= 1e-5 * largest).ravel())

    def searcher(self, given: Searcher) -> Searcher:
        """Return what searches such rows: a searcher of the caller's, or products of all with all in small blocks.

        Raises:
            ValueError: If FAISS is to search them.
        """
        if isinstance(given, FaissSearcher):
            raise ValueError(
                "FAISS searches dense vectors, and those of a SparseEncoder are sparse. Leave `use_faiss` out: they are "
                "searched exactly. Or pass a `searcher` of your own."
            )
        if isinstance(given, ExactSearcher):
            return ExactSearcher(min(given.corpus_chunk_size, _TEXTS), given.score_function)
        return given


def similarities(name: str) -> tuple[Any, Any]:
    """Return a similarity of sparse rows, row by row and all with all.

    Args:
        name: ``"dot"``, ``"cosine"`` or ``"euclidean"``.

    Returns:
        Functions ``(m, dim), (m, dim) -> (m,)`` and ``(m, dim), (c, dim) -> (m, c)``, both to float32.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in _SIMILARITIES:
        raise ValueError(
            f"Expected a SparseEncoder whose `similarity_fn_name` is one of {list(_SIMILARITIES)}, got {name!r}. Set "
            '`model.similarity_fn_name = "dot"`, as most are trained with.'
        )
    return _SIMILARITIES[name]


def dot_of_pairs(left: SparseRows, right: SparseRows) -> Tensor:
    """Return the dot product of row i and row i, float32 of shape ``(m,)``."""
    products = left.matrix().astype(np.float64).multiply(right.matrix().astype(np.float64))
    return torch.from_numpy(np.asarray(products.sum(axis=1)).ravel()).float()


def dot_of_all(left: SparseRows, right: SparseRows) -> Tensor:
    """Return the dot product of every row with every other, float32 of shape ``(m, c)``."""
    found = torch.empty(left.shape[0], right.shape[0])
    for ours, theirs, products in _products(left, right):
        found[ours, theirs] = torch.from_numpy(products)
    return found


def _products(left: SparseRows, right: SparseRows) -> Iterator[tuple[slice, slice, npt.NDArray[np.float64]]]:
    """Yield blocks of dot products, in double precision: each row of one walks through inverted lists of the other."""
    start = 0
    for texts in right.split(_TEXTS):
        inverted = texts.matrix().astype(np.float64).T.tocsr()
        theirs, step = slice(start, start + len(texts)), max(1, _PAIRS // max(1, len(texts)))
        for first in range(0, len(left), step):
            some = left[first : first + step].matrix().astype(np.float64)
            yield slice(first, first + len(some.indptr) - 1), theirs, (some @ inverted).toarray()
        start += len(texts)


def _cosine_of_all(left: SparseRows, right: SparseRows) -> Tensor:
    return dot_of_all(left.unit(), right.unit())


def _euclidean_of_pairs(left: SparseRows, right: SparseRows) -> Tensor:
    return -torch.from_numpy(_squares(SparseRows([left.matrix() - right.matrix()]))).sqrt().float()


def _euclidean_of_all(left: SparseRows, right: SparseRows) -> Tensor:
    found, squares = torch.empty(left.shape[0], right.shape[0]), (_squares(left)[:, None], _squares(right)[None])
    for ours, theirs, products in _products(left, right):
        apart = np.maximum(squares[0][ours] + squares[1][:, theirs] - 2.0 * products, 0.0)
        found[ours, theirs] = torch.from_numpy(-np.sqrt(apart)).float()
    return found


def _squares(rows: SparseRows) -> npt.NDArray[np.float64]:
    """Return the squared length of each row, float64 of shape ``(m,)``."""
    doubles = (part.astype(np.float64) for part in rows.parts)
    return np.concatenate([np.asarray(part.multiply(part).sum(axis=1)).ravel() for part in doubles])


_SIMILARITIES = {
    "dot": (dot_of_pairs, dot_of_all),
    "cosine": (SparseRows.cosine, _cosine_of_all),
    "euclidean": (_euclidean_of_pairs, _euclidean_of_all),
}


def _csr(vectors: Any) -> Any:
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().cpu()
        if vectors.layout == torch.sparse_coo:
            vectors = vectors.coalesce()
            places, values = vectors.indices().numpy(), vectors.values().float().numpy()
            return sparse.csr_matrix((values, (places[0], places[1])), shape=tuple(vectors.shape))
        if vectors.layout == torch.sparse_csr:
            parts = vectors.values().float(), vectors.col_indices(), vectors.crow_indices()
            return sparse.csr_matrix(tuple(part.numpy() for part in parts), shape=tuple(vectors.shape))
        vectors = vectors.float().numpy()
    return sparse.csr_matrix(vectors, dtype=np.float32)


def _scaled(part: Any) -> Any:
    lengths, scaled = np.sqrt(_squares(SparseRows([part]))), part.copy()
    scaled.data = (scaled.data / np.repeat(np.maximum(lengths, 1e-12), np.diff(part.indptr))).astype(np.float32)
    return scaled
