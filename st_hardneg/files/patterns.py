"""Whether a regular expression of a stranger's can be run on texts without fear that it never ends."""

from __future__ import annotations

import re
from math import log

_LONG = 1000  # what an unbounded repetition counts as: the characters of a text
_MOST_WAYS = 10_000_000

_TOKEN = re.compile(
    r"""
    (?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])        # [a-z], []x], [^]]
    | (?P<reference>\\[1-9]|\(\?P=|\(\?\()       # \1, (?P=name), (?(1)yes|no)
    | (?P<escape>\\.)
    | (?P<flags>\(\?[aiLmsu]+\))
    | (?P<open>\((?:\?(?:P<\w+>|[:>=!]|<[=!]|[aiLmsu]+(?:-[ims]+)?:)|(?!\?)))
    | (?P<close>\))
    | (?P<repeat>[*+?]|\{\d*(?:,\d*)?\})[?+]?
    | (?P<or>\|)
    | (?P<other>[^(])
    """,
    re.VERBOSE | re.DOTALL,
)


def ways_to_match(pattern: str) -> float:
    r"""Return how many ways there are, at most, to match a pattern at one place of a text of some length.

    What backtracks for ever has more ways than there is time: each alternative, and each number of repetitions, is one.

    Args:
        pattern: A valid regular expression.

    Returns:
        A bound; infinity where it cannot be told.

    Example:
        >>> ways_to_match(r"https?://\S+") == 2 * 1000
        True
        >>> ways_to_match("^(a+)+$")
        inf
    """
    # One entry per open group: the ways of alternatives that are over, of the current one, and of its last piece.
    groups: list[list[float]] = [[0.0, 1.0, 1.0]]
    place = 0
    while place < len(pattern):
        token = _TOKEN.match(pattern, place)
        if token is None or token["reference"]:
            return float("inf")
        place = token.end()
        current = groups[-1]
        if token["open"]:
            groups.append([0.0, 1.0, 1.0])
        elif token["close"]:
            if len(groups) == 1:
                return float("inf")
            done, ways, last = groups.pop()
            _add_piece(groups[-1], done + ways * last)
        elif token["or"]:
            current[:] = [current[0] + current[1] * current[2], 1.0, 1.0]
        elif token["repeat"]:
            current[2] = _repeated(current[2], token["repeat"])
        elif not token["flags"]:
            _add_piece(current, 1.0)
    done, ways, last = groups[0]
    return done + ways * last if len(groups) == 1 else float("inf")


def _add_piece(group: list[float], ways: float) -> None:
    group[1] *= group[2]
    group[2] = ways


def _repeated(ways: float, repeat: str) -> float:
    """Return in how many ways a piece can be repeated."""
    least, most = {"*": (0, _LONG), "+": (1, _LONG), "?": (0, 1)}.get(repeat, (0, 0))
    if repeat.startswith("{"):
        first, _, second = repeat[1:-1].partition(",")
        least = int(first or 0)
        most = least if "," not in repeat else int(second or _LONG)
    if most == 0:
        return ways
    numbers = float(most - least + 1)
    if ways == 1:
        return numbers
    # In each of the repetitions, each of the ways.
    return float("inf") if most * log(ways) > log(_MOST_WAYS) else numbers * ways**most


def is_quick(pattern: str) -> bool:
    """Tell whether a pattern surely needs no more than a moment for any text."""
    return ways_to_match(pattern) <= _MOST_WAYS
