"""Synthetic texts: wrong answers that were written for each positive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import SYNTHETIC, Found, is_repeated
from st_hardneg.mining.sampling import uniform_noise
from st_hardneg.mining.scoring import Scoring
from st_hardneg.sources.protocol import SearchPlan


@dataclass(frozen=True, eq=False)
class WrittenSource:
    """The synthetic texts that were written for the query's own positives, in an order that is drawn anew each time.

    Args:
        scoring: The queries; the corpus knows which text was made from which positive.
        seed: The config's seed.
        refresh: How many times the queries were mined before.
    """

    scoring: Scoring
    seed: int
    refresh: int
    is_searched: bool = False

    def propose(self, query_ids: Tensor, plan: SearchPlan) -> Found:
        """Return all synthetic texts of each query."""
        pairs, corpus = self.scoring.pairs, self.scoring.corpus
        rows = []
        for query in query_ids.tolist():
            positives = pairs.positives_of(query)
            first = np.searchsorted(corpus.synthetic_from, positives, side="left")
            last = np.searchsorted(corpus.synthetic_from, positives, side="right")
            rows.append(np.concatenate([corpus.synthetic_ids[a:b] for a, b in zip(first, last, strict=True)]))
        width = max(1, max((len(row) for row in rows), default=1))
        corpus_ids = torch.full((len(rows), width), -1, dtype=torch.int64)
        for number, row in enumerate(rows):
            corpus_ids[number, : len(row)] = torch.from_numpy(row)
        draw_keys = torch.from_numpy(pairs.draw_keys)[query_ids]
        noise = uniform_noise(self.seed, self.refresh, draw_keys, corpus_ids).masked_fill(corpus_ids < 0, torch.inf)
        corpus_ids = corpus_ids.gather(1, noise.argsort(dim=1, stable=True))
        identities = torch.from_numpy(corpus.identities)[corpus_ids.clamp(min=0)].masked_fill(corpus_ids < 0, -1)
        return Found.unranked(query_ids, corpus_ids.masked_fill(is_repeated(identities), -1), SYNTHETIC)
