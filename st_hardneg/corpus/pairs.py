"""Unique queries, their positives, and who must never be whose negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from st_hardneg.corpus.numbering import Corpus, NumberedPositives
from st_hardneg.corpus.texts import Ids, TextColumn, same_text_key


@dataclass(frozen=True)
class KnownPositives:
    """Which corpus texts are right answers to which query, as a value that losses can hold.

    A text is "right" for a query if it is the same text as one of the query's positives, or as the query itself:
    see :func:`~st_hardneg.corpus.texts.same_text_key`. The look-up is exact, works on whole matrices, and holds 8 bytes per
    corpus text, per query and per known pair. Queries that are the same text are one group, so thousands of spellings of
    one anchor take no more than thousands of anchors.

    Args:
        identities: int64 of shape ``(num_corpus,)``: the text identity of every corpus id. Equal numbers mean
            equal texts.
        keys: int64 of shape ``(num_known,)``, sorted: ``group * num_corpus + identity`` for every known pair.
        groups: int64 of shape ``(num_queries,)``: the group of each query, which shares its right answers.
    """

    identities: Tensor
    keys: Tensor
    groups: Tensor

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
        keys = np.unique(query * len(identity) + identity[flat])
        return cls(torch.from_numpy(identity), torch.from_numpy(keys), torch.arange(len(lengths)))

    @property
    def num_queries(self) -> int:
        """Number of queries that ids can name."""
        return len(self.groups)

    def to(self, device: torch.device | str) -> KnownPositives:
        """Return the same value on another device."""
        return KnownPositives(self.identities.to(device), self.keys.to(device), self.groups.to(device))

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
        identity = self.identities[corpus_ids.clamp(min=0)]
        # Ids of another dataset may lie outside; nothing is known of them.
        is_known = (query_ids >= 0) & (query_ids < len(self.groups))
        groups = self.groups[query_ids.clamp(0, len(self.groups) - 1)]
        wanted = (groups[:, None] * len(self.identities) + identity).contiguous()
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return (self.keys[place] == wanted) & (corpus_ids >= 0) & is_known[:, None]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The unique queries of a dataset of (anchor, positive) rows and their right answers.

    Args:
        anchors: The anchors, one per row.
        row_query: int64 of shape ``(num_rows,)``: the query of each row. Rows with exactly the same anchor are one
            query.
        row_positive: int64 of shape ``(num_rows,)``: the corpus id of each row's positive.
        first_row: int64 of shape ``(num_queries,)``: the first row of each query.
        group: int64 of shape ``(num_queries,)``: the group whose positives each query has: queries of the same text
            identity share theirs.
        positive_offsets: int64 of shape ``(num_groups + 1,)``: where each group's part of ``positive_ids`` starts.
        positive_ids: int64 of shape ``(num_positives,)``: corpus ids of each group's positives, in order of
            appearance, each text once.
        own_positives: Each query's positives by id, to tell them from duplicates of them.
        known: Who must never be whose negative: each query's positives, those of every query with the same text
            identity, the query's own text, and the anchors whose positive the query itself is.
        own_identity: int64 of shape ``(num_queries,)``: the identity under which the query's own text is in the
            corpus, or -1.
        draw_keys: int64 of shape ``(num_queries,)``: what stands for each query in random draws. It depends on the
            query's text only, so that a draw is the same in whatever batch or order queries come.
    """

    anchors: TextColumn
    row_query: Ids
    row_positive: Ids
    first_row: Ids
    group: Ids
    positive_offsets: Ids
    positive_ids: Ids
    own_positives: KnownPositives
    known: KnownPositives
    own_identity: Ids
    draw_keys: Ids

    @property
    def num_rows(self) -> int:
        """Number of (anchor, positive) rows."""
        return len(self.row_query)

    @property
    def num_queries(self) -> int:
        """Number of unique anchors."""
        return len(self.first_row)

    @property
    def num_positives(self) -> Ids:
        """Number of distinct positives of each query, int64 of shape ``(num_queries,)``."""
        counts: Ids = np.diff(self.positive_offsets)[self.group]
        return counts

    def positives_of(self, query_id: int) -> Ids:
        """Return the corpus ids of a query's positives."""
        group = self.group[query_id]
        return self.positive_ids[self.positive_offsets[group] : self.positive_offsets[group + 1]]

    def query_texts(self) -> list[str]:
        """Return the text of every query."""
        return self.anchors.take(self.first_row)

    def share_positives(self, query_ids: Tensor, corpus_ids: Tensor, corpus: Corpus) -> Tensor:
        """Tell which candidates are anchors with a positive that is a right answer to the query, too.

        Args:
            query_ids: int64 of shape ``(q,)``.
            corpus_ids: int64 of shape ``(q, k)``.
            corpus: The corpus, which knows under which numbers anchors are searched.

        Returns:
            Boolean tensor of shape ``(q, k)``.
        """
        shared = torch.zeros_like(corpus_ids, dtype=torch.bool)
        if not len(corpus.anchor_ids):
            return shared
        other = corpus_ids - int(corpus.anchor_ids[0])
        is_anchor = (other >= 0) & (other < len(corpus.anchor_ids))
        other = torch.from_numpy(self.group)[other.where(is_anchor, torch.zeros_like(other))]
        offsets, positives = torch.from_numpy(self.positive_offsets), torch.from_numpy(self.positive_ids)
        count = (offsets[other + 1] - offsets[other]).where(is_anchor, torch.zeros_like(other))
        first = offsets[other]
        for number in range(int(count.max()) if count.numel() else 0):
            # Only those that have so many: one anchor with 300 positives does not slow down the others.
            rows, places = (count > number).nonzero(as_tuple=True)
            ids = positives[first[rows, places] + number]
            shared[rows, places] |= self.known.contains(query_ids[rows], ids[:, None]).squeeze(1)
        return shared


