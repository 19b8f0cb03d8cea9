"""How far a model can be trusted on these data: how many unlabelled texts outrank the right answer.

Near-duplicates of right answers that nobody has labelled score as high as the answers themselves. A model that ranks right
answers first tells them apart by itself, and a guard would only throw away what is worth training on; where right answers
typically rank tenth before training, what outranks them is often right, too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from st_hardneg.corpus.pairs import Pairs
from st_hardneg.mining.scoring import Scoring
from st_hardneg.sources.dense import Space

_SAMPLE = 500
# More texts than these above the right answer say no more.
_MOST = 100
# The rank from which on the guard has its whole strength, and that up to which it has none.
_DOUBTED_RANK, _TRUSTED_RANK = 10.0, 1.5


def sampled_queries(num_queries: int) -> Tensor:
    """Return which queries the typical rank is taken over, int64 of shape ``(at most 500,)``, spread evenly."""
    return torch.linspace(0, num_queries - 1, min(_SAMPLE, num_queries)).round().long()


def typical_rank(scoring: Scoring, space: Space, pairs: Pairs) -> float:
    """Return the typical rank of the lowest right answer among unlabelled texts: the geometric mean over a sample.

    Args:
        scoring: Scores of queries and texts.
        space: The indexed corpus.
        pairs: The queries and what is known to be right for each.

    Returns:
        From 1, where no unlabelled text scores above a right answer, to 101.
    """
    sample = sampled_queries(pairs.num_queries)
    known = int(pairs.num_positives[sample.numpy()].max(initial=0)) + 1
    depth = min(_MOST + min(known, _MOST), len(space.corpus_ids))
    ids, similarities = space.search(scoring.vectors.of_queries(sample), depth)
    above = similarities > scoring.lowest_positive_similarities[sample][:, None]
    outranking = (above & (ids >= 0) & ~pairs.known.contains(sample, ids)).sum(dim=1).clamp(max=_MOST)
    return float(torch.log1p(outranking.double()).mean().exp())


def doubt_of(rank: float) -> float:
    """Return the strength of adaptive bounds, from 0 to 1, for a typical rank of the right answer.

    Example:
        >>> [round(doubt_of(rank), 2) for rank in (1.0, 1.5, 4.0, 10.0, 50.0)]
        [0.0, 0.0, 0.52, 1.0, 1.0]
    """
    span = math.log(_DOUBTED_RANK / _TRUSTED_RANK)
    return min(1.0, max(0.0, math.log(max(rank, 1.0) / _TRUSTED_RANK) / span))
