"""Symmetric pairs, such as duplicate questions: what hangs together by pairs says the same thing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from st_hardneg.corpus.texts import Ids, distinct_ids

# All pairs count as symmetric if at least this share of the queries is a positive of another one; below it, only what
# hangs together with such a query does.
_SYMMETRIC_SHARE = 0.1
# A cluster of more than this share of all texts would leave hardly any negatives: pairs that link everything are no
# paraphrases.
_LARGEST_SHARE = 0.2
_LARGEST_ALWAYS = 100
_LARGEST_OF_FEW = 0.8


@dataclass(frozen=True, eq=False)
class Clusters:
    """What hangs together by pairs.

    Args:
        of_queries: int64 of shape ``(num_queries,)``: the cluster of each query.
        of_texts: int64 of shape ``(num_corpus,)``: the cluster of each corpus text; -1 for texts of no pair.
        largest: How many different texts the largest cluster has.
    """

    of_queries: Ids
    of_texts: Ids
    largest: int


def cluster_pairs(
    row_group: Ids,
    row_positive: Ids,
    group_identity: Ids,
    query_group: Ids,
    identities: Ids,
    symmetric: bool | None,
) -> Clusters | None:
    """Return what hangs together by pairs, or None where pairs are not symmetric.

    Args:
        row_group: int64 of shape ``(num_rows,)``: the group of each row's query.
        row_positive: int64 of shape ``(num_rows,)``: the corpus id of each row's positive.
        group_identity: int64 of shape ``(num_groups,)``: the identity of each group's own text in the corpus, or -1.
        query_group: int64 of shape ``(num_queries,)``.
        identities: int64 of shape ``(num_corpus,)``.
        symmetric: Whether they are; None finds out: queries are positives themselves, and no cluster holds a large part
            of all texts.
    """
    if symmetric is False:
        return None
    positive = identities[row_positive]
    is_both = np.isin(group_identity, positive)
    if symmetric is None and not is_both.any():
        return None
    num_texts, num_groups = len(identities), len(group_identity)
    # A group whose text is in the corpus is the node of that text; the others have nodes of their own behind the texts.
    node = np.where(group_identity >= 0, group_identity, num_texts + np.arange(num_groups))
    edges = (node[row_group], positive)
    size = num_texts + num_groups
    _, component = connected_components(coo_matrix((np.ones(len(positive), bool), edges), shape=(size, size)))
    counts = np.bincount(component[distinct_ids(np.concatenate(edges))], minlength=int(component.max(initial=0)) + 1)
    counts_too = np.ones(len(counts), dtype=bool)
    if symmetric is None:
        num_nodes = int(counts.sum())
        most = min(max(_LARGEST_ALWAYS, _LARGEST_SHARE * num_nodes), _LARGEST_OF_FEW * num_nodes)
        if is_both.mean() < _SYMMETRIC_SHARE:
            counts_too = np.isin(np.arange(len(counts)), component[node[is_both]]) & (counts <= most)
        elif int(counts.max(initial=0)) > most:
            return None
    if not counts_too.any():
        return None
    of_texts = component[identities].astype(np.int64)
    is_paired = np.zeros(size, dtype=bool)
    is_paired[np.concatenate(edges)] = True
    of_texts[~is_paired[identities] | ~counts_too[of_texts]] = -1
    # A query outside of them is in a cluster by itself, which no text is in.
    of_queries = component[node[query_group]].astype(np.int64)
    return Clusters(of_queries, of_texts, int(counts[counts_too].max(initial=0)))
