"""Character and word edits that look like typing errors."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

from st_hardneg.errors import require_extra
from st_hardneg.sources.synthetic.makers import (
    DistinctTexts,
    checked_integer,
    checked_kinds,
    checked_positives,
    generator_of,
)

PERTURBATIONS = ("character", "word")

# nlpaug's time grows with the square of a text's length, so it gets a text in pieces of this many words.
_PIECE = 100


@dataclass(frozen=True)
class TextPerturbations:
    """Writes each positive anew with typing errors: characters or words swapped, dropped, inserted, misspelt or split.

    A perturbed positive mostly keeps its meaning: as a negative, it tells a model that the wording decides. That is
    wanted where wording does decide (names, codes, part numbers, quotations), and as a check of robustness. To teach
    a model that a small change of wording can change the meaning, use
    :class:`~st_hardneg.sources.synthetic.KeywordEdits`, which needs no library.

    The edits are nlpaug's (https://github.com/makcedward/nlpaug), with a random generator of their own: results
    depend on seed and text alone, Python's and NumPy's global generators are left as found, and threads do not
    disturb each other. Runs of whitespace become one space. Words that have no spaces between them (Chinese, Thai)
    count as one, and get one edit.

    Args:
        num_texts: How many texts to write per positive; fewer where fewer different ones come out.
        kinds: Which edits to draw from: ``"character"`` (one character of a word swapped with its neighbour, dropped,
            inserted, replaced, or mistyped for one beside it on the keyboard), ``"word"`` (two neighbours swapped, a
            word dropped, split, or misspelt as people misspell it).
        rate: Share of the words that are edited, at least one.
        seed: Seed of the draws.

    Raises:
        MissingExtraError: If nlpaug is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Example:
        >>> make = TextPerturbations(seed=1)
        >>> [[text]] = make(["the cat sat on the mat"])
        >>> text != "the cat sat on the mat" and make(["another text", "the cat sat on the mat"])[1] == [text]
        True
    """

    num_texts: int = 1
    kinds: tuple[str, ...] = PERTURBATIONS
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_texts", checked_integer("num_texts", self.num_texts, 1, 1_000))
        object.__setattr__(self, "seed", checked_integer("seed", self.seed, 0, 2**63 - 1))
        object.__setattr__(self, "kinds", checked_kinds(self.kinds, PERTURBATIONS))
        if not isinstance(self.rate, Real) or isinstance(self.rate, bool):
            raise TypeError(
                f"Expected `rate` to be a number, got {self.rate!r} ({type(self.rate).__name__}). Pass a value of that "
                "type."
            )
        if not (math.isfinite(self.rate) and 0 < self.rate <= 1):
            raise ValueError(f"Expected `rate` to be above 0 and at most 1, got {self.rate!r}. Choose another value.")
        require_extra("nlpaug", "synthetic", "`TextPerturbations`")

    def __call__(self, positives: Sequence[str]) -> list[list[str]]:
        """Return for each positive its perturbed texts; an empty list where there is nothing to edit."""
        return [self._perturb(text) for text in checked_positives(positives)]

    def _perturb(self, text: str) -> list[str]:
        found = DistinctTexts(text, self.num_texts)
        words = text.split()
        if not words:
            return []
        draws = generator_of(self.seed, text)
        for _ in range(4 * self.num_texts + 8):
            if found.full:
                break
            # The classes are shared; a shallow copy with its own generator is what makes them independent.
            editor = copy.copy(draws.choice(_editors(self.kinds, float(self.rate))))
            editor.sample = _Sample(draws)
            found.add(" ".join(self._edited(words, editor, draws)))
        return found.texts

    def _edited(self, words: list[str], editor: Any, draws: random.Random) -> Iterator[str]:
        pieces = [" ".join(words[start : start + _PIECE]) for start in range(0, len(words), _PIECE)]
        for piece in pieces:
            results = editor.augment(piece)
            yield results[0] if results else piece


class _Sample:
    """In the place of ``nlpaug.Augmenter.sample``, which draws from the global generators."""

    def __init__(self, draws: random.Random) -> None:
        self._draws = draws

    def __call__(self, source: Any, num: int | None = None) -> Any:
        if isinstance(source, int):
            return self._draws.randrange(1, source - 1)
        # Sorted: nlpaug's dictionary of misspellings comes out of a set, in another order in every process.
        return self._draws.sample(sorted(source), num or 1)


@lru_cache(maxsize=32)
def _editors(kinds: tuple[str, ...], rate: float) -> list[Any]:
    with warnings.catch_warnings():
        # An escape sequence in a module of nlpaug that is not used here.
        warnings.simplefilter("ignore")
        import nlpaug.augmenter.char as characters
        import nlpaug.augmenter.word as words

    layout = {"tokenizer": str.split, "reverse_tokenizer": " ".join}
    one_per_word = {"aug_char_min": 1, "aug_char_max": 1, "aug_word_p": rate, "aug_word_min": 1, "aug_word_max": None}
    share = {"aug_p": rate, "aug_min": 1, "aug_max": None}
    editors: list[Any] = []
    if "character" in kinds:
        editors += [
            characters.RandomCharAug(action=action, min_char=2, spec_char="", **one_per_word, **layout)
            for action in ("swap", "delete", "insert", "substitute")
        ]
        editors.append(
            characters.KeyboardAug(
                min_char=2, include_special_char=False, include_upper_case=False, **one_per_word, **layout
            )
        )
    if "word" in kinds:
        editors += [words.RandomWordAug(action=action, **share, **layout) for action in ("swap", "delete")]
        editors += [words.SplitAug(**share, **layout), words.SpellingAug(include_reverse=False, **share, **layout)]
    return editors
