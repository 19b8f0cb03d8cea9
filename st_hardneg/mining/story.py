"""One mining, some queries at a time: ask the sources, score, judge, choose."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from st_hardneg.candidates import BUILT_IN_SOURCES, MINED, Candidates, Negatives, joined
from st_hardneg.draws import uniform_noise
from st_hardneg.mining.filters import RULES, Tally
from st_hardneg.mining.judge import Judge
from st_hardneg.mining.plan import SearchPlan
from st_hardneg.mining.risk import Suspects
from st_hardneg.mining.sampling import choose, window_of_survivors
from st_hardneg.sources.protocol import Plan, Proposal, Queries, Source
from st_hardneg.strategies import SAMPLING, Window

_DENSE, _ANCHORS, _RANDOM = (BUILT_IN_SOURCES.index(name) for name in ("dense", "anchors", "random"))


@dataclass(eq=False)
class Story:
    """One mining, chunk by chunk.

    Args:
        judge: Scores and rules.
        sources: The sources that the recipe's quotas name.
        source_names: What the numbers of sources stand for.
        plan: How deep to search.
        refresh: How many times the queries were mined before.
        previous: What the queries had before, or None.
        coin: What ``random_rate`` draws from.
        tally: What the rules removed.
        search_seconds: Seconds spent in the sources.
        suspects: What lies closest to right answers.
    """

    judge: Judge
    sources: Mapping[str, Source]
    source_names: tuple[str, ...]
    plan: SearchPlan
    refresh: int
    previous: Negatives | None
    coin: Source | None = None
    tally: Tally = field(default_factory=Tally)
    search_seconds: float = 0.0
    suspects: Suspects = field(default_factory=Suspects.none)

    @cached_property
    def quotas(self) -> dict[str, int]:
        """How many negatives come from which source."""
        return self.judge.config.quotas

    def negatives_of(self, query_ids: Tensor) -> Negatives:
        """Return the negatives of some queries, from every source its quota, no text twice."""
        config = self.judge.config
        queries = self.queries(query_ids)
        kept = None
        if self.previous is not None and config.replacement != "all":
            from st_hardneg.mining.slots import still_hard

            kept = still_hard(self.judge, query_ids, self.previous.rows(query_ids), self._codes)
        if kept is None and len(self.quotas) == 1:
            ((name, quota),) = self.quotas.items()
            return self._from_source(name, quota, queries, Negatives.none(len(query_ids), 0))
        parts = [Negatives.none(len(query_ids), 0) if kept is None else kept]
        for name, quota in self.quotas.items():
            chosen = self._from_source(name, quota, queries, joined(parts, dim=1))
            if kept is not None:
                left = quota - torch.isin(kept.sources, self._codes(name)).sum(dim=1)
                chosen = chosen.only(torch.arange(quota) < left[:, None])
            parts.append(chosen)
        return Negatives.none(len(query_ids), config.num_negatives).filled_with(joined(parts, dim=1))

    def queries(self, query_ids: Tensor) -> Queries:
        """Return some queries as sources see them."""
        scoring = self.judge.scoring
        pairs = scoring.pairs
        return Queries(
            query_ids,
            scoring.vectors.of_queries(query_ids),
            torch.from_numpy(pairs.draw_keys)[query_ids],
            lambda: pairs.anchors.take(pairs.first_row[query_ids.numpy()]),
        )

    def _codes(self, name: str) -> Tensor:
        """Return the numbers of sources that count as one of the quotas'."""
        codes = [self.source_names.index(name)]
        if name == "dense":
            codes.append(_ANCHORS)
            if "random" not in self.quotas:
                codes.append(_RANDOM)
        return torch.tensor(codes, dtype=torch.int8)

    def _from_source(self, name: str, quota: int, queries: Queries, taken: Negatives) -> Negatives:
        """Let one source propose, judge, and choose what is not the same text as what is taken already."""
        chosen = self._search(name, quota, queries, taken, self.plan)
        if name == "dense" and self.coin is not None:
            chosen = self._replaced_at_random(chosen, queries, taken)
        return chosen.said_to_be(MINED)

    def _search(self, name: str, quota: int, queries: Queries, taken: Negatives, plan: SearchPlan) -> Negatives:
        """Look as deep as planned, and deeper for those queries for which too little survives."""
        started = time.perf_counter()
        reach = plan.reach(queries.ids)
        wanted = Plan(int(reach.max()), quota, self.judge.config.seed, self.refresh, reach)
        proposal = self.sources[name].propose(queries, wanted)
        assert isinstance(proposal, Proposal) and isinstance(proposal.ids, Tensor)
        self.search_seconds += time.perf_counter() - started
        # Beside a query that looks deeper, places below a query's own depth may well be empty.
        is_full = (proposal.ids >= 0).sum(dim=1) >= reach
        candidates = self._scored(name, queries, proposal, plan)
        masks, keep = self.judge.masks(candidates)
        unknown = [masks[name] for name, rule in RULES.items() if rule.always and name in masks]
        if (certain := self.judge.scoring.pairs.certain) is not None:  # a person has looked at them
            unknown.append(~certain.contains(candidates.query_ids, candidates.corpus_ids))
        self.suspects = self.suspects.with_those_of(candidates, torch.stack(unknown).all(dim=0))
        allowed = keep & ~self.judge.is_same_text(candidates.corpus_ids, taken.ids) if taken.ids.shape[1] else keep
        chosen = candidates.at(self._choose(candidates, allowed, quota, plan, is_ranked=proposal.is_ranked))
        # Only the model's own search goes on; a search engine may be slow, and has no margin to search up to.
        deeper = plan.deeper() if proposal.similarities is not None and self._goes_on() else None
        lacks = is_full & ~chosen.is_present.all(dim=1) & (deeper is not None)
        self.tally.count(candidates, masks, keep, ~lacks)
        if deeper is not None and bool(lacks.any()):
            rows = lacks.nonzero().flatten()
            some = self.queries(queries.ids[rows])
            chosen.put(rows, self._search(name, quota, some, taken.rows(rows), deeper))
        return chosen

    def _goes_on(self) -> bool:
        """Tell whether the search goes on until enough survive, rather than let empty slots be filled at random."""
        config = self.judge.config
        return config.shortfall == "random" and config.range_max is None and config.rank_window == "survivors"

    def _scored(self, name: str, queries: Queries, proposal: Proposal, plan: SearchPlan) -> Candidates:
        ids = proposal.ids
        assert isinstance(ids, Tensor)
        scoring = self.judge.scoring
        sources = proposal.sources
        if sources is None:
            sources = torch.full(ids.shape, self.source_names.index(name), dtype=torch.int8)
        ranks = torch.arange(ids.shape[1]).expand(ids.shape) if proposal.is_ranked else torch.full_like(ids, -1)
        missing = ids < 0
        if proposal.is_ranked:
            missing = missing | plan.beyond(queries.ids, ids, scoring.pairs, scoring.corpus)
        similarities, own = proposal.similarities, proposal.scores
        return scoring.candidates(
            queries.ids,
            ids.masked_fill(missing, -1),
            sources=sources.masked_fill(missing, -1),
            ranks=ranks.masked_fill(missing, -1),
            similarities=None if similarities is None else similarities.masked_fill(missing, -torch.inf),
            source_scores=None if own is None else torch.as_tensor(own).masked_fill(missing, torch.nan),
            keeps_order=proposal.keeps_order,
        )

    def _choose(self, candidates: Candidates, keep: Tensor, quota: int, plan: SearchPlan, *, is_ranked: bool) -> Tensor:
        config = self.judge.config
        if not is_ranked:
            return choose(keep, quota)
        stop = torch.from_numpy(plan.stop)[candidates.query_ids]
        if config.rank_window == "raw":
            ranks = candidates.ranks
            allowed = keep & (ranks >= plan.start) & (ranks < stop[:, None])
        else:
            ranks = keep.long().cumsum(1) - 1
            allowed = window_of_survivors(keep, plan.start, stop)
        if config.sampling_strategy == "top":
            return choose(allowed, quota)
        scoring, strategy = self.judge.scoring, config.sampling_strategy
        strategy = SAMPLING[strategy]() if isinstance(strategy, str) else strategy
        window = Window(
            candidates.scores,
            candidates.positive_scores,
            ranks,
            lambda: scoring.vectors.distances_of_pairs(candidates.query_ids, candidates.corpus_ids),
            scoring.vectors.dim,
        )
        return choose(allowed, quota, strategy.log_weights(window), self._noise(candidates))

    def _noise(self, candidates: Candidates) -> Tensor:
        scoring = self.judge.scoring
        query_keys = torch.from_numpy(scoring.pairs.draw_keys)[candidates.query_ids]
        candidate_keys = torch.from_numpy(scoring.corpus.draw_keys)[candidates.corpus_ids.clamp(min=0)]
        return uniform_noise(self.judge.config.seed, self.refresh, query_keys, candidate_keys)

    def _replaced_at_random(self, chosen: Negatives, queries: Queries, taken: Negatives) -> Negatives:
        """Replace each negative, with the recipe's probability, by one drawn from the spaces that are searched."""
        from st_hardneg.sources.uniform import RANDOM_RATE_COIN, noise_of

        config, judge = self.judge.config, self.judge
        slots = torch.arange(chosen.ids.shape[1])
        wanted = Plan(0, len(slots), config.seed, self.refresh)
        assert self.coin is not None
        is_replaced = (noise_of(queries, wanted, RANDOM_RATE_COIN - slots) < config.random_rate) & chosen.is_present
        stays = taken.beside(chosen.only(~is_replaced))
        proposal = self.coin.propose(queries, wanted)
        assert isinstance(proposal, Proposal) and isinstance(proposal.ids, Tensor)
        drawn, passes = judge.drawn(queries.ids, proposal.ids, _RANDOM)
        drawn = drawn.only(passes & ~judge.is_same_text(drawn.ids, stays.ids))
        drawn = Negatives.none(len(queries), len(slots)).filled_with(drawn)
        # The first slot that is replaced takes the first draw, and so on; where draws run out, the negative stays, and
        # must not have been drawn for another slot.
        turn = (is_replaced.long().cumsum(1) - 1).clamp(min=0)
        runs_out = (is_replaced & ~drawn.is_present.gather(1, turn)).any(dim=1, keepdim=True)
        drawn = drawn.only(~(runs_out & judge.is_same_text(drawn.ids, chosen.ids)))
        drawn = Negatives.none(len(queries), len(slots)).filled_with(drawn)
        is_replaced = is_replaced & drawn.is_present.gather(1, turn)
        return chosen.beside(drawn).at(torch.where(is_replaced, len(slots) + turn, slots))
