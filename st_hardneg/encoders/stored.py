"""Vectors that are there already, in columns or files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor

from st_hardneg.corpus.texts import TextColumn
from st_hardneg.encoders.fingerprint import texts_fingerprint

Table = tuple[Any, Any]
"""Texts, as a sequence or a column; and a vector of each: an array or tensor of shape ``(m, dim)``, the path of a ``.npy``
file of one, or a column."""

_ROWS = 4_096


class StoredVectors:
    """A model for ``mine`` that computes nothing: it looks the vector of each text up.

    Files are memory-mapped, and columns are read a few thousand rows at a time. Of a text that has several vectors, the
    first one counts.

    Args:
        queries: Texts and vectors of the anchors, or several such tables.
        corpus: Texts and vectors of the positives and of the corpus, likewise.
        similarity_fn_name: What to compare vectors by: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.

    Raises:
        ValueError: If a table has not as many vectors as texts, or vectors are of different lengths.
        TypeError: If a table is none.

    Example:
        >>> queries = (["a", "b"], np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> corpus = (["first", "second"], np.array([[1.0, 0.1], [0.1, 1.0]]))
        >>> StoredVectors(queries, corpus).encode_document(["second"]).tolist()[0][1]
        1.0
    """

    def __init__(
        self,
        queries: Table | Sequence[Table],
        corpus: Table | Sequence[Table],
        similarity_fn_name: str = "cosine",
    ) -> None:
        self.similarity_fn_name = similarity_fn_name
        self._queries = _Lookup("queries", queries)
        self._corpus = _Lookup("corpus", corpus)
        if self._queries.dim != self._corpus.dim:
            raise ValueError(
                f"Expected vectors of one length, got {self._queries.dim} dimensions for queries and {self._corpus.dim} "
                "for the corpus. They have to be of one model."
            )

    @classmethod
    def from_columns(
        cls,
        dataset: Dataset,
        corpus: Dataset | None = None,
        *,
        anchor: tuple[str, str] = ("anchor", "anchor_embedding"),
        positive: tuple[str, str] = ("positive", "positive_embedding"),
        text: tuple[str, str] = ("text", "embedding"),
        similarity_fn_name: str = "cosine",
    ) -> StoredVectors:
        """Read vectors from columns that stand beside the texts.

        Args:
            dataset: The (anchor, positive) rows.
            corpus: The corpus, if there is one.
            anchor: The column of anchors, and that of their vectors.
            positive: The column of positives, and that of their vectors.
            text: The corpus's column of texts, and that of their vectors.
            similarity_fn_name: What to compare vectors by.

        Raises:
            ValueError: If a column is missing, or vectors are of different lengths.
        """
        tables = [_columns(dataset, *positive)]
        if corpus is not None:
            tables.append(_columns(corpus, *text))
        return cls(_columns(dataset, *anchor), tables, similarity_fn_name)

    def encode_query(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of anchors, float32 of shape ``(len(texts), dim)``."""
        return self._queries(texts)

    def encode_document(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of positives and corpus texts, float32 of shape ``(len(texts), dim)``."""
        return self._corpus(texts)


class _Lookup:
    """Vectors by text.

    Args:
        name: What the tables are, for errors.
        tables: One table or several.
    """

    def __init__(self, name: str, tables: Any) -> None:
        self.name = name
        is_one = isinstance(tables, tuple) and len(tables) == 2 and not _is_table(tables[0])
        self.tables = [tables] if is_one else list(tables)
        self.vectors: list[Any] = []
        # Of each text 16 bytes and where its vector is.
        self.place: dict[bytes, tuple[int, int]] = {}
        dims = set()
        for number, table in enumerate(self.tables):
            if not _is_table(table):
                raise TypeError(
                    f"Expected `{name}` to be texts and vectors, as in `(texts, 'vectors.npy')`, or a list of such pairs, "
                    f"got {type(table).__name__}."
                )
            texts, vectors = table
            vectors = _opened(vectors)
            count = 0
            for row, text in enumerate(texts):
                self.place.setdefault(_key(text), (number, row))
                count += 1
            if count != len(vectors):
                raise ValueError(
                    f"Expected a vector for each of the {count:,} texts in `{name}`, got {len(vectors):,}."
                )
            if count:
                dims.add(int(_rows(vectors, np.arange(1)).shape[1]))
            self.vectors.append(vectors)
        if len(dims) != 1:
            raise ValueError(f"Expected vectors of one length in `{name}`, got {sorted(dims) or 'none'}.")
        (self.dim,) = dims

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of some texts.

        Raises:
            ValueError: If one has none.
        """
        places = [self.place.get(_key(text)) for text in texts]
        if missing := [text for text, place in zip(texts, places, strict=True) if place is None]:
            shown = "; ".join(repr(text[:60]) for text in missing[:3])
            raise ValueError(
                f"{len(missing):,} of {len(texts):,} texts have no stored vector in `{self.name}`, such as {shown}. Store "
                "theirs, too, under the very same text."
            )
        which = np.array([place[0] for place in places if place is not None])
        rows = np.array([place[1] for place in places if place is not None], dtype=np.int64)
        found = torch.empty(len(texts), self.dim)
        for number in np.unique(which):
            (at,) = (which == number).nonzero()
            for start in range(0, len(at), _ROWS):
                some = at[start : start + _ROWS]
                found[torch.from_numpy(some)] = torch.from_numpy(_rows(self.vectors[number], rows[some]))
        return found


def _is_table(table: Any) -> bool:
    return isinstance(table, tuple) and len(table) == 2 and not isinstance(table[0], (str, tuple))


def _key(text: str) -> bytes:
    return bytes.fromhex(texts_fingerprint([text]))


def _columns(dataset: Dataset, text: str, vectors: str) -> Table:
    for name in (text, vectors):
        if name not in dataset.column_names:
            raise ValueError(
                f"Expected a column {name!r} of texts or their vectors, got the columns {dataset.column_names}. Name it, "
                f'for example `anchor=("query", "query_vector")`.'
            )
    return _texts_of(dataset, text), dataset.select_columns([vectors]).with_format("numpy")


def _texts_of(dataset: Dataset, name: str) -> Iterable[str]:
    return [text for some in TextColumn(dataset, name).batches() for text in some]


def _opened(vectors: Any) -> Any:
    """Return vectors as what has a length and gives rows; files are memory-mapped."""
    if isinstance(vectors, (str, os.PathLike)):
        return np.load(vectors, mmap_mode="r", allow_pickle=False)
    if isinstance(vectors, Tensor):
        return vectors.detach().cpu().float().numpy()
    return vectors if isinstance(vectors, Dataset) else np.asarray(vectors)


def _rows(vectors: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    if isinstance(vectors, Dataset):
        (name,) = vectors.column_names
        found = np.asarray(vectors[rows.tolist()][name])
    else:
        found = np.asarray(vectors[rows])
    if found.ndim != 2 or found.dtype == object:
        raise ValueError(
            f"Expected one vector of the same length for each text, got an array of shape {found.shape} and type "
            f"{found.dtype}. Vectors of tokens cannot be stored this way."
        )
    return found.astype(np.float32)
