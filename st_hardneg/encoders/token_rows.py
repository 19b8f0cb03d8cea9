"""Texts with a vector for every token: one vector of each is kept, and tokens are computed when texts are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers.util.similarity import maxsim, maxsim_pairwise
from torch import Tensor

from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.rows import Rows, concatenated
from st_hardneg.search import Searcher, checked_search

# Texts whose tokens are in memory at once, on either side of a comparison.
_TEXTS = 512
# Floats that one block of a comparison takes (64 MB).
_MAX_FLOATS = 16_000_000

Tokens = Callable[[list[str], bool], list[Tensor]]
"""From texts, and whether they are queries, to the vectors of their tokens, float32 ``(num_tokens, dim)`` each."""


@dataclass(frozen=True, eq=False)
class TokenBase:
    """Texts that were encoded together.

    Args:
        first: One vector of each, by which the first stage searches; rows of shape ``(num_texts, dim)``.
        similarity: Name of the similarity by which it does.
        score_function: A similarity ``(q, dim), (c, dim) -> (q, c)`` in place of the one of this name, or None.
        texts: The texts.
        num_tokens: float32 of shape ``(num_texts,)``: the tokens of each, or ones where they do not matter.
        is_query: Whether they are queries.
        tokens: Computes the vectors of their tokens.
        depth: How many candidates of the first stage are compared by their tokens.
        sums: Whether a query's score is the sum over its tokens, as the model has it; else it is their mean.
    """

    first: Rows
    similarity: str
    score_function: Callable[[Any, Any], Tensor] | None
    texts: Sequence[str]
    num_tokens: Tensor
    is_query: bool
    tokens: Tokens
    depth: int
    sums: bool


class TokenRows:
    """Texts with a vector for every token; see :class:`~st_hardneg.encoders.rows.Rows`.

    A block is numbers of texts and nothing else: the tokens of at most 512 texts a side are in memory at once, whatever is
    compared.

    Args:
        bases: Where the texts come from.
        which: int64 of shape ``(m,)``: the base of each row.
        places: int64 of shape ``(m,)``: its place there.
    """

    device = torch.device("cpu")
    pairs_at_once, worth_a_product = 2_000_000, 2

    def __init__(self, bases: Sequence[TokenBase], which: Ids, places: Ids) -> None:
        self.bases, self.which, self.places = list(bases), which, places

    @classmethod
    def of(cls, base: TokenBase) -> TokenRows:
        """Return all texts of a base."""
        num_texts = len(base.texts)
        return cls([base], np.zeros(num_texts, dtype=np.int64), np.arange(num_texts))

    @classmethod
    def concatenated(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """Put rows below each other."""
        bases = list({id(base): base for rows in parts for base in rows.bases}.values())
        number = {id(base): place for place, base in enumerate(bases)}
        which = [np.array([number[id(base)] for base in rows.bases])[rows.which] for rows in parts]
        return cls(bases, np.concatenate(which), np.concatenate([rows.places for rows in parts]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of texts, and dimensions of what the first stage searches by."""
        return len(self.places), int(self.bases[0].first.shape[1])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, places: Any) -> TokenRows:
        """Return the rows at some places, int64 of shape ``(m,)``, or those of a slice."""
        at = places if isinstance(places, slice) else np.asarray(places, dtype=np.int64)
        return TokenRows(self.bases, self.which[at], self.places[at])

    def split(self, size: int) -> Iterator[TokenRows]:
        """Yield all rows in order, ``size`` texts at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, device: torch.device) -> TokenRows:
        """Return these rows, whose numbers stay where they are."""
        return self

    @property
    def first(self) -> Any:
        """What the first stage searches by, of shape ``(m, dim)``."""
        if len(self.bases) == 1 and np.array_equal(self.places, np.arange(len(self.bases[0].texts))):
            return self.bases[0].first
        parts, order = [], []
        for number, base in enumerate(self.bases):
            (rows,) = (self.which == number).nonzero()
            parts.append(base.first[torch.from_numpy(self.places[rows]).to(base.first.device)])
            order.append(rows)
        if len(parts) == 1:
            return parts[0]
        whole = concatenated(parts)
        return whole[torch.from_numpy(np.concatenate(order)).argsort().to(whole.device)]

    @property
    def units(self) -> Tensor | None:
        """float32 of shape ``(m,)``: by how much a score of each is larger than a mean over tokens; None if it is one."""
        if not any(base.sums for base in self.bases):
            return None
        return self._of_bases(
            lambda base: base.num_tokens if base.is_query and base.sums else torch.ones(len(base.texts))
        )

    def tokens(self) -> list[Tensor]:
        """Compute the vectors of the tokens of every text, float32 of shape ``(num_tokens, dim)`` each."""
        found: list[Tensor] = [torch.empty(0)] * len(self)
        for number, base in enumerate(self.bases):
            (rows,) = (self.which == number).nonzero()
            if len(rows):
                texts = [base.texts[place] for place in self.places[rows].tolist()]
                for row, tokens in zip(rows, base.tokens(texts, base.is_query), strict=True):
                    found[row] = tokens
        return found

    def few_dimensions(self) -> Tensor:
        """Return dense vectors that are about as far apart as these, float32 of shape ``(m, dim)``."""
        first: Any = self.first
        matrix: Tensor = first if isinstance(first, Tensor) else first.few_dimensions()
        return matrix

    def are_equal(self, other: TokenRows) -> Tensor:
        """Tell which rows have the tokens of those of another block, up to rounding; boolean of shape ``(m,)``."""
        equal = torch.zeros(len(self), dtype=torch.bool)
        for start in range(0, len(self), _TEXTS):
            part = slice(start, start + _TEXTS)
            pairs = zip(self[part].tokens(), other[part].tokens(), strict=True)
            equal[part] = torch.tensor([a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in pairs])
        return equal

    @staticmethod
    def cosine(left: TokenRows, right: TokenRows) -> Tensor:
        """Return the mean over the tokens of row i of their greatest similarity in row i, float32 of shape ``(m,)``."""
        similarity = maxsim_of_pairs(left, right)
        units = left.units
        return similarity if units is None else similarity / units

    def searcher(self, given: Searcher) -> Searcher:
        """Return what searches such rows: a searcher of the first stage, whose candidates are compared by their tokens."""
        return MaxSimSearcher(given)

    def lengths(self) -> Tensor:
        """Return by what a sum over tokens is divided, float32 of shape ``(m,)``: one for queries whose score is a sum."""
        return self._of_bases(lambda b: torch.ones(len(b.texts)) if b.is_query and b.sums else b.num_tokens)

    def _of_bases(self, value_of: Callable[[TokenBase], Tensor]) -> Tensor:
        values = torch.empty(len(self))
        for number, base in enumerate(self.bases):
            rows = torch.from_numpy(self.which == number)
            values[rows] = value_of(base)[torch.from_numpy(self.places)[rows]]
        return values

    def unique(self) -> tuple[TokenRows, npt.NDArray[np.int64]]:
        """Return each text once, and which of them each row is, int64 of shape ``(m,)``."""
        keys = np.stack([self.which, self.places])
        _, first, place = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        return self[first], place.reshape(-1)


def maxsim_of_pairs(left: TokenRows, right: TokenRows) -> Tensor:
    """Return the score of row i and row i, float32 of shape ``(m,)``: MaxSim of queries, mean MaxSim of other texts.

    Every text is encoded once, or once for every 512 texts on the left.
    """
    scores = torch.empty(len(left))
    (ours, our_place), (theirs, their_place) = left.unique(), right.unique()
    for start in range(0, len(ours), _TEXTS):
        (rows,) = ((our_place >= start) & (our_place < start + _TEXTS)).nonzero()
        rows = rows[np.argsort(their_place[rows], kind="stable")]
        ours_now = ours[start : start + _TEXTS].tokens()
        needed = np.unique(their_place[rows])
        for first in range(0, len(needed), _TEXTS):
            some = needed[first : first + _TEXTS]
            theirs_now = dict(zip(some.tolist(), theirs[some].tokens(), strict=True))
            low, high = np.searchsorted(their_place[rows], [some[0], some[-1] + 1])
            now = rows[low:high]
            a = [ours_now[place] for place in (our_place[now] - start).tolist()]
            b = [theirs_now[place] for place in their_place[now].tolist()]
            scores[torch.from_numpy(now)] = maxsim_pairwise(a, b, chunk_elements=_MAX_FLOATS).float().cpu()
    return scores / left.lengths()


def maxsim_of_all(left: TokenRows, right: TokenRows) -> Tensor:
    """Return the score of every row with every other, float32 of shape ``(m, c)``, as for pairs."""
    (ours, our_place), (theirs, their_place) = left.unique(), right.unique()
    scores, kept = torch.empty(len(ours), len(theirs)), theirs.tokens() if len(theirs) <= _TEXTS else None
    for start in range(0, len(ours), _TEXTS):
        tokens = ours[start : start + _TEXTS].tokens()
        for first in range(0, len(theirs), _TEXTS):
            others = theirs[first : first + _TEXTS].tokens() if kept is None else kept
            block = maxsim(tokens, others, chunk_elements=_MAX_FLOATS)
            scores[start : start + _TEXTS, first : first + _TEXTS] = block.float().cpu()
    if len(ours) == len(left) and len(theirs) == len(right) and np.all(np.diff(their_place) == 1):
        found = scores[torch.from_numpy(our_place)]
    else:
        found = scores[torch.from_numpy(our_place)[:, None], torch.from_numpy(their_place)]
    return found / left.lengths()[:, None]


class MaxSimSearcher:
    """Compares the candidates of a first stage by their tokens.

    Args:
        first_stage: Searches by one vector of each text.
    """

    def __init__(self, first_stage: Searcher) -> None:
        self.first_stage = first_stage
        self.is_exact = getattr(first_stage, "is_exact", False)

    def index(self, corpus_embeddings: Any, similarity_fn_name: str) -> None:
        """Take in the corpus, TokenRows; the first stage searches by cosines, or as its retriever does."""
        self._corpus: TokenRows = corpus_embeddings
        first = self._corpus.first
        base, searcher = self._corpus.bases[0], self.first_stage
        if not isinstance(first, Tensor):
            searcher = first.searcher(searcher)
        if base.score_function is not None and hasattr(searcher, "score_function"):
            searcher.score_function = base.score_function
        self._searcher = searcher
        searcher.index(first, base.similarity)

    def search(self, query_embeddings: Any, k: int) -> tuple[Tensor, Tensor]:
        """Find the ``k`` best of at least ``k`` candidates of each query; see :class:`~st_hardneg.search.Searcher`."""
        queries: TokenRows = query_embeddings
        num_corpus = len(self._corpus)
        depth = min(max(k, self._corpus.bases[0].depth), num_corpus)
        ids, _ = checked_search(self._searcher, queries.first, depth, num_corpus)
        scores = torch.full(ids.shape, -torch.inf)
        rows, places = (ids >= 0).nonzero(as_tuple=True)
        scores[rows, places] = maxsim_of_pairs(queries[rows], self._corpus[ids[rows, places]])
        best = scores.topk(min(k, depth), dim=1)
        return ids.gather(1, best.indices), best.values
