"""What happens to slots for which the search found nothing.

A filtered text, the anchor, a positive or a duplicate of either is never put into a slot to fill it. The one exception
is counted: where a live view needs the row complete, an earlier negative that a filter would remove today may stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from st_hardneg.candidates import Negatives
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
    names = ("corpus_ids", "scores", "similarities", "ranks")
    filled = Negatives(*(getattr(negatives, name).clone() for name in names))
    origin = torch.where(negatives.is_present, MINED, EMPTY).to(torch.int8)
    for query_ids in _lacking(negatives).split(config.query_chunk_size):
        some, how = _fill_some(filled.of(query_ids), query_ids, scoring, config, extra_filters, refresh, previous)
        origin[query_ids] = torch.where(origin[query_ids] == EMPTY, how, origin[query_ids])
        for name in names:
            getattr(filled, name)[query_ids] = getattr(some, name)
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

    def passing(corpus_ids: Tensor) -> Negatives:
        candidates = scoring.candidates(query_ids, corpus_ids)
        masks = keep_masks(candidates, scoring.pairs, scoring.corpus, config, extra_filters)
        keep = torch.stack(list(masks.values())).all(dim=0) & candidates.is_present
        return candidates.at(torch.arange(keep.shape[1]).expand(keep.shape).masked_fill(~keep, -1))

    def note(filled: Negatives, origin: int) -> Negatives:
        how[filled.is_present & ~negatives.is_present & (how == EMPTY)] = origin
        return filled

    result = negatives
    if previous is not None:
        result = note(result.filled_with(passing(previous.corpus_ids[query_ids])), CARRIED_OVER)
    if config.shortfall == "random":
        for attempt in range(_ROUNDS):
            if bool(result.is_present.all()):
                break
            drawn = passing(_draw(query_ids, scoring, config, refresh, attempt))
            result = note(result.filled_with(drawn), RANDOM)
    elif config.shortfall == "repeat":
        result = note(_repeated(result), REPEATED)
    if previous is not None:
        needed = previous.must_fill[query_ids][:, None]
        earlier = scoring.candidates(query_ids, previous.corpus_ids[query_ids].masked_fill(~needed, -1))
        as_they_are = torch.arange(earlier.corpus_ids.shape[1]).expand(earlier.corpus_ids.shape)
        result = note(result.filled_with(earlier.at(as_they_are)), LAST_RESORT)
    return result, how


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


def _repeated(negatives: Negatives) -> Negatives:
    """Fill empty slots with the query's own negatives, in turn."""
    count = negatives.is_present.sum(dim=1, keepdim=True)
    slot = torch.arange(negatives.corpus_ids.shape[1]).expand(negatives.corpus_ids.shape)
    return negatives.at(torch.where(count > 0, slot % count.clamp(min=1), -1))
