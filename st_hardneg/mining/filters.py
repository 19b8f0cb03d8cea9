"""Rules: pure keep-masks of candidates, in one table from which masks, depth and counts derive.

Every function returns a boolean tensor of shape ``(q, k)``, True where the candidate may stay, and changes nothing. So
their order does not matter, and how much each removes, alone and together with others, can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from st_hardneg.candidates import BUILT_IN_SOURCES, Candidates
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.known import KnownPositives
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.errors import naming
from st_hardneg.strategies import Adaptive

ExtraFilter = Callable[[Candidates, Corpus], Tensor]
"""A filter of the caller's: ``(candidates, corpus) -> boolean (q, k)``, True where a candidate may stay."""

_WRITTEN = torch.tensor([BUILT_IN_SOURCES.index(name) for name in ("synthetic", "given")], dtype=torch.int8)


@dataclass(frozen=True, eq=False)
class Facts:
    """What a rule may look at.

    Args:
        candidates: Candidates of some queries.
        pairs: All queries and what is known to be right for each.
        corpus: The corpus.
        config: The recipe.
        include_positives: Whether known positives may stay (the drop-in's ``include_positives``).
        guide_margin: The guide's margin, or None without a guide.
        doubt: Strength of adaptive bounds, from 0 to 1.
    """

    candidates: Candidates
    pairs: Pairs
    corpus: Corpus
    config: MiningConfig
    include_positives: bool = False
    guide_margin: float | None = None
    doubt: float = 1.0

    @property
    def own_identity(self) -> Tensor:
        """int64 of shape ``(q,)``: the identity of each query's own text in the corpus, or -1."""
        return torch.from_numpy(self.pairs.own_identity)[self.candidates.query_ids]


def keeps_unknown(candidates: Candidates, known: KnownPositives) -> Tensor:
    """Keep what is not known to be a right answer to the query, by id or by text."""
    return ~known.contains(candidates.query_ids, candidates.corpus_ids)


def keeps_other_texts(candidates: Candidates, corpus: Corpus, own_identity: Tensor) -> Tensor:
    """Keep what is not the query's own text.

    Args:
        candidates: Search results.
        corpus: The corpus.
        own_identity: int64 of shape ``(q,)``: the identity of each query's own text in the corpus, or -1.
    """
    identity = torch.from_numpy(corpus.identities)[candidates.corpus_ids.clamp(min=0)]
    return identity != own_identity[:, None]


def keeps_absolute_margin(candidates: Candidates, margin: float) -> Tensor:
    """Keep what scores at least ``margin`` below the query's lowest positive score. Equality stays.

    Source: MarginPos of NV-Retriever (https://huggingface.co/papers/2407.15831), with ST's handling of equality and of
    several positives.
    """
    return candidates.scores + margin <= candidates.positive_scores[:, None]


def keeps_relative_margin(candidates: Candidates, margin: float) -> Tensor:
    """Keep what scores at most ``p - |p| * margin``, where ``p`` is the query's lowest positive score.

    Source: PercPos of NV-Retriever (https://huggingface.co/papers/2407.15831) in ST's form, which is right for
    negative positive scores, too. Equality stays.
    """
    positive = candidates.positive_scores
    return candidates.scores <= (positive - positive.abs() * margin)[:, None]


def keeps_centered_margin(candidates: Candidates, margin: float) -> Tensor:
    """Keep what is at most ``(1 - margin) g`` more similar to the query than chance.

    Chance is the mean similarity of the query and random texts, and ``g`` by how much its lowest positive is above it.
    """
    assert candidates.chance is not None
    gap = (candidates.lowest_positive_similarities - candidates.chance).clamp(min=0.0)
    return candidates.similarities - candidates.chance[:, None] <= (1.0 - margin) * gap[:, None]


def keeps_centered_closeness(candidates: Candidates, ratio: float) -> Tensor:
    """Keep what is at most ``ratio g`` more similar to each of the query's positives than chance, ``g`` as above."""
    assert candidates.chance is not None and candidates.positive_closeness is not None
    gap = candidates.as_of_texts((candidates.lowest_positive_similarities - candidates.chance).clamp(min=0.0))
    return candidates.positive_closeness <= ratio * gap[:, None]


def keeps_max_score(candidates: Candidates, max_score: float) -> Tensor:
    """Keep what scores at most ``max_score``."""
    return candidates.scores <= max_score


def keeps_min_score(candidates: Candidates, min_score: float) -> Tensor:
    """Keep what scores at least ``min_score``."""
    return candidates.scores >= min_score


def keeps_max_positive_similarity(candidates: Candidates, max_similarity: float) -> Tensor:
    """Keep what is at most this similar to each of the query's own positives."""
    assert candidates.positive_similarity is not None
    return candidates.positive_similarity <= max_similarity


def keeps_max_relative_positive_similarity(candidates: Candidates, ratio: float) -> Tensor:
    """Keep what is at most ``p - |p| * (1 - ratio)`` similar to each of the query's own positives.

    ``p`` is the model's similarity of the query and its lowest positive: what stays is further from every right answer
    than ``ratio`` of how close the query itself is to its own.
    """
    assert candidates.positive_similarity is not None
    positive = candidates.as_of_texts(candidates.lowest_positive_similarities)
    return candidates.positive_similarity <= (positive - positive.abs() * (1.0 - ratio))[:, None]


