"""mine_negatives(): from queries and a corpus to negatives, as one short story."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from st_hardneg import shortfall
from st_hardneg.candidates import Candidates, Negatives
from st_hardneg.config import MiningConfig
from st_hardneg.corpus import Corpus, Ids
from st_hardneg.errors import MiningError
from st_hardneg.filters import ExtraFilter, keep_masks
from st_hardneg.pairs import Pairs
from st_hardneg.report import MiningReport, Tally
from st_hardneg.sampling import choose, uniform_noise, window_of_survivors
from st_hardneg.scoring import Scoring
from st_hardneg.search import Searcher, checked_search
from st_hardneg.shortfall import Previous

# Hits that are searched and filtered at once, whatever the chunk size: 272 bytes each in `semantic_search`.
_MAX_HITS = 500_000


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything a mining run follows besides texts and weights.

    Args:
        config: The caller's recipe.
        extra_filters: The caller's own filters by name.
        include_positives: Let known positives through.
        reserved: int64 of shape ``(num_queries,)``: how many places among what is retrieved are set aside for
            positives; by default each query's number of positives.
        refresh: How many times these queries were mined before; part of every random draw.
    """

    config: MiningConfig
    extra_filters: Mapping[str, ExtraFilter] | None = None
    include_positives: bool = False
    reserved: Ids | None = None
    refresh: int = 0


@dataclass(frozen=True, eq=False)
class Mined:
    """What a mining run found.

    Args:
        negatives: The negatives of every query.
        origin: int8 of shape ``(num_queries, num_negatives)``: how each slot was filled, see
            :mod:`st_hardneg.shortfall`.
        scoring: The scores that the run worked with.
        tally: What the filters removed.
        search_seconds: Seconds spent in the searcher.
    """

    negatives: Negatives
    origin: Tensor
    scoring: Scoring
    tally: Tally
    search_seconds: float


@dataclass(frozen=True, eq=False)
class Mining:
    """The outcome of one mining run, row by row, before or after it is applied.

    Args:
        negative_ids: int64 of shape ``(num_rows, num_negatives)``: corpus ids; -1 where empty.
        negative_scores: float32 of the same shape: the model's similarity of anchor and negative; -inf where empty.
        chosen_by: float32 of the same shape: the scores that filters and order went by, a cross encoder's if there
            is one.
        ranks: int64 of the same shape: place among what the search returned, from 0; -1 where it came otherwise.
        origin: int8 of the same shape: how the slot was filled, see :mod:`st_hardneg.shortfall`.
        positive_scores: float32 of shape ``(num_rows,)``: the model's similarity of anchor and positive.
        report: The report.
    """

    negative_ids: Ids
    negative_scores: npt.NDArray[np.float32]
    chosen_by: npt.NDArray[np.float32]
    ranks: Ids
    origin: npt.NDArray[np.int8]
    positive_scores: npt.NDArray[np.float32]
    report: MiningReport


def mine_negatives(
    scoring: Scoring,
    searcher: Searcher,
    recipe: Recipe,
    *,
    previous: Previous | None = None,
    show_progress_bar: bool = False,
    between_chunks: Callable[[], None] | None = None,
) -> Mined:
    """Search, score, filter and choose, some queries at a time.

    Args:
        scoring: Queries, corpus and their embeddings.
        searcher: A searcher that has indexed the embeddings of the searched corpus texts.
        recipe: What to look for.
        previous: What the queries had before, for slots that cannot be filled otherwise.
        show_progress_bar: Whether to show progress.
        between_chunks: Called after every chunk of queries.

    Raises:
        MiningError: If a query gets too few negatives and ``shortfall="error"``.
    """
    config, pairs, corpus = recipe.config, scoring.pairs, scoring.corpus
    plan = SearchPlan.of(recipe, pairs, corpus, rescored=scoring.cross_encoder is not None)
    tally = Tally()
    chunks: list[Negatives] = []
    search_seconds = 0.0
    for query_ids in plan.chunks(config.query_chunk_size, show_progress_bar):
        started = time.perf_counter()
        found = _retrieve(scoring, searcher, plan, query_ids)
        search_seconds += time.perf_counter() - started
        candidates = scoring.candidates(*found)
        masks = keep_masks(
            candidates, pairs, corpus, config, recipe.extra_filters, include_positives=recipe.include_positives
        )
        keep = torch.stack(list(masks.values())).all(dim=0) & candidates.is_present
        tally.count(candidates, masks, keep)
        chunks.append(_choose(candidates, keep, plan, recipe, pairs))
        if between_chunks is not None:
            between_chunks()

    negatives = plan.in_order(chunks)
    filled, origin = shortfall.fill(negatives, scoring, recipe.config, recipe.extra_filters, recipe.refresh, previous)
    return Mined(filled, origin, scoring, tally, search_seconds)


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """How deep to search for each query, and in which order.

    Queries are searched in order of depth, so that one with 200 positives does not make the search deeper for all.

    Args:
        start: First rank of the window.
        stop: int64 of shape ``(num_queries,)``: the rank after the last.
        depth: int64 of shape ``(num_queries,)``: candidates that are considered, besides those that ``extra`` names.
        extra: int64 of shape ``(num_queries,)``: texts that are never a negative and are not counted in ``depth``: the
            anchor itself and duplicates of positives.
        order: int64 of shape ``(num_queries,)``: the queries in order of search.
    """

    start: int
    stop: Ids
    depth: Ids
    extra: Ids
    order: Ids

    @classmethod
    def of(cls, recipe: Recipe, pairs: Pairs, corpus: Corpus, *, rescored: bool) -> SearchPlan:
        """Plan the search of all queries."""
        config = recipe.config
        reserved = pairs.num_positives if recipe.reserved is None else recipe.reserved
        start, stop_without = config.window(0, rescored=rescored, filtered=bool(recipe.extra_filters))
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

    def in_order(self, chunks: list[Negatives]) -> Negatives:
        """Put the chunks together in the order of the queries."""
        place = torch.from_numpy(np.argsort(self.order, kind="stable"))
        names = ("corpus_ids", "scores", "similarities", "ranks")
        return Negatives(*(torch.cat([getattr(chunk, name) for chunk in chunks])[place] for name in names))


