"""Character and word edits that look like typing errors."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real

from st_hardneg.sources.synthetic.makers import check_integers, checked_kinds, checked_positives, rewritten

_EDITS = {"character": "swap drop insert replace mistype".split(), "word": ["swap words", "drop word", "split word"]}

# Each row of a keyboard lies about half a key to the right of the row above it.
_ROWS = enumerate(("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm"))
_KEYS = {key: (column + row / 2, row) for row, keys in _ROWS for column, key in enumerate(keys)}
_NEARBY = {
    key: [other for other, (u, v) in _KEYS.items() if other != key and abs(x - u) <= 1 and abs(y - v) <= 1]
    for key, (x, y) in _KEYS.items()
}


@dataclass(frozen=True)
class TextPerturbations:
    """Rewrites each positive with typing errors.

    The texts mostly keep their meaning. As negatives, they teach a model that the exact wording decides. That is right
    for names, codes and quotations, and wrong for most other searches, where :class:`KeywordEdits` serves better.
    Runs of whitespace become one space. Inserted letters are drawn from the text, so that the alphabet does not matter.
    Text without spaces (Chinese, Thai) counts as one word.

    Args:
        num_texts: How many texts to write per positive; fewer where fewer different ones are found.
        kinds: Which edits to draw from: ``"character"`` (one character of a word is swapped with the next one, dropped,
            inserted, replaced, or mistyped for a neighbour on a QWERTY keyboard), ``"word"`` (a word is swapped with
            the next one, dropped, or split).
        rate: Share of the words that are edited, above 0 and at most 1; at least one word is.
        seed: Seed of the draws.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.
    """

    num_texts: int = 1
    kinds: tuple[str, ...] = tuple(_EDITS)
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(self, num_texts=1_000)
        object.__setattr__(self, "kinds", checked_kinds(self.kinds, tuple(_EDITS)))
        if not isinstance(self.rate, Real) or isinstance(self.rate, bool):
            raise TypeError(f"Expected `rate` to be a number, got {self.rate!r} ({type(self.rate).__name__}).")
        if not (math.isfinite(self.rate) and 0 < self.rate <= 1):
            raise ValueError(f"Expected `rate` to be above 0 and at most 1, got {self.rate!r}.")

    def __call__(self, positives: Sequence[str]) -> list[list[str]]:
        """Return for each positive its perturbed texts; an empty list where there is nothing to edit."""
        return [rewritten(text, self.num_texts, self.seed, self._perturbed) for text in checked_positives(positives)]

    def _perturbed(self, text: str, draws: random.Random) -> Iterator[str]:
        words = text.split()
        letters = sorted({character for character in text.lower() if character.isalnum()})
        places = [i for i, word in enumerate(words) if any(map(str.isalnum, word))]
        edits = [edit for kind in self.kinds for edit in _EDITS[kind]]
        while places:
            edited = list(words)
            for i in draws.sample(places, max(1, round(self.rate * len(places)))):
                edit = draws.choice(edits)
                if edit == "swap words" and i + 1 < len(words):
                    edited[i : i + 2] = edited[i + 1], edited[i]
                elif edit == "drop word":
                    edited[i] = ""
                elif edit == "split word":
                    at = draws.randrange(len(edited[i]) or 1)
                    edited[i] = f"{edited[i][:at]} {edited[i][at:]}".strip()
                elif edit in _EDITS["character"]:
                    edited[i] = _with_typing_error(edit, edited[i], letters, draws)
            yield " ".join(filter(None, edited))


def _with_typing_error(edit: str, word: str, letters: list[str], draws: random.Random) -> str:
    """Return a word with one of its letters or digits edited; new letters take the case of the word."""
    places = [at for at, character in enumerate(word) if character.isalnum()]
    if not places:  # another edit swapped or dropped the word that was here
        return word
    at = draws.choice(places)
    here, rest = word[at], word[at + 1 :]
    if edit == "swap":
        return word[:at] + rest[:1] + here + rest[1:]
    if edit == "drop":
        return word[:at] + rest if len(word) > 1 else word
    # A character that is not on the keyboard is replaced by one of the text.
    new = draws.choice(_NEARBY.get(here.lower(), letters) if edit == "mistype" else letters)
    new = here + new if edit == "insert" else new
    if here.isupper():
        new = new.upper() if word.isupper() else new.capitalize()
    return word[:at] + new + rest
