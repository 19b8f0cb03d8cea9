"""What a source has to offer, and how deep to look for each query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from st_hardneg.candidates import Found
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids

# Hits that are searched and filtered at once, whatever the chunk size: 272 bytes each in `semantic_search`.
_MAX_HITS = 500_000
_MOST_SHARING = 1_000


class Source(Protocol):
    """Proposes candidates for queries. One method, no base class."""

    @property
    def is_searched(self) -> bool:
        """Whether ranks mean something, so that the rank window and the sampling strategy apply."""

    def propose(self, query_ids: Tensor, plan: SearchPlan) -> Found:
        """Return candidates, best first, no text twice.

        Args:
            query_ids: int64 of shape ``(q,)``.
            plan: How deep to look.
        """


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """How deep to search for each query, and in which order.

    Queries are searched in order of depth, so that one with 200 positives does not make the search deeper for all.

    Args:
        start: First rank of the window.
        stop: int64 of shape ``(num_queries,)``: the rank after the last.
        depth: int64 of shape ``(num_queries,)``: candidates that are considered, besides those that ``extra`` names.
        extra: int64 of shape ``(num_queries,)``: texts that are never a negative and are not counted in ``depth``: the
            anchor itself, duplicates of positives, and anchors with a positive in common. At least so many.
        order: int64 of shape ``(num_queries,)``: the queries in order of search.
    """

    start: int
    stop: Ids
    depth: Ids
    extra: Ids
    order: Ids

    @classmethod
    def of(
        cls,
        config: MiningConfig,
        pairs: Pairs,
        corpus: Corpus,
        *,
        reserved: Ids | None = None,
        filtered: bool = False,
        rescored: bool = False,
    ) -> SearchPlan:
        """Plan the search of all queries.

        Args:
            config: The recipe.
            pairs: The queries.
            corpus: The corpus.
            reserved: int64 of shape ``(num_queries,)``: places among what is retrieved that are set aside for positives;
                each query's number of positives by default.
            filtered: Whether filters that are not in the config may remove candidates.
            rescored: Whether a cross encoder reorders the candidates.
        """
        reserved = pairs.num_positives if reserved is None else reserved
        start, stop_without = config.window(0, rescored=rescored, filtered=filtered)
        stop = np.full(pairs.num_queries, stop_without, dtype=np.int64)
        if config.range_max is None:
            stop += reserved
        raw = config.rank_window == "raw"
        depth = stop if raw else stop + reserved
        extra = np.zeros_like(stop) if raw else _extra_texts(pairs, corpus)
        return cls(start, stop, depth, extra, np.argsort(depth + extra, kind="stable"))

    def chunks(self, size: int, show_progress_bar: bool) -> Iterator[Tensor]:
        """Yield the queries in order of search, int64 of shape ``(at most size,)`` each."""
        with tqdm(total=len(self.order), desc="Mining", unit="query", disable=not show_progress_bar) as progress:
            start = 0
            while start < len(self.order):
                stop = min(start + size, len(self.order))
                # Depth grows along the order: a query with thousands of positives goes alone, not with 511 others.
                hits = (self.depth + self.extra)[self.order[start:stop]] * np.arange(1, stop - start + 1)
                stop = start + max(1, int(np.searchsorted(hits, _MAX_HITS, side="right")))
                yield torch.from_numpy(self.order[start:stop])
                progress.update(stop - start)
                start = stop

    def deepest(self, query_ids: Tensor) -> int:
        """Return how many places have to be looked at so that no query gets less than its depth."""
        return int((self.depth + self.extra)[query_ids.numpy()].max())

    def beyond(self, query_ids: Tensor, corpus_ids: Tensor, pairs: Pairs, corpus: Corpus) -> Tensor:
        """Tell which places, boolean of shape ``(q, k)``, lie below a query's own depth."""
        counted = torch.arange(corpus_ids.shape[1]).expand(corpus_ids.shape)
        if int(self.extra.max(initial=0)):
            extra = pairs.known.contains(query_ids, corpus_ids) & ~pairs.own_positives.contains(query_ids, corpus_ids)
            extra |= pairs.share_positives(query_ids, corpus_ids, corpus)
            counted = (~extra).long().cumsum(1) - 1
        return counted >= torch.from_numpy(self.depth)[query_ids][:, None]


def _extra_texts(pairs: Pairs, corpus: Corpus) -> Ids:
    """Count, per query, the searched texts that are never its negative and are not one of its positives by id.

    An anchor that shares several positives with the query counts several times: looking too deep changes nothing.
    """
    everything = np.concatenate([corpus.searched, corpus.searched_anchors])
    searched = np.bincount(corpus.identities[everything], minlength=len(corpus))
    if len(corpus.anchor_ids):
        sharing = np.bincount(corpus.identities[pairs.positive_ids], minlength=len(corpus))
        # Where thousands of anchors have one answer, the search among anchors ends early, and corpus texts remain.
        searched += np.minimum(sharing, _MOST_SHARING)
    group, identity = np.divmod(pairs.known.keys.numpy(), len(corpus))
    groups = pairs.known.groups.numpy()
    by_group = np.bincount(group, weights=searched[identity], minlength=int(groups.max(initial=0)) + 1)
    return np.maximum(by_group[groups].astype(np.int64) - pairs.num_positives, 0)
