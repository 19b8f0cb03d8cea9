"""The nearest texts by the model's similarity: among the corpus, among a part of it, or in two spaces at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from st_hardneg.candidates import is_repeated
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.vectors import Vectors
from st_hardneg.search import Searcher, checked_search
from st_hardneg.sources.protocol import Plan, Proposal, Queries


@dataclass(frozen=True, eq=False)
class Space:
    """Texts that one searcher has indexed.

    Args:
        searcher: A searcher that has indexed the texts' vectors.
        corpus_ids: int64 of shape ``(num_indexed,)``: which texts they are.
        source: What negatives from here are said to come from.
    """

    searcher: Searcher
    corpus_ids: Ids
    source: int

    def search(self, query_embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return corpus ids and similarities, of shape ``(q, k)``, with -1 and -inf where there are fewer."""
        places, similarities = checked_search(self.searcher, query_embeddings, k, len(self.corpus_ids))
        return torch.from_numpy(self.corpus_ids)[places.clamp(min=0)].masked_fill(places < 0, -1), similarities


@dataclass(frozen=True, eq=False)
class DenseSource:
    """The texts of the highest similarity, out of one space or of several together.

    With two spaces, corpus texts and anchors, this is the search for the nearer of two points that the first description
    of dual-space mining made with ball trees, for k hits: what is the query's own text, its positives or a duplicate of
    either is left to the rules, which look further down instead of stopping at a fixed k. Ties go to the anchors.

    Args:
        vectors: Vectors of queries and texts.
        spaces: Where to search; of equally near texts, the one of the later space comes first.
        identities: int64 of shape ``(num_corpus,)``: the text identity of every corpus id.
    """

    vectors: Vectors
    spaces: tuple[Space, ...]
    identities: Tensor

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return the nearest texts of each query, down to the plan's depth."""
        found = [space.search(queries.embeddings, min(plan.depth, len(space.corpus_ids))) for space in self.spaces]
        if len(found) == 1:
            corpus_ids, similarities = found[0]
            sources = torch.full(corpus_ids.shape, self.spaces[0].source, dtype=torch.int8)
        else:
            corpus_ids, similarities, sources = self._merged(queries.ids, [ids for ids, _ in found])
        return Proposal(corpus_ids, None, similarities, sources)

    def _merged(self, query_ids: Tensor, found: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Merge what several spaces returned by similarity, each text once."""
        order = range(len(self.spaces) - 1, -1, -1)
        corpus_ids = torch.cat([found[number] for number in order], dim=1)
        sources = torch.cat(
            [torch.full(found[number].shape, self.spaces[number].source, dtype=torch.int8) for number in order], dim=1
        )
        # Compared pair by pair, so that a tie between two spaces is one: a searcher's blocks may round differently.
        similarities = self.vectors.similarity_of_pairs(query_ids, corpus_ids)
        by_score = similarities.argsort(dim=1, descending=True, stable=True)
        corpus_ids, sources = corpus_ids.gather(1, by_score), sources.gather(1, by_score)
        again = is_repeated(self.identities[corpus_ids.clamp(min=0)].masked_fill(corpus_ids < 0, -1))
        # A text of both spaces keeps its better place; what follows moves up.
        moved = again.long().argsort(dim=1, stable=True)
        return (
            corpus_ids.masked_fill(again, -1).gather(1, moved),
            similarities.gather(1, by_score).masked_fill(again, -torch.inf).gather(1, moved),
            sources.gather(1, moved),
        )
