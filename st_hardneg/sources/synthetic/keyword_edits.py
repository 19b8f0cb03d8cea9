"""Edits that change what a text says and keep its wording, by rules and word lists."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from typing import Any

from st_hardneg.sources.synthetic import edit_words as words_of
from st_hardneg.sources.synthetic.makers import (
    DistinctTexts,
    checked_integer,
    checked_kinds,
    checked_positives,
    generator_of,
)
from st_hardneg.sources.synthetic.quantities import Quantity, other_quantity, quantities

EDITS = ("number", "unit", "entity", "antonym", "negation")

# How far an entity's swap partner may be, in entities, and how long an entity of the pool may be, in words.
_SWAP_REACH = 3
_MAX_ENTITY_WORDS = 6
# Beyond this share of its longer words, a text is a heading: capitals say nothing about names in it.
_MAX_CAPITALISED = 0.6


@dataclass(frozen=True)
class KeywordEdits:
    """Writes each positive anew with one word or number changed, so that it says something else.

    An edit changes a value (``5`` to ``50``), a unit (``mg`` to ``µg``), an entity (a country, or two names swapped), a
    word for its opposite (``increases`` to ``decreases``), or puts in or takes out a negation. It is the idea of
    contrast sets (Gardner et al. 2020, https://arxiv.org/abs/2004.02709), done by rules, as CheckList's perturbations
    are (Ribeiro et al. 2020, https://arxiv.org/abs/2005.04118): there is no language model and nothing to install.

    The rules are for English. A text in another language gets edits of its numbers and units, if any. Rules that read
    no grammar make mistakes, and in a long text an edit may hit what the query does not ask about: look at some, and
    prefer passages to documents, or raise ``num_edits``.

    Args:
        num_texts: How many texts to write per positive; fewer where there is less to edit.
        kinds: Which edits to draw from; each kind that a text has room for is drawn as often as the others.
        entities: Names to put in place of the names in a text, such as :func:`entities_in` finds in a corpus. Without
            them, two names within the text change places.
        num_edits: Edits per text that is written, fewer where there is less to edit.
        seed: Seed of the draws. A result depends on seed and text only, whatever else is in the batch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Example:
        >>> KeywordEdits(kinds=("antonym",))(["Aspirin increases the risk of bleeding."])
        [['Aspirin decreases the risk of bleeding.']]
        >>> KeywordEdits(kinds=("negation",))(["It was not given to adults.", "Hm."])
        [['It was given to adults.'], []]
    """

    num_texts: int = 1
    kinds: tuple[str, ...] = EDITS
    entities: tuple[str, ...] = ()
    num_edits: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_texts", checked_integer("num_texts", self.num_texts, 1, 1_000))
        object.__setattr__(self, "num_edits", checked_integer("num_edits", self.num_edits, 1, 1_000))
        object.__setattr__(self, "seed", checked_integer("seed", self.seed, 0, 2**63 - 1))
        object.__setattr__(self, "kinds", checked_kinds(self.kinds, EDITS))
        object.__setattr__(self, "entities", _checked_entities(self.entities))

    @cached_property
    def _pool(self) -> dict[str, str]:
        return {" ".join(entity.casefold().split()): entity for entity in self.entities}

    def __call__(self, positives: Sequence[str]) -> list[list[str]]:
        """Return for each positive its edited texts; an empty list where no edit is found."""
        return [self._edit(text) for text in checked_positives(positives)]

    def _edit(self, text: str) -> list[str]:
        found = DistinctTexts(text, self.num_texts)
        draws = generator_of(self.seed, text)
        sites = self._mixed(_Reading(text), draws)
        # Past the last place it goes on with the first: the same place may get another value.
        for number in range(4 * self.num_texts + 8 if sites else 0):
            if found.full:
                break
            found.add(_rewritten(text, _apart(sites, number % len(sites), self.num_edits), draws))
        return found.texts

    def _mixed(self, reading: _Reading, draws: random.Random) -> list[_Site]:
        """Return the places of all kinds, in a random order in which the kinds take turns."""
        finders: dict[str, Callable[[], Iterator[_Site]]] = {
            "number": partial(_numbers, reading),
            "unit": partial(_units, reading),
            "entity": partial(_entities, reading, self._pool, self.entities),
            "antonym": partial(_antonyms, reading),
            "negation": partial(_negations, reading),
        }
        piles = [list(finders[kind]()) for kind in self.kinds]
        for pile in piles:
            draws.shuffle(pile)
        draws.shuffle(piles)
        return [site for turn in zip_longest(*piles) for site in turn if site is not None]


def entities_in(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the names in some texts, as :class:`KeywordEdits` takes them: capitalised words and acronyms, sorted.

    Example:
        >>> entities_in(["In vivo, Marie Curie saw no IL-6.", "Rivers are long."])
        ('IL-6', 'Marie Curie')
    """
    found = {name for text in checked_positives(texts) for _, _, name in _names(_Reading(text))}
    return tuple(sorted(found))


def _checked_entities(entities: Any) -> tuple[str, ...]:
    if isinstance(entities, str) or not isinstance(entities, (Sequence, set, frozenset)):
        raise TypeError(
            f"Expected `entities` to be a list of names, got {type(entities).__name__}. Pass a list of strings."
        )
    names = sorted(entities) if isinstance(entities, (set, frozenset)) else list(entities)
    wrong = next((i for i, name in enumerate(names) if not isinstance(name, str) or not name.strip()), None)
    if wrong is not None:
        raise ValueError(f"Expected `entities` to be names, got {names[wrong]!r} at position {wrong}. Leave it out.")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class _Site:
    """A place in a text, and what to write there instead: drawn anew at every call, None if nothing fits."""

    start: int
    end: int
    draw: Callable[[random.Random], str | None]


def _fixed(replacement: str, draws: random.Random) -> str:
    return replacement


def _one_of(choices: Sequence[str], draws: random.Random) -> str:
    return draws.choice(choices)


def _apart(sites: list[_Site], first: int, count: int) -> list[_Site]:
    """Return up to ``count`` places that do not touch, from this one on, in the text's order."""
    chosen = [sites[first]]
    for site in sites[first + 1 : first + 8 * count] if count > 1 else ():
        if len(chosen) == count:
            break
        if all(site.end < other.start or other.end < site.start for other in chosen):
            chosen.append(site)
    return sorted(chosen, key=lambda site: site.start)


def _rewritten(text: str, sites: list[_Site], draws: random.Random) -> str:
    parts, done = [], 0
    for site in sites:
        replacement = site.draw(draws)
        if replacement is not None:
            parts += [text[done : site.start], replacement]
            done = site.end
    return "".join([*parts, text[done:]])


class _Reading:
    """A text and its words, found once."""

    # An apostrophe belongs to a word, a hyphen does not: what stands beside a word is looked up in the text.
    _WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")

    def __init__(self, text: str) -> None:
        self.text = text
        matches = list(self._WORD.finditer(text))
        self.spans = [match.span() for match in matches]
        self.words = [match.group() for match in matches]
        self.lower = [word.lower().replace("’", "'") for word in self.words]
        self._starts = [start for start, _ in self.spans]

    @cached_property
    def quantities(self) -> list[Quantity]:
        return list(quantities(self.text))

    def __len__(self) -> int:
        return len(self.words)

    def near(self, i: int) -> str:
        """Return the lower-case word at this number, or "" beyond the ends."""
        return self.lower[i] if 0 <= i < len(self.lower) else ""

    def next_to(self, i: int) -> bool:
        """Whether only a space is between this word and the next."""
        return (
            i + 1 < len(self) and 0 <= i and self.text[self.spans[i][1] : self.spans[i + 1][0]] in (" ", "\n", "\xa0")
        )

    def follower(self, i: int) -> str:
        """Return the next word, lower case, if only a space is between; else ""."""
        return self.lower[i + 1] if self.next_to(i) else ""

    def leader(self, i: int) -> str:
        """Return the word before, lower case, if only a space is between; else ""."""
        return self.lower[i - 1] if i > 0 and self.next_to(i - 1) else ""

    def around(self, i: int) -> tuple[str, str]:
        """Return the characters before and after a word; "" at the ends of the text."""
        start, end = self.spans[i]
        return self.text[max(0, start - 1) : start], self.text[end : end + 1]

    def at(self, position: int) -> int:
        """Return the number of the first word that starts at a position or after it."""
        return bisect_left(self._starts, position)

    def opens_sentence(self, start: int) -> bool:
        """Whether a position is the start of the text, or comes after the end of a sentence."""
        before = self.text[max(0, start - 6) : start].rstrip(" \t\xa0\"'“”‘’([{«*_#>")
        return (not before and start <= 6) or before.endswith((".", "!", "?", ":", ";", "\n", "•", "–", "—"))


def _cased(replacement: str, like: str) -> str:
    """Return a replacement in the case pattern of what it replaces."""
    if like.isupper() and len(like) > 1:
        return replacement.upper()
    if like[:1].isupper():
        return replacement[:1].upper() + replacement[1:]
    return replacement


# ---- numbers and units


def _numbers(reading: _Reading) -> Iterator[_Site]:
    for quantity in reading.quantities:
        yield _Site(quantity.start, quantity.end, partial(other_quantity, quantity))
    for i, word in enumerate(reading.lower):
        if word in words_of.OTHER_NUMBER_WORDS:
            choices = words_of.OTHER_NUMBER_WORDS[word]
            yield _word_site(reading, i, [_cased(choice, reading.words[i]) for choice in choices])


_SYMBOLS = "|".join(sorted(map(re.escape, words_of.SYMBOL_UNITS), key=len, reverse=True))
_SYMBOL = re.compile(rf"[ \u00a0\u2009\u202f-]?({_SYMBOLS})(?![\w'’-])")
_PER_CENT = re.compile(r" ?%(?= (?:increase|decrease|reduction|rise|drop|fall|higher|lower|greater|more|less)\b)")
_FOLD = re.compile(r"[- ]?fold\b")
_CURRENCY = {"$": "€£", "€": "$£", "£": "$€"}


def _units(reading: _Reading) -> Iterator[_Site]:
    text = reading.text
    counted = set()
    for quantity in reading.quantities:
        if quantity.kind in ("year", "decade", "ordinal", "label"):
            continue
        yield from _unit_after(text, quantity)
        sign = text[quantity.start - 1 : quantity.start] if quantity.start else ""
        if sign in _CURRENCY and sign:
            yield _Site(quantity.start - 1, quantity.start, partial(_one_of, _CURRENCY[sign]))
        i = reading.at(quantity.end)
        if i < len(reading) and text[quantity.end : reading.spans[i][0]] in (" ", "-", "\xa0"):
            counted.add(i)
    for i, word in enumerate(reading.lower):
        # "the day", "a year" and "per week" say how long something takes; "year" alone may be part of a name.
        units = words_of.COUNTED_UNITS if i in counted or reading.leader(i) in words_of.OTHER_NUMBER_WORDS else {}
        units = units or words_of.WORD_UNITS
        if word in units and "'" not in word and reading.words[i] in (word, word.upper(), word.capitalize()):
            yield _word_site(reading, i, [_cased(other, reading.words[i]) for other in units[word]])


def _unit_after(text: str, quantity: Quantity) -> Iterator[_Site]:
    symbol = _SYMBOL.match(text, quantity.end)
    if symbol:
        yield _Site(*symbol.span(1), partial(_one_of, words_of.SYMBOL_UNITS[symbol.group(1)]))
    per_cent = _PER_CENT.match(text, quantity.end)
    if per_cent:
        yield _Site(*per_cent.span(), partial(_fixed, "-fold"))
    fold = _FOLD.match(text, quantity.end)
    if fold:
        yield _Site(*fold.span(), partial(_fixed, "%"))


# ---- words and their opposites


def _word_site(reading: _Reading, i: int, choices: Sequence[str], last: int | None = None) -> _Site:
    """Return the place of a word (or of the words up to ``last``), with the article before it, if there is one."""
    start, end = reading.spans[i][0], reading.spans[i if last is None else last][1]
    if _has_article(reading, i):
        start = reading.spans[i - 1][0]
        gap = reading.text[reading.spans[i - 1][1] : reading.spans[i][0]]
        choices = [_cased(_article(choice), reading.words[i - 1]) + gap + choice for choice in choices]
    return _Site(start, end, partial(_one_of, choices))


def _has_article(reading: _Reading, i: int) -> bool:
    if reading.leader(i) not in ("a", "an"):
        return False
    # "vitamin A increases"
    name = reading.words[i - 1] == "A" and not reading.opens_sentence(reading.spans[i - 1][0])
    return not name or (reading.words[i].isupper() and len(reading.words[i]) > 1)


def _article(word: str) -> str:
    lower = word.lower()
    if lower.startswith(("uni", "use", "eu", "one", "ubi")) and not lower.startswith("unim"):
        return "a"
    return "an" if lower.startswith(("a", "e", "i", "o", "u", "hour", "honest")) else "a"


def _antonyms(reading: _Reading) -> Iterator[_Site]:
    last_of_phrase = -1
    for i, word in enumerate(reading.lower):
        if i <= last_of_phrase:
            continue
        last, phrase = _phrase(reading, i)
        if phrase:
            last_of_phrase = last
            yield _word_site(reading, i, [_cased(words_of.PHRASES[phrase], _head(reading, i, last))], last)
        elif word in words_of.ANTONYMS and _opposite_fits(reading, i):
            yield _word_site(reading, i, [_cased(words_of.ANTONYMS[word], reading.words[i])])


def _head(reading: _Reading, i: int, last: int) -> str:
    whole = reading.text[reading.spans[i][0] : reading.spans[last][1]]
    return whole if whole.isupper() else reading.words[i].title()[:1] if whole[:1].isupper() else "x"


_FIRST_WORDS = frozenset(re.split(r"[ -]", phrase)[0] for phrase in words_of.PHRASES)


def _phrase(reading: _Reading, i: int) -> tuple[int, str]:
    """Return the number of the last word of the phrase that starts here, and the phrase; "" if there is none."""
    if reading.lower[i] not in _FIRST_WORDS:
        return i, ""
    start = reading.spans[i][0]
    for last in range(min(i + 2, len(reading) - 1), i, -1):
        end = reading.spans[last][1]
        phrase = reading.text[start:end].lower() if end - start < 40 else ""
        if phrase in words_of.PHRASES and reading.text[end : end + 1] not in ("-", "'", "’"):
            return last, phrase
    return i, ""


_TAILS = frozenset("positive negative dependent independent sensitive insensitive resistant high low".split())
_HEADS = frozenset("high low early late large small fast slow higher lower wide narrow deep".split())


def _opposite_fits(reading: _Reading, i: int) -> bool:
    """Whether a word has the reading here in which it has an opposite."""
    word, (before, after) = reading.lower[i], reading.around(i)
    leader, follower = reading.leader(i), reading.follower(i)
    if (before in ("-", "‐", "/") and word not in _TAILS) or (after in ("-", "‐", "/") and word not in _HEADS):
        return False
    check = _READINGS.get(word)
    return check is None or check(leader, follower)


_IS = frozenset("is are was were be been being not".split())
_PLURAL = re.compile(r"[a-z]+[^su]s$")

_READINGS: dict[str, Callable[[str, str], bool]] = {
    "more": lambda leader, follower: (
        follower.isalpha()
        and follower not in ("or", "and", "than")
        and leader not in ("no", "any", "once", "or", "and")
    ),
    "less": lambda leader, follower: follower.isalpha() and leader not in ("or", "no"),
    "after": lambda leader, follower: follower != "all" and leader not in ("look", "looked", "looking", "named"),
    "present": lambda leader, follower: leader in _IS,
    "high": lambda leader, follower: follower not in ("school", "schools", "throughput", "income"),
    "longer": lambda leader, follower: leader != "no",
    "early": lambda leader, follower: follower != "as",
    "many": lambda leader, follower: leader not in ("as", "so", "how", "too", "not"),
    "few": lambda leader, follower: leader != "a",
    "common": lambda leader, follower: leader not in ("in", "the"),
    "with": lambda leader, follower: leader in words_of.PEOPLE,
    "good": lambda leader, follower: follower not in ("as",),
    "poor": lambda leader, follower: follower not in ("and", "people"),
    "appear": lambda leader, follower: follower != "to",
    "appears": lambda leader, follower: follower != "to",
    "appeared": lambda leader, follower: follower != "to",
    "rich": lambda leader, follower: follower in ("in", "people", "countries", "nations"),
    "known": lambda leader, follower: follower not in ("as", "to", "about", "for"),
    "still": lambda leader, follower: False,
    "none": lambda leader, follower: follower == "of",
    "neither": lambda leader, follower: follower == "of",
    "true": lambda leader, follower: follower != "positive",
    "alive": lambda leader, follower: leader in _IS,
    "loss": lambda leader, follower: leader in ("weight", "bone", "hearing", "vision", "memory", "muscle"),
    "fast": lambda leader, follower: follower != "food",
    "major": lambda leader, follower: follower not in ("depressive", "histocompatibility"),
    "primary": lambda leader, follower: follower not in ("care", "outcome", "outcomes", "end", "objective", "school"),
    "secondary": lambda leader, follower: follower not in ("to", "outcome", "outcomes", "school"),
    "public": lambda leader, follower: follower != "health",
    "contract": lambda leader, follower: False,
    "contracts": lambda leader, follower: False,
    "different": lambda leader, follower: follower not in ("types", "kinds"),
    "elevated": lambda leader, follower: follower != "plus",
    "rise": lambda leader, follower: follower != "to",
    "slow": lambda leader, follower: follower != "down",
    "acquired": lambda leader, follower: follower != "immunodeficiency",
    "western": lambda leader, follower: follower not in ("blot", "blots", "blotting"),
    "northern": lambda leader, follower: follower not in ("blot", "blots", "blotting"),
    "southern": lambda leader, follower: follower not in ("blot", "blots", "blotting"),
}


# ---- negation


_DETERMINERS = frozenset(
    "the a an this that these those it they he she we i you its their his her our my your there who which what".split()
)
_PRONOUNS = frozenset("it they he she we i you there and or".split())
_NEGATED = frozenset("not no never neither nor only just merely hardly barely also none nothing".split())
_PARTICIPLES = frozenset(
    "been shown found become known given seen made taken done had led come gone begun grown risen fallen kept held lost "
    "chosen written spread undergone gotten got brought built met meant left yet".split()
)
_CLITIC = {"can't": "can", "won't": "will", "shan't": "shall", "cannot": "can"}


def _negations(reading: _Reading) -> Iterator[_Site]:
    for i, word in enumerate(reading.lower):
        if word in words_of.AUXILIARIES:
            yield from _not_after(reading, i)
        elif word.endswith("n't") or word == "cannot":
            yield from _without_clitic(reading, i)
        elif word == "no":
            yield from _no_to_some(reading, i)
        else:
            yield from _does_not(reading, i)


def _does_not(reading: _Reading, i: int) -> Iterator[_Site]:
    base = words_of.VERBS.get(reading.lower[i])
    if base is None and reading.follower(i) in words_of.ARTICLES:
        base = words_of.VERBS_BEFORE_ARTICLE.get(reading.lower[i])
    if base is not None and _is_verb(reading, i):
        negated = f"does not {base}"
        upper = reading.words[i].isupper()
        yield _Site(*reading.spans[i], partial(_fixed, negated.upper() if upper else negated))


def _is_verb(reading: _Reading, i: int) -> bool:
    before, after = reading.around(i)
    word = reading.words[i]
    plain = word.islower() or (word.isupper() and reading.words[i - 1].isupper())
    subject = i > 0 and reading.text[reading.spans[i][0] - 1 : reading.spans[i][0]] == " "
    return plain and subject and before != "-" and after == " " and _may_be_subject(reading.leader(i))


def _may_be_subject(word: str) -> bool:
    return word not in (
        "not",
        "to",
        "of",
        "first",
        "also",
        "often",
        "then",
        "thus",
        "now",
        "still",
    ) and not word.endswith("ly")


def _not_after(reading: _Reading, i: int) -> Iterator[_Site]:
    """Yield the place behind an auxiliary: to put "not" in, or to take it out."""
    if not reading.next_to(i):
        return
    end, (next_start, next_end) = reading.spans[i][1], reading.spans[i + 1]
    follower, after = reading.lower[i + 1], reading.follower(i + 1)
    if follower == "not":
        if after and after not in ("only", "just", "merely", "yet", "necessarily"):
            yield _Site(end, next_end, partial(_fixed, ""))
        return
    if follower in ("a", "an") and (reading.lower[i] in words_of.HAVE or reading.leader(i) == "there"):
        yield _Site(next_start, next_end, partial(_fixed, "no"))
    elif _takes_not(reading, i, follower):
        upper = len(reading.words[i]) > 1 and reading.words[i].isupper()
        yield _Site(end, end, partial(_fixed, " NOT" if upper else " not"))


def _takes_not(reading: _Reading, i: int, follower: str) -> bool:
    word = reading.words[i]
    if follower in _NEGATED or not (word.islower() or word.isupper()) or reading.opens_sentence(reading.spans[i][0]):
        return False  # a question, or negated already
    if word.lower() in words_of.BE:
        return (
            reading.words[i + 1].islower()
            and follower not in _PRONOUNS
            and reading.leader(i) not in ("there", "that", "as")
        )
    if word.lower() in words_of.HAVE:
        return follower in _PARTICIPLES or (follower.endswith("ed") and len(follower) > 4)
    return (
        reading.words[i + 1].islower()
        and follower not in _DETERMINERS
        and follower not in ("so", "and", "or", "of", "in", "by", "for", "with", "as", "to", "well")
        and not follower.endswith("ing")
        and reading.leader(i) not in ("the", "a", "an", "in", "than", "as")
    )


def _without_clitic(reading: _Reading, i: int) -> Iterator[_Site]:
    word = reading.lower[i]
    bare = _CLITIC.get(word, word[:-3] if word.endswith("n't") else "")
    if bare in words_of.AUXILIARIES and reading.follower(i) not in ("", "only"):
        yield _Site(*reading.spans[i], partial(_fixed, _cased(bare, reading.words[i])))


def _no_to_some(reading: _Reading, i: int) -> Iterator[_Site]:
    plain = reading.words[i] in ("no", "No") and "-" not in reading.around(i)
    follower = reading.follower(i)
    if plain and follower and follower not in ("longer", "more", "less", "one", "doubt", "matter", "other", "later"):
        yield _Site(*reading.spans[i], partial(_fixed, _cased("some", reading.words[i])))


# ---- entities


def _entities(reading: _Reading, pool: dict[str, str], entities: Sequence[str]) -> Iterator[_Site]:
    yield from _from_cycles(reading)
    names = list(_names(reading))
    if not pool:
        yield from _swaps(reading.text, names)
        return
    known = list(_known(reading, pool))
    for start, end, name in known or names:
        yield _Site(start, end, partial(_another, name, entities))


def _another(name: str, entities: Sequence[str], draws: random.Random) -> str | None:
    for _ in range(8):
        other = draws.choice(entities)
        if other.casefold() != name.casefold():
            return other
    return None


def _from_cycles(reading: _Reading) -> Iterator[_Site]:
    for i, word in enumerate(reading.lower):
        if word not in words_of.CYCLES or not _is_of_cycle(reading, i):
            continue
        others = [other for other in words_of.CYCLES[word] if other != word]
        yield _word_site(reading, i, [_cased(other, reading.words[i]) for other in others])


def _is_of_cycle(reading: _Reading, i: int) -> bool:
    word, lower = reading.words[i], reading.lower[i]
    before, after = reading.around(i)
    if "-" in (before, after) or after in ("'", "’"):
        return False
    if lower in ("may", "march", "august", "polish"):
        return word.istitle() and (
            reading.leader(i) in ("in", "of", "since", "until", "early", "late") or _digits(reading, i)
        )
    if lower in words_of.CAPITALISED:
        return word[:1].isupper()
    if lower == "west" and reading.follower(i) in ("nile", "bank"):
        return False
    return word.islower() or word.isupper() or lower not in words_of.COLOURS


def _digits(reading: _Reading, i: int) -> bool:
    return reading.text[reading.spans[i][1] : reading.spans[i][1] + 2].strip().isdigit()


_NAME = re.compile(r"(?<![\w‐‑–-])[^\W\d_][^\W_]*(?:[-‐‑/](?![a-z])[^\W_]+)*")


def _names(reading: _Reading) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and text of what looks like a name: capitalised words within a sentence, and acronyms."""
    text, previous = reading.text, (-1, -1, False)
    tokens = [match.span() for match in _NAME.finditer(text)]
    long = [start for start, end in tokens if end - start >= 5 and text[start:end].isalpha()]
    if len(long) >= 5 and sum(text[start].isupper() for start in long) > _MAX_CAPITALISED * len(long):
        return
    for start, end in tokens:
        kind = _kind_of_name(reading, start, end)
        if previous[2] and not (kind == "title" and text[previous[1] : start] == " "):
            yield previous[0], previous[1], text[previous[0] : previous[1]]
            previous = (-1, -1, False)
        if kind == "title" and previous[2]:
            previous = (previous[0], end, True)
        elif kind:
            previous = (start, end, True)
    if previous[2]:
        yield previous[0], previous[1], text[previous[0] : previous[1]]


def _kind_of_name(reading: _Reading, start: int, end: int) -> str:
    token = reading.text[start:end]
    if token.islower():
        return ""
    capitals = sum(character.isupper() for character in token)
    digits = sum(character.isdigit() for character in token)
    if end - start > 40 or not capitals or token.lower() in words_of.SECTION_WORDS:
        return ""
    if (capitals >= 2 or (capitals and digits)) and len(token) >= 2:
        # A long word of capitals is a heading.
        return "" if token.isalpha() and token.isupper() and len(token) > 6 else "acronym"
    if token[0].isupper() and token[1:].islower() and len(token) > 2 and not reading.opens_sentence(start):
        return "" if token.lower() in words_of.CYCLES else "title"
    return ""


def _swaps(text: str, names: list[tuple[int, int, str]]) -> Iterator[_Site]:
    """Yield pairs of different names in one sentence, to change places, unless they are only listed."""
    for i, (start, end, name) in enumerate(names):
        for other_start, other_end, other in names[i + 1 : i + 1 + _SWAP_REACH]:
            between = text[end:other_start]
            if len(between) > 200 or re.search(r"[.!?;:]\s", between):
                break
            # What is in brackets explains what comes before them.
            explained = text[start - 1 : start] == "(" or between.rfind("(") > between.rfind(")")
            if (
                not explained
                and _plain(name) != _plain(other)
                and _BETWEEN.search(between)
                and not _LISTED.fullmatch(between)
            ):
                yield _Site(start, other_end, partial(_fixed, other + between + name))


def _plain(name: str) -> str:
    return re.sub(r"[^\w]|s$", "", name.casefold())


# A word of its own: "Crohn's Disease" and "PCR-amplified DNA" are one name each.
_BETWEEN = re.compile(r"\s\w+\s")
_LISTED = re.compile(r"[\s,/&()\[\]+-]*(?:(?:and|or)[\s(]*)?")


def _known(reading: _Reading, pool: dict[str, str]) -> Iterator[tuple[int, int, str]]:
    """Yield the entities of the pool that occur in a text, the longest at each place."""
    tokens = [match.span() for match in re.finditer(r"[^\W_]+", reading.text)]
    longest = min(_MAX_ENTITY_WORDS, max(len(re.findall(r"[^\W_]+", name)) for name in pool))
    done = -1
    for i, (start, _) in enumerate(tokens):
        for last in range(min(i + longest, len(tokens)) - 1, i - 1, -1):
            end = tokens[last][1]
            if start >= done and " ".join(reading.text[start:end].casefold().split()) in pool:
                yield start, end, reading.text[start:end]
                done = end
                break
