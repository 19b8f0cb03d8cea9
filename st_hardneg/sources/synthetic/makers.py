"""What the makers of synthetic texts share: checked arguments, a generator per text, texts that differ."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from st_hardneg.texts import same_text_key


def generator_of(seed: int, text: str) -> random.Random:
    """Return a random generator that depends on the seed and the text only, not on the batch the text comes in.

    Example:
        >>> generator_of(0, "a").random() == generator_of(0, "a").random() != generator_of(1, "a").random()
        True
    """
    digest = hashlib.blake2b(f"{seed}:".encode(), digest_size=16)
    digest.update(text.encode("utf-8", "surrogatepass"))
    return random.Random(int.from_bytes(digest.digest(), "little"))


class DistinctTexts:
    """Collects texts that a reader would tell from each other and from the one they are made of.

    Args:
        original: The text they are made of.
        limit: How many are wanted.
    """

    def __init__(self, original: str, limit: int) -> None:
        self._keys = {same_text_key(original), same_text_key("")}
        self._limit = limit
        self.texts: list[str] = []

    @property
    def full(self) -> bool:
        """Whether no more are wanted."""
        return len(self.texts) >= self._limit

    def add(self, text: str) -> None:
        """Take a text in, unless it is empty, one of them already, or one too many."""
        key = same_text_key(text)
        if key not in self._keys and not self.full:
            self._keys.add(key)
            self.texts.append(text)


def checked_integer(name: str, value: Any, least: int, most: int) -> int:
    """Return an argument as Python's integer.

    Raises:
        TypeError: If it is none.
        ValueError: If it is out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(
            f"Expected `{name}` to be an integer, got {value!r} ({type(value).__name__}). Pass a value of that type."
        )
    if not least <= int(value) <= most:
        raise ValueError(f"Expected `{name}` to be from {least:,} to {most:,}, got {value!r}. Choose another value.")
    return int(value)


def checked_kinds(kinds: Any, known: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of edits that are asked for, as a tuple.

    Raises:
        TypeError: If they are no sequence.
        ValueError: If there is none, or one is not known.
    """
    if not isinstance(kinds, (tuple, list)):
        raise TypeError(
            f"Expected `kinds` to be a tuple of names, got {kinds!r} ({type(kinds).__name__}). Choose from {list(known)}."
        )
    wrong = [kind for kind in kinds if kind not in known]
    if wrong or not kinds:
        raise ValueError(f"Expected `kinds` to be some of {list(known)}, got {list(kinds)}. Choose from these.")
    return tuple(dict.fromkeys(kinds))


def checked_positives(positives: Any) -> Sequence[str]:
    """Return what a maker was called with.

    Raises:
        TypeError: If it is one text, or not texts only.
    """
    if isinstance(positives, str):
        raise TypeError("Expected a list of texts, got one text. Put it into a list.")
    texts: Sequence[str] = positives if isinstance(positives, Sequence) else list(positives)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(
            f"Expected a list of texts, got {type(texts[wrong]).__name__} at position {wrong}. Pass strings only."
        )
    return texts
