"""How deep to search for each query, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids

# Hits that are searched and filtered at once, whatever the chunk size.
_MAX_HITS = 500_000
_MOST_SHARING = 1_000
# A search that goes on until enough candidates survive ends at this depth.
_DEEPEST = 2_048
_DEEPER = 4


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
        cls, config: MiningConfig, pairs: Pairs, corpus: Corpus, *, is_deep: bool, reserved: Ids | None = None
    ) -> SearchPlan:
        """Plan the search of all queries.

        Args:
            config: The recipe.
            pairs: The queries.
            corpus: The corpus.
            is_deep: Whether a rule may remove the closest.
            reserved: int64 of shape ``(num_queries,)``: places among what is retrieved that are set aside for positives;
                each query's number of positives by default.
        """
        reserved = pairs.num_positives if reserved is None else reserved
        start, stop_without = config.window(0, is_deep=is_deep)
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

    def reach(self, query_ids: Tensor) -> Tensor:
        """Return how many places have to be looked at for each query, int64 of shape ``(q,)``."""
        return torch.from_numpy((self.depth + self.extra)[query_ids.numpy()])

    def deepest(self, query_ids: Tensor) -> int:
        """Return how many places have to be looked at so that no query gets less than its depth."""
        return int(self.reach(query_ids).max())

    def deeper(self) -> SearchPlan | None:
        """Return a plan that looks further down, or None where this one looks as far down as is worth it."""
        if int(self.depth.min(initial=_DEEPEST)) >= _DEEPEST:
            return None
        return replace(
            self,
            depth=np.minimum(self.depth * _DEEPER, np.maximum(_DEEPEST, self.depth)),
            stop=np.maximum(self.stop, self.depth * _DEEPER),
        )

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
    num_texts = len(corpus.identities)
    everything = np.concatenate([corpus.searched, corpus.searched_anchors])
    searched = np.bincount(corpus.identities[everything], minlength=num_texts)
    if len(corpus.anchor_ids):
        sharing = np.bincount(corpus.identities[pairs.positive_ids], minlength=num_texts)
        # Where thousands of anchors have one answer, the search among anchors ends early, and corpus texts remain.
        searched += np.minimum(sharing, _MOST_SHARING)
    known = pairs.known
    group, identity = np.divmod(known.keys.numpy(), num_texts)
    groups = known.groups.numpy()
    by_group = np.bincount(group, weights=searched[identity], minlength=int(groups.max(initial=0)) + 1)
    extra = by_group[groups]
    if known.query_clusters is not None and known.text_clusters is not None:
        of_texts, of_queries = known.text_clusters.numpy()[everything], known.query_clusters.numpy()
        sizes = np.bincount(of_texts[of_texts >= 0], minlength=int(of_queries.max(initial=0)) + 1)
        extra = extra + sizes[of_queries]
    return np.maximum(extra.astype(np.int64) - pairs.num_positives, 0)
