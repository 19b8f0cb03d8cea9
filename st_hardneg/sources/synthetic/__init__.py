"""Synthetic negatives: texts that are written as wrong answers, and the makers that write them.

A maker is any function of this shape, such as the three classes here. It knows texts only, no datasets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from st_hardneg.errors import MiningError
from st_hardneg.sources.synthetic.contradictions import DEFAULT_PROMPT, Contradictions
from st_hardneg.sources.synthetic.keyword_edits import KeywordEdits, entities_in
from st_hardneg.sources.synthetic.makers import DistinctTexts, checked_positives
from st_hardneg.sources.synthetic.text_perturbations import TextPerturbations

__all__ = [
    "DEFAULT_PROMPT",
    "Contradictions",
    "KeywordEdits",
    "SyntheticTexts",
    "TextPerturbations",
    "checked_synthetic",
    "entities_in",
]

logger = logging.getLogger(__name__)

SyntheticTexts = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""Takes positives and returns, for each of them, texts that are wrong answers."""

_BATCH = 1_000


def checked_synthetic(texts_of: SyntheticTexts, positives: Sequence[str]) -> list[list[str]]:
    """Have a maker write texts for all positives, and keep those that can be negatives.

    Texts that are empty, or that a reader would call the same as their positive or as each other
    (:func:`~st_hardneg.texts.same_text_key`), are dropped and counted in a warning.

    Args:
        texts_of: The maker. It gets at most 1,000 positives at a time.
        positives: The positives.

    Returns:
        For each positive its texts, in the maker's order.

    Raises:
        TypeError: If the maker cannot be called, or returns something else than sequences of texts.
        ValueError: If it returns more or fewer sequences than it got positives.
        MiningError: If no text at all is left.

    Example:
        >>> checked_synthetic(lambda texts: [[text + " not", "no " + text] for text in texts], ["so it is"])
        [['so it is not', 'no so it is']]
    """
    if not callable(texts_of):
        raise TypeError(
            f"Expected a function that takes a list of texts, got {type(texts_of).__name__}. Pass a function, or a maker "
            "such as `KeywordEdits()`."
        )
    positives = checked_positives(positives)
    kept: list[list[str]] = []
    num_written = 0
    for start in range(0, len(positives), _BATCH):
        batch = list(positives[start : start + _BATCH])
        for text, written in zip(batch, _of_right_shape(texts_of(batch), len(batch), start), strict=True):
            found = DistinctTexts(text, len(written))
            for one in written:
                found.add(one)
            num_written += len(written)
            kept.append(found.texts)
    num_kept = sum(map(len, kept))
    if positives and not num_kept:
        raise MiningError(
            f"Expected synthetic texts, got no text for any of {len(positives):,} positives that is not empty and differs "
            f"from its positive ({num_written:,} were written). Use another maker, or other positives."
        )
    if num_kept < num_written:
        logger.warning(
            f"{num_written - num_kept:,} of {num_written:,} synthetic texts are dropped: they are empty, or the same as "
            "their positive or as another one of it."
        )
    return kept


def _of_right_shape(result: Any, wanted: int, start: int) -> list[list[str]]:
    """Return a maker's result as lists; refuse another shape."""
    if isinstance(result, (str, bytes, dict)) or not isinstance(result, Iterable):
        raise TypeError(
            f"Expected the maker of synthetic texts to return a list of texts per positive, got {type(result).__name__}. "
            "Return one list for each positive, empty where there is none."
        )
    rows = list(result)
    if len(rows) != wanted:
        raise ValueError(
            f"Expected the maker of synthetic texts to return {wanted:,} lists, one per positive, got {len(rows):,}. "
            "Return an empty list where there is none."
        )
    for i, row in enumerate(rows):
        if isinstance(row, (str, bytes, dict)) or not isinstance(row, Iterable):
            raise TypeError(
                f"Expected the maker of synthetic texts to return a list of texts for each positive, got "
                f"{type(row).__name__} for positive {start + i:,}. Put it into a list."
            )
        rows[i] = list(row)
        if any(isinstance(one, str) and any("\ud800" <= char <= "\udfff" for char in one) for one in rows[i]):
            raise ValueError(
                f"Expected the maker of synthetic texts to return valid Unicode, got a lone surrogate for positive "
                f"{start + i:,}. Clean its texts, for example with `text.encode('utf-8', 'replace').decode()`."
            )
        wrong = next((one for one in rows[i] if not isinstance(one, str)), None)
        if any(not isinstance(one, str) for one in rows[i]):
            raise TypeError(
                f"Expected the maker of synthetic texts to return strings, got {type(wrong).__name__} for positive "
                f"{start + i:,}. Return texts only."
            )
    return rows
