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
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import KnownPositives, Pairs

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
    "shared_positive",
    "guide",
)
"""Names of the rules of this package; a caller's filter has another one."""

_AGAINST_UNKNOWN_ANSWERS = ("absolute_margin", "relative_margin", "max_score", "max_positive_similarity", "guide")
"""Rules that hold off right answers nobody has labelled. Synthetic texts were written to be wrong, close to the positive,
and are not measured by them."""

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
    for name, keeps, bound in (
        ("absolute_margin", keeps_absolute_margin, config.absolute_margin),
        ("relative_margin", keeps_relative_margin, config.relative_margin),
        ("max_score", keeps_max_score, config.max_score),
        ("min_score", keeps_min_score, config.min_score),
        ("max_positive_similarity", keeps_max_positive_similarity, config.max_positive_similarity),
        ("guide", keeps_guide, None if candidates.guide_gap is None else config.guide_margin),
    ):
        if bound is not None:
            masks[name] = keeps(candidates, bound)
    if config.min_words is not None:
        min_words = config.min_words
        masks["min_words"] = keeps_texts(candidates, corpus, lambda text: len(text.split()) >= min_words)
    if config.exclude_pattern is not None:
        pattern = re.compile(config.exclude_pattern)
        masks["exclude_pattern"] = keeps_texts(candidates, corpus, lambda text: pattern.search(text) is None)
    if len(corpus.anchor_ids):
        masks["shared_positive"] = keeps_other_answers(candidates, pairs, corpus) | ~masks["anchor"]
    if len(corpus.synthetic_ids):
        is_synthetic = candidates.corpus_ids >= int(corpus.synthetic_ids[0])
        masks = {
            name: mask | is_synthetic if name in _AGAINST_UNKNOWN_ANSWERS else mask for name, mask in masks.items()
        }
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
