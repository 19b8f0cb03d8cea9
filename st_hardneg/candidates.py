"""The values that flow through a mining: Candidates, the Negatives chosen from them, and the Mining that holds these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from st_hardneg.report import MiningReport

BUILT_IN_SOURCES = ("dense", "anchors", "lexical", "random", "synthetic", "given")
"""Names of the sources of this package. ``"anchors"`` is where a search of both spaces found a negative among the anchors;
``"given"`` are the negatives that the user's own columns hold."""

ORIGINS = ("empty", "mined", "carried over", "random", "repeated", "last resort")
"""How a slot was filled. A last resort is a text that no rule lets through today; losses mask it."""

EMPTY, MINED, CARRIED_OVER, RANDOM, REPEATED, LAST_RESORT = range(len(ORIGINS))


@dataclass(frozen=True)
class Column:
    """What one column of :class:`Negatives` holds; files are written, checked and read by it.

    Args:
        dtype: Type of its tensor.
        missing: What stands in an empty slot.
        names: What its numbers stand for, if they are places in a list of names; -1 is no name.
    """

    dtype: torch.dtype
    missing: float
    names: str | None = None


def _column(dtype: torch.dtype, missing: float, names: str | None = None) -> Any:
    return field(metadata={"column": Column(dtype, missing, names)})


@dataclass(frozen=True, eq=False)
class Negatives:
    """The chosen negatives of some queries, one table; ``q`` queries, ``n`` slots each.

    Args:
        ids: int64 of shape ``(q, n)``: corpus ids; -1 where no negative was found.
        similarities: float32: the model's similarity of query and negative; -inf where empty.
        cross_encoder_scores: float32: the cross encoder's score; NaN where there is none.
        teacher_scores: float32: the teacher's score; NaN where there is none.
        source_scores: float32: the source's own score, such as BM25's; NaN where there is none.
        ranks: int64: the place at which the source returned each, from 0; -1 where it has none.
        sources: int8: where each comes from, as a place in ``Mining.source_names``; -1 where empty.
        origins: int8: how the slot was filled, as a place in :data:`ORIGINS`.
        steps: int64: the training step at which each was mined; -1 before training.
        first_similarities: float32: the model's similarity at that time; -inf where empty.
    """

    ids: Tensor = _column(torch.int64, -1)
    similarities: Tensor = _column(torch.float32, -inf)
    cross_encoder_scores: Tensor = _column(torch.float32, nan)
    teacher_scores: Tensor = _column(torch.float32, nan)
    source_scores: Tensor = _column(torch.float32, nan)
    ranks: Tensor = _column(torch.int64, -1)
    sources: Tensor = _column(torch.int8, -1, names="source_names")
    origins: Tensor = _column(torch.int8, EMPTY, names="ORIGINS")
    steps: Tensor = _column(torch.int64, -1)
    first_similarities: Tensor = _column(torch.float32, -inf)

    @classmethod
    def none(cls, num_queries: int, width: int) -> Negatives:
        """Return empty slots."""
        return cls.of(torch.full((num_queries, width), -1))

    @classmethod
    def of(cls, ids: Tensor, **columns: Tensor) -> Negatives:
        """Return a table of these ids, int64 of shape ``(q, n)``, and columns; the others hold what stands for nothing."""
        blank = {
            name: torch.full(ids.shape, column.missing, dtype=column.dtype)
            for name, column in COLUMNS.items()
            if name != "ids" and name not in columns
        }
        return cls(ids=ids, **{**blank, **columns})

    @property
    def is_present(self) -> Tensor:
        """Boolean tensor of shape ``(q, n)``: True where a slot is filled."""
        return self.ids >= 0

    @property
    def scores(self) -> Tensor:
        """float32 of shape ``(q, n)``: what they were chosen by, the cross encoder's score or else the similarity."""
        return torch.where(self.cross_encoder_scores.isnan(), self.similarities, self.cross_encoder_scores)

    def rows(self, queries: Tensor) -> Negatives:
        """Return the negatives of some of the queries, int64 of shape ``(m,)``."""
        return Negatives(*(getattr(self, name)[queries] for name in COLUMNS))

    def put(self, queries: Tensor, negatives: Negatives) -> None:
        """Write the negatives of some of the queries, int64 of shape ``(m,)``, in place."""
        for name in COLUMNS:
            getattr(self, name)[queries] = getattr(negatives, name)

    def clone(self) -> Negatives:
        """Return a copy that :meth:`put` can write to."""
        return Negatives(*(getattr(self, name).clone() for name in COLUMNS))

    def at(self, places: Tensor) -> Negatives:
        """Return what stands at these places, int64 of shape ``(q, m)``, -1 for nothing."""
        there, missing = places.clamp(min=0), places < 0
        return Negatives(
            *(
                getattr(self, name).gather(1, there).masked_fill(missing, column.missing)
                for name, column in COLUMNS.items()
            )
        )

    def only(self, keep: Tensor) -> Negatives:
        """Empty the slots for which a boolean of shape ``(q, n)`` is False."""
        return self.at(torch.arange(keep.shape[1]).expand(keep.shape).masked_fill(~keep, -1))

    def beside(self, others: Negatives) -> Negatives:
        """Return the slots of both, of shape ``(q, n + m)``."""
        return joined([self, others], dim=1)

    def said_to_be(self, origin: int) -> Negatives:
        """Note how the filled slots were filled."""
        values = {name: getattr(self, name) for name in COLUMNS}
        values["origins"] = torch.where(self.is_present, origin, EMPTY).to(torch.int8)
        return Negatives(**values)

    def stamped(self, step: int) -> Negatives:
        """Note step and similarity of the negatives that are new; those from before keep theirs."""
        is_new = self.is_present & self.first_similarities.isneginf()
        values = {name: getattr(self, name) for name in COLUMNS}
        values["steps"] = torch.where(is_new, step, self.steps)
        values["first_similarities"] = torch.where(is_new, self.similarities, self.first_similarities)
        return Negatives(**values)

    def filled_with(self, others: Negatives) -> Negatives:
        """Put ``others``, of shape ``(q, m)``, into the empty slots, in order, keeping what is there.

        An id that a query already has is not taken a second time.
        """
        both = self.beside(others)
        # Filled slots first, in order, then what is left to take; the width stays. What is there stays, even if twice.
        absent = (both.ids < 0) | is_repeated(both.ids)
        absent[:, : self.ids.shape[1]] = ~self.is_present
        order = absent.long().argsort(dim=1, stable=True)[:, : self.ids.shape[1]]
        return both.at(order.masked_fill(absent.gather(1, order), -1))


