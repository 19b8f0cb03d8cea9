"""Pure keep-masks of (candidates, corpus): which candidates may stay.

Every function returns a boolean tensor of shape ``(q, k)``, True where the candidate may stay, and changes nothing. So
their order does not matter, and how much each removes, alone and together with others, can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from st_hardneg.candidates import Candidates
from st_hardneg.config import MiningConfig
from st_hardneg.corpus import Corpus
from st_hardneg.pairs import KnownPositives, Pairs

RULES = (
    "anchor",
    "positive",
    "absolute_margin",
    "relative_margin",
    "max_score",
    "min_score",
    "max_positive_similarity",
    "min_words",
    "exclude_pattern",
)
"""Names of the rules of this package; a caller's filter has another one."""

ExtraFilter = Callable[[Candidates, Corpus], Tensor]
"""A filter of the caller's: ``(candidates, corpus) -> boolean (q, k)``, True where a candidate may stay."""


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


def keeps_texts(candidates: Candidates, corpus: Corpus, is_good: Callable[[str], bool]) -> Tensor:
    """Keep the candidates whose text passes ``is_good``; each text is looked at once."""
    unique, place = candidates.corpus_ids.unique(return_inverse=True)
    texts = corpus.texts.take(unique.clamp(min=0).numpy())
    return torch.tensor([is_good(text) for text in texts], dtype=torch.bool)[place]


def keep_masks(
    candidates: Candidates,
    pairs: Pairs,
    corpus: Corpus,
    config: MiningConfig,
    extra_filters: Mapping[str, ExtraFilter] | None = None,
    *,
    include_positives: bool = False,
) -> dict[str, Tensor]:
    """Apply every filter that is always on or that the config asks for.

    Args:
        candidates: Search results of some queries.
        pairs: All queries and what is known to be right for each.
        corpus: The corpus.
        config: The recipe.
        extra_filters: The caller's own filters by name.
        include_positives: Let known positives stay (the drop-in's ``include_positives``).

    Returns:
        Rule name to boolean tensor of shape ``(q, k)``, True = may stay.

    Raises:
        ValueError: If one of ``extra_filters`` returns something else than such a tensor.
    """
    own = torch.from_numpy(pairs.own_identity)[candidates.query_ids]
    masks = {"anchor": keeps_other_texts(candidates, corpus, own)}
    if not include_positives:
        # A query's own text is in `known`, too; each rule counts its own.
        masks["positive"] = keeps_unknown(candidates, pairs.known) | ~masks["anchor"]
    if config.absolute_margin is not None:
        masks["absolute_margin"] = keeps_absolute_margin(candidates, config.absolute_margin)
    if config.relative_margin is not None:
        masks["relative_margin"] = keeps_relative_margin(candidates, config.relative_margin)
    if config.max_score is not None:
        masks["max_score"] = keeps_max_score(candidates, config.max_score)
    if config.min_score is not None:
        masks["min_score"] = keeps_min_score(candidates, config.min_score)
    if config.max_positive_similarity is not None:
        masks["max_positive_similarity"] = keeps_max_positive_similarity(candidates, config.max_positive_similarity)
    if config.min_words is not None:
        min_words = config.min_words
        masks["min_words"] = keeps_texts(candidates, corpus, lambda text: len(text.split()) >= min_words)
    if config.exclude_pattern is not None:
        pattern = re.compile(config.exclude_pattern)
        masks["exclude_pattern"] = keeps_texts(candidates, corpus, lambda text: pattern.search(text) is None)
    for name, extra_filter in (extra_filters or {}).items():
        assert name not in masks, f"two rules are named {name!r}"
        masks[name] = _checked(name, extra_filter(candidates, corpus), candidates)
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