def _extra_texts(pairs: Pairs, corpus: Corpus) -> Ids:
    """Count, per query, the searched texts that are never its negative and are not one of its positives by id."""
    searched = np.bincount(corpus.identities[corpus.searched], minlength=len(corpus))
    known = pairs.known.keys.numpy()
    query, identity = np.divmod(known, len(corpus))
    forbidden = np.bincount(query, weights=searched[identity], minlength=pairs.num_queries).astype(np.int64)
    return np.maximum(forbidden - pairs.num_positives, 0)


def _retrieve(
    scoring: Scoring, searcher: Searcher, plan: SearchPlan, query_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Search; return queries, corpus ids, similarities and ranks, with nothing below the planned depth."""
    corpus, pairs = scoring.corpus, scoring.pairs
    depth = torch.from_numpy(plan.depth)[query_ids]
    deepest = int((plan.depth + plan.extra)[query_ids.numpy()].max())
    width = min(deepest, len(corpus.searched))
    queries = scoring.embeddings.queries[query_ids.to(scoring.embeddings.queries.device)]
    places, similarities = checked_search(searcher, queries, width, len(corpus.searched))
    corpus_ids = torch.from_numpy(corpus.searched)[places.clamp(min=0)].masked_fill(places < 0, -1)
    ranks = torch.arange(width).expand(corpus_ids.shape)
    counted = ranks
    if int(plan.extra.max(initial=0)):
        extra = pairs.known.contains(query_ids, corpus_ids) & ~pairs.own_positives.contains(query_ids, corpus_ids)
        counted = (~extra).long().cumsum(1) - 1
    missing = (counted >= depth[:, None]) | (corpus_ids < 0)
    return (
        query_ids,
        corpus_ids.masked_fill(missing, -1),
        similarities.masked_fill(missing, -torch.inf),
        ranks.masked_fill(missing, -1),
    )


def _choose(candidates: Candidates, keep: Tensor, plan: SearchPlan, recipe: Recipe, pairs: Pairs) -> Negatives:
    config = recipe.config
    stop = torch.from_numpy(plan.stop)[candidates.query_ids]
    if config.rank_window == "raw":
        allowed = keep & (candidates.ranks >= plan.start) & (candidates.ranks < stop[:, None])
    else:
        allowed = window_of_survivors(keep, plan.start, stop)
    noise = None
    if config.sampling_strategy != "top":
        draw_keys = torch.from_numpy(pairs.draw_keys)[candidates.query_ids]
        noise = uniform_noise(config.seed, recipe.refresh, draw_keys, candidates.corpus_ids)
    return candidates.at(choose(allowed, config.num_negatives, config.sampling_strategy, noise))


def require_any(mined: Mined) -> None:
    """Raise if a run found nothing at all.

    Raises:
        MiningError: If no slot holds a negative that passes today's filters; the error says which rule removed most.
    """
    found = (mined.origin != shortfall.EMPTY) & (mined.origin != shortfall.LAST_RESORT)
    if not bool(found.any()):
        raise MiningError(_nothing_found(mined.tally, mined.scoring))


def _nothing_found(tally: Tally, scoring: Scoring) -> str:
    if not tally.num_candidates:
        return f"Expected candidates, got none in a corpus of {len(scoring.corpus)} texts. Give a larger corpus."
    loosened = [rule for rule in tally.removed if rule not in ("anchor", "positive") and tally.removed[rule]]
    worst = max(loosened, key=lambda rule: tally.removed[rule], default=None)
    advice = f"Loosen `{worst}` or give a larger corpus." if worst else "Give a larger corpus."
    counts = ", ".join(f"{rule} {count:,}" for rule, count in tally.removed.items() if count)
    if tally.num_kept:
        return (
            f"Expected at least one negative, got none: {tally.num_kept:,} of {tally.num_candidates:,} candidates pass "
            "the filters, and none of them lies in the rank window. Lower `range_min` or raise `range_max`."
        )
    return (
        f"Expected at least one negative, got none: of {tally.num_candidates:,} candidates for "
        f"{scoring.pairs.num_queries:,} queries, the filters removed all ({counts}). "
        f"{advice}"
    )