COLUMNS: dict[str, Column] = {part.name: part.metadata["column"] for part in fields(Negatives)}
"""The columns of :class:`Negatives`, by name."""


def joined(parts: Sequence[Negatives], dim: int = 0) -> Negatives:
    """Put negatives of other queries below each other (``dim=0``), or more slots beside each other (``dim=1``)."""
    return Negatives(*(torch.cat([getattr(part, name) for part in parts], dim=dim) for name in COLUMNS))


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a source found for some queries, scored, best first; ``q`` queries, ``k`` places each.

    Args:
        query_ids: int64 of shape ``(q,)``.
        corpus_ids: int64 of shape ``(q, k)``; -1 where a source returned less than ``k``.
        similarities: float32 of shape ``(q, k)``: the model's own similarity; -inf where missing.
        scores: float32 of shape ``(q, k)``, by which candidates are filtered and ordered: a cross encoder's score if
            there is one, and else the similarity, per token where it is a sum over a query's tokens; -inf where missing.
        ranks: int64 of shape ``(q, k)``: the place at which the source returned each, from 0; -1 where it has none.
        positive_scores: float32 of shape ``(q,)``: the lowest score among each query's positives.
        lowest_positive_similarities: float32 of shape ``(q,)``: the same by the model's similarity.
        sources: int8 of shape ``(q, k)``: where each comes from, as a place in the names of sources; -1 for none.
        source_scores: float32 of shape ``(q, k)``: the source's own score, BM25 for a lexical one; NaN where there is
            none.
        positive_similarity: float32 of shape ``(q, k)``: how similar each candidate is to the nearest of the query's
            positives, or None where no rule asks.
        positive_closeness: float32 of shape ``(q, k)``: the same above chance, the mean similarity of that positive and
            random texts, or None where no rule asks.
        chance: float32 of shape ``(q,)``: the mean similarity of each query and random texts, or None likewise.
        guide_gap: float32 of shape ``(q, k)``: how far the guide scores each candidate above the query's lowest positive
            guide score, or None where there is no guide.
        is_rescored: Whether ``scores`` are a cross encoder's.
        units: float32 of shape ``(q,)``: how many times a score a similarity of the query is, or None for once. By MaxSim
            a score is the mean over the query's tokens and a similarity is their sum; two texts compare by the mean.
    """

    query_ids: Tensor
    corpus_ids: Tensor
    similarities: Tensor
    scores: Tensor
    ranks: Tensor
    positive_scores: Tensor
    lowest_positive_similarities: Tensor
    sources: Tensor
    source_scores: Tensor
    positive_similarity: Tensor | None = None
    positive_closeness: Tensor | None = None
    chance: Tensor | None = None
    guide_gap: Tensor | None = None
    is_rescored: bool = False
    units: Tensor | None = None

    @property
    def is_present(self) -> Tensor:
        """Boolean tensor of shape ``(q, k)``: True where there is a candidate at all."""
        return self.corpus_ids >= 0

    def as_of_texts(self, similarities: Tensor) -> Tensor:
        """Return similarities of the queries, of shape ``(q,)``, as those of two texts are counted."""
        return similarities if self.units is None else similarities / self.units

    def as_negatives(self) -> Negatives:
        """Return all candidates, at their places."""
        own = {"cross_encoder_scores": self.scores} if self.is_rescored else {}
        return Negatives.of(
            self.corpus_ids,
            similarities=self.similarities,
            ranks=self.ranks,
            sources=self.sources,
            source_scores=self.source_scores,
            **own,
        )

    def best_first(self) -> Candidates:
        """Return the same candidates by their score, ties by the lower id."""
        by_id = self.corpus_ids.argsort(dim=1, stable=True)
        order = by_id.gather(1, self.scores.gather(1, by_id).argsort(dim=1, descending=True, stable=True))
        names = [part.name for part in fields(self)]
        values = {name: getattr(self, name) for name in names}
        moved = {name: value.gather(1, order) for name, value in values.items() if getattr(value, "ndim", 0) == 2}
        return replace(self, **moved)

    def at(self, places: Tensor) -> Negatives:
        """Return what stands at these places, int64 of shape ``(q, n)``, -1 for nothing."""
        return self.as_negatives().at(places)

    def where(self, keep: Tensor) -> Negatives:
        """Return the candidates that a boolean mask of shape ``(q, k)`` keeps, at their places."""
        return self.as_negatives().only(keep)


@dataclass(frozen=True, eq=False)
class PoolPart:
    """What one source found for every query, best first, and all that rules ask of it; ``q`` queries, ``k`` places each.

    What is None was not measured.

    Args:
        ids: int64 of shape ``(q, k)``: corpus ids; -1 where the source has no more.
        similarities: float32 of shape ``(q, k)``: the model's similarity; -inf where missing.
        sources: int8 of shape ``(q, k)``: where each comes from.
        source_scores: float32 of shape ``(q, k)``: the source's own score; NaN where there is none.
        cross_encoder_scores: float32 of shape ``(q, k)``.
        positive_similarity: float32 of shape ``(q, k)``: as in :class:`Candidates`.
        positive_closeness: float32 of shape ``(q, k)``: likewise.
        guide_gap: float32 of shape ``(q, k)``: likewise.
        is_ranked: Whether the order means something.
        keeps_order: Whether a cross encoder's scores leave the order as it is.
        is_search: Whether it was the model's own search, which can look deeper.
    """

    ids: Tensor
    similarities: Tensor
    sources: Tensor
    source_scores: Tensor | None = None
    cross_encoder_scores: Tensor | None = None
    positive_similarity: Tensor | None = None
    positive_closeness: Tensor | None = None
    guide_gap: Tensor | None = None
    is_ranked: bool = True
    keeps_order: bool = False
    is_search: bool = True


@dataclass(frozen=True, eq=False)
class Pool:
    """The candidates of a mining, from which other negatives can be chosen without encoding or searching.

    Args:
        depth: How many are kept for each query and source.
        parts: What each source found, by its name.
        similarity: Name of the model's similarity.
        dim: Dimensions of its vectors; 0 if not known.
        typical_rank: The typical rank of the right answer, or None where it was not measured.
        chance: float32 of shape ``(q,)``: the mean similarity of each query and random texts, or None likewise.
        positive_similarities: float32 of shape ``(num_rows,)``.
        positive_cross_encoder_scores: float32 of shape ``(num_rows,)``, or None.
        mined_with: The recipe that they were searched with, as plain values.
        units: float32 of shape ``(q,)``: what a similarity is divided by to be a score; None for one.
    """

    depth: int
    parts: Mapping[str, PoolPart]
    similarity: str
    dim: int
    typical_rank: float | None
    chance: Tensor | None
    positive_similarities: Tensor
    positive_cross_encoder_scores: Tensor | None
    mined_with: Mapping[str, Any]
    units: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Mining:
    """The outcome of one mining, query by query, before or after it is applied. The next one begins from it.

    Args:
        negatives: The negatives of every query.
        positive_similarities: float32 of shape ``(num_rows,)``: the model's similarity of each row's anchor and positive.
        positive_cross_encoder_scores: float32 of shape ``(num_rows,)``: the cross encoder's, or None without one.
        source_names: What the numbers in ``negatives.sources`` stand for.
        report: The report.
        topics: int32 of shape ``(num_queries,)``: the cluster of each query, if topics were asked for.
        suspects: Query ids, corpus ids and closeness of what lies closest to right answers, each of shape ``(m,)``;
            None if they were not kept, as in files.
        pool: All candidates, if the recipe keeps them.
        positive_teacher_scores: float32 of shape ``(num_rows,)``: the teacher's, or None without one.
    """

    negatives: Negatives
    positive_similarities: Tensor
    positive_cross_encoder_scores: Tensor | None
    source_names: tuple[str, ...]
    report: MiningReport
    topics: Tensor | None = None
    suspects: tuple[Tensor, Tensor, Tensor] | None = None
    pool: Pool | None = None
    positive_teacher_scores: Tensor | None = None

    @property
    def given_scores(self) -> tuple[Tensor, Tensor]:
        """The scores that are given away: the teacher's if there is one, or else those that negatives were chosen by.

        Returns:
            float32 of shape ``(num_rows,)``, of the positives, and of shape ``(num_queries, num_negatives)``.
        """
        if self.positive_teacher_scores is not None:
            return self.positive_teacher_scores, self.negatives.teacher_scores
        rescored = self.positive_cross_encoder_scores
        return self.positive_similarities if rescored is None else rescored, self.negatives.scores

    def recoded(self, names: Sequence[str]) -> Mining:
        """Return the same mining, its sources numbered as places in these names; further ones follow them."""
        if self.source_names == tuple(names):
            return self
        every = [*names, *(name for name in self.source_names if name not in names)]
        codes = torch.tensor([*(every.index(name) for name in self.source_names), -1], dtype=torch.int8)
        values = {name: getattr(self.negatives, name) for name in COLUMNS}
        values["sources"] = codes[self.negatives.sources.long()]
        pool = self.pool
        if pool is not None:
            parts = {name: replace(part, sources=codes[part.sources.long()]) for name, part in pool.parts.items()}
            pool = replace(pool, parts=parts)
        return replace(self, negatives=Negatives(**values), source_names=tuple(every), pool=pool)


def is_repeated(values: Tensor) -> Tensor:
    """Mark, in each row of an int64 tensor of shape ``(q, k)``, what stands further left already; -1 never is."""
    in_order = values.sort(dim=1, stable=True)
    repeats = torch.zeros_like(values, dtype=torch.bool)
    repeats[:, 1:] = (in_order.values[:, 1:] == in_order.values[:, :-1]) & (in_order.values[:, 1:] >= 0)
    return torch.zeros_like(repeats).scatter_(1, in_order.indices, repeats)


def find_in_row(values: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Look each value up among other values of its row.

    Args:
        values: int64 of shape ``(q, k)``; what is below 0 is never found.
        others: int64 of shape ``(q, m)``.

    Returns:
        Whether it is there, boolean, and the place of the first, int64 in ``[0, m)``, both of shape ``(q, k)``.
    """
    if not others.shape[1]:
        return torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values)
    in_order = others.sort(dim=1, stable=True)
    place = torch.searchsorted(in_order.values.contiguous(), values.contiguous()).clamp(max=others.shape[1] - 1)
    found = (in_order.values.gather(1, place) == values) & (values >= 0)
    return found, in_order.indices.gather(1, place)
