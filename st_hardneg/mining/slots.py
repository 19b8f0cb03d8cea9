"""What happens to slots for which the search found nothing.

A filtered text, the anchor, a positive or a duplicate of either is never put into a slot to fill it. The one exception
is counted: where a live view needs the row complete, an earlier negative that a filter would remove today may stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from st_hardneg.candidates import RANDOM as FROM_RANDOM
from st_hardneg.candidates import Found, Negatives, find_in_row, is_repeated
from st_hardneg.config import MiningConfig
from st_hardneg.errors import MiningError
from st_hardneg.mining.filters import ExtraFilter, keep_masks
from st_hardneg.mining.sampling import uniform_noise
from st_hardneg.mining.scoring import Scoring

EMPTY, MINED, CARRIED_OVER, RANDOM, REPEATED, LAST_RESORT = range(6)
"""How a slot was filled."""

# Each round draws this many texts per slot; a filter that lets 1 in 20 pass is still served in 8 rounds.
_DRAWS_PER_SLOT = 8
_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Previous:
    """What the queries had before.

    Args:
        corpus_ids: int64 of shape ``(num_queries, num_negatives)``; -1 where empty.
        must_fill: Boolean of shape ``(num_queries,)``: True where a live view needs every slot.
        sources: int8 of the same shape as ``corpus_ids``: where each came from.
        source_scores: float32 of that shape: the source's own score.
        steps: int64 of that shape: the training step at which each was mined, -1 before training.
        first_similarities: float32 of that shape: the model's similarity at that time.
    """

    corpus_ids: Tensor
    must_fill: Tensor
    sources: Tensor
    source_scores: Tensor
    steps: Tensor
    first_similarities: Tensor


def fill(
    negatives: Negatives,
    scoring: Scoring,
    config: MiningConfig,
    extra_filters: Mapping[str, ExtraFilter] | None,
    refresh: int,
    previous: Previous | None,
) -> tuple[Negatives, Tensor]:
    """Fill empty slots: first with earlier negatives that still pass, then as ``config.shortfall`` says.

    Returns:
        The negatives, and how each slot was filled: int8 of shape ``(num_queries, num_negatives)``.

    Raises:
        MiningError: If slots stay empty and ``config.shortfall`` is ``"error"``.
    """
    filled = negatives.clone()
    # What has no source yet was kept from before by the rule of replacement.
    found = torch.where(negatives.sources >= 0, MINED, CARRIED_OVER)
    origin = torch.where(negatives.is_present, found, EMPTY).to(torch.int8)
    for query_ids in _lacking(negatives).split(config.query_chunk_size):
        some, how = _fill_some(filled.of(query_ids), query_ids, scoring, config, extra_filters, refresh, previous)
        origin[query_ids] = torch.where(origin[query_ids] == EMPTY, how, origin[query_ids])
        filled.put(query_ids, some)
    if config.shortfall == "error" and len(lacking := _lacking(filled)):
        empty = int((~filled.is_present).sum())
        example = scoring.pairs.anchors.take(scoring.pairs.first_row[lacking[:1].numpy()])[0]
        raise MiningError(
            f'Expected `num_negatives={config.num_negatives}` negatives for every query (`shortfall="error"`), got '
            f"too few for {len(lacking):,} of {scoring.pairs.num_queries:,} queries ({empty:,} empty slots), such as "
            f"{example[:60]!r}. Raise `range_max`, loosen a filter, or choose another `shortfall`."
        )
    return filled, origin


def _fill_some(
    negatives: Negatives,
    query_ids: Tensor,
    scoring: Scoring,
    config: MiningConfig,
    extra_filters: Mapping[str, ExtraFilter] | None,
    refresh: int,
    previous: Previous | None,
) -> tuple[Negatives, Tensor]:
    """Fill the slots of some queries; return them and how each slot that was empty was filled, int8."""
    how = torch.zeros(negatives.corpus_ids.shape, dtype=torch.int8)

    def passing(corpus_ids: Tensor, source: int = -1) -> Negatives:
        return passing_only(Found.unranked(query_ids, corpus_ids, source), scoring, config, extra_filters)

    def note(filled: Negatives, origin: int) -> Negatives:
        how[filled.is_present & ~negatives.is_present & (how == EMPTY)] = origin
        return filled

    result = negatives
    if previous is not None:
        earlier = passing(previous.corpus_ids[query_ids])
        result = note(filled_with_other_texts(result, earlier, scoring), CARRIED_OVER)
    if config.shortfall == "random":
        for attempt in range(_ROUNDS):
            if bool(result.is_present.all()):
                break
            drawn = passing(_draw(query_ids, scoring, config, refresh, attempt), FROM_RANDOM)
            result = note(filled_with_other_texts(result, drawn, scoring), RANDOM)
    if previous is not None:
        # With "repeat", a single negative is enough.
        has_none = ~result.is_present.any(dim=1, keepdim=True) if config.shortfall == "repeat" else True
        needed = previous.must_fill[query_ids][:, None] & has_none
        wanted = Found.unranked(query_ids, previous.corpus_ids[query_ids].masked_fill(~needed, -1))
        candidates = scoring.candidates(wanted)
        as_they_are = candidates.where(candidates.is_present)
        result = note(filled_with_other_texts(result, as_they_are, scoring), LAST_RESORT)
        if bool((previous.must_fill[query_ids][:, None] & ~result.is_present).any()):
            # An earlier mining repeated texts; a live view needs the slots all the same.
            result = note(_repeated(result, needed=previous.must_fill[query_ids]), REPEATED)
    if config.shortfall == "repeat":
        result = note(_repeated(result), REPEATED)
    return result, how


def with_history(
    negatives: Negatives, previous: Previous | None, step: int, chunk_size: int
) -> tuple[Negatives, Tensor, Tensor]:
    """Give negatives that were there before their source, step and first similarity back.

    Args:
        negatives: All queries' negatives; those without a source are from before.
        previous: What the queries had before.
        step: The step of those that are new.
        chunk_size: Queries compared at once.

    Returns:
        The negatives, and of the shape ``(num_queries, num_negatives)`` the steps, int64, and the similarities at which
        they were mined, float32.
    """
    steps = torch.full(negatives.corpus_ids.shape, step).masked_fill(~negatives.is_present, -1)
    first = negatives.similarities.clone()
    from_before = negatives.is_present & (negatives.sources < 0)
    if previous is None or not bool(from_before.any()):
        return negatives, steps, first
    negatives = negatives.clone()
    for rows in from_before.any(dim=1).nonzero().flatten().split(chunk_size):
        is_earlier, place = earlier_places(negatives.of(rows), previous.corpus_ids[rows])
        is_earlier = is_earlier & from_before[rows]
        for ours, theirs in (
            (negatives.sources, previous.sources),
            (negatives.source_scores, previous.source_scores),
            (steps, previous.steps),
            (first, previous.first_similarities),
        ):
            ours[rows] = torch.where(is_earlier, theirs[rows].gather(1, place), ours[rows])
    return negatives, steps, first


def earlier_places(negatives: Negatives, earlier_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return which negatives, of shape ``(q, n)``, were there earlier, and at which place of ``(q, m)``."""
    return find_in_row(negatives.corpus_ids, earlier_ids)


