"""One corpus of several datasets: it is encoded once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from datasets import Dataset

from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.rows import Rows, concatenated
from st_hardneg.encoders.store import StoredRows


@dataclass(eq=False)
class _Kept:
    """The vectors of a given corpus, as the last encoder made them, and who uses it."""

    users: WeakSet[Corpus] = field(default_factory=WeakSet)
    key: str | None = None
    ids: Ids | None = None
    vectors: Rows | None = None


_KEPT: WeakKeyDictionary[Dataset, _Kept] = WeakKeyDictionary()


def share(corpus: Corpus) -> None:
    """Note that a dataset is mined in a corpus; if another one is, too, its vectors are kept from one to the other."""
    if corpus.given is not None:
        _KEPT.setdefault(corpus.given, _Kept()).users.add(corpus)


def searched_vectors(corpus: Corpus, encoder: Encoder, encode: Callable[[Ids], Rows]) -> Rows:
    """Return the vectors of the searched texts; those of a corpus that several datasets share are computed once.

    Args:
        corpus: The corpus.
        encoder: The encoder, whose fingerprint says whether earlier vectors are still true.
        encode: Encodes some corpus ids.
    """
    kept = None if corpus.given is None else _KEPT.get(corpus.given)
    key = encoder.fingerprint() if kept is not None and len(kept.users) > 1 else None
    if kept is None or key is None:
        return encode(corpus.searched)
    given = corpus.searched[corpus.searched < corpus.num_given]
    if isinstance(kept.vectors, StoredRows):
        return encode(corpus.searched)  # found on disk
    if kept.key != key or kept.ids is None or kept.vectors is None or not np.array_equal(kept.ids, given):
        kept.key, kept.ids, kept.vectors = key, given, encode(given)
    rest = corpus.searched[len(given) :]
    return concatenated([kept.vectors, encode(rest)]) if len(rest) else kept.vectors
