"""Texts that are wrong because somebody says so: written for each positive, or given by the user for each query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import is_repeated
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids
from st_hardneg.draws import uniform_noise
from st_hardneg.sources.protocol import Plan, Proposal, Queries


@dataclass(frozen=True, eq=False)
class WrittenSource:
    """The synthetic texts that were written for the query's own positives, in an order that is drawn anew each time.

    Args:
        pairs: The queries and their positives.
        corpus: The corpus, which knows which text was made from which positive.
    """

    pairs: Pairs
    corpus: Corpus

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return all synthetic texts of each query."""
        rows = []
        for query in queries.ids.tolist():
            positives = self.pairs.positives_of(query)
            first = np.searchsorted(self.corpus.synthetic_from, positives, side="left")
            last = np.searchsorted(self.corpus.synthetic_from, positives, side="right")
            rows.append(np.concatenate([self.corpus.synthetic_ids[a:b] for a, b in zip(first, last, strict=True)]))
        return _in_drawn_order(rows, queries, plan, self.corpus)


@dataclass(frozen=True, eq=False)
class GivenSource:
    """The negatives that the user's own columns hold for a query, in an order that is drawn anew each time.

    Args:
        pairs: The queries and their given negatives.
        corpus: The corpus.
    """

    pairs: Pairs
    corpus: Corpus

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return all given negatives of each query."""
        offsets, ids = self.pairs.given_offsets, self.pairs.given_ids
        groups = self.pairs.known.groups[queries.ids].tolist()
        rows = [ids[offsets[group] : offsets[group + 1]] for group in groups]
        return _in_drawn_order(rows, queries, plan, self.corpus)


def _in_drawn_order(rows: list[Ids], queries: Queries, plan: Plan, corpus: Corpus) -> Proposal:
    """Return a proposal of the ids of each row, each text once."""
    width = max(1, max((len(row) for row in rows), default=1))
    corpus_ids: Tensor = torch.full((len(rows), width), -1, dtype=torch.int64)
    for number, row in enumerate(rows):
        corpus_ids[number, : len(row)] = torch.from_numpy(row)
    keys = torch.from_numpy(corpus.draw_keys)[corpus_ids.clamp(min=0)]
    noise = uniform_noise(plan.seed, plan.refresh, queries.draw_keys, keys).masked_fill(corpus_ids < 0, torch.inf)
    corpus_ids = corpus_ids.gather(1, noise.argsort(dim=1, stable=True))
    identities = torch.from_numpy(corpus.identities)[corpus_ids.clamp(min=0)].masked_fill(corpus_ids < 0, -1)
    return Proposal(corpus_ids.masked_fill(is_repeated(identities), -1), is_ranked=False)
