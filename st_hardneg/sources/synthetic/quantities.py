"""Numbers in a text, and other numbers in their format."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from st_hardneg.sources.synthetic import edit_words as words_of

_SPACES = " \u00a0\u2009\u202f"
_BODY = (
    rf"[0-9]{{1,3}}(?:[,{_SPACES}][0-9]{{3}}){{1,4}}(?![0-9])(?:\.[0-9]{{1,12}})?"  # with thousands separators
    r"|[0-9]{1,15}(?:[.,·][0-9]{1,12})?|\.[0-9]{1,12}"
)
# Not within a word, a date, a time, a version or an exponent: "IL-6", "p53", "1.2.3", "10:30", "3'-end".
_NUMBER = re.compile(
    rf"(?<![\w.,:/^'’·])(?<!\w[-‐–−+])(?P<sign>[-+−])?(?P<body>{_BODY})"
    rf"(?:(?P<dash> ?[-–−] ?)(?P<upper>{_BODY}))?"
    r"(?![0-9])(?![.,:/·^–−-]?[0-9])(?!['′’″/^])"
)
_LETTERS = re.compile(r"[^\W\d_]+")
_WORD_AFTER = re.compile(r"[- \u00a0]?([^\W\d_]+)")
_ORDINALS = frozenset(("st", "nd", "rd", "th"))
_ATTACHED = frozenset(words_of.SYMBOL_UNITS) | {"x", "fold", "yrs"}
_HYPHENATED = frozenset(words_of.COUNTED_UNITS) | {
    "fold",
    "point",
    "item",
    "percent",
    "day",
    "dose",
    "step",
    "drug",
    "mile",
}


@dataclass(frozen=True)
class Quantity:
    """A number in a text.

    Args:
        start: Where it starts, the sign included.
        end: Where it ends; an ordinal's letters are included, a unit is not.
        kind: What it is: a plain number, a share of 100, a year, a decade, an ordinal, a label such as the 2 of "type 2",
            a range, or a span of time.
        sign: Its sign, or "".
        body: Its digits with their separators; the lower end of a range.
        dash: What is between the ends of a range, or "".
        upper: The upper end of a range, or "".
    """

    start: int
    end: int
    kind: str
    sign: str
    body: str
    dash: str = ""
    upper: str = ""


def quantities(text: str) -> Iterator[Quantity]:
    """Yield the numbers that say how much, how many, when or which; numbers within names are left alone.

    Example:
        >>> [(found.kind, found.body) for found in quantities("In 1998, 12.5 % of 1,200 had IL-6 and 5-HT.")]
        [('year', '1998'), ('percent', '12.5'), ('plain', '1,200')]
    """
    for match in _NUMBER.finditer(text):
        sign, body, dash, upper = (match.group(name) or "" for name in ("sign", "body", "dash", "upper"))
        end = match.end()
        kind = _kind(text, match.start(), end, body, upper)
        if kind == "ordinal":
            end += 2
        if kind and not (sign and kind in ("year", "ordinal", "decade", "label")):
            yield Quantity(match.start(), end, kind, sign, body, dash, upper)


def _kind(text: str, start: int, end: int, body: str, upper: str) -> str:
    """Return what kind of number this is; "" if it is better left alone."""
    before = text[max(0, start - 24) : start]
    if before.endswith("[") or _last_word(before).lower() in words_of.REFERENCES:
        return ""
    if body.isdigit() and text[end : end + 1] == ")" and (before.endswith("(") or "(" not in before):
        return ""  # a reference, or an item of a list
    attached = _LETTERS.match(text, end)
    if attached:
        return _attached_kind(attached.group(), body, upper)
    if text[end : end + 1] in ("-", "‐") and not _hyphenated_unit(text, end):
        return ""
    if upper:
        return "range" if _value(body) < _value(upper) else ""
    return _free_kind(text, end, body, _last_word(before))


def _free_kind(text: str, end: int, body: str, word_before: str) -> str:
    after = text[end : end + 14].lstrip(_SPACES)
    if after.startswith(("%", "percent", "per cent")):
        # The level of a confidence interval is a habit, not a finding.
        return "" if re.match(r"%? ?(?:CI|confidence|C\.I)", after) or after.startswith("% c") else "percent"
    if len(body) == 1 and body.isdigit() and _is_label(word_before):
        return "label"
    if body.isdigit() and len(body) == 4 and 1500 <= int(body) <= 2100:
        return "year"
    word_after = _WORD_AFTER.match(text, end)
    unit = word_after.group(1).lower() if word_after else ""
    if body == "1" and unit in words_of.TIMES and not text[end : end + 1] == "-":
        return ""  # "9 year"
    return "time" if unit in words_of.TIMES else "plain"


def _is_label(word_before: str) -> bool:
    return (
        word_before.lower() in words_of.LABELS
        or word_before.endswith("ase")
        or (word_before.isupper() and len(word_before) > 1)
    )


def _attached_kind(letters: str, body: str, upper: str) -> str:
    if letters in _ORDINALS:
        return "ordinal" if body.isdigit() and not upper else ""
    if letters == "s" and re.fullmatch(r"[1-9]0", body):
        return ""  # "in their 50s"
    if letters == "s" and re.fullmatch(r"[12][0-9]{2}0", body) and not upper:
        return "decade"
    if letters in _ATTACHED:
        return "range" if upper and _value(body) < _value(upper) else "plain" if not upper else ""
    return ""


def _hyphenated_unit(text: str, end: int) -> bool:
    word = _WORD_AFTER.match(text, end)
    return word is not None and (word.group(1).lower() in _HYPHENATED or word.group(1) in words_of.SYMBOL_UNITS)


def _last_word(before: str) -> str:
    words = before.rstrip(" .\u00a0").rsplit(None, 1)
    return words[-1].strip("(.,") if words and not before.rstrip(" ").endswith(",") else ""


def _value(body: str) -> Decimal:
    plain = re.sub(rf"[{_SPACES}]", "", body).replace("·", ".")
    if re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", plain):
        plain = plain.replace(",", "")
    return Decimal(plain.replace(",", "."))


# ---- other numbers


def other_quantity(quantity: Quantity, draws: random.Random) -> str | None:
    """Return another number in the format of this one; None where none is found.

    Example:
        >>> [found] = quantities("12.5 %")
        >>> sorted({other_quantity(found, random.Random(seed)) for seed in range(40)})[:3]
        ['15.2', '21.5', '22.5']
    """
    if quantity.sign and draws.random() < 1 / 3:
        return {"-": "+", "−": "+", "+": "-"}[quantity.sign] + quantity.body + quantity.dash + quantity.upper
    changed = _CHANGES[quantity.kind](quantity, draws)
    return None if changed is None else quantity.sign + changed


def _other_year(quantity: Quantity, draws: random.Random) -> str:
    year = int(quantity.body)
    swapped = int(quantity.body[:2] + quantity.body[3] + quantity.body[2])
    if swapped != year and swapped <= max(year, 2030) and draws.random() < 0.5:
        return str(swapped)
    return str(year - draws.randint(2, 29) if draws.random() < 0.5 or year > 1995 else year + draws.randint(2, 29))


def _other_decade(quantity: Quantity, draws: random.Random) -> str:
    return str(int(quantity.body) + 10 * draws.choice((-3, -2, -1)))


def _other_ordinal(quantity: Quantity, draws: random.Random) -> str:
    number = int(quantity.body)
    other = draws.choice([n for n in range(max(1, number - 4), number + 5) if n != number])
    suffix = "th" if other // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(other % 10, "th")
    return f"{other}{suffix}"


def _other_label(quantity: Quantity, draws: random.Random) -> str:
    number = int(quantity.body)
    return str(draws.choice([n for n in range(max(1, number - 2), min(9, number + 2) + 1) if n != number]))


def _other_range(quantity: Quantity, draws: random.Random) -> str | None:
    lower, upper = quantity.body, quantity.upper
    if lower.isdigit() and upper.isdigit():
        shift = (int(upper) - int(lower)) + draws.choice((1, 2, 3, 5))
        if len(lower) == 4 or (int(lower) > shift and draws.random() < 0.5):
            shift = -shift
        return f"{max(0, int(lower) + shift)}{quantity.dash}{int(upper) + shift}" if int(upper) + shift > 0 else None
    changed = _leading(upper, draws, least=_value(lower))
    return None if changed is None else lower + quantity.dash + changed


def _other_number(quantity: Quantity, draws: random.Random) -> str | None:
    body, value = quantity.body, _value(quantity.body)
    most = Decimal(100) if quantity.kind == "percent" and value <= 100 else Decimal(1) if value < 1 else None
    ways: list[Callable[[str, random.Random], str | None]] = [_transposed, _leading, _scaled]
    draws.shuffle(ways)
    for way in ways:
        changed = way(body, draws)
        if changed is not None and _value(changed) != value and _plausible(_value(changed), value, most, quantity.kind):
            return changed
    return None


def _plausible(changed: Decimal, value: Decimal, most: Decimal | None, kind: str) -> bool:
    if most is not None and changed > most:
        return False
    return kind != "time" or changed < 100 or changed <= value


def _transposed(body: str, draws: random.Random) -> str | None:
    """Return the number with two neighbouring digits in each other's place."""
    places = [i for i, character in enumerate(body) if character.isdigit()]
    pairs = [(i, j) for i, j in pairwise(places) if body[i] != body[j]]
    pairs = [(i, j) for i, j in pairs if i != places[0] or (body[j] != "0") or body[i + 1 : i + 2] in (".", "·")]
    if body.startswith(("0", ".")):
        pairs = [(i, j) for i, j in pairs if i > places[0] or body[0] == "."]
    if not pairs:
        return None
    i, j = draws.choice(pairs)
    return body[:i] + body[j] + body[i + 1 : j] + body[i] + body[j + 1 :]


