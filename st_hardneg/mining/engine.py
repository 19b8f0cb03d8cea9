"""The verb: ``mine(task, encoder, config)``, from texts to negatives. Nothing else composes a mining."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import Mining, Negatives, Pool, joined
from st_hardneg.config import MiningConfig
from st_hardneg.encoders.cached import cached
from st_hardneg.encoders.dense import Encoding, Encodings
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.vectors import Limits, Vectors, embed
from st_hardneg.mining.filters import compares_positives, has_adaptive_bounds, looks_deep
from st_hardneg.mining.judge import Judge
from st_hardneg.mining.plan import SearchPlan
from st_hardneg.mining.pool import StoredScoring, check_choice, gather, stored_sources
from st_hardneg.mining.rescoring import rescorer
from st_hardneg.mining.scoring import Scoring
from st_hardneg.mining.story import Story
from st_hardneg.mining.summary import LEAST_RECALL, Run, require_any, summarize_mining
from st_hardneg.mining.task import Task
from st_hardneg.mining.teacher import taught
from st_hardneg.sources.build import Workshop, build_sources
from st_hardneg.sources.dense import DenseSource, KeptProposals, KeptSource, Space
from st_hardneg.sources.protocol import Source
from st_hardneg.sources.uniform import RANDOM_RATE, RandomSource

logger = logging.getLogger(__name__)


def mine(
    task: Task,
    encoder: Encoder | Pool,
    config: MiningConfig,
    *,
    previous: Mining | None = None,
    refresh: int = 0,
    step: int = -1,
    must_fill: Tensor | None = None,
    keep_vectors: bool = False,
    semi_hard_margin: float = 0.2,
    show_progress_bar: bool = False,
    between_chunks: Callable[[], None] | None = None,
) -> Mining:
    """Find the negatives of every query.

    Args:
        task: What is mined, and with what help.
        encoder: Turns texts into vectors; or the candidates of an earlier mining, to choose from anew.
        config: Which negatives are wanted.
        previous: The mining before this one, for slots that keep their negative or cannot be filled otherwise.
        refresh: How many times these queries were mined before; part of every random draw.
        step: Training step to note for every negative that is found now; -1 before training.
        must_fill: Boolean of shape ``(num_queries,)``: True where a live view needs every slot.
        keep_vectors: Whether the encoder is frozen, so that its vectors are kept for the next mining.
        semi_hard_margin: Margin by which the report tells easy from semi-hard negatives.
        show_progress_bar: Whether to show progress.
        between_chunks: Called after every chunk of queries.

    Raises:
        MiningError: If nothing is found, an embedding is not finite, or a query lacks some and ``shortfall="error"``.
        ValueError: If a source or a filter of the caller's returns something else than it should.
    """
    watch = _Watch()
    if isinstance(encoder, Pool):
        return _again(task, encoder, config, semi_hard_margin, watch)
    stored, limits = _stored(task, encoder, step < 0 or keep_vectors), task.limits("dense" in config.quotas)
    vectors = _vectors(task, stored, keep_vectors, limits, show_progress_bar)
    scoring = _scoring(task, config, vectors, show_progress_bar)
    watch.lap("encoding")
    shop = _shop(task, config, vectors)
    sources = build_sources(shop)
    rank = _rank(task, config, scoring, shop, sources)
    doubt = _doubt(rank, previous) if task.doubt is None else task.doubt
    watch.lap("search")
    coin = RandomSource.over(task.corpus, shop.searched_spaces, RANDOM_RATE) if config.random_rate else None
    story = _story(task, config, scoring, sources, doubt, refresh, previous, coin)
    negatives = _in_chunks(story, task.query_chunk_size, show_progress_bar, between_chunks)
    negatives = _filled(negatives, story, must_fill, task).stamped(step)
    watch.lap("rest", search=story.search_seconds)
    recall = _once(task, vectors, "recall", lambda: _recall(task, shop, sources))
    run = Run(task, config, scoring, story.tally, refresh, step, semi_hard_margin, recall, rank, doubt)
    pool = None if config.keep_candidates is None else _pool(task, config, shop, story, rank)
    watch.lap("search")
    return _told(run, negatives, previous, story, watch, _topics(task, vectors, config.seed), pool)


def _again(task: Task, pool: Pool, config: MiningConfig, semi_hard_margin: float, watch: _Watch) -> Mining:
    """Choose from candidates that are kept, as a first mining would have found them."""
    check_choice(pool, task, config)
    scoring = StoredScoring.of(pool, task)
    rank = pool.typical_rank if has_adaptive_bounds(config) else None
    story = _story(task, config, scoring, stored_sources(pool, task, config), _doubt(rank, None), 0, None, None)
    negatives = _in_chunks(story, task.query_chunk_size, False, None)
    negatives = _filled(negatives, story, None, task).stamped(-1)
    watch.lap("rest", search=story.search_seconds)
    run = Run(task, config, scoring, story.tally, 0, -1, semi_hard_margin, None, rank, story.judge.doubt)
    return _told(run, negatives, None, story, watch, None, pool)


def _told(
    run: Run,
    negatives: Negatives,
    previous: Mining | None,
    story: Story,
    watch: _Watch,
    topics: Tensor | None,
    pool: Pool | None,
) -> Mining:
    negatives, positive_teacher_scores = taught(run.task, negatives)
    return Mining(
        negatives,
        run.scoring.row_similarities,
        run.scoring.row_cross_encoder_scores,
        run.task.source_names,
        summarize_mining(run, negatives, previous, watch.seconds, _pictures(run.task, story, negatives)),
        topics,
        (story.suspects.query_ids, story.suspects.corpus_ids, story.suspects.closeness),
        pool,
        positive_teacher_scores,
    )


def _pool(task: Task, config: MiningConfig, shop: Workshop, story: Story, rank: float | None) -> Pool:
    """Return the candidates, measured for every rule, whether or not the recipe has it."""
    scoring, vectors = story.judge.scoring, story.judge.scoring.vectors
    if rank is None:
        rank = _typical_rank(task, scoring, shop, story.sources)
    every = torch.arange(task.pairs.num_queries).split(task.query_chunk_size)
    parts = gather(map(story.queries, every), scoring, story.sources, task.source_names, config)
    return Pool(
        config.keep_candidates or 0,
        parts,
        vectors.similarity,
        vectors.dim,
        rank,
        scoring.chance_of_queries,
        scoring.row_similarities,
        scoring.row_cross_encoder_scores,
        config.to_dict(),
        scoring.units,
    )


def _pictures(task: Task, story: Story, negatives: Negatives) -> dict[str, Any]:
    if not task.with_pictures:
        return {}
    from st_hardneg.mining.pictures import pictures

    return pictures(story.judge.scoring, negatives, story.suspects, story.tally.removed, story.source_names)


def _stored(task: Task, encoder: Encoder, is_worth_it: bool) -> Encoder:
    # Vectors of a model in training are out of date at once, and not worth it.
    return cached(encoder, task.cache_folder if is_worth_it else None, logger.info)


def _vectors(task: Task, encoder: Encoder, keep: bool, limits: Limits, show_progress_bar: bool) -> Vectors:
    """Return the vectors of all texts; those of a frozen encoder are computed once, as long as it stays the same."""
    fingerprint = encoder.fingerprint() if keep else None
    if fingerprint is not None and task.kept.get("frozen", (None,))[0] == fingerprint:
        kept: Vectors = task.kept["frozen"][1]
        return kept
    searched, bar = task.kept.get("searched vectors"), show_progress_bar
    vectors = embed(task.pairs, task.corpus, encoder, searched=searched, limits=limits, show_progress_bar=bar)
    if fingerprint is not None:
        task.kept["frozen"] = (fingerprint, vectors, {})
    return vectors


def _of_frozen(task: Task, vectors: Vectors) -> dict[str, Any] | None:
    """Return what depends on kept vectors alone, and outlives a mining as they do; None for others."""
    kept = task.kept.get("frozen")
    return None if kept is None or kept[1] is not vectors else kept[2]


def _once(task: Task, vectors: Vectors, name: str, compute: Callable[[], float | None]) -> float | None:
    """Return a figure that depends on vectors alone; that of kept vectors is computed once."""
    frozen = _of_frozen(task, vectors)
    if frozen is None:
        return compute()
    if name not in frozen:
        frozen[name] = compute()
    figure: float | None = frozen[name]
    return figure


class _Watch:
    """Seconds spent, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, **of_others: float) -> None:
        """Note the seconds since the last lap, of which some were spent on other things."""
        now = time.perf_counter()
        for spent_on, seconds in {name: now - self._last - sum(of_others.values()), **of_others}.items():
            self.seconds[spent_on] = self.seconds.get(spent_on, 0.0) + seconds
        self._last = now


