"""What happens to slots for which the search found nothing.

A filtered text, the anchor, a positive or a duplicate of either is never put into a slot to fill it. The one exception
is counted: where a live view needs the row complete, an earlier negative that a filter would remove today may stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from st_hardneg.candidates import Candidates, Negatives
from st_hardneg.config import MiningConfig
from st_hardneg.errors import MiningError
from st_hardneg.filters import ExtraFilter, keep_masks
from st_hardneg.sampling import uniform_noise
from st_hardneg.scoring import Scoring

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
    """

    corpus_ids: Tensor
    must_fill: Tensor


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
    origin = torch.where(negatives.is_present, MINED, EMPTY).to(torch.int8)
    lacking = _lacking(negatives)
    if previous is not None and len(lacking):
        kept = scoring.candidates(lacking, previous.corpus_ids[lacking])
        passing = _passing(kept, scoring, config, extra_filters)
        negatives, origin = _put(negatives, origin, lacking, passing, CARRIED_OVER)
    if config.shortfall == "random":
        for attempt in range(_ROUNDS):
            lacking = _lacking(negatives)
            if not len(lacking):
                break
            drawn = _draw(lacking, scoring, config, refresh, attempt)
            passing = _passing(scoring.candidates(lacking, drawn), scoring, config, extra_filters)
            negatives, origin = _put(negatives, origin, lacking, passing, RANDOM)
    elif config.shortfall == "repeat":
        negatives, origin = _repeat(negatives, origin)
    if previous is not None:
        lacking = _lacking(negatives)
        lacking = lacking[previous.must_fill[lacking]]
        kept = scoring.candidates(lacking, previous.corpus_ids[lacking])
        negatives, origin = _put(negatives, origin, lacking, _as_they_are(kept), LAST_RESORT)
    if config.shortfall == "error" and len(lacking := _lacking(negatives)):
        empty = int((~negatives.is_present).sum())
        example = scoring.pairs.anchors.take(scoring.pairs.first_row[lacking[:1].numpy()])[0]
        raise MiningError(
            f'Expected `num_negatives={config.num_negatives}` negatives for every query (`shortfall="error"`), got '
            f"too few for {len(lacking):,} of {scoring.pairs.num_queries:,} queries ({empty:,} empty slots), such as "
            f"{example[:60]!r}. Raise `range_max`, loosen a filter, or choose another `shortfall`."
        )
    return negatives, origin


def _lacking(negatives: Negatives) -> Tensor:
    return (~negatives.is_present).any(dim=1).nonzero().flatten()


def _as_they_are(candidates: Candidates) -> Negatives:
    return Negatives(candidates.corpus_ids, candidates.scores, candidates.similarities, candidates.ranks)


def _passing(
    candidates: Candidates,
    scoring: Scoring,
    config: MiningConfig,
    extra_filters: Mapping[str, ExtraFilter] | None,
) -> Negatives:
    masks = keep_masks(candidates, scoring.pairs, scoring.corpus, config, extra_filters)
    keep = torch.stack(list(masks.values())).all(dim=0) & candidates.is_present
    places = torch.arange(keep.shape[1]).expand(keep.shape).masked_fill(~keep, -1)
    return candidates.at(places)


def _put(
    negatives: Negatives, origin: Tensor, query_ids: Tensor, others: Negatives, how: int
) -> tuple[Negatives, Tensor]:
    names = ("corpus_ids", "scores", "similarities", "ranks")
    some = Negatives(*(getattr(negatives, name)[query_ids] for name in names)).filled_with(others)
    merged = []
    for name in names:
        values = getattr(negatives, name).clone()
        values[query_ids] = getattr(some, name)
        merged.append(values)
    result = Negatives(*merged)
    newly = result.is_present & (origin == EMPTY)
    return result, origin.masked_fill(newly, how)


def _draw(query_ids: Tensor, scoring: Scoring, config: MiningConfig, refresh: int, attempt: int) -> Tensor:
    searched = torch.from_numpy(scoring.corpus.searched)
    width = config.num_negatives * _DRAWS_PER_SLOT
    # A counter stands in for the candidate: which text is drawn is what the noise decides here.
    counter = (-1 - attempt * width - torch.arange(width)).expand(len(query_ids), width)
    noise = uniform_noise(config.seed, refresh, query_ids, counter)
    return searched[(noise * len(searched)).long()]


def _repeat(negatives: Negatives, origin: Tensor) -> tuple[Negatives, Tensor]:
    count = negatives.is_present.sum(dim=1, keepdim=True)
    slot = torch.arange(negatives.corpus_ids.shape[1]).expand(negatives.corpus_ids.shape)
    place = slot % count.clamp(min=1)
    repeated = Negatives(
        *(getattr(negatives, name).gather(1, place) for name in ("corpus_ids", "scores", "similarities", "ranks"))
    )
    newly = repeated.is_present & (origin == EMPTY)
    return repeated, origin.masked_fill(newly, REPEATED)