def passing_only(
    found: Found, scoring: Scoring, config: MiningConfig, extra_filters: Mapping[str, ExtraFilter] | None
) -> Negatives:
    """Return those of some texts that pass today's filters."""
    candidates = scoring.candidates(found)
    masks = keep_masks(candidates, scoring.pairs, scoring.corpus, config, extra_filters)
    return candidates.where(torch.stack(list(masks.values())).all(dim=0) & candidates.is_present)


def filled_with_other_texts(negatives: Negatives, others: Negatives, scoring: Scoring) -> Negatives:
    """Fill empty slots with texts that are not the same as one that is there, under whatever number."""
    return negatives.filled_with(
        different_texts(others, scoring).only(~is_same_text(others.corpus_ids, negatives.corpus_ids, scoring))
    )


def different_texts(negatives: Negatives, scoring: Scoring) -> Negatives:
    """Keep the first of each text in a row."""
    identities = torch.from_numpy(scoring.corpus.identities)[negatives.corpus_ids.clamp(min=0)]
    return negatives.only(~is_repeated(identities.masked_fill(~negatives.is_present, -1)))


def is_same_text(corpus_ids: Tensor, others: Tensor, scoring: Scoring) -> Tensor:
    """Tell which texts, of shape ``(q, k)``, are the same text as one of others, of shape ``(q, m)``."""
    identities = torch.from_numpy(scoring.corpus.identities)
    ours = identities[corpus_ids.clamp(min=0)].masked_fill(corpus_ids < 0, -1)
    theirs = identities[others.clamp(min=0)].masked_fill(others < 0, -2)
    return find_in_row(ours, theirs)[0]


def _lacking(negatives: Negatives) -> Tensor:
    return (~negatives.is_present).any(dim=1).nonzero().flatten()


def _draw(query_ids: Tensor, scoring: Scoring, config: MiningConfig, refresh: int, attempt: int) -> Tensor:
    searched = torch.from_numpy(scoring.corpus.searched)
    width = config.num_negatives * _DRAWS_PER_SLOT
    # A counter stands in for the candidate: which text is drawn is what the noise decides here.
    counter = (-1 - attempt * width - torch.arange(width)).expand(len(query_ids), width)
    draw_keys = torch.from_numpy(scoring.pairs.draw_keys)[query_ids]
    noise = uniform_noise(config.seed, refresh, draw_keys, counter)
    return searched[(noise * len(searched)).long()]


def _repeated(negatives: Negatives, needed: Tensor | None = None) -> Negatives:
    """Fill empty slots with the query's own negatives, in turn; only those of some queries, boolean ``(q,)``, if given."""
    count = negatives.is_present.sum(dim=1, keepdim=True)
    slot = torch.arange(negatives.corpus_ids.shape[1]).expand(negatives.corpus_ids.shape)
    if needed is not None:
        count = torch.where(needed[:, None], count, slot.shape[1])
    return negatives.at(torch.where(count > 0, slot % count.clamp(min=1), -1))