def _scoring(task: Task, config: MiningConfig, vectors: Vectors, show_progress_bar: bool) -> Scoring:
    rescore = None
    if task.cross_encoder is not None:
        rescore = rescorer(
            task.cross_encoder,
            task.pairs,
            task.corpus,
            batch_size=task.batch_size,
            pool=task.cross_encoder_pool,
            kept=None if task.is_cross_encoder_trained else task.kept,
        )
    return Scoring(
        vectors,
        task.pairs,
        task.corpus,
        rescore,
        with_positive_similarity=compares_positives(config) or config.keep_candidates is not None,
        is_centered=has_adaptive_bounds(config) or config.keep_candidates is not None,
        rescore_known=task.include_positives,
        guide=_guide_vectors(task, show_progress_bar),
    )


def _rank(
    task: Task, config: MiningConfig, scoring: Scoring, shop: Workshop, sources: dict[str, Source]
) -> float | None:
    """Return the typical rank of the right answer, where a bound follows it."""
    if task.doubt is not None or not has_adaptive_bounds(config):
        return None
    return _typical_rank(task, scoring, shop, sources)


def _typical_rank(task: Task, scoring: Scoring, shop: Workshop, sources: Mapping[str, Source]) -> float:
    from st_hardneg.mining.trust import typical_rank

    def rank() -> float:
        space = _main_space(sources) or shop.space(task.corpus.searched, "dense")
        return typical_rank(scoring, space, task.pairs)

    return float(_once(task, shop.vectors, "rank", rank) or 1.0)


