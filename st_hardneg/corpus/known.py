"""KnownPositives: which texts are right answers to which query, as a value that losses can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from st_hardneg.corpus.texts import distinct_ids

# So many right answers of each query are compared one by one, which is faster than to look up each of so many texts.
_FEW, _MANY = 4, 10_000


@dataclass(frozen=True)
class KnownPositives:
    """Which corpus texts are right answers to which query.

    A text is "right" for a query if it is the same text as one of the query's positives, or as the query itself, or as an
    anchor whose positive the query is. The look-up is exact, works on whole matrices, and holds 8 bytes per corpus text,
    per query and per known pair. Queries that are the same text are one group, so thousands of spellings of one anchor
    take no more than thousands of anchors.

    Args:
        identities: int64 of shape ``(num_corpus,)``: the text identity of every corpus id. Equal numbers mean
            equal texts.
        keys: int64 of shape ``(num_known,)``, sorted: ``group * num_corpus + identity`` for every known pair.
        groups: int64 of shape ``(num_queries,)``: the group of each query, which shares its right answers.
        query_clusters: int64 of shape ``(num_queries,)``, or None: in symmetric data, what hangs together by pairs is one
            cluster, and nothing in it is a negative of a query in it.
        text_clusters: int64 of shape ``(num_corpus,)``: the cluster of every corpus text; -1 for none.
    """

    identities: Tensor
    keys: Tensor
    groups: Tensor
    query_clusters: Tensor | None = None
    text_clusters: Tensor | None = None

    def __repr__(self) -> str:
        return f"KnownPositives({len(self.keys):,} pairs, {len(self.identities):,} texts)"

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
        keys = distinct_ids(query * len(identity) + identity[flat])
        return cls(torch.from_numpy(identity), torch.from_numpy(keys), torch.arange(len(lengths)))

    @property
    def num_queries(self) -> int:
        """Number of queries that ids can name."""
        return len(self.groups)

    def to(self, device: torch.device | str) -> KnownPositives:
        """Return the same value on another device."""
        clusters = (None if one is None else one.to(device) for one in (self.query_clusters, self.text_clusters))
        return KnownPositives(self.identities.to(device), self.keys.to(device), self.groups.to(device), *clusters)

    def is_positive(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Tell for every pair of a query and a corpus text whether the text is a right answer.

        Args:
            query_ids: int64 of shape ``(m,)``.
            corpus_ids: int64 of shape ``(c,)``; -1 stands for "no text" and is never right.

        Returns:
            Boolean tensor of shape ``(m, c)``.
        """
        return self.contains(query_ids, corpus_ids[None, :].expand(len(query_ids), -1))

    def contains(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Tell for every query which of its own row of corpus texts are right answers.

        Args:
            query_ids: int64 of shape ``(m,)``.
            corpus_ids: int64 of shape ``(m, k)``; -1 stands for "no text" and is never right.

        Returns:
            Boolean tensor of shape ``(m, k)``.
        """
        if not len(self.keys):
            return torch.zeros_like(corpus_ids, dtype=torch.bool)
        there = corpus_ids.clamp(min=0)
        # Ids of another dataset may lie outside; nothing is known of them.
        is_known = (query_ids >= 0) & (query_ids < len(self.groups))
        queries = query_ids.clamp(0, len(self.groups) - 1)
        wanted = (self.groups[queries][:, None] * len(self.identities) + self.identities[there]).contiguous()
        found = self._are_keys(self.groups[queries], wanted)
        if self.query_clusters is not None and self.text_clusters is not None:
            clusters = self.query_clusters[queries][:, None]
            found = found | ((self.text_clusters[there] == clusters) & (clusters >= 0))
        return found & (corpus_ids >= 0) & is_known[:, None]

    def _are_keys(self, groups: Tensor, wanted: Tensor) -> Tensor:
        """Tell which of the keys that are asked for there are, each row those of one group."""
        last = len(self.keys) - 1
        if wanted.device.type == "cpu" and wanted.shape[1] >= _FEW and wanted.numel() >= _MANY:
            # The keys of a group follow each other, and are few: they are compared with all that are asked for.
            start = torch.searchsorted(self.keys, groups * len(self.identities))
            count = torch.searchsorted(self.keys, (groups + 1) * len(self.identities)) - start
            most = int(count.max()) if len(count) else 0
            if most <= _FEW:
                found = torch.zeros_like(wanted, dtype=torch.bool)
                for number in range(most):
                    key = self.keys[(start + number).clamp(max=last)].masked_fill(number >= count, -1)
                    found |= wanted == key[:, None]
                return found
        return self.keys[torch.searchsorted(self.keys, wanted).clamp(max=last)] == wanted