def _leading(body: str, draws: random.Random, least: Decimal | None = None) -> str | None:
    """Return the number with another first digit (of those that are not 0; a 0 alone becomes another digit)."""
    first = next((i for i, character in enumerate(body) if character in "123456789"), len(body) - 1)
    choices = [digit for digit in "123456789" if digit != body[first]]
    draws.shuffle(choices)
    for digit in choices:
        changed = body[:first] + digit + body[first + 1 :]
        if least is None or _value(changed) > least:
            return changed
    return None


def _scaled(body: str, draws: random.Random) -> str | None:
    """Return ten times the number, or a tenth of it, where that keeps the format."""
    small = re.fullmatch(r"(0?\.)(0*)([0-9]+)", body)
    if small:
        zeros = small.group(2)
        fewer = zeros[1:] if zeros and draws.random() < 0.5 else zeros + "0"
        return small.group(1) + fewer + small.group(3)
    if not body.isdigit() or len(body) > 4:
        return None
    if body.endswith("0") and len(body) > 1 and draws.random() < 0.5:
        return body[:-1]
    return body + "0" if body != "0" and (len(body) == 1 or body.endswith("0")) else None


_CHANGES: dict[str, Callable[[Quantity, random.Random], str | None]] = {
    "plain": _other_number,
    "percent": _other_number,
    "time": _other_number,
    "year": _other_year,
    "decade": _other_decade,
    "ordinal": _other_ordinal,
    "label": _other_label,
    "range": _other_range,
}
