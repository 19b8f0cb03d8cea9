"""Synthetic negatives: texts that are written as wrong answers, and the makers that write them.

A maker is a function of the type :data:`SyntheticTexts`, such as the three classes here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from st_hardneg.errors import MiningError
from st_hardneg.sources.synthetic.contradictions import DEFAULT_PROMPT, Contradictions
from st_hardneg.sources.synthetic.keyword_edits import KeywordEdits
from st_hardneg.sources.synthetic.makers import DistinctTexts, checked_positives
from st_hardneg.sources.synthetic.text_perturbations import TextPerturbations

__all__ = [
    "DEFAULT_PROMPT",
    "Contradictions",
    "KeywordEdits",
    "SyntheticTexts",
    "TextPerturbations",
    "checked_synthetic",
]

logger = logging.getLogger(__name__)

SyntheticTexts = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""Takes positives and returns, for each of them, texts that are wrong answers."""

_BATCH = 1_000


def checked_synthetic(texts_of: SyntheticTexts, positives: Sequence[str]) -> list[list[str]]:
    """Have a maker write texts for all positives, and keep those that can be negatives.

    Texts that are empty, or that a reader would call the same as their positive or as each other
    (:func:`~st_hardneg.corpus.texts.same_text_key`), are dropped and counted in a warning.

    Args:
        texts_of: The maker. It gets at most 1,000 positives at a time.
        positives: The positives.

    Returns:
        For each positive its texts, in the maker's order.

    Raises:
        TypeError: If the maker cannot be called, or returns something else than sequences of texts.
        ValueError: If it returns more or fewer sequences than it got positives, or a text with a lone surrogate.
        MiningError: If no text at all is left.
    """
    if not callable(texts_of):
        raise TypeError(f"Expected a function that takes a list of texts, got {type(texts_of).__name__}.")
    positives = checked_positives(positives)
    kept: list[list[str]] = []
    num_written = 0
    for start in range(0, len(positives), _BATCH):
        batch = list(positives[start : start + _BATCH])
        for text, written in zip(batch, _checked_rows(texts_of(batch), len(batch), start), strict=True):
            num_written += len(written)
            kept.append(DistinctTexts(text, len(written)).among(written))
    num_kept = sum(map(len, kept))
    if positives and not num_kept:
        got = f"no text for any of {len(positives):,} positives that is not empty and differs from its positive"
        raise MiningError(f"Expected synthetic texts, got {got} ({num_written:,} were written). Use another maker.")
    if num_kept < num_written:
        dropped = f"{num_written - num_kept:,} of {num_written:,} synthetic texts are dropped"
        logger.warning(f"{dropped}: they are empty, or the same as their positive or as another text written for it.")
    return kept


def _checked_rows(result: Any, wanted: int, start: int) -> list[list[str]]:
    """Return a maker's result as lists; refuse another shape."""
    expected = "Expected the maker of synthetic texts to return"
    per_positive = "Return one list for each positive, empty where there is none."
    if not _is_list_like(result):
        raise TypeError(f"{expected} a list of texts per positive, got {type(result).__name__}. {per_positive}")
    rows = list(result)
    if len(rows) != wanted:
        raise ValueError(f"{expected} {wanted:,} lists, one per positive, got {len(rows):,}. {per_positive}")
    for i, row in enumerate(rows):
        where = f"for positive {start + i:,}"
        if not _is_list_like(row):
            raise TypeError(f"{expected} a list of texts for each positive, got {type(row).__name__} {where}.")
        rows[i] = list(row)
        for text in rows[i]:
            if not isinstance(text, str):
                raise TypeError(f"{expected} strings, got {type(text).__name__} {where}.")
            if any("\ud800" <= character <= "\udfff" for character in text):
                fix = "Use `text.encode('utf-8', 'replace').decode()`."
                raise ValueError(f"{expected} valid Unicode, got a lone surrogate {where}. {fix}")
    return rows


def _is_list_like(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, dict))
