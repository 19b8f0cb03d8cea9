"""Texts that share words with the query: BM25, by the library ``bm25s``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.texts import Ids
from st_hardneg.errors import require_extra
from st_hardneg.sources.protocol import Plan, Proposal, Queries

# Hits of searches that are kept for the next refresh: 12 bytes each.
_MAX_KEPT = 20_000_000


class LexicalIndex:
    """A BM25 index over the searched texts of a corpus. It depends on texts only and outlives refreshes.

    Words are runs of two or more letters or digits, in lower case; none is left out, as BM25 weighs frequent ones least.

    Source: BM25 as Lucene has it (k1 = 1.5, b = 0.75), by ``bm25s`` (https://huggingface.co/papers/2407.03618).

    Args:
        corpus: The corpus.

    Raises:
        MissingExtraError: If ``bm25s`` is not installed.
    """

    def __init__(self, corpus: Corpus) -> None:
        require_extra("bm25s", "lexical", "The source 'lexical'")
        self._corpus = corpus
        self._rankings: dict[str, tuple[int, Ids, npt.NDArray[np.float32]]] = {}

    @property
    def num_texts(self) -> int:
        """How many texts are indexed."""
        return len(self._corpus.searched)

    @cached_property
    def _index(self) -> Any:
        import bm25s

        words = _words(self._corpus.texts.take(self._corpus.searched))
        if not any(words):
            return None
        index = bm25s.BM25(backend="numpy")
        index.index(words, show_progress=False)
        return index

    def search(self, queries: list[str], k: int) -> tuple[Tensor, Tensor]:
        """Return the corpus ids and BM25 scores, of shape ``(q, k)``, of the best texts that share a word; -1 for none.

        Ties go to the lower id. ``retrieve`` of ``bm25s`` breaks them in a way that depends on ``k``.
        """
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        # Texts do not change: a refresh looks up what was found before, if it was looked for as deep.
        new = [query for query in dict.fromkeys(queries) if self._rankings.get(query, (0,))[0] < k]
        found = dict(zip(new, (self._ranking(words, k) for words in _words(new)), strict=True)) if new else {}
        for row, query in enumerate(queries):
            _, best, their_scores = found.get(query) or self._rankings[query]
            ids[row, : len(best[:k])] = best[:k]
            scores[row, : len(best[:k])] = their_scores[:k]
        if self.num_kept + len(found) * k <= _MAX_KEPT:
            self._rankings.update(found)
        return torch.from_numpy(ids), torch.from_numpy(scores)

    @property
    def num_kept(self) -> int:
        """How many hits of earlier searches are kept."""
        return sum(len(best) for _, best, _ in self._rankings.values())

    def _ranking(self, words: list[str], k: int) -> tuple[int, Ids, npt.NDArray[np.float32]]:
        if not words or self._index is None:
            return k, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        scores = np.asarray(self._index.get_scores(words))
        places = _best(scores, k)
        return k, self._corpus.searched[places], scores[places].astype(np.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {"_corpus": self._corpus, "_rankings": {}}  # another process makes its own index


def _best(scores: npt.NDArray[np.float32], k: int) -> Ids:
    """Return the places of the k highest scores above 0, best first, ties by the lower place."""
    places: Ids = np.flatnonzero(scores > 0)
    if k < len(places):
        kth = np.partition(scores[places], len(places) - k)[len(places) - k]
        better, ties = places[scores[places] > kth], places[scores[places] == kth]
        places = np.concatenate([better, ties[: k - len(better)]])
    order = np.argsort(-scores[places], kind="stable")
    return places[order]


def _words(texts: list[str]) -> list[list[str]]:
    import bm25s

    words: list[list[str]] = bm25s.tokenize(texts, stopwords=[], return_ids=False, show_progress=False)
    return words


@dataclass(frozen=True, eq=False)
class LexicalSource:
    """The texts with the highest BM25 score for the query's words, down to those that share a word with it.

    Args:
        index: The BM25 index.
    """

    index: LexicalIndex

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return the best texts of each query by BM25, down to the plan's depth."""
        corpus_ids, scores = self.index.search(queries.texts, min(plan.depth, self.index.num_texts))
        return Proposal(corpus_ids, scores.masked_fill(corpus_ids < 0, torch.nan), keeps_order=True)
