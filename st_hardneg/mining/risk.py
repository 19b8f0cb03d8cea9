"""The risk of false negatives: texts that nobody has labelled and that say what a right answer says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import Candidates

_MOST = 2_000


@dataclass(frozen=True, eq=False)
class Suspects:
    """Candidates that lie closest to a right answer of their query, whether or not a rule has removed them.

    Args:
        query_ids: int64 of shape ``(m,)``.
        corpus_ids: int64 of shape ``(m,)``.
        closeness: float32 of shape ``(m,)``: the model's similarity of the candidate and the nearest of the query's
            positives; the highest first.
    """

    query_ids: Tensor
    corpus_ids: Tensor
    closeness: Tensor

    @classmethod
    def none(cls) -> Suspects:
        """Return no suspects."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0))

    def with_those_of(self, candidates: Candidates, keep: Tensor) -> Suspects:
        """Return the closest of these and some candidates.

        Args:
            candidates: Candidates whose ``positive_similarity`` is known; others add nothing.
            keep: Boolean of shape ``(q, k)``: True for what is not known to be right.
        """
        if candidates.positive_similarity is None:
            return self
        closeness = candidates.positive_similarity.masked_fill(~keep | ~candidates.is_present, -torch.inf)
        # Two of each query: one text that is close to many right answers must not crowd out the others.
        best, places = closeness.topk(min(2, closeness.shape[1]), dim=1)
        queries = candidates.query_ids[:, None].expand(places.shape)
        both = [
            torch.cat([self.query_ids, queries.flatten()]),
            torch.cat([self.corpus_ids, candidates.corpus_ids.gather(1, places).flatten()]),
            torch.cat([self.closeness, best.flatten()]),
        ]
        order = both[2].argsort(descending=True, stable=True)
        order = order[~both[2][order].isneginf()]
        # A search that goes deeper for some queries brings the same texts again.
        pairs = torch.stack([both[0][order], both[1][order]], dim=1).numpy()
        order = order[torch.from_numpy(np.sort(np.unique(pairs, axis=0, return_index=True)[1]))][:_MOST]
        return Suspects(*(values[order] for values in both))


def shared_words(text: str, other: str) -> float:
    """Return how much two texts share, from 0 to 1: the Jaccard index of their words.

    Example:
        >>> shared_words("aspirin reduces fever", "fever, aspirin reduces")
        0.5
    """
    ours, theirs = set(text.casefold().split()), set(other.casefold().split())
    return len(ours & theirs) / max(1, len(ours | theirs))


def _grams(text: str) -> set[str]:
    """Return what a text is made of: all that stands three characters in a row, however it is spelled."""
    plain = " ".join(text.casefold().split())
    return {plain[place : place + 3] for place in range(max(1, len(plain) - 2))}


def most_doubtful(suspects: Sequence[tuple[str, list[str], str, float]], number: int) -> list[int]:
    """Return the places of the suspects that are most likely right answers, the most doubtful first.

    Args:
        suspects: Query, positives, text and closeness of each.
        number: How many are wanted.
    """
    grams = {text: _grams(text) for _, positives, one, _ in suspects for text in (one, *positives)}

    def shared(text: str, other: str) -> float:  # the Jaccard index
        return len(grams[text] & grams[other]) / max(1, len(grams[text] | grams[other]))

    shares = [max(shared(text, positive) for positive in positives) for _, positives, text, _ in suspects]
    # Words and vectors: near-copies share both.
    doubt = [share + closeness for share, (_, _, _, closeness) in zip(shares, suspects, strict=True)]
    return sorted(range(len(suspects)), key=lambda place: -doubt[place])[:number]
