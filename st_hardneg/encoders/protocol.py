"""What an encoder has to offer, so that what it encodes can be searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from st_hardneg.encoders.rows import Rows


class Encoder(Protocol):
    """Turns texts into vectors that can be compared. No base class."""

    @property
    def similarity(self) -> str:
        """Name of the similarity that vectors are compared by, such as ``"cosine"``."""

    @property
    def pairwise(self) -> Callable[[Any, Any], Tensor]:
        """The similarity of row i with row i of its blocks: ``(m, dim), (m, dim) -> (m,)``."""

    @property
    def score_function(self) -> Callable[[Any, Any], Tensor] | None:
        """A similarity ``(q, dim), (c, dim) -> (q, c)`` to search by in place of the one of this name, or None."""

    def queries(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Rows:
        """Return the vectors of queries, such as float32 of shape ``(len(texts), dim)``."""

    def corpus(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Iterator[Rows]:
        """Yield the vectors of corpus texts, in order, in shards of shape ``(some, dim)``."""

    def fingerprint(self, probes: Sequence[str] = ()) -> str | None:
        """Return what identifies everything that decides the vectors, or None if that cannot be told.

        Args:
            probes: Some texts of the data, whose vectors may show what weights do not.
        """
