"""How long the arrays of a numbering are, and what they count: what is out of range would be followed into nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from st_hardneg.corpus.texts import Ids
from st_hardneg.files.schema import damaged


@dataclass(frozen=True)
class Limit:
    """What one array has to be.

    Args:
        length: Of how many numbers: the name of a count, or None.
        below: What the numbers stay below: the name of a count, or None.
        least: The lowest number, or None.
        rises: Whether no number is lower than the one before.
    """

    length: str | None
    below: str | None = None
    least: int | None = 0
    rises: bool = False


_KNOWN = {
    "identities": Limit("texts", "texts"),
    "keys": Limit(None, rises=True),
    "groups": Limit("queries", "queries"),
    "query_clusters": Limit("queries"),
    "text_clusters": Limit("texts", least=-1),
}
LIMITS: dict[str, Limit] = {
    "rows.weights": Limit("rows"),
    "corpus.identities": Limit("texts", "texts"),
    "corpus.draw_keys": Limit("texts"),
    "corpus.searched": Limit(None, "texts"),
    "corpus.parts": Limit(None, "texts"),
    "corpus.anchor_ids": Limit(None, "texts"),
    "corpus.synthetic_ids": Limit("written", "texts"),
    "corpus.synthetic_from": Limit("written", "texts"),
    "corpus.metadata_rows": Limit(None, "given", rises=True),
    "pairs.row_query": Limit("rows", "queries"),
    "pairs.row_positive": Limit("rows", "texts"),
    "pairs.first_row": Limit("queries", "rows", rises=True),
    "pairs.group": Limit("queries", "groups"),
    "pairs.positive_offsets": Limit(None, rises=True),
    "pairs.positive_ids": Limit("positives", "texts"),
    "pairs.own_identity": Limit("queries", "texts", least=-1),
    "pairs.draw_keys": Limit("queries"),
    "pairs.given_offsets": Limit("groups + 1", rises=True),
    "pairs.given_ids": Limit("given ids", "texts"),
    **{f"pairs.own_positives.{name}": limit for name, limit in _KNOWN.items()},
    **{f"pairs.known.{name}": limit for name, limit in _KNOWN.items()},
    **{f"pairs.certain.{name}": limit for name, limit in _KNOWN.items()},
}
"""Every array of :class:`Rows`, :class:`Corpus` and :class:`Pairs`; ``corpus.parts`` stands for each of its parts."""


def limit_of(name: str) -> Limit | None:
    """Return what the array of this field has to be."""
    return LIMITS["corpus.parts"] if name.startswith("corpus.parts.") else LIMITS.get(name)


def check_limits(folder: str, arrays: Mapping[str, Ids], counts: Mapping[str, int]) -> None:
    """Raise unless arrays are of the lengths and in the ranges that belong to them.

    Args:
        folder: Where they were read.
        arrays: The array of each field, by the field's name.
        counts: How many there are of what.

    Raises:
        ValueError: If one is not.
    """
    for name, array in arrays.items():
        limit = limit_of(name)
        if limit is None:
            continue
        if limit.length is not None and len(array) != counts[limit.length]:
            raise damaged(folder, f"{name} has {len(array):,} numbers where {counts[limit.length]:,} are expected")
        if not len(array):
            continue
        too_low = limit.least is not None and int(array.min()) < limit.least
        too_high = limit.below is not None and int(array.max()) >= counts[limit.below]
        if too_low or too_high or (limit.rises and bool((np.diff(array) < 0).any())):
            raise damaged(folder, f"{name} holds numbers out of range")