def pair_up(anchors: TextColumn, numbered: NumberedPositives, *, share_positives: bool = True) -> Pairs:
    """Find the unique queries of the rows, and everything that is known to be right for each.

    Args:
        anchors: The anchors, one per row.
        numbered: The corpus and the rows' positives in it.
        share_positives: Whether queries that are the same text but for case, whitespace and Unicode form count each
            other's positives as their own (in margins, too). They are excluded as negatives in any case.
    """
    query_of_text: dict[str, int] = {}
    group_of_key: dict[bytes, int] = {}
    row_query = np.empty(len(anchors), dtype=np.int64)
    first_row: list[int] = []
    group: list[int] = []
    own: list[int] = []
    draw_keys: list[int] = []
    row = 0
    for texts in anchors.batches():
        for text in texts:
            query = query_of_text.setdefault(text, len(first_row))
            if query == len(first_row):
                key = same_text_key(text)
                first_row.append(row)
                group.append(group_of_key.setdefault(key, len(group_of_key)))
                own.append(numbered.first_with_key.get(key, -1))
                draw_keys.append(int.from_bytes(key[:8], "little") >> 1)
            row_query[row] = query
            row += 1

    same_text = np.asarray(group, dtype=np.int64)
    own_identity = np.asarray(own, dtype=np.int64)
    groups = same_text if share_positives else np.arange(len(same_text))
    offsets, ids = _by_group(groups[row_query], numbered.row_positive, len(numbered.corpus))
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    own_keys = torch.from_numpy(np.sort(owner * len(numbered.corpus) + ids))
    return Pairs(
        anchors,
        row_query,
        numbered.row_positive,
        np.asarray(first_row, dtype=np.int64),
        groups,
        offsets,
        ids,
        KnownPositives(torch.arange(len(numbered.corpus)), own_keys, torch.from_numpy(groups)),
        _known_positives(row_query, numbered.row_positive, same_text, own_identity, numbered.corpus),
        own_identity,
        np.asarray(draw_keys, dtype=np.int64),
    )


def _by_group(groups: Ids, positives: Ids, num_texts: int) -> tuple[Ids, Ids]:
    """Sort pairs by group, keeping each pair's first appearance and that order."""
    _, first = np.unique(groups * num_texts + positives, return_index=True)
    first.sort()
    order = first[np.argsort(groups[first], kind="stable")]
    counts = np.bincount(groups[order], minlength=int(groups.max(initial=-1)) + 1)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), positives[order]


def _known_positives(
    row_query: Ids, row_positive: Ids, same_text: Ids, own_identity: Ids, corpus: Corpus
) -> KnownPositives:
    """Return what is right for each group: its positives, its own text, and anchors whose positive it is itself."""
    positive_identity = corpus.identities[row_positive]
    has_own = np.flatnonzero(own_identity >= 0)
    group_of = np.full(len(corpus), -1, dtype=np.int64)
    group_of[own_identity[has_own]] = same_text[has_own]
    # A row (a, b) makes a right for the query b, where a has a number in the corpus at all.
    rows = np.flatnonzero((own_identity[row_query] >= 0) & (group_of[positive_identity] >= 0))
    keys = np.concatenate(
        [
            same_text[row_query] * len(corpus) + positive_identity,
            same_text[has_own] * len(corpus) + own_identity[has_own],
            group_of[positive_identity[rows]] * len(corpus) + own_identity[row_query[rows]],
        ]
    )
    return KnownPositives(
        torch.from_numpy(corpus.identities), torch.from_numpy(np.unique(keys)), torch.from_numpy(same_text)
    )
