"""An old negative's fate, and how a slot is filled for which the search found nothing: all of it in this room.

The anchor, a known positive, or a duplicate of either is never put into a slot. What a rule removes today stays or stands
in only as a last resort: where a row has to be complete and nothing else is there. It is counted, and losses mask it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from st_hardneg.candidates import BUILT_IN_SOURCES, CARRIED_OVER, LAST_RESORT, RANDOM, REPEATED, Negatives
from st_hardneg.draws import uniform_noise
from st_hardneg.errors import MiningError
from st_hardneg.mining.judge import Judge

# Each round draws this many texts per slot; a rule that lets 1 in 20 pass is still served in 8 rounds.
_DRAWS_PER_SLOT = 8
_ROUNDS = 8
_RANDOM_SOURCE = BUILT_IN_SOURCES.index("random")


def still_hard(judge: Judge, query_ids: Tensor, earlier: Negatives, codes_of: Callable[[str], Tensor]) -> Negatives:
    """Return the earlier negatives that the recipe's rule of replacement keeps and that pass today's rules.

    Args:
        judge: Scores and rules.
        query_ids: int64 of shape ``(q,)``.
        earlier: The queries' earlier negatives.
        codes_of: Returns the numbers of sources that count as one of the quotas'.
    """
    now, passes = judge.today(query_ids, earlier)
    is_easy = judge.config.replacement.is_easy(now.similarities, now.first_similarities)
    kept = judge.different_texts(now.only(passes & ~is_easy)).said_to_be(CARRIED_OVER)
    # No source keeps more than its quota of today, which a stage may have changed.
    within = torch.zeros_like(kept.is_present)
    for name, quota in judge.config.quotas.items():
        is_from = torch.isin(kept.sources, codes_of(name)) & kept.is_present
        within |= is_from & (is_from.long().cumsum(1) <= quota)
    return kept.only(within)


def fill(
    negatives: Negatives,
    judge: Judge,
    *,
    refresh: int,
    previous: Negatives | None,
    must_fill: Tensor | None,
    chunk_size: int,
) -> Negatives:
    """Fill empty slots: first with earlier negatives that still pass, then as ``config.shortfall`` says.

    Args:
        negatives: What the search found.
        judge: Scores and rules.
        refresh: How many times the queries were mined before.
        previous: What the queries had before, or None.
        must_fill: Boolean of shape ``(num_queries,)``: True where a live view needs every slot.
        chunk_size: Queries filled at once.

    Raises:
        MiningError: If slots stay empty and ``config.shortfall`` is ``"error"``.
    """
    lacking = _lacking(negatives)
    if not len(lacking):
        return negatives
    filled = negatives.clone()
    for query_ids in lacking.split(chunk_size):
        needed = torch.zeros(len(query_ids), dtype=torch.bool) if must_fill is None else must_fill[query_ids]
        earlier = None if previous is None else previous.rows(query_ids)
        filled.put(query_ids, _Filling(judge, query_ids, needed, refresh).of(filled.rows(query_ids), earlier))
    config = judge.config
    if config.shortfall == "error" and len(lacking := _lacking(filled)):
        pairs = judge.scoring.pairs
        example = pairs.anchors.take(pairs.first_row[lacking[:1].numpy()])[0]
        raise MiningError(
            f'Expected `num_negatives={config.num_negatives}` negatives for every query (`shortfall="error"`), got '
            f"too few for {len(lacking):,} of {pairs.num_queries:,} queries ({int((~filled.is_present).sum()):,} empty "
            f"slots), such as {example[:60]!r}. Raise `range_max`, loosen a rule, or choose another `shortfall`."
        )
    return filled


class _Filling:
    """Fills the slots of some queries."""

    def __init__(self, judge: Judge, query_ids: Tensor, needed: Tensor, refresh: int) -> None:
        self.judge, self.query_ids, self.refresh = judge, query_ids, refresh
        self.needed = needed[:, None]

    def of(self, result: Negatives, earlier: Negatives | None) -> Negatives:
        """Return the negatives with as many slots filled as can be."""
        shortfall = self.judge.config.shortfall
        now = passes = None
        if earlier is not None:
            now, passes = self.judge.today(self.query_ids, earlier)
            result = self.judge.filled(result, now.only(passes).said_to_be(CARRIED_OVER))
        if shortfall == "random":
            result = self._with_draws(result)
        if now is not None and not bool(result.is_present.all()):
            # With "repeat", a single negative is enough.
            has_none = ~result.is_present.any(dim=1, keepdim=True) if shortfall == "repeat" else True
            old = now.only(self.needed & has_none & now.is_present)
            result = self.judge.filled(result, old.said_to_be(LAST_RESORT))
        if shortfall == "random":
            result = self._with_least_similar(result)
            result = _repeated(result, LAST_RESORT)
        # An earlier mining repeated texts; a live view needs the slots all the same.
        result = _repeated(result, REPEATED, only=self.needed)
        return _repeated(result, REPEATED) if shortfall == "repeat" else result

    def _with_draws(self, result: Negatives) -> Negatives:
        for attempt in range(_ROUNDS):
            if bool(result.is_present.all()):
                break
            drawn, passes = self.judge.drawn(self.query_ids, self._draw(attempt), _RANDOM_SOURCE)
            result = self.judge.filled(result, drawn.only(passes).said_to_be(RANDOM))
        return result

    def _with_least_similar(self, result: Negatives) -> Negatives:
        """Where no text that is drawn passes, let the least similar of them stand in."""
        rows = _lacking(result)
        if not len(rows):
            return result
        some = _Filling(self.judge, self.query_ids[rows], self.needed[rows, 0], self.refresh)
        drawn, _ = self.judge.drawn(some.query_ids, some._draw(0), _RANDOM_SOURCE)
        drawn = drawn.only(self.judge.is_never_right(some.query_ids, drawn.ids))
        least_first = drawn.similarities.masked_fill(~drawn.is_present, torch.inf).argsort(dim=1, stable=True)
        result = result.clone()
        result.put(rows, self.judge.filled(result.rows(rows), drawn.at(least_first).said_to_be(LAST_RESORT)))
        return result

    def _draw(self, attempt: int) -> Tensor:
        scoring, config = self.judge.scoring, self.judge.config
        searched = torch.from_numpy(scoring.corpus.draw_order)
        width = config.num_negatives * _DRAWS_PER_SLOT
        # A counter stands in for the candidate: which text is drawn is what the noise decides here.
        counter = (-1 - attempt * width - torch.arange(width)).expand(len(self.query_ids), width)
        query_keys = torch.from_numpy(scoring.pairs.draw_keys)[self.query_ids]
        noise = uniform_noise(config.seed, self.refresh, query_keys, counter)
        return searched[(noise * len(searched)).long()]


def _lacking(negatives: Negatives) -> Tensor:
    return (~negatives.is_present).any(dim=1).nonzero().flatten()


def _repeated(negatives: Negatives, origin: int, only: Tensor | None = None) -> Negatives:
    """Fill empty slots with the query's own negatives, in turn; if given, only of some queries, boolean ``(q, 1)``."""
    count = negatives.is_present.sum(dim=1, keepdim=True)
    slot = torch.arange(negatives.ids.shape[1]).expand(negatives.ids.shape)
    if only is not None:
        count = torch.where(only, count, slot.shape[1])
    # Where slots are empty, the filled ones stand first.
    repeated = negatives.at(torch.where(count > 0, slot % count.clamp(min=1), -1))
    origins = torch.where(repeated.is_present & ~negatives.is_present, origin, repeated.origins.long()).to(torch.int8)
    return replace(repeated, origins=origins)
