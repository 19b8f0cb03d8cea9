"""Texts drawn uniformly, whatever they score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from st_hardneg.candidates import RANDOM, Found, is_repeated
from st_hardneg.corpus.texts import Ids
from st_hardneg.mining.sampling import uniform_noise
from st_hardneg.mining.scoring import Scoring
from st_hardneg.sources.protocol import SearchPlan

# A proposal holds this many draws per negative, and at least so many: filters may refuse 19 of 20.
_DRAWS_PER_SLOT = 8
_LEAST_DRAWS = 64

# In the noise, counters stand in for candidates: which text is drawn is what the noise decides. Each kind of draw has
# numbers of its own, below those of `shortfall`, which start at -1.
RANDOM_SOURCE, RANDOM_RATE, RANDOM_RATE_COIN, _SPACE = (-(number << 40) for number in range(1, 5))


@dataclass(frozen=True, eq=False)
class RandomSource:
    """Texts drawn uniformly: first one of the spaces, then one of its texts.

    Args:
        scoring: The queries.
        spaces: Corpus ids of each space, int64.
        num_negatives: How many are wanted.
        seed: The config's seed.
        refresh: How many times the queries were mined before.
        first_counter: Tells the draws of one purpose from those of another.
    """

    scoring: Scoring
    spaces: tuple[Ids, ...]
    num_negatives: int
    seed: int
    refresh: int
    first_counter: int = RANDOM_SOURCE
    is_searched: bool = False

    def propose(self, query_ids: Tensor, plan: SearchPlan | None = None) -> Found:
        """Return texts in the order in which they are drawn, each once."""
        width = max(_LEAST_DRAWS, _DRAWS_PER_SLOT * self.num_negatives)
        counters = self.first_counter - torch.arange(width)
        drawn = self.draw(query_ids, counters)
        identities = torch.from_numpy(self.scoring.corpus.identities)[drawn]
        return Found.unranked(query_ids, drawn.masked_fill(is_repeated(identities), -1), RANDOM)

    def draw(self, query_ids: Tensor, counters: Tensor) -> Tensor:
        """Draw one text per counter, int64 of shape ``(m,)``, for each query; return ids of shape ``(q, m)``."""
        noise = self.noise(query_ids, counters)
        ids = _pick(self.spaces[0], noise)
        if len(self.spaces) > 1:
            which = (self.noise(query_ids, counters + _SPACE) * len(self.spaces)).long()
            for number, space in enumerate(self.spaces[1:], start=1):
                ids = torch.where(which == number, _pick(space, noise), ids)
        return ids

    def noise(self, query_ids: Tensor, counters: Tensor) -> Tensor:
        """Return uniform noise of shape ``(q, m)`` for counters of shape ``(m,)``."""
        draw_keys = torch.from_numpy(self.scoring.pairs.draw_keys)[query_ids]
        return uniform_noise(self.seed, self.refresh, draw_keys, counters.expand(len(query_ids), -1))


def _pick(space: Ids, noise: Tensor) -> Tensor:
    return torch.from_numpy(space)[(noise * len(space)).long()]
