"""What the makers of synthetic texts share: checked arguments, a generator per text, texts that differ."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from numbers import Integral
from typing import Any

from st_hardneg.corpus.identity import same_text_key


class DistinctTexts:
    """Picks up to ``limit`` texts that a reader would tell from each other and from the one they are made of."""

    def __init__(self, original: str, limit: int) -> None:
        self._keys = {same_text_key(original), same_text_key("")}
        self._limit = limit

    def among(self, texts: Iterable[str]) -> list[str]:
        """Return the first texts that are not empty, and not the same as the original or one before."""
        kept: list[str] = []
        for text in texts:
            if len(kept) == self._limit:
                break
            key = same_text_key(text)
            if key not in self._keys:
                self._keys.add(key)
                kept.append(text)
        return kept


def rewritten(text: str, num_texts: int, seed: int, edits: Callable[[str, random.Random], Iterator[str]]) -> list[str]:
    """Return the first distinct texts of some edits, which may draw from a generator made of seed and text only."""
    draws = random.Random(f"{seed}:{text}".encode("utf-8", "surrogatepass"))
    # Some edits change nothing or come twice, so there are more edits than texts.
    return DistinctTexts(text, num_texts).among(islice(edits(text, draws), 4 * num_texts + 8))


def check_integers(maker: Any, **most: int) -> None:
    """Make the seed of a frozen dataclass and fields from 1 to ``most`` Python's integers; refuse other values."""
    for name, limit in {**most, "seed": 2**63 - 1}.items():
        value, least = getattr(maker, name), 0 if name == "seed" else 1
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"Expected `{name}` to be an integer, got {value!r} ({type(value).__name__}).")
        if not least <= int(value) <= limit:
            raise ValueError(f"Expected `{name}` to be from {least:,} to {limit:,}, got {value!r}.")
        object.__setattr__(maker, name, int(value))


def checked_kinds(kinds: Any, known: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of edits that are asked for; TypeError if they are no tuple, ValueError if one is unknown."""
    if not isinstance(kinds, (tuple, list)):
        raise TypeError(f"Expected `kinds` to be a tuple of names out of {list(known)}, got {kinds!r}.")
    if not kinds or any(kind not in known for kind in kinds):
        raise ValueError(f"Expected `kinds` to be some of {list(known)}, got {list(kinds)}.")
    return tuple(dict.fromkeys(kinds))


def checked_positives(positives: Any) -> Sequence[str]:
    """Return what a maker was called with, as a sequence; TypeError if it is one text, or not texts only."""
    if isinstance(positives, str):
        raise TypeError("Expected a list of texts, got one text. Put it into a list.")
    texts: Sequence[str] = positives if isinstance(positives, Sequence) else list(positives)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"Expected a list of texts, got {type(text).__name__} at position {i}.")
    return texts
