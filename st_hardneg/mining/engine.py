"""mine_negatives(): from queries and a corpus to negatives, as one short story."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from st_hardneg.candidates import ANCHORS, BUILT_IN_SOURCES, RANDOM, Candidates, Found, Negatives, joined
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.texts import Ids
from st_hardneg.errors import MiningError
from st_hardneg.hardness import is_easy_by_now
from st_hardneg.mining import slots as shortfall
from st_hardneg.mining.filters import ExtraFilter, keep_masks
from st_hardneg.mining.sampling import (
    choose,
    distance_log_weights,
    equal_log_weights,
    log_rank_log_weights,
    simans_log_weights,
    softmax_log_weights,
    uniform_noise,
    window_of_survivors,
)
from st_hardneg.mining.scoring import Scoring
from st_hardneg.mining.slots import Previous
from st_hardneg.report import MiningReport, Tally
from st_hardneg.sources import RandomSource, SearchPlan, Source
from st_hardneg.sources.uniform import RANDOM_RATE, RANDOM_RATE_COIN


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
        step: Training step to note for every negative that is mined now; -1 before training.
        random_spaces: Corpus ids, int64, of the spaces from which ``random_rate`` draws; the searched texts by default.
        source_names: What the numbers of sources stand for.
    """

    config: MiningConfig
    extra_filters: Mapping[str, ExtraFilter] | None = None
    include_positives: bool = False
    reserved: Ids | None = None
    refresh: int = 0
    step: int = -1
    random_spaces: tuple[Ids, ...] = ()
    source_names: tuple[str, ...] = BUILT_IN_SOURCES


