"""Pairs after a person's judgements: further right answers, texts that are left out, and negatives that are certain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs, by_group
from st_hardneg.corpus.texts import Ids, TextColumn


def with_judgements(
    pairs: Pairs, corpus: Corpus, anchors: TextColumn, positives: Ids, excluded: Ids, certain: Ids
) -> Pairs:
    """Return pairs that know more: every mining, loss and file follows them.

    Args:
        pairs: The pairs so far.
        corpus: The corpus.
        anchors: The anchors, one per row, with those of the new positives behind.
        positives: int64 of shape ``(m, 2)``: query and corpus id of the new rows.
        excluded: The same of what is neither a right answer nor a negative.
        certain: The same of what is no right answer, however much it looks like one.
    """
    row_query = np.concatenate([pairs.row_query, positives[:, 0]])
    row_positive = np.concatenate([pairs.row_positive, positives[:, 1]])
    num_groups, num_texts = len(pairs.positive_offsets) - 1, len(corpus)
    offsets, ids = by_group(pairs.group[row_query], row_positive, num_texts, num_groups)
    owner = np.repeat(np.arange(num_groups), np.diff(offsets))
    own = KnownPositives(
        torch.arange(num_texts), torch.from_numpy(np.sort(owner * num_texts + ids)), torch.from_numpy(pairs.group)
    )
    judged = _keys(pairs, corpus, certain)
    before = np.arange(0) if pairs.certain is None else pairs.certain.keys.numpy()
    # Who is right for whom goes both ways: a right answer that is itself a query has this one as its own.
    turned = _turned(pairs, corpus, positives)
    right = np.concatenate([_keys(pairs, corpus, positives), turned])
    out = np.concatenate([right, _keys(pairs, corpus, excluded)])
    known = np.union1d(np.setdiff1d(pairs.known.keys.numpy(), judged), out)
    sure = np.setdiff1d(np.union1d(before, judged), out)
    return replace(
        pairs,
        anchors=anchors,
        row_query=row_query,
        row_positive=row_positive,
        positive_offsets=offsets,
        positive_ids=ids,
        own_positives=own,
        known=replace(pairs.known, keys=torch.from_numpy(known)),
        certain=replace(pairs.known, keys=torch.from_numpy(sure), query_clusters=None, text_clusters=None),
    )


def _keys(pairs: Pairs, corpus: Corpus, some: Ids) -> Ids:
    groups = pairs.known.groups.numpy()
    keys: Ids = groups[some[:, 0]] * len(corpus) + corpus.identities[some[:, 1]]
    return keys


def _turned(pairs: Pairs, corpus: Corpus, positives: Ids) -> Ids:
    """Return the keys of the same pairs the other way round, where both texts are queries and in the corpus."""
    group_of = np.full(len(corpus), -1, dtype=np.int64)
    has_own = np.flatnonzero(pairs.own_identity >= 0)
    group_of[pairs.own_identity[has_own]] = pairs.known.groups.numpy()[has_own]
    own, other = pairs.own_identity[positives[:, 0]], group_of[corpus.identities[positives[:, 1]]]
    both = (own >= 0) & (other >= 0)
    keys: Ids = other[both] * len(corpus) + own[both]
    return keys
