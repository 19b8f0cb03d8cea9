"""Unique queries, their positives, and who must never be whose negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from st_hardneg.corpus.digests import FirstIds, first_rows
from st_hardneg.corpus.enumeration import joined
from st_hardneg.corpus.identity import draw_keys, identity_keys, text_digests
from st_hardneg.corpus.known import KnownPositives
from st_hardneg.corpus.numbering import Corpus, Numbered
from st_hardneg.corpus.symmetric import Clusters, cluster_pairs
from st_hardneg.corpus.texts import Ids, TextColumn, distinct_ids


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
        given_offsets: int64 of shape ``(num_texts + 1,)``: where each part of ``given_ids`` starts, one for every group of
            queries that are the same text (``known.groups``).
        given_ids: int64: corpus ids of the negatives that the user's own columns hold for these queries.
        num_unused_given: Given negatives whose anchor has no positive.
        certain: What a person has said is no right answer, by query: rules that hold off doubtful texts let it through.
        largest_cluster: In symmetric data, how many different texts the largest cluster has; 0 elsewhere.
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
    given_offsets: Ids
    given_ids: Ids
    num_unused_given: int = 0
    largest_cluster: int = 0
    certain: KnownPositives | None = None

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

    def num_identical(self, corpus: Corpus) -> int:
        """Count the rows whose positive is the anchor itself."""
        own = self.own_identity[self.row_query]
        return int(((own >= 0) & (own == corpus.identities[self.row_positive])).sum())

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
        # Other spellings of the query share its positives; there may be thousands of them.
        own_group = torch.from_numpy(self.group)[query_ids][:, None]
        shared |= is_anchor & (other == own_group)
        is_anchor = is_anchor & (other != own_group)
        offsets, positives = torch.from_numpy(self.positive_offsets), torch.from_numpy(self.positive_ids)
        count = (offsets[other + 1] - offsets[other]).where(is_anchor, torch.zeros_like(other))
        first = offsets[other]
        for number in range(int(count.max()) if count.numel() else 0):
            # Only those that have so many: one anchor with 300 positives does not slow down the others.
            rows, places = (count > number).nonzero(as_tuple=True)
            ids = positives[first[rows, places] + number]
            shared[rows, places] |= self.known.contains(query_ids[rows], ids[:, None]).squeeze(1)
        return shared


@dataclass(eq=False)
class _Queries:
    """The unique anchors, as they are met row by row."""

    group_of_key: FirstIds
    first_row: Ids
    group: Ids
    own: Ids
    draw_keys: Ids
    row_query: Ids


def _unique_queries(anchors: TextColumn, numbered: Numbered) -> _Queries:
    first_row, row_query = first_rows(joined(text_digests(texts) for texts in anchors.arrays()))
    unique = anchors if len(first_row) == len(anchors) else TextColumn.of_arrays([anchors.array(first_row)])
    keys = joined(identity_keys(texts, numbered.identity) for texts in unique.arrays())
    first_of_group, group = first_rows(keys)
    groups = FirstIds(keys[first_of_group], np.arange(len(first_of_group)))
    return _Queries(groups, first_row, group, numbered.first_with_key.find(keys), draw_keys(keys), row_query)


def pair_up(
    anchors: TextColumn,
    numbered: Numbered,
    *,
    share_positives: bool = True,
    symmetric: bool | None = False,
    given_anchors: Sequence[TextColumn] = (),
) -> Pairs:
    """Find the unique queries of the rows, and everything that is known to be right for each.

    Args:
        anchors: The anchors, one per row.
        numbered: The corpus and the rows' positives in it.
        share_positives: Whether queries that are the same text, by the recipe's identity, count each other's positives as
            their own (in margins, too). They are excluded as negatives in any case.
        symmetric: Whether what hangs together by pairs is never each other's negative; None finds out by itself.
        given_anchors: The anchors of each column of given negatives.
    """
    queries = _unique_queries(anchors, numbered)
    corpus, row_query = numbered.corpus, queries.row_query
    same_text = queries.group
    own_identity = queries.own
    groups = same_text if share_positives else np.arange(len(same_text))
    offsets, ids = by_group(groups[row_query], numbered.row_positive, len(corpus))
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    own_keys = torch.from_numpy(np.sort(owner * len(corpus) + ids))
    group_identity = np.full(int(same_text.max(initial=-1)) + 1, -1, dtype=np.int64)
    group_identity[same_text] = own_identity
    clusters = cluster_pairs(
        same_text[row_query], numbered.row_positive, group_identity, same_text, corpus.identities, symmetric
    )
    given_offsets, given_ids, num_unused = _given(queries, numbered, given_anchors)
    return Pairs(
        anchors,
        row_query,
        numbered.row_positive,
        queries.first_row,
        groups,
        offsets,
        ids,
        KnownPositives(torch.arange(len(corpus)), own_keys, torch.from_numpy(groups)),
        _known_positives(row_query, numbered.row_positive, same_text, own_identity, corpus, clusters),
        own_identity,
        queries.draw_keys,
        given_offsets,
        given_ids,
        num_unused,
        0 if clusters is None else clusters.largest,
    )


def _given(queries: _Queries, numbered: Numbered, anchors: Sequence[TextColumn]) -> tuple[Ids, Ids, int]:
    """Return where the given negatives of each group start, their corpus ids, and how many have no query."""
    num_groups = len(queries.group_of_key)
    if not anchors:
        return np.zeros(num_groups + 1, dtype=np.int64), np.arange(0), 0
    owners = [
        queries.group_of_key.find(joined(identity_keys(some, numbered.identity) for some in column.arrays()))
        for column in anchors
    ]
    owner, ids = np.concatenate(owners), np.concatenate(numbered.given_ids)
    num_unused = int(((owner < 0) & (ids >= 0)).sum())
    is_used = (owner >= 0) & (ids >= 0)
    offsets, ids = by_group(owner[is_used], ids[is_used], len(numbered.corpus), num_groups=num_groups)
    return offsets, ids, num_unused


def by_group(groups: Ids, ids: Ids, num_texts: int, num_groups: int = 0) -> tuple[Ids, Ids]:
    """Sort pairs by group, keeping each pair's first appearance and that order."""
    _, first = np.unique(groups * num_texts + ids, return_index=True)
    first.sort()
    order = first[np.argsort(groups[first], kind="stable")]
    counts = np.bincount(groups[order], minlength=max(num_groups, int(groups.max(initial=-1)) + 1))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), ids[order]


def _known_positives(
    row_query: Ids,
    row_positive: Ids,
    same_text: Ids,
    own_identity: Ids,
    corpus: Corpus,
    clusters: Clusters | None,
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
        torch.from_numpy(corpus.identities),
        torch.from_numpy(distinct_ids(keys)),
        torch.from_numpy(same_text),
        None if clusters is None else torch.from_numpy(clusters.of_queries),
        None if clusters is None else torch.from_numpy(clusters.of_texts),
    )