@dataclass(frozen=True, eq=False)
class Mined:
    """What a mining run found.

    Args:
        negatives: The negatives of every query.
        origin: int8 of shape ``(num_queries, num_negatives)``: how each slot was filled, see
            :mod:`st_hardneg.mining.slots`.
        steps: int64 of the same shape: the training step at which each negative was mined; -1 before training.
        first_similarities: float32 of the same shape: the model's similarity at that time.
        scoring: The scores that the run worked with.
        tally: What the filters removed.
        search_seconds: Seconds spent in the sources.
    """

    negatives: Negatives
    origin: Tensor
    steps: Tensor
    first_similarities: Tensor
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
        origin: int8 of the same shape: how the slot was filled, see :mod:`st_hardneg.mining.slots`.
        sources: int8 of the same shape: where the negative comes from, as a place in the dataset's ``source_names``.
        source_scores: float32 of the same shape: the source's own score (BM25); NaN where there is none.
        steps: int64 of the same shape: the training step at which it was mined; -1 before training.
        first_scores: float32 of the same shape: the model's similarity at that time.
        positive_scores: float32 of shape ``(num_rows,)``: the model's similarity of anchor and positive.
        report: The report.
        topics: int32 of shape ``(num_rows,)``: the cluster of each row's anchor, if the config asks for topics.
    """

    negative_ids: Ids
    negative_scores: npt.NDArray[np.float32]
    chosen_by: npt.NDArray[np.float32]
    ranks: Ids
    origin: npt.NDArray[np.int8]
    sources: npt.NDArray[np.int8]
    source_scores: npt.NDArray[np.float32]
    steps: Ids
    first_scores: npt.NDArray[np.float32]
    positive_scores: npt.NDArray[np.float32]
    report: MiningReport
    topics: npt.NDArray[np.int32] | None = None


def mine_negatives(
    scoring: Scoring,
    sources: Mapping[str, Source],
    recipe: Recipe,
    *,
    previous: Previous | None = None,
    show_progress_bar: bool = False,
    between_chunks: Callable[[], None] | None = None,
) -> Mined:
    """Ask the sources, score, filter and choose, some queries at a time.

    Args:
        scoring: Queries, corpus and their embeddings.
        sources: The sources that the config's quotas name.
        recipe: What to look for.
        previous: What the queries had before, for slots that keep it or cannot be filled otherwise.
        show_progress_bar: Whether to show progress.
        between_chunks: Called after every chunk of queries.

    Raises:
        MiningError: If a query gets too few negatives and ``shortfall="error"``.
    """
    config = recipe.config
    plan = SearchPlan.of(
        config,
        scoring.pairs,
        scoring.corpus,
        reserved=recipe.reserved,
        filtered=bool(recipe.extra_filters) or scoring.guide is not None,
        rescored=scoring.cross_encoder is not None,
    )
    run = _Run(scoring, sources, recipe, plan, previous, Tally())
    chunks: list[Negatives] = []
    for query_ids in plan.chunks(config.query_chunk_size, show_progress_bar):
        chunks.append(run.negatives_of(query_ids))
        if between_chunks is not None:
            between_chunks()
    negatives = joined(chunks).of(torch.from_numpy(np.argsort(plan.order, kind="stable")))
    filled, origin = shortfall.fill(negatives, scoring, config, recipe.extra_filters, recipe.refresh, previous)
    filled, steps, first = shortfall.with_history(filled, previous, recipe.step, config.query_chunk_size)
    return Mined(filled, origin, steps, first, scoring, run.tally, run.search_seconds)


@dataclass(eq=False)
class _Run:
    """One mining run, chunk by chunk."""

    scoring: Scoring
    sources: Mapping[str, Source]
    recipe: Recipe
    plan: SearchPlan
    previous: Previous | None
    tally: Tally
    search_seconds: float = 0.0

    def negatives_of(self, query_ids: Tensor) -> Negatives:
        """Return the negatives of some queries, from every source its quota, no text twice."""
        config = self.recipe.config
        kept = self._kept(query_ids)
        if kept is None and len(config.quotas) == 1:
            ((name, quota),) = config.quotas.items()
            return self._from_source(name, quota, query_ids, Negatives.none(len(query_ids), 0))
        parts = [Negatives.none(len(query_ids), 0) if kept is None else kept]
        for name, quota in config.quotas.items():
            chosen = self._from_source(name, quota, query_ids, joined(parts, dim=1))
            if kept is not None:
                left = quota - self._is_from(name, query_ids, kept).sum(dim=1)
                chosen = chosen.only(torch.arange(quota) < left[:, None])
            parts.append(chosen)
        return Negatives.none(len(query_ids), config.num_negatives).filled_with(joined(parts, dim=1))

    def _from_source(self, name: str, quota: int, query_ids: Tensor, taken: Negatives) -> Negatives:
        """Let one source propose, filter, and choose what is not the same text as what is taken already."""
        source = self.sources[name]
        candidates, keep = self._filtered(source, query_ids)
        if taken.corpus_ids.shape[1]:
            keep = keep & ~shortfall.is_same_text(candidates.corpus_ids, taken.corpus_ids, self.scoring)
        chosen = candidates.at(self._choose(candidates, keep, quota, is_searched=source.is_searched))
        if name == "dense" and self.recipe.config.random_rate:
            chosen = self._replaced_at_random(chosen, query_ids, taken)
        return chosen

    def _filtered(self, source: Source, query_ids: Tensor) -> tuple[Candidates, Tensor]:
        recipe, scoring = self.recipe, self.scoring
        started = time.perf_counter()
        found = source.propose(query_ids, self.plan)
        self.search_seconds += time.perf_counter() - started
        candidates = scoring.candidates(found)
        masks = keep_masks(
            candidates,
            scoring.pairs,
            scoring.corpus,
            recipe.config,
            recipe.extra_filters,
            include_positives=recipe.include_positives,
        )
        keep = torch.stack(list(masks.values())).all(dim=0) & candidates.is_present
        self.tally.count(candidates, masks, keep)
        return candidates, keep

    def _choose(self, candidates: Candidates, keep: Tensor, quota: int, *, is_searched: bool) -> Tensor:
        config = self.recipe.config
        if not is_searched:
            return choose(keep, quota)
        stop = torch.from_numpy(self.plan.stop)[candidates.query_ids]
        if config.rank_window == "raw":
            ranks = candidates.ranks
            allowed = keep & (ranks >= self.plan.start) & (ranks < stop[:, None])
        else:
            ranks = keep.long().cumsum(1) - 1
            allowed = window_of_survivors(keep, self.plan.start, stop)
        if config.sampling_strategy == "top":
            return choose(allowed, quota)
        draw_keys = torch.from_numpy(self.scoring.pairs.draw_keys)[candidates.query_ids]
        noise = uniform_noise(config.seed, self.recipe.refresh, draw_keys, candidates.corpus_ids)
        return choose(allowed, quota, self._log_weights(candidates, ranks), noise)

    def _log_weights(self, candidates: Candidates, ranks: Tensor) -> Tensor:
        config, scores = self.recipe.config, candidates.scores
        if config.sampling_strategy == "softmax":
            return softmax_log_weights(scores, config.softmax_temperature)
        if config.sampling_strategy == "simans":
            return simans_log_weights(scores, candidates.positive_scores, config.simans_a, config.simans_b)
        if config.sampling_strategy == "log_rank":
            return log_rank_log_weights(ranks)
        if config.sampling_strategy == "distance":
            embeddings = self.scoring.embeddings
            distances = embeddings.distances_of_pairs(candidates.query_ids, candidates.corpus_ids)
            return distance_log_weights(distances, config.distance_dim or embeddings.queries.shape[1])
        return equal_log_weights(scores)

    def _replaced_at_random(self, chosen: Negatives, query_ids: Tensor, taken: Negatives) -> Negatives:
        """Replace each negative, with the config's probability, by one drawn from the spaces that are searched."""
        config, recipe = self.recipe.config, self.recipe
        slots = torch.arange(chosen.corpus_ids.shape[1])
        spaces = recipe.random_spaces or (self.scoring.corpus.searched,)
        source = RandomSource(self.scoring, spaces, len(slots), config.seed, recipe.refresh, RANDOM_RATE)
        coins = source.noise(query_ids, RANDOM_RATE_COIN - slots)
        is_replaced = (coins < config.random_rate) & chosen.is_present
        stays = taken.beside(chosen.only(~is_replaced))
        drawn = shortfall.passing_only(source.propose(query_ids), self.scoring, config, recipe.extra_filters)
        drawn = drawn.only(~shortfall.is_same_text(drawn.corpus_ids, stays.corpus_ids, self.scoring))
        drawn = Negatives.none(len(query_ids), len(slots)).filled_with(drawn)
        # The first slot that is replaced takes the first draw, and so on; where draws run out, the negative stays, and
        # must not have been drawn for another slot.
        turn = (is_replaced.long().cumsum(1) - 1).clamp(min=0)
        runs_out = (is_replaced & ~drawn.is_present.gather(1, turn)).any(dim=1, keepdim=True)
        drawn = drawn.only(~(runs_out & shortfall.is_same_text(drawn.corpus_ids, chosen.corpus_ids, self.scoring)))
        drawn = Negatives.none(len(query_ids), len(slots)).filled_with(drawn)
        is_replaced = is_replaced & drawn.is_present.gather(1, turn)
        return chosen.beside(drawn).at(torch.where(is_replaced, len(slots) + turn, slots))

    def _kept(self, query_ids: Tensor) -> Negatives | None:
        """Return the earlier negatives that have not become easy and pass the filters, or None if all are replaced."""
        config, previous = self.recipe.config, self.previous
        if config.replacement == "all" or previous is None:
            return None
        corpus_ids = previous.corpus_ids[query_ids]
        now = self.scoring.embeddings.similarity_of_pairs(query_ids, corpus_ids)
        easy = is_easy_by_now(now, previous.first_similarities[query_ids], config.easy_ratio, config.easy_score)
        earlier = Found.unranked(query_ids, corpus_ids.masked_fill(easy, -1))
        passing = shortfall.passing_only(earlier, self.scoring, config, self.recipe.extra_filters)
        kept = shortfall.different_texts(passing, self.scoring)
        # No source keeps more than its quota of today, which a stage may have changed.
        within = torch.zeros_like(kept.is_present)
        for name, quota in config.quotas.items():
            is_from = self._is_from(name, query_ids, kept)
            within |= is_from & (is_from.long().cumsum(1) <= quota)
        return kept.only(within)

    def _is_from(self, name: str, query_ids: Tensor, kept: Negatives) -> Tensor:
        """Tell which of the kept negatives, of shape ``(q, n)``, came from a source."""
        assert self.previous is not None
        _, place = shortfall.earlier_places(kept, self.previous.corpus_ids[query_ids])
        sources = self.previous.sources[query_ids].gather(1, place)
        return torch.isin(sources, torch.tensor(self._codes_of(name), dtype=torch.int8)) & kept.is_present

    def _codes_of(self, name: str) -> list[int]:
        codes = [self.recipe.source_names.index(name)]
        if name == "dense":
            codes.append(ANCHORS)
            if "random" not in self.recipe.config.quotas:
                codes.append(RANDOM)
        return codes


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
