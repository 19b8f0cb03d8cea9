"""Unique queries, their positives, and who must never be whose negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class KnownPositives:
    """Which corpus texts are right answers to which query, as a value that losses can hold.

    A text is "right" for a query if it is the same text as one of the query's positives, or as the query itself:
    Unicode-normalised (NFKC), casefolded, with runs of whitespace collapsed. The lookup is exact, works on whole
    matrices, and holds 8 bytes per corpus text and per known (query, positive) pair.

    Args:
        identities: int64 of shape ``(num_corpus,)``: the text identity of every corpus id. Equal numbers mean
            equal texts.
        keys: int64 of shape ``(num_known,)``, sorted: ``query * num_corpus + identity`` for every known pair.
    """

    identities: Tensor
    keys: Tensor

    @classmethod
    def from_lists(cls, right_answers: Sequence[Sequence[int]], identities: Sequence[int]) -> KnownPositives:
        """Build from the corpus ids of each query's right answers.

        Args:
            right_answers: For each query, the corpus ids of its positives (and of its own text, where it occurs).
            identities: For each corpus id, a number in ``[0, num_corpus)`` that equal texts share.

        Example:
            >>> known = KnownPositives.from_lists([[0], [1]], identities=[0, 1, 0])
            >>> known.is_positive(torch.tensor([0, 1]), torch.tensor([0, 1, 2])).tolist()
            [[True, False, True], [False, True, False]]
        """
        identity = np.asarray(identities, dtype=np.int64)
        lengths = [len(ids) for ids in right_answers]
        query = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
        flat = np.asarray([corpus_id for ids in right_answers for corpus_id in ids], dtype=np.int64)
        keys = np.unique(query * len(identity) + identity[flat])
        return cls(torch.from_numpy(identity), torch.from_numpy(keys))

    def to(self, device: torch.device | str) -> KnownPositives:
        """Return the same value on another device."""
        return KnownPositives(self.identities.to(device), self.keys.to(device))

    def is_positive(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Tell for every pair of a query and a corpus text whether the text is a right answer.

        Args:
            query_ids: int64 of shape ``(m,)``.
            corpus_ids: int64 of shape ``(c,)``; -1 stands for "no text" and is never right.

        Returns:
            Boolean tensor of shape ``(m, c)``.
        """
        if not len(self.keys):
            return torch.zeros(len(query_ids), len(corpus_ids), dtype=torch.bool, device=query_ids.device)
        identity = self.identities[corpus_ids.clamp(min=0)]
        wanted = query_ids[:, None] * len(self.identities) + identity[None, :]
        place = torch.searchsorted(self.keys, wanted.contiguous()).clamp(max=len(self.keys) - 1)
        return (self.keys[place] == wanted) & (corpus_ids >= 0)[None, :]
