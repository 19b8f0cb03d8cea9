"""The nearest texts by the model's similarity: among the corpus, among a part of it, or in two spaces at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from st_hardneg.candidates import is_repeated
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.vectors import Vectors
from st_hardneg.search import Searcher, checked_search
from st_hardneg.sources.protocol import Plan, Proposal, Queries

# Hits that are held for queries that are searched for all at once (1.2 GB), and for some that are searched for ahead.
_MOST_HITS = 100_000_000
_MOST_AHEAD = 500_000


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
    found: dict[str, Tensor] = field(default_factory=dict)
    ahead: list[_Ahead] = field(default_factory=list)

    def prepare(self, queries: Any, order: Tensor, reach: Tensor, least: int = 0) -> None:
        """Search for all queries at once, if the searcher reads the whole corpus each time; or note what comes next.

        Args:
            queries: The vectors of all queries.
            order: int64 of shape ``(num_queries,)``: the queries in the order in which they will be asked for.
            reach: int64 of shape ``(num_queries,)``: how many texts of each, in that order, never fewer than before.
            least: How many texts of each are asked for at least.
        """
        if getattr(self.searcher, "reads_everything", False):
            k = min(max(int(reach[-1]), least), len(self.corpus_ids), max(1, _MOST_HITS // len(queries)))
            self.found["places"], self.found["scores"] = self.searcher.search(queries, k)
        elif isinstance(queries, Tensor) and getattr(self.searcher, "score_function", None) is None:
            # A function of the caller's sees the queries in the chunks that the caller has set.
            at_once = getattr(self.searcher, "queries_at_once", 0)
            self.ahead[:] = [_Ahead(self.searcher, queries, order, reach, at_once)] if at_once else []

    def search(self, query_embeddings: Any, k: int, query_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return corpus ids and similarities, of shape ``(q, k)``, with -1 and -inf where there are fewer.

        Args:
            query_embeddings: The vectors of some queries.
            k: How many.
            query_ids: int64 of shape ``(q,)``: which queries they are, if they were prepared for.
        """
        searcher = self.searcher
        if query_ids is not None and self.found and k <= self.found["places"].shape[1]:
            searcher = _Found(self.found["places"][query_ids, :k], self.found["scores"][query_ids, :k])
        elif query_ids is not None and self.ahead:
            searcher = self.ahead[0].of(query_ids, k) or searcher
        places, similarities = checked_search(searcher, query_embeddings, k, len(self.corpus_ids))
        return torch.from_numpy(self.corpus_ids)[places.clamp(min=0)].masked_fill(places < 0, -1), similarities


class _Ahead:
    """Searches for more queries than are asked for, in the order in which they will be, where few cost as much as many.

    Args:
        searcher: The searcher.
        queries: float of shape ``(num_queries, dim)``.
        order: int64 of shape ``(num_queries,)``: the queries in order.
        reach: int64 of the same shape: how many texts of each will be asked for; it never falls.
        at_once: How many queries to search for.
    """

    def __init__(self, searcher: Searcher, queries: Tensor, order: Tensor, reach: Tensor, at_once: int) -> None:
        self._searcher, self._queries, self._order, self._reach = searcher, queries, order, reach
        self._at_once, self._place = at_once, order.argsort()
        self._start, self._ids, self._scores = 0, torch.empty(0, 0), torch.empty(0, 0)

    def of(self, query_ids: Tensor, k: int) -> _Found | None:
        """Return what was found for a chunk of the order, or None if these queries are none."""
        start, stop = int(self._place[query_ids[0]]) if len(query_ids) else 0, len(query_ids)
        stop += start
        if stop == start or not torch.equal(self._order[start:stop], query_ids):
            return None
        is_there = self._start <= start and stop <= self._start + len(self._ids) and k <= self._ids.shape[1]
        if not is_there:
            size = stop - start
            # Whole chunks, none of which looks deeper than this one.
            most = min(self._at_once, max(1, _MOST_AHEAD // k), int((self._reach[start:] <= k).sum()))
            end = start + max(size, most // size * size)
            rows = self._order[start:end].to(self._queries.device)
            ids, scores = self._searcher.search(self._queries[rows], k)
            self._start, self._ids, self._scores = start, torch.as_tensor(ids), torch.as_tensor(scores)
        rows_there = slice(start - self._start, stop - self._start)
        found = _Found(self._ids[rows_there, :k], self._scores[rows_there, :k])
        if stop >= self._start + len(self._ids):  # nothing of it is asked for again
            self._ids, self._scores = torch.empty(0, 0), torch.empty(0, 0)
        return found


@dataclass(frozen=True, eq=False)
class _Found:
    """What was searched for before, as a searcher."""

    places: Tensor
    scores: Tensor

    def index(self, corpus_embeddings: Any, similarity_fn_name: str) -> None:
        """Do nothing."""

    def search(self, query_embeddings: Any, k: int) -> tuple[Tensor, Tensor]:
        """Return it."""
        return self.places, self.scores


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

    def prepare(self, order: Tensor, reach: Tensor, least: int = 0) -> None:
        """Search for many queries at once, in the order in which they will be asked for; see :meth:`Space.prepare`."""
        for space in self.spaces:
            space.prepare(self.vectors.queries, order, reach.clamp(max=len(space.corpus_ids)), least)

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return the nearest texts of each query, down to the plan's depth."""
        found = [
            space.search(queries.embeddings, min(plan.depth, len(space.corpus_ids)), queries.ids)
            for space in self.spaces
        ]
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


class KeptProposals:
    """What a search has proposed, as long as the vectors stay the same: a frozen model finds the same texts again.

    Args:
        num_queries: How many queries there are; no more are kept.
        deepest: How deep the plan looks; what is searched further down for some queries is not kept.
    """

    def __init__(self, num_queries: int, deepest: int) -> None:
        self._left, self._deepest = num_queries, deepest
        self._kept: dict[tuple[bytes, int], Proposal] = {}

    def of(self, queries: Queries, plan: Plan, propose: Callable[[Queries, Plan], Proposal]) -> Proposal:
        """Return what was proposed for these queries before, or else what is proposed now."""
        if plan.depth > self._deepest:
            return propose(queries, plan)
        key = (hashlib.blake2b(queries.ids.numpy().tobytes(), digest_size=16).digest(), plan.depth)
        if key not in self._kept:
            proposal = propose(queries, plan)
            if len(queries) > self._left:
                return proposal
            self._left -= len(queries)
            self._kept[key] = proposal
        return self._kept[key]


class KeptSource:
    """A dense source of a frozen model: it is made, and its texts are indexed, only when something new is asked for.

    Args:
        make: Makes the source.
        proposals: What it has proposed before.
    """

    def __init__(self, make: Callable[[], DenseSource], proposals: KeptProposals) -> None:
        self._make, self._proposals = make, proposals
        self._plan: tuple[Tensor, Tensor, int] | None = None

    def prepare(self, order: Tensor, reach: Tensor, least: int = 0) -> None:
        """Search for many queries at once, or note that it is to be done once the source is made."""
        self._plan = order, reach, least
        if "source" in self.__dict__:
            self.source.prepare(*self._plan)

    @cached_property
    def source(self) -> DenseSource:
        """The source itself."""
        source = self._make()
        if self._plan is not None:
            source.prepare(*self._plan)
        return source

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return the nearest texts of each query, down to the plan's depth."""
        return self._proposals.of(queries, plan, lambda some, wanted: self.source.propose(some, wanted))
