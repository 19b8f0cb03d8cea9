"""Texts drawn uniformly, whatever they score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from st_hardneg.candidates import is_repeated
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.texts import Ids
from st_hardneg.draws import uniform_noise
from st_hardneg.sources.protocol import Plan, Proposal, Queries

# A proposal holds this many draws per negative, and at least so many: rules may refuse 19 of 20.
_DRAWS_PER_SLOT = 8
_LEAST_DRAWS = 64

# In the noise, counters stand in for candidates: which text is drawn is what the noise decides. Each kind of draw has
# numbers of its own, below those of what fills empty slots, which start at -1.
RANDOM_SOURCE, RANDOM_RATE, RANDOM_RATE_COIN, _SPACE = (-(number << 40) for number in range(1, 5))


@dataclass(frozen=True, eq=False)
class RandomSource:
    """Texts drawn uniformly: first one of the spaces, then one of its texts.

    Args:
        corpus: The corpus.
        spaces: Corpus ids of each space, int64, in draw order.
        first_counter: Tells the draws of one purpose from those of another.
    """

    corpus: Corpus
    spaces: tuple[Ids, ...]
    first_counter: int = RANDOM_SOURCE

    @classmethod
    def over(cls, corpus: Corpus, spaces: tuple[Ids, ...], first_counter: int = RANDOM_SOURCE) -> RandomSource:
        """Return a source over spaces of corpus ids in whatever order."""
        ordered = (corpus.draw_order if space is corpus.searched else corpus.in_draw_order(space) for space in spaces)
        return cls(corpus, tuple(ordered), first_counter)

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return texts in the order in which they are drawn, each once."""
        width = max(_LEAST_DRAWS, _DRAWS_PER_SLOT * plan.num_negatives)
        drawn = self.draw(queries, plan, self.first_counter - torch.arange(width))
        identities = torch.from_numpy(self.corpus.identities)[drawn]
        return Proposal(drawn.masked_fill(is_repeated(identities), -1), is_ranked=False)

    def draw(self, queries: Queries, plan: Plan, counters: Tensor) -> Tensor:
        """Draw one text per counter, int64 of shape ``(m,)``, for each query; return ids of shape ``(q, m)``."""
        noise = noise_of(queries, plan, counters)
        ids = _pick(self.spaces[0], noise)
        if len(self.spaces) > 1:
            which = (noise_of(queries, plan, counters + _SPACE) * len(self.spaces)).long()
            for number, space in enumerate(self.spaces[1:], start=1):
                ids = torch.where(which == number, _pick(space, noise), ids)
        return ids


def noise_of(queries: Queries, plan: Plan, counters: Tensor) -> Tensor:
    """Return uniform noise of shape ``(q, m)`` for counters of shape ``(m,)``."""
    return uniform_noise(plan.seed, plan.refresh, queries.draw_keys, counters.expand(len(queries), -1))


def _pick(space: Ids, noise: Tensor) -> Tensor:
    return torch.from_numpy(space)[(noise * len(space)).long()]
