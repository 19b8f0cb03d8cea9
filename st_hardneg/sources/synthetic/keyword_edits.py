"""Edits that change what a text says and keep its wording, by rules and word lists."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, zip_longest
from typing import Any

from st_hardneg.sources.synthetic.edit_words import DATES, ENGLISH, FOREIGN, NO_NAMES, OPPOSITES
from st_hardneg.sources.synthetic.makers import check_integers, checked_kinds, checked_positives, rewritten
from st_hardneg.sources.synthetic.quantities import other_quantities

EDITS = ("number", "entity", "antonym", "negation")

# The start and end of a place in a text, and what may be written there instead.
_Site = tuple[int, int, Sequence[str]]


@dataclass(frozen=True)
class KeywordEdits:
    """Rewrites each positive with one number, name, opposite or negation changed, so that it says something else.

    This makes contrast sets (Gardner et al. 2020, https://arxiv.org/abs/2004.02709) by rules. It is good for short
    statements in general English, such as claims and news, where a value, a name or a "not" decides and not only the
    topic. It does not know the words of special fields, and the rules do not read grammar: look at some of the texts.
    In a long text, an edit may change something that the query does not ask about. Texts in other languages get edits
    of numbers and entities only: those that have more of the commonest words of other languages than of English.

    Args:
        num_texts: How many texts to write per positive; fewer where there is less to edit.
        kinds: Which edits to draw from; each kind that a text has room for is drawn as often as the others.
        entities: Names to put in place of the names in a text, such as those in other positives. Without them, two
            names within the text change places. Months and weekdays become other ones.
        seed: Seed of the draws. A result depends on seed and text only, whatever else is in the batch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Example:
        >>> KeywordEdits(kinds=("antonym",))(["Coffee increases the risk."])
        [['Coffee decreases the risk.']]
    """

    num_texts: int = 1
    kinds: tuple[str, ...] = EDITS
    entities: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(self, num_texts=1_000)
        object.__setattr__(self, "kinds", checked_kinds(self.kinds, EDITS))
        object.__setattr__(self, "entities", _checked_entities(self.entities))

    def __call__(self, positives: Sequence[str]) -> list[list[str]]:
        """Return for each positive its edited texts; an empty list where no edit is found."""
        return [rewritten(text, self.num_texts, self.seed, self._edited) for text in checked_positives(positives)]

    def _edited(self, text: str, draws: random.Random) -> Iterator[str]:
        piles = [list(self._sites(kind, text)) for kind in self.kinds]
        for pile in piles:
            draws.shuffle(pile)
        draws.shuffle(piles)
        # The kinds take turns. After the last place comes the first again, because it may get another value.
        sites = [site for turn in zip_longest(*piles) for site in turn if site is not None]
        while sites:
            for start, end, choices in sites:
                yield text[:start] + draws.choice(choices) + text[end:]

    def _sites(self, kind: str, text: str) -> Iterator[_Site]:
        if kind == "number":
            yield from (_after_article(text, *found) for found in other_quantities(text))
        elif kind == "entity":
            yield from ((*match.span(), DATES[match.group()]) for match in _DATE.finditer(text))
            names = _names(text)
            yield from ((start, end, self.entities) for start, end in names) if self.entities else _swaps(text, names)
        elif _is_english(text) and kind == "antonym":
            matches = ((*match.span(), OPPOSITES.get(match.group().lower())) for match in _matches(_OPPOSITE, text))
            yield from (_after_article(text, start, end, [other]) for start, end, other in matches if other)
        elif _is_english(text):
            for match, replacement in ((match, new) for old, new in _NEGATIONS for match in _matches(old, text)):
                yield (*match.span(), [_cased(match.expand(replacement), match.group())])


def _checked_entities(entities: Any) -> tuple[str, ...]:
    if isinstance(entities, str) or not isinstance(entities, (Sequence, set, frozenset)):
        raise TypeError(f"Expected `entities` to be a list of names, got {type(entities).__name__}.")
    names = sorted(entities) if isinstance(entities, (set, frozenset)) else list(entities)
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"Expected `entities` to be names, got {name!r} at position {i}.")
    return tuple(dict.fromkeys(names))


def _cased(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _opens_sentence(text: str, start: int) -> bool:
    before = text[max(0, start - 6) : start].rstrip(" \t\xa0\"'“”‘’([{«*_#>")
    return (not before and start <= 6) or before.endswith((".", "!", "?", ":", ";", "\n", "•", "–", "—"))


_ARTICLE = re.compile(r"(?<![\w'’-])(?:an?|An?|AN)\s$")
_AN = re.compile(r"(?!uni[^mn]|use|eu|one\b|once)[aeiou]|hour|honest|8|1[18](?!\d)", re.IGNORECASE)


def _after_article(text: str, start: int, end: int, choices: Sequence[str]) -> _Site:
    """Return the place of a word, and words in its case; with the "a" or "an" before it, if there is one."""
    choices = [_cased(choice, text[start:end]) for choice in choices]
    found = _ARTICLE.search(text, max(0, start - 4), start)
    article = found.group()[:-1] if found else ""
    # Within a sentence, the A of "vitamin A increases" is no article.
    if found is None or (article == "A" and choices[0].islower() and not _opens_sentence(text, found.start())):
        return (start, end, choices)
    articles = [_cased("an" if _AN.match(one) else "a", "AN" if one.isupper() else article) for one in choices]
    return (found.start(), end, [f"{a}{text[start - 1]}{one}" for a, one in zip(articles, choices, strict=True)])


_OPPOSITE = rf"(?<![\w'’-])(?:{'|'.join(sorted(OPPOSITES, key=len, reverse=True))})(?![\w'’-])"
_MODAL = "can|could|will|would|shall|should|might|must|may|do|does|did"
# Not behind what makes the auxiliary a noun ("the can") or part of a question, nor at the start of a sentence.
_SUBJECT = r"(?<=[\w,)] )(?<!\bthe )(?<!\ba )(?<!\bas )(?<!\bthan )(?<!\bthere )(?<!\bwhat )(?<!\bwho )(?<!\bhow )"
_NEGATED = r"(?:not|no|never|nor|only|just|hardly|also|none|nothing|it|they|he|she|we|i|you|there|so|and|or|well)\b"
_NOUN = r"(?:an?|the|this|that|these|those|of|in|by|for|with|as|to)\b"
_PARTICIPLE = r"(?:\w{3,}(?:ed|en|own|ught)|been|seen|made|done|led|come|gone|begun|kept|held|lost|met|left|won)\b"
_BE_HAVE = "is|are|was|were|has|have|had"
_NEGATIONS = (
    (rf"{_SUBJECT}(is|are|was|were)(?= (?!{_NEGATED})\w)", r"\1 not"),
    (rf"{_SUBJECT}({_MODAL})(?= (?!{_NEGATED}|{_NOUN})\w)", r"\1 not"),
    (rf"{_SUBJECT}(has|have|had)(?= {_PARTICIPLE})", r"\1 not"),
    (r"\b(has|have|had|there is|there was) an?(?= (?!few|lot|couple|number|little)\w)", r"\1 no"),
    (rf"\b({_BE_HAVE}|{_MODAL}) not(?= (?!only|just|merely|yet|necessarily)\w)", r"\1"),
    (rf"\b({_BE_HAVE}|could|would|should|might|must|do|does|did)n['’]t(?= (?!only)\w)", r"\1"),
    (r"\b(can)(?:not|['’]t)(?= (?!only)\w)", r"\1"),
    (r"(?<![\w'’-])no(?= (?!(?:longer|more|less|one|doubt|matter|other)\b)\w)", "some"),
)


def _is_english(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text.lower())
    return sum(word in FOREIGN for word in words) <= sum(word in ENGLISH for word in words)


def _matches(pattern: str, text: str) -> Iterator[re.Match[str]]:
    """Yield the matches of a pattern but those in names, such as "High Court" and the month of May."""
    for match in re.finditer(pattern, text, re.IGNORECASE):
        if not match.group().istitle() or _opens_sentence(text, match.start()):
            yield match


_DATE = re.compile(rf"(?<=\w )(?:{'|'.join(DATES)})\b")
_UPPER = "A-ZÀ-ÖØ-ÞΑ-ΩЀ-Я"
_CAPITALISED = rf"[{_UPPER}][^\W_]*(?:[-‐/][{_UPPER}0-9][^\W_]*)*(?![\w-])"
_NAME = re.compile(rf"(?<![\w'’‐–-]){_CAPITALISED}(?: {_CAPITALISED})*")
# A word that does not only list them is between two names that may change places. "Crohn's Disease" is one name.
_BETWEEN = re.compile(r"\s(?!(?:and|or)\s)\w+\s")


def _names(text: str) -> list[tuple[int, int]]:
    """Return the places of what looks like names: capitalised words within a sentence, and acronyms."""
    long = re.findall(r"[^\W\d_]{5,}", text)
    if len(long) >= 5 and sum(word[0].isupper() for word in long) > 0.6 * len(long):
        return []  # a heading, in which capitals say nothing
    found = []
    for match in _NAME.finditer(text):
        words = list(dropwhile(lambda word: word.lower() in NO_NAMES or word in DATES, match.group().split(" ")))
        name = " ".join(words)
        start = match.end() - len(name)
        heading = name.isalpha() and name.isupper() and len(name) > 6
        if len(name) > 1 and not heading and not (words[0] == name.title() and _opens_sentence(text, start)):
            found.append((start, match.end()))
    return found


def _swaps(text: str, names: list[tuple[int, int]]) -> Iterator[_Site]:
    """Yield pairs of different names in one sentence that may change places, because they are not only listed."""
    for i, (start, end) in enumerate(names):
        for other_start, other_end in names[i + 1 : i + 4]:
            between, name, other = text[end:other_start], text[start:end], text[other_start:other_end]
            if len(between) > 200 or re.search(r"[.!?;:]\s", between):
                break
            # What is in brackets explains what comes before them.
            explained = text[start - 1 : start] == "(" or between.rfind("(") > between.rfind(")")
            same = name.casefold().rstrip("s") == other.casefold().rstrip("s")
            if not explained and not same and _BETWEEN.search(between):
                yield (start, other_end, [other + between + name])