def keeps_guide(candidates: Candidates, margin: float) -> Tensor:
    """Keep what the guide scores at most the query's lowest positive guide score minus ``margin``. Equality stays.

    Source: GISTEmbed, https://huggingface.co/papers/2402.16829, with a margin as Sentence Transformers' losses have it.
    """
    assert candidates.guide_gap is not None
    return candidates.guide_gap <= -margin


def keeps_other_answers(candidates: Candidates, pairs: Pairs, corpus: Corpus) -> Tensor:
    """Keep anchors that have no positive in common with the query: those that do ask the same thing."""
    return ~pairs.share_positives(candidates.query_ids, candidates.corpus_ids, corpus)


def keeps_texts(candidates: Candidates, corpus: Corpus, is_good: Callable[[str], bool]) -> Tensor:
    """Keep the candidates whose text passes ``is_good``; each text is looked at once."""
    unique, place = candidates.corpus_ids.unique(return_inverse=True)
    texts = corpus.texts.take(unique.clamp(min=0).numpy())
    return torch.tensor([is_good(text) for text in texts], dtype=torch.bool)[place]


@dataclass(frozen=True)
class Rule:
    """One reason for which a candidate may not stay.

    Args:
        keeps: From the facts to a boolean mask of shape ``(q, k)``; None where the rule is not in force.
        may_remove_closest: Whether it can remove the closest candidates, so that the search has to look deeper.
        guards: Whether it holds off right answers that nobody has labelled. Texts that were written or given as wrong,
            close to the positive, are not measured by it.
        always: Whether it holds for every text, also for one that stands in because nothing else was found.
        compares_positives: Whether it looks at ``positive_similarity``, which is computed only where a rule does.
    """

    keeps: Callable[[Facts], Tensor | None]
    may_remove_closest: bool = False
    guards: bool = False
    always: bool = False
    compares_positives: bool = False


def _bounded(keeps: Callable[[Candidates, Any], Tensor], field: str) -> Callable[[Facts], Tensor | None]:
    """Return a rule that is in force where a field of the recipe is set."""

    def apply(facts: Facts) -> Tensor | None:
        bound = getattr(facts.config, field)
        return None if bound is None else keeps(facts.candidates, bound)

    return apply


@lru_cache(maxsize=16)
def _strength(bound: Adaptive, doubt: float) -> float:
    return bound.at(doubt)  # once a mining, not once a chunk


def _adaptive(
    plain: Callable[[Candidates, Any], Tensor], centered: Callable[[Candidates, Any], Tensor], field: str
) -> Callable[[Facts], Tensor | None]:
    """Return a rule whose field holds a number, or an :class:`~st_hardneg.strategies.Adaptive` bound."""

    def apply(facts: Facts) -> Tensor | None:
        bound = getattr(facts.config, field)
        if isinstance(bound, Adaptive):
            return centered(facts.candidates, _strength(bound, facts.doubt))
        return None if bound is None else plain(facts.candidates, bound)

    return apply


def _keeps_anchor(facts: Facts) -> Tensor:
    return keeps_other_texts(facts.candidates, facts.corpus, facts.own_identity)


def _keeps_positive(facts: Facts) -> Tensor | None:
    # A query's own text is in `known`, too; each rule counts its own.
    if facts.include_positives:
        return None
    return keeps_unknown(facts.candidates, facts.pairs.known) | ~_keeps_anchor(facts)


def _keeps_shared(facts: Facts) -> Tensor | None:
    if not len(facts.corpus.anchor_ids):
        return None
    return keeps_other_answers(facts.candidates, facts.pairs, facts.corpus) | ~_keeps_anchor(facts)


def _keeps_min_words(facts: Facts) -> Tensor | None:
    if (least := facts.config.min_words) is None:
        return None
    return keeps_texts(facts.candidates, facts.corpus, lambda text: len(text.split()) >= least)


def _keeps_pattern(facts: Facts) -> Tensor | None:
    if facts.config.exclude_pattern is None:
        return None
    pattern = re.compile(facts.config.exclude_pattern)
    return keeps_texts(facts.candidates, facts.corpus, lambda text: pattern.search(text) is None)


def _keeps_guide(facts: Facts) -> Tensor | None:
    return None if facts.guide_margin is None else keeps_guide(facts.candidates, facts.guide_margin)


