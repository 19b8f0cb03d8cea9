"""Numbers in a text, and other numbers in their format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from st_hardneg.sources.synthetic.edit_words import NUMBER_WORDS

# Chinese and Japanese write numbers without spaces around them; next to these letters, a number is part of a name.
_LETTER = "A-Za-z\u00b5\u00c0-\u024f\u0370-\u04ff"
# Not within a name, a date, a time, a range, a version or a reference: "IL-6", "1.2.3", "10:30", "[12]", "3'-end".
_NUMBER = re.compile(
    rf"(?<![{_LETTER}\d_.,:/^'’\[#])(?<![{_LETTER}\d][-‐–−+])(?<!\d [-–−] )"
    r"([0-9]{1,3}(?:[, \u00a0\u2009\u202f][0-9]{3}){1,4}(?:\.[0-9]{1,12})?|[0-9]{1,15}(?:[.,][0-9]{1,12})?)"
    rf"(st|nd|rd|th|s|[kcm]?m(?!\w)|[km]?g(?!\w))?(?![{_LETTER}\d_])(?! ?[.,:/^–−-] ?[0-9])(?!['′’″/^])"
    r"(?![-‐](?!(?:second|minute|hour|day|week|month|year|foot|mile|point|page|step|fold|percent)\b))"
)
_REFERENCE = re.compile(r"\b(?:figure|fig\.?|table|section|chapter|page|no\.?|equation|eq\.?) ?$", re.IGNORECASE)
# After these, a number is one of few: "type 2".
_LABEL = re.compile(r"\b(?:types?|phase|stage|grade|class|group|level|step|part|version|category) $", re.IGNORECASE)
_WORD = re.compile(rf"(?<![\w'’-])(?:{'|'.join(NUMBER_WORDS)})(?![\w'’]|-(?!fold|year|month|week|day))", re.IGNORECASE)
_LATEST_YEAR = 2030


def other_quantities(text: str) -> Iterator[tuple[int, int, Sequence[str]]]:
    """Yield start and end of the numbers in a text, and other numbers that could stand there.

    Numbers in names, dates, ranges and references are left alone.

    Example:
        >>> [(start, end, others[:2]) for start, end, others in other_quantities("12.5 % of 5-HT in two")]
        [(0, 4, ['22.5', '32.5']), (18, 21, ['three', 'four'])]
    """
    for match in _NUMBER.finditer(text):
        others = _others(match, text[max(0, match.start() - 10) : match.start()], text[match.end() : match.end() + 9])
        if others:
            yield match.start(), match.end(), others
    for match in _WORD.finditer(text):
        yield match.start(), match.end(), [word for word in NUMBER_WORDS if word != match.group().lower()]


def _others(match: re.Match[str], before: str, after: str) -> list[str]:
    body, suffix = match.groups("")
    label = len(body) == 1 and _LABEL.search(before)
    reference = _REFERENCE.search(before) or (after.startswith(")") and before.endswith("(") and body.isdigit())
    # "1 day" would need another word after another number.
    if reference or (body == "1" and not label and re.match(r"[- ][^\W\d_]", after)):
        return []
    near = [int(body) + n for n in (-3, -2, -1, 1, 2, 3) if int(body) + n > 0] if body.isdigit() else []
    if label or suffix in ("st", "nd", "rd", "th"):
        endings = ["th" if n // 10 % 10 == 1 or n % 10 > 3 else ("th", "st", "nd", "rd")[n % 10] for n in near]
        return [str(n) if label else f"{n}{ending}" for n, ending in zip(near, endings, strict=True)]
    if suffix == "s":
        return [f"{int(body) - n}s" for n in (10, 20, 30)] if re.fullmatch("[12][0-9][0-9]0", body) else []
    is_share = after.lstrip().startswith(("%", "percent", "per cent"))
    others = [str(n) for n in range(10, 100, 10)] if is_share and body == "100" else other_numbers(body)
    return [other + suffix for other in others if not is_share or len(other) <= len(body)]


def other_numbers(body: str) -> list[str]:
    """Return other numbers in the same format: another first digit, or ten times as much; other years for years."""
    if re.fullmatch("1[5-9][0-9]{2}|20[0-9]{2}", body):
        years = [year for distance in range(2, 30) for year in (int(body) - distance, int(body) + distance)]
        return [str(year) for year in years if year <= max(int(body), _LATEST_YEAR)]
    first = next((i for i, character in enumerate(body) if character in "123456789"), len(body) - 1)
    found = [body[:first] + digit + body[first + 1 :] for digit in "123456789" if digit != body[first]]
    return [*found, body + "0"] if re.fullmatch("[1-9][0-9]{,3}", body) else found