def _main_space(sources: Mapping[str, Source]) -> Space | None:
    """Return the search of the whole corpus, if there is one."""
    source = sources.get("dense")
    source = source.source if isinstance(source, KeptSource) else source
    return source.spaces[0] if isinstance(source, DenseSource) else None


def _doubt(rank: float | None, previous: Mining | None) -> float:
    """Return the strength of adaptive bounds. After an epoch the positives rank first by themselves: it never falls."""
    if rank is None:
        return 1.0
    from st_hardneg.mining.trust import doubt_of

    earlier = 0.0 if previous is None else previous.report.doubt or 0.0
    return max(doubt_of(rank), earlier)


def _guide_vectors(task: Task, show_progress_bar: bool) -> Vectors | None:
    """Return the guide's vectors; they are computed once, as the guide is not trained."""
    if task.guide is None:
        return None
    if "guide" not in task.kept:
        from st_hardneg.encoders import encoder_for

        own = Encodings(Encoding("query", batch_size=task.batch_size), Encoding("document", batch_size=task.batch_size))
        encoder = encoder_for(task.guide.model, own)
        limits = task.limits(is_searched=False)
        task.kept["guide"] = embed(task.pairs, task.corpus, encoder, limits=limits, show_progress_bar=show_progress_bar)
    vectors: Vectors = task.kept["guide"]
    return vectors


