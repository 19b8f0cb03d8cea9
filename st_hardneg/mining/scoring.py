"""The score of any query with any corpus text, and how a query's positives score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from st_hardneg.candidates import Candidates
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.encoders.vectors import Vectors
from st_hardneg.mining.rescoring import PairScores

# A block of a product of all texts with all holds at most this many floats (64 MB).
_MAX_FLOATS = 16_000_000


@dataclass(frozen=True, eq=False)
class Scoring:
    """Scores as the rules see them: the model's similarity, or a cross encoder's score where there is one.

    Args:
        vectors: Vectors of queries and corpus.
        pairs: The queries and their positives.
        corpus: The corpus.
        rescore: A cross encoder's scores of queries and texts by number, if there is one.
        with_positive_similarity: Whether candidates are also compared with the query's positives.
        is_centered: Whether similarities are also counted from chance.
        rescore_known: Whether the cross encoder also scores candidates that can never be a negative.
        guide: Another model's vectors of the same texts, which may veto a candidate.
    """

    vectors: Vectors
    pairs: Pairs
    corpus: Corpus
    rescore: PairScores | None = None
    with_positive_similarity: bool = False
    is_centered: bool = False
    rescore_known: bool = False
    guide: Vectors | None = None

    @cached_property
    def row_similarities(self) -> Tensor:
        """float32 of shape ``(num_rows,)``: the model's similarity of each row's anchor and positive."""
        return self._of_rows(self.vectors)

    @cached_property
    def row_cross_encoder_scores(self) -> Tensor | None:
        """float32 of shape ``(num_rows,)``: the cross encoder's score of each row; None without one."""
        if self.rescore is None:
            return None
        return self.rescore(torch.from_numpy(self.pairs.row_query), torch.from_numpy(self.pairs.row_positive))

    @property
    def row_scores(self) -> Tensor:
        """float32 of shape ``(num_rows,)``: the scores that margins are measured from."""
        rescored = self.row_cross_encoder_scores
        if rescored is not None:
            return rescored
        return self.per_unit(torch.from_numpy(self.pairs.row_query), self.row_similarities)

    @cached_property
    def units(self) -> Tensor | None:
        """float32 of shape ``(num_queries,)``: what a similarity is divided by to be a score; None for one.

        A MaxSim is a sum over the tokens of the query. Bounds and margins mean the same for short and long queries if
        they go by the mean.
        """
        return getattr(self.vectors.queries, "units", None)

    @property
    def is_mean(self) -> bool:
        """Whether scores are means where similarities are sums."""
        return self.units is not None and self.rescore is None

    def per_unit(self, query_ids: Tensor, similarities: Tensor) -> Tensor:
        """Return similarities of queries, int64 of shape ``(q,)``, as scores, both of shape ``(q,)`` or ``(q, k)``."""
        if self.units is None:
            return similarities
        return similarities / self.units[query_ids].view(-1, *[1] * (similarities.dim() - 1))

    @cached_property
    def lowest_positive_scores(self) -> Tensor:
        """float32 of shape ``(num_queries,)``."""
        return self._lowest(self.row_scores)

    @cached_property
    def lowest_positive_similarities(self) -> Tensor:
        """float32 of shape ``(num_queries,)``."""
        return self._lowest(self.row_similarities)

    @cached_property
    def _lowest_guide_scores(self) -> Tensor:
        assert self.guide is not None
        return self._lowest(self._of_rows(self.guide))

    def _of_rows(self, vectors: Vectors) -> Tensor:
        queries, positives = torch.from_numpy(self.pairs.row_query), torch.from_numpy(self.pairs.row_positive)
        return vectors.similarity_of_pairs(queries, positives[:, None]).squeeze(1)

    def _lowest(self, of_rows: Tensor) -> Tensor:
        """Return the lowest of each query's positives; queries that are the same text share theirs."""
        groups = torch.from_numpy(self.pairs.group)
        lowest = torch.full((int(groups.max()) + 1 if len(groups) else 0,), torch.inf)
        lowest.scatter_reduce_(0, groups[torch.from_numpy(self.pairs.row_query)], of_rows, "amin")
        return lowest[groups]

    def candidates(
        self,
        query_ids: Tensor,
        corpus_ids: Tensor,
        *,
        sources: Tensor,
        ranks: Tensor,
        similarities: Tensor | None = None,
        source_scores: Tensor | None = None,
        keeps_order: bool = True,
    ) -> Candidates:
        """Score some texts of each query; with a cross encoder, best first unless the order is to be kept.

        Args:
            query_ids: int64 of shape ``(q,)``.
            corpus_ids: int64 of shape ``(q, k)``; -1 for none.
            sources: int8 of shape ``(q, k)``.
            ranks: int64 of shape ``(q, k)``.
            similarities: float32 of shape ``(q, k)``, if they are known.
            source_scores: float32 of shape ``(q, k)``, if there are some.
            keeps_order: Whether a cross encoder leaves the order as it is.
        """
        if similarities is None:
            similarities = self.vectors.similarity_of_pairs(query_ids, corpus_ids)
        if source_scores is None:
            source_scores = torch.full(corpus_ids.shape, torch.nan)
        candidates = Candidates(
            query_ids,
            corpus_ids,
            similarities,
            self.per_unit(query_ids, similarities),
            ranks,
            self.lowest_positive_scores[query_ids],
            self.lowest_positive_similarities[query_ids],
            sources,
            source_scores,
            units=None if self.units is None else self.units[query_ids],
        )
        if self.rescore is not None:
            candidates = self._rescored(candidates, self.rescore, keeps_order=keeps_order)
        if self.is_centered:
            candidates = replace(candidates, chance=self.chance_of_queries[query_ids])
        if self.with_positive_similarity:
            similarity, closeness = self._to_positives(candidates)
            candidates = replace(candidates, positive_similarity=similarity, positive_closeness=closeness)
        if self.guide is not None:
            guided = self.guide.similarity_of_pairs(query_ids, candidates.corpus_ids)
            candidates = replace(candidates, guide_gap=guided - self._lowest_guide_scores[query_ids][:, None])
        return candidates

    def _rescored(self, found: Candidates, rescore: PairScores, *, keeps_order: bool) -> Candidates:
        # What can never be a negative is not worth a forward pass.
        wanted = found.is_present
        if not self.rescore_known:
            wanted = wanted & ~self.pairs.known.contains(found.query_ids, found.corpus_ids)
        rows, places = wanted.nonzero(as_tuple=True)
        scores = found.similarities.clone()
        scores[rows, places] = rescore(found.query_ids[rows], found.corpus_ids[rows, places])
        rescored = replace(found, scores=scores, is_rescored=True)
        return rescored if keeps_order else rescored.best_first()

    @cached_property
    def chance_of_queries(self) -> Tensor:
        """float32 of shape ``(num_queries,)``: the mean similarity of each query and random texts."""
        return self.vectors.chance(self.vectors.queries)

    @cached_property
    def _chance_of_positives(self) -> Tensor:
        """float32, in the order of ``pairs.positive_ids``; zeros where similarities are not counted from chance."""
        if not self.is_centered:
            return torch.zeros(len(self.pairs.positive_ids))
        return self.vectors.chance(self.vectors.of_texts(self.pairs.positive_ids))

    def _to_positives(self, found: Candidates) -> tuple[Tensor, Tensor]:
        """Return how similar each candidate is to the nearest of its query's positives, plainly and above chance.

        Where few texts are candidates of many queries, all of them are compared with all positives in one product, which
        is many times as fast as going pair by pair; where candidates hardly overlap, it would be wasted on pairs that
        nobody asked for.
        """
        offsets = torch.from_numpy(self.pairs.positive_offsets)
        groups, group_of_row = torch.from_numpy(self.pairs.group)[found.query_ids].unique(return_inverse=True)
        counts = offsets[groups + 1] - offsets[groups]
        texts, place = found.corpus_ids.unique(return_inverse=True)
        num_pairs = int(counts[group_of_row].sum()) * found.corpus_ids.shape[1]
        if int(counts.sum()) * len(texts) > self.vectors.worth_a_product(found.corpus_ids) * num_pairs:
            return self._pair_by_pair(found, offsets[groups][group_of_row], counts[group_of_row])
        # All positives of these groups, one group after the other. Thousands of spellings of one query are one group, so
        # that their thousands of positives are looked at once.
        first = counts.cumsum(0) - counts
        positives = torch.arange(int(counts.sum())) + (offsets[groups] - first).repeat_interleave(counts)
        ids, chance = torch.from_numpy(self.pairs.positive_ids)[positives], self._chance_of_positives[positives]
        nearest, closest = torch.empty((2, *place.shape))
        step = max(1, _MAX_FLOATS // max(1, len(positives)))
        for start in range(0, len(texts), step):
            similarity = self.vectors.similarity_of_all(ids, texts[start : start + step])
            rows, columns = ((place >= start) & (place < start + step)).nonzero(as_tuple=True)
            of_groups = _OfGroups(similarity, chance, first, counts)
            nearest[rows, columns], closest[rows, columns] = of_groups.at(
                group_of_row[rows], place[rows, columns] - start
            )
        return nearest, closest

    def _pair_by_pair(self, found: Candidates, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Compare each query's candidates with its own positives, of which ``count`` start at ``first``."""
        nearest, closest = torch.full((2, *found.corpus_ids.shape), -torch.inf)
        ids = torch.from_numpy(self.pairs.positive_ids)
        # The i-th positive of every query that has so many: a query with 200 does not inflate the others.
        for i in range(int(count.max()) if len(count) else 0):
            has = (count > i).nonzero().flatten()
            places = first[has] + i
            similarity = self.vectors.similarity_among_texts(ids[places], found.corpus_ids[has])
            nearest[has] = torch.maximum(nearest[has], similarity)
            closest[has] = torch.maximum(closest[has], similarity - self._chance_of_positives[places][:, None])
        return nearest, closest


class _OfGroups:
    """Similarities of groups of positives, one after the other, and of texts.

    Args:
        similarity: float32 of shape ``(p, c)``.
        chance: float32 of shape ``(p,)``: what each positive's similarities are counted from.
        first: int64 of shape ``(g,)``: the first positive of each group.
        counts: int64 of shape ``(g,)``: how many it has.
    """

    def __init__(self, similarity: Tensor, chance: Tensor, first: Tensor, counts: Tensor) -> None:
        self._similarity, self._chance, self._first, self._counts = similarity, chance, first, counts

    def at(self, groups: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return the highest of each group, plainly and above chance; all of shape ``(m,)``.

        Most groups have one positive, whose entries are read where they are: no copy of the whole product.
        """
        rows = self._first[groups]
        nearest = self._similarity[rows, columns]
        closest = nearest - self._chance[rows]
        has_several = self._counts > 1
        places = has_several[groups].nonzero().flatten()
        if len(places):
            number, columns = (has_several.cumsum(0) - 1)[groups[places]], columns[places]
            highest, above_chance = self._of_several(has_several.nonzero().flatten())
            nearest[places], closest[places] = highest[number, columns], above_chance[number, columns]
        return nearest, closest

    def _of_several(self, groups: Tensor) -> Tensor:
        """Return the highest of groups of several, plainly and above chance, float32 of shape ``(2, m, c)``."""
        highest = torch.empty((2, len(groups), self._similarity.shape[1]))
        for number, group in enumerate(groups.tolist()):
            own = slice(int(self._first[group]), int(self._first[group] + self._counts[group]))
            torch.amax(self._similarity[own], dim=0, out=highest[0, number])
            torch.amax(self._similarity[own] - self._chance[own, None], dim=0, out=highest[1, number])
        return highest
