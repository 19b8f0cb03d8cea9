"""What ``HardNegativeDataset(sources={...})`` takes besides quotas and sources of the caller's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Where:
    """A part of the corpus, searched by itself: the rows for which a predicate is true.

    Args:
        predicate: A function of a corpus row, a dictionary of its columns, that returns True or False.
        num_negatives: How many negatives come from there; None for what the other sources leave.
    """

    predicate: Callable[[dict[str, Any]], bool]
    num_negatives: int | None = None


@dataclass(frozen=True, eq=False)
class Texts:
    """Another corpus, searched by itself.

    Args:
        texts: A list of texts, ``{id: text}``, or a Dataset with a column ``text``.
        num_negatives: How many negatives come from there; None for what the other sources leave.
    """

    texts: Any
    num_negatives: int | None = None


@dataclass(frozen=True, eq=False)
class Written:
    """Texts that are written as wrong answers to each positive; the source is called ``"synthetic"``.

    Args:
        writer: A function from a list of positives to a list of texts for each, such as those in
            :mod:`st_hardneg.sources.synthetic`.
        num_negatives: How many negatives come from there; None for what the other sources leave.
    """

    writer: Callable[[list[str]], Sequence[Sequence[str]]]
    num_negatives: int | None = None