def _shop(task: Task, config: MiningConfig, vectors: Vectors) -> Workshop:
    proposals, frozen = None, _of_frozen(task, vectors)
    if frozen is not None:
        plan = _plan(task, config)
        deepest = int((plan.depth + plan.extra).max(initial=config.keep_candidates or 0))
        key = (config.search_spaces, deepest)
        if frozen.get("proposals", (None,))[0] != key:
            frozen["proposals"] = (key, KeptProposals(2 * task.pairs.num_queries, deepest))
        proposals = frozen["proposals"][1]
    return Workshop(
        config,
        task.source_names,
        task.pairs,
        task.corpus,
        vectors,
        task.sources,
        task.make_searcher,
        task.kept,
        proposals,
    )


def _story(
    task: Task,
    config: MiningConfig,
    scoring: Scoring,
    sources: Mapping[str, Source],
    doubt: float,
    refresh: int,
    previous: Mining | None,
    coin: Source | None,
) -> Story:
    names = task.source_names
    margin = None if task.guide is None else task.guide.margin
    judge = Judge(scoring, config, task.extra_filters, task.include_positives, margin, doubt)
    earlier = None if previous is None else previous.recoded(names).negatives
    return Story(judge, sources, names, _plan(task, config), refresh, earlier, coin)


def _plan(task: Task, config: MiningConfig) -> SearchPlan:
    is_deep = looks_deep(
        config,
        is_guided=task.guide is not None,
        is_filtered=bool(task.extra_filters),
        is_rescored=task.cross_encoder is not None,
    )
    most = None if task.cross_encoder is None else task.most_rescored(config)
    return SearchPlan.of(config, task.pairs, task.corpus, is_deep=is_deep, reserved=task.reserved, most=most)


def _prepare(story: Story) -> None:
    """Let a search be asked for many queries at once, or for all of them if it reads the whole corpus each time."""
    started, order = time.perf_counter(), torch.from_numpy(story.plan.order)
    reach, least = story.plan.reach(order), story.judge.config.keep_candidates or 0
    for source in story.sources.values():
        if isinstance(source, (DenseSource, KeptSource)):
            source.prepare(order, reach, least)
    story.search_seconds += time.perf_counter() - started


def _in_chunks(
    story: Story, chunk_size: int, show_progress_bar: bool, between_chunks: Callable[[], None] | None
) -> Negatives:
    """Return the negatives of all queries, as they are numbered."""
    _prepare(story)
    chunks: list[Negatives] = []
    for query_ids in story.plan.chunks(chunk_size, show_progress_bar):
        chunks.append(story.negatives_of(query_ids))
        if between_chunks is not None:
            between_chunks()
    return joined(chunks).rows(torch.from_numpy(np.argsort(story.plan.order, kind="stable")))


def _filled(negatives: Negatives, story: Story, must_fill: Tensor | None, task: Task) -> Negatives:
    """Fill empty slots, and raise if nothing was found for any of them."""
    if not bool(negatives.is_present.all()):
        from st_hardneg.mining.slots import fill

        negatives = fill(
            negatives,
            story.judge,
            refresh=story.refresh,
            previous=story.previous,
            must_fill=must_fill,
            chunk_size=task.query_chunk_size,
        )
    if not task.may_find_nothing:
        require_any(negatives, story.tally, task)
    return negatives


def _recall(task: Task, shop: Workshop, sources: dict[str, Source]) -> float | None:
    """Return the recall of an approximate search of the whole corpus, or None where it is exact."""
    space = _main_space(sources)
    if space is None or getattr(space.searcher, "is_exact", False):
        return None
    searcher = space.searcher
    from st_hardneg.search.recall import sampled_recall

    vectors, searched = shop.vectors, shop.vectors.of_texts(task.corpus.searched)
    recall = sampled_recall(searcher, vectors.queries, searched, vectors.similarity, vectors.score_function)
    if recall < LEAST_RECALL:
        logger.warning(f"The searcher finds {recall:.0%} of the nearest texts; the report says more.")
    return recall


def _topics(task: Task, vectors: Vectors, seed: int) -> Tensor | None:
    if task.num_topics is None:
        return None
    from st_hardneg.mining.topics import cluster

    return torch.from_numpy(cluster(vectors.for_clustering(), task.num_topics, seed=seed))