RULES: dict[str, Rule] = {
    "anchor": Rule(_keeps_anchor, always=True),
    "positive": Rule(_keeps_positive, always=True),
    "absolute_margin": Rule(_bounded(keeps_absolute_margin, "absolute_margin"), may_remove_closest=True, guards=True),
    "relative_margin": Rule(
        _adaptive(keeps_relative_margin, keeps_centered_margin, "relative_margin"), may_remove_closest=True, guards=True
    ),
    "max_score": Rule(_bounded(keeps_max_score, "max_score"), may_remove_closest=True, guards=True),
    "min_score": Rule(_bounded(keeps_min_score, "min_score")),
    "max_positive_similarity": Rule(
        _bounded(keeps_max_positive_similarity, "max_positive_similarity"),
        may_remove_closest=True,
        guards=True,
        compares_positives=True,
    ),
    "max_relative_positive_similarity": Rule(
        _adaptive(keeps_max_relative_positive_similarity, keeps_centered_closeness, "max_relative_positive_similarity"),
        may_remove_closest=True,
        guards=True,
        compares_positives=True,
    ),
    "guide": Rule(_keeps_guide, may_remove_closest=True, guards=True),
    "min_words": Rule(_keeps_min_words, may_remove_closest=True),
    "exclude_pattern": Rule(_keeps_pattern, may_remove_closest=True),
    "shared_positive": Rule(_keeps_shared, always=True),
}
"""The rules of this package by name; a rule that a field of the recipe puts in force has the field's name."""

ADAPTIVE = ("relative_margin", "max_relative_positive_similarity")
"""Rules whose bound may be adaptive."""


def _in_force(config: MiningConfig, *, is_guided: bool) -> set[str]:
    """Return the names of the rules that a recipe puts in force; one without a field of its name always is."""
    in_force = {name for name in RULES if getattr(config, name, ...) is not None}
    return in_force if is_guided else in_force - {"guide"}


def compares_positives(config: MiningConfig) -> bool:
    """Tell whether a rule compares candidates with the query's own positives."""
    return any(RULES[name].compares_positives for name in _in_force(config, is_guided=False))


def has_adaptive_bounds(config: MiningConfig) -> bool:
    """Tell whether a bound of the recipe follows how far the model can be trusted."""
    return any(isinstance(getattr(config, name), Adaptive) for name in ADAPTIVE)


def looks_deep(config: MiningConfig, *, is_guided: bool, is_filtered: bool, is_rescored: bool) -> bool:
    """Tell whether something may remove the closest candidates, so that the search has to look deeper.

    Args:
        config: The recipe.
        is_guided: Whether there is a guide.
        is_filtered: Whether there are filters of the caller's.
        is_rescored: Whether a cross encoder reorders candidates, so that even ``min_score`` may remove the closest.
    """
    in_force = _in_force(config, is_guided=is_guided)
    by_rule = any(RULES[name].may_remove_closest or (is_rescored and name == "min_score") for name in in_force)
    return by_rule or is_filtered


def keep_masks(facts: Facts, extra_filters: Mapping[str, ExtraFilter] | None = None) -> dict[str, Tensor]:
    """Apply every rule that is in force.

    Args:
        facts: The candidates, and what is known of them.
        extra_filters: The caller's own filters by name.

    Returns:
        Rule name to boolean tensor of shape ``(q, k)``, True = may stay.

    Raises:
        ValueError: If one of ``extra_filters`` returns something else than such a tensor.
        MiningError: If one of them raises.
    """
    candidates = facts.candidates
    is_sure = torch.isin(candidates.sources, _WRITTEN)
    if facts.pairs.certain is not None:
        is_sure = is_sure | facts.pairs.certain.contains(candidates.query_ids, candidates.corpus_ids)
    masks: dict[str, Tensor] = {}
    for name, rule in RULES.items():
        mask = rule.keeps(facts)
        if mask is not None:
            masks[name] = mask | is_sure if rule.guards else mask
    for name, extra_filter in (extra_filters or {}).items():
        assert name not in masks, f"two rules are named {name!r}"
        with naming(f"the extra filter {name!r}"):
            mask = extra_filter(candidates, facts.corpus)
        masks[name] = _checked(name, mask, candidates)
    return masks


def _checked(name: str, mask: object, candidates: Candidates) -> Tensor:
    shape = tuple(candidates.corpus_ids.shape)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"Expected the extra filter {name!r} to return a boolean tensor of shape {shape}, True where a candidate "
            f"may stay, got {got}. Compare `candidates.scores` or `candidates.corpus_ids` elementwise, for example."
        )
    return mask.cpu()


class Tally:
    """Counts, chunk by chunk, what the rules remove."""

    def __init__(self) -> None:
        self.num_candidates = 0
        self.num_kept = 0
        self.removed: dict[str, int] = {}
        self.removed_alone: dict[str, int] = {}

    def count(self, candidates: Candidates, masks: Mapping[str, Tensor], keep: Tensor, rows: Tensor) -> None:
        """Add some queries of a chunk.

        Args:
            candidates: Their candidates.
            masks: Each rule's keep-mask.
            keep: All of them together.
            rows: Boolean of shape ``(q,)``: the queries that count.
        """
        present = candidates.is_present & rows[:, None]
        self.num_candidates += int(present.sum())
        self.num_kept += int((keep & present).sum())
        removed_by = torch.zeros(present.shape, dtype=torch.int16)
        for mask in masks.values():
            removed_by += ~mask
        for rule, mask in masks.items():
            removes = ~mask & present
            self.removed[rule] = self.removed.get(rule, 0) + int(removes.sum())
            self.removed_alone[rule] = self.removed_alone.get(rule, 0) + int((removes & (removed_by == 1)).sum())
