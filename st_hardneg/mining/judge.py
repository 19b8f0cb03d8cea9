"""Which texts may be a negative of which query today: scores and rules together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from st_hardneg.candidates import COLUMNS, Candidates, Negatives, find_in_row, is_repeated
from st_hardneg.config import MiningConfig
from st_hardneg.mining.filters import RULES, ExtraFilter, Facts, keep_masks
from st_hardneg.mining.scoring import Scoring


@dataclass(frozen=True, eq=False)
class Judge:
    """Applies the rules of a recipe.

    Args:
        scoring: Scores of queries and texts.
        config: The recipe.
        extra_filters: The caller's own filters by name.
        include_positives: Let known positives through.
        guide_margin: The guide's margin, or None without a guide.
        doubt: Strength of adaptive bounds, from 0 to 1.
    """

    scoring: Scoring
    config: MiningConfig
    extra_filters: Mapping[str, ExtraFilter] = field(default_factory=dict)
    include_positives: bool = False
    guide_margin: float | None = None
    doubt: float = 1.0

    def masks(self, candidates: Candidates) -> tuple[dict[str, Tensor], Tensor]:
        """Return the keep-mask of every rule, and all of them together, boolean of shape ``(q, k)``."""
        facts = Facts(
            candidates,
            self.scoring.pairs,
            self.scoring.corpus,
            self.config,
            self.include_positives,
            self.guide_margin,
            self.doubt,
        )
        masks = keep_masks(facts, self.extra_filters)
        return masks, torch.stack(list(masks.values())).all(dim=0) & candidates.is_present

    def drawn(self, query_ids: Tensor, corpus_ids: Tensor, source: int) -> tuple[Negatives, Tensor]:
        """Return texts that come from no search, of shape ``(q, k)``, and which of them pass every rule."""
        candidates = self._unranked(query_ids, corpus_ids, torch.full(corpus_ids.shape, source, dtype=torch.int8))
        return candidates.as_negatives(), self.masks(candidates)[1]

    def today(self, query_ids: Tensor, earlier: Negatives) -> tuple[Negatives, Tensor]:
        """Return earlier negatives with their scores of today, and which of them pass every rule.

        Where each came from, and when, stays as it is.
        """
        candidates = self._unranked(query_ids, earlier.ids, earlier.sources)
        now = candidates.as_negatives()
        values = {name: getattr(now, name) for name in COLUMNS}
        for name in ("source_scores", "steps", "first_similarities"):
            values[name] = getattr(earlier, name)
        return Negatives(**values), self.masks(candidates)[1]

    def is_never_right(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Tell which texts, of shape ``(q, k)``, are neither the query's own nor known to be right."""
        candidates = self._unranked(query_ids, corpus_ids, torch.full(corpus_ids.shape, -1, dtype=torch.int8))
        facts = Facts(candidates, self.scoring.pairs, self.scoring.corpus, self.config)
        masks = [rule.keeps(facts) for rule in RULES.values() if rule.always]
        return torch.stack([mask for mask in masks if mask is not None]).all(dim=0) & candidates.is_present

    def _unranked(self, query_ids: Tensor, corpus_ids: Tensor, sources: Tensor) -> Candidates:
        ranks = torch.full_like(corpus_ids, -1)
        return self.scoring.candidates(query_ids, corpus_ids, sources=sources, ranks=ranks)

    def identities_of(self, corpus_ids: Tensor, missing: int) -> Tensor:
        """Return the text identity of each id, int64 of the same shape; ``missing`` for -1."""
        identities = torch.from_numpy(self.scoring.corpus.identities)
        return identities[corpus_ids.clamp(min=0)].masked_fill(corpus_ids < 0, missing)

    def is_same_text(self, corpus_ids: Tensor, others: Tensor) -> Tensor:
        """Tell which texts, of shape ``(q, k)``, are the same text as one of others, of shape ``(q, m)``."""
        return find_in_row(self.identities_of(corpus_ids, -1), self.identities_of(others, -2))[0]

    def different_texts(self, negatives: Negatives) -> Negatives:
        """Keep the first of each text in a row."""
        return negatives.only(~is_repeated(self.identities_of(negatives.ids, -1)))

    def filled(self, negatives: Negatives, others: Negatives) -> Negatives:
        """Fill empty slots with texts that are not the same as one that is there, under whatever number."""
        return negatives.filled_with(self.different_texts(others).only(~self.is_same_text(others.ids, negatives.ids)))
