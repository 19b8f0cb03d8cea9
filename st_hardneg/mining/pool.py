"""The candidate pool: what sources found, measured once, and a mining's scores and proposals out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from st_hardneg.candidates import Candidates, Pool, PoolPart, find_in_row
from st_hardneg.config import MiningConfig
from st_hardneg.errors import MiningError
from st_hardneg.mining.filters import compares_positives, has_adaptive_bounds
from st_hardneg.mining.scoring import Scoring
from st_hardneg.mining.task import Task
from st_hardneg.sources.protocol import Plan, Proposal, Queries, Source
from st_hardneg.sources.written import GivenSource, WrittenSource
from st_hardneg.strategies import Distance

FIXED = (
    "search_spaces",
    "query_prompt_name",
    "query_prompt",
    "corpus_prompt_name",
    "corpus_prompt",
    "identity",
)
"""Fields of the recipe that decide what is searched, and how; candidates that are kept cannot follow a change of them."""

_FACTS = (
    "similarities",
    "source_scores",
    "cross_encoder_scores",
    "positive_similarity",
    "positive_closeness",
    "guide_gap",
)


def gather(
    chunks: Iterator[Queries],
    scoring: Scoring,
    sources: Mapping[str, Source],
    names: tuple[str, ...],
    config: MiningConfig,
) -> dict[str, PoolPart]:
    """Ask every source for as many candidates as are kept, and measure all that a rule may ask.

    Args:
        chunks: The queries, as they are numbered.
        scoring: Scores of queries and texts.
        sources: The sources by name; random ones are left out.
        names: What the numbers of sources stand for.
        config: The recipe.
    """
    assert config.keep_candidates is not None
    wanted = Plan(config.keep_candidates, config.num_negatives, config.seed, 0)
    parts: dict[str, list[PoolPart]] = {name: [] for name in sources if name != "random"}
    for queries in chunks:
        for name, found in parts.items():
            found.append(_measured(sources[name].propose(queries, wanted), queries, scoring, names.index(name), wanted))
    return {name: _joined(found) for name, found in parts.items()}


def _measured(proposal: Any, queries: Queries, scoring: Scoring, code: int, wanted: Plan) -> PoolPart:
    assert isinstance(proposal, Proposal) and isinstance(proposal.ids, Tensor)
    width = wanted.depth if proposal.is_ranked else proposal.ids.shape[1]
    ids, similarities = proposal.ids[:, :width], proposal.similarities
    sources = torch.full(ids.shape, code, dtype=torch.int8) if proposal.sources is None else proposal.sources[:, :width]
    own = None if proposal.scores is None else torch.as_tensor(proposal.scores)[:, :width]
    found = scoring.candidates(
        queries.ids,
        ids,
        sources=sources.masked_fill(ids < 0, -1),
        ranks=torch.full_like(ids, -1),
        similarities=None if similarities is None else similarities[:, :width],
        source_scores=own,
        keeps_order=True,
    )
    return PoolPart(
        ids,
        found.similarities.masked_fill(ids < 0, -torch.inf),
        found.sources,
        found.source_scores,
        found.scores if found.is_rescored else None,
        found.positive_similarity,
        found.positive_closeness,
        found.guide_gap,
        proposal.is_ranked,
        proposal.keeps_order,
        similarities is not None,
    )


def _joined(parts: list[PoolPart]) -> PoolPart:
    """Put parts of other queries below each other."""
    width = max(part.ids.shape[1] for part in parts)
    joined: dict[str, Any] = {}
    for name in ("ids", "sources", *_FACTS):
        values = [getattr(part, name) for part in parts]
        missing = {"ids": -1, "sources": -1, "source_scores": torch.nan}.get(name, -torch.inf)
        joined[name] = None if values[0] is None else torch.cat([_padded(value, width, missing) for value in values])
    return replace(parts[0], **joined)


def _padded(values: Tensor, width: int, missing: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=missing)


@dataclass(frozen=True, eq=False)
class StoredSource:
    """A source's proposals, out of the pool.

    Args:
        part: What it found.
        depth: How deep it was asked.
        num_texts: How many texts there are.
        name: Its name.
    """

    part: PoolPart
    depth: int
    num_texts: int
    name: str

    def propose(self, queries: Queries, plan: Plan) -> Proposal:
        """Return what the source would have proposed.

        Raises:
            MiningError: If a query needs more than is kept.
        """
        ids = self.part.ids[queries.ids]
        if plan.reach is not None and self.part.is_ranked and self.depth < self.num_texts:
            lacks = (plan.reach > self.depth) & ((ids >= 0).sum(dim=1) >= self.depth)
            if bool(lacks.any()):
                most = int(plan.reach.max())
                raise MiningError(
                    f"Expected {most:,} candidates of {self.name!r} for {int(lacks.sum()):,} queries, which this recipe "
                    f"looks at, got {self.depth:,}. Mine with `keep_candidates={most}` or "
                    'more, lower `range_max`, loosen a rule, or leave empty slots with `shortfall="drop"`.'
                )
        part, own = self.part, self.part.source_scores
        width = min(plan.depth, ids.shape[1]) if part.is_ranked else ids.shape[1]
        return Proposal(
            ids[:, :width],
            None if own is None else own[queries.ids, :width],
            part.similarities[queries.ids, :width] if part.is_search else None,
            part.sources[queries.ids, :width],
            part.is_ranked,
            part.keeps_order,
        )


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """What a mining asks of vectors, as far as similarities answer it.

    Args:
        pool: The candidates.
        similarity: Name of the model's similarity.
        look_up: Returns the similarities of some texts of each query.
    """

    pool: Pool
    look_up: Any

    @property
    def similarity(self) -> str:
        """Name of the model's similarity."""
        return self.pool.similarity

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        return self.pool.dim

    def of_queries(self, query_ids: Tensor) -> Tensor:
        """Return no vectors: nothing is searched."""
        return torch.empty((len(query_ids), 0))

    def similarity_of_pairs(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return the model's similarities of some texts of each query, float32 of shape ``(q, k)``."""
        found: Tensor = self.look_up(query_ids, corpus_ids)
        return found

    def distances_of_pairs(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return Euclidean distances of unit vectors, float64 of shape ``(q, k)``, from their cosines."""
        similarities: Tensor = self.look_up(query_ids, corpus_ids)
        return (2.0 - 2.0 * similarities.double().clamp(-1.0, 1.0)).sqrt()

    def are_twins(self, left: Any, right: Any) -> Tensor:
        """Tell of no texts that they have the same vector: similarities to the anchor do not say."""
        return torch.zeros(len(left), dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class StoredScoring(Scoring):
    """Scores out of the pool.

    Args:
        pool: The candidates.
    """

    pool: Pool | None = None

    @classmethod
    def of(cls, pool: Pool, task: Task) -> StoredScoring:
        """Return the scores of a pool."""
        scoring = cls(None, task.pairs, task.corpus, task.cross_encoder, pool=pool)  # type: ignore[arg-type]
        object.__setattr__(scoring, "vectors", StoredVectors(pool, scoring._similarities))
        return scoring

    @cached_property
    def row_similarities(self) -> Tensor:
        """float32 of shape ``(num_rows,)``: the model's similarity of each row's anchor and positive."""
        assert self.pool is not None
        return self.pool.positive_similarities

    @cached_property
    def row_cross_encoder_scores(self) -> Tensor | None:
        """float32 of shape ``(num_rows,)``: the cross encoder's score of each row; None without one."""
        assert self.pool is not None
        return self.pool.positive_cross_encoder_scores

    @cached_property
    def units(self) -> Tensor | None:
        """float32 of shape ``(num_queries,)``: what a similarity is divided by to be a score; None for one."""
        assert self.pool is not None
        return self.pool.units

    @cached_property
    def _facts(self) -> dict[str, Tensor | None]:
        """All parts side by side: each fact of shape ``(num_queries, width)``, and the ids."""
        assert self.pool is not None
        parts = list(self.pool.parts.values())
        beside: dict[str, Tensor | None] = {}
        for name in ("ids", *_FACTS):
            values = [getattr(part, name) for part in parts]
            beside[name] = None if any(value is None for value in values) else torch.cat(values, dim=1)
        return beside

    def _similarities(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        return self._looked_up(query_ids, corpus_ids)["similarities"]

    def _looked_up(self, query_ids: Tensor, corpus_ids: Tensor) -> dict[str, Tensor]:
        """Return the facts of some texts of each query, of shape ``(q, k)``.

        Raises:
            MiningError: If a text is not among the candidates.
        """
        ids = self._facts["ids"]
        assert ids is not None
        found, place = find_in_row(corpus_ids, ids[query_ids])
        if bool((~found & (corpus_ids >= 0)).any()):
            missing = int((~found & (corpus_ids >= 0)).any(dim=1).sum())
            raise MiningError(
                f"Expected all negatives among the candidates that are kept, but for {missing:,} queries too few of them "
                'pass, and other texts have to fill the slots. Leave them empty with `shortfall="drop"`, loosen a rule, '
                "keep more candidates, or mine anew."
            )
        return {
            name: values[query_ids].gather(1, place).masked_fill(~found, -torch.inf)
            for name, values in self._facts.items()
            if values is not None and name != "ids"
        }

    def to_positives(self, query_ids: Tensor, corpus_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return how similar texts of each query are to the nearest of its positives, plainly and above chance.

        Returns:
            Two tensors of shape ``(q, k)``; None if it was not measured when the candidates were found.
        """
        facts = self._looked_up(query_ids, corpus_ids)
        if not {"positive_similarity", "positive_closeness"} <= set(facts):
            return None
        return facts["positive_similarity"], facts["positive_closeness"]

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
        """Score some texts of each query; see :meth:`Scoring.candidates`.

        Raises:
            MiningError: If a text is not among the candidates.
        """
        assert self.pool is not None
        facts = self._looked_up(query_ids, corpus_ids)
        found = Candidates(
            query_ids,
            corpus_ids,
            facts["similarities"],
            facts.get("cross_encoder_scores", self.per_unit(query_ids, facts["similarities"])),
            ranks,
            self.lowest_positive_scores[query_ids],
            self.lowest_positive_similarities[query_ids],
            sources,
            torch.full(corpus_ids.shape, torch.nan) if source_scores is None else source_scores,
            facts.get("positive_similarity"),
            facts.get("positive_closeness"),
            None if self.pool.chance is None else self.pool.chance[query_ids],
            facts.get("guide_gap"),
            is_rescored="cross_encoder_scores" in facts,
            units=None if self.units is None else self.units[query_ids],
        )
        return found if keeps_order or not found.is_rescored else found.best_first()


def check_choice(pool: Pool, task: Task, config: MiningConfig) -> None:
    """Raise unless the candidates that are kept can answer for a recipe.

    Raises:
        ValueError: If it searches something else, or asks what was not measured.
    """
    plain = config.to_dict()
    if changed := [name for name in FIXED if name in pool.mined_with and plain[name] != pool.mined_with[name]]:
        raise ValueError(
            f"The candidates were searched with other values of {changed}, which decide what is found. Mine anew."
        )
    unknown = sorted(set(config.quotas) - set(pool.parts))
    if unknown or config.random_rate:
        what = "`random_rate`" if not unknown else f"the sources {unknown}"
        raise ValueError(
            f"Candidates are kept of the sources {sorted(pool.parts)}, and {what} would need other texts. Mine anew."
        )
    parts = [pool.parts[name] for name in config.quotas]
    measured = {
        "how close they are to right answers": (
            compares_positives(config),
            all(part.positive_similarity is not None for part in parts),
        ),
        "how far the model can be trusted": (has_adaptive_bounds(config), pool.typical_rank is not None),
        "what a cross encoder says": (
            task.cross_encoder is not None,
            all(part.cross_encoder_scores is not None for part in parts),
        ),
        "what a guide says": (task.guide is not None, all(part.guide_gap is not None for part in parts)),
        "distances": (isinstance(config.sampling_strategy, Distance), pool.similarity == "cosine" and pool.dim > 0),
    }
    for what, (is_asked, is_there) in measured.items():
        if is_asked and not is_there:
            raise ValueError(
                f"The recipe asks {what}, which was not measured when these candidates were found. Mine anew."
            )


def stored_sources(pool: Pool, task: Task, config: MiningConfig) -> dict[str, Source]:
    """Return the sources that a recipe names, out of the pool; what the user has given needs none."""
    live: dict[str, Source] = {
        "given": GivenSource(task.pairs, task.corpus),
        "synthetic": WrittenSource(task.pairs, task.corpus),
    }
    num_texts = len(task.corpus)
    return {
        name: live.get(name) or StoredSource(pool.parts[name], pool.depth, num_texts, name) for name in config.quotas
    }
