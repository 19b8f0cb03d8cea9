"""Regular expressions of strangers: what may take for ever is told from what does not."""

from __future__ import annotations

import re
import time

import pytest

from st_hardneg.files.patterns import is_quick

QUICK = [
    r"https?://\S+",
    r"^\s*(yes|no|maybe)\s*$",
    r"^\d{4}-\d{2}-\d{2}$",
    r"(ab)+",
    r"(?i)table of contents",
    r"(?i:lorem) ipsum",
    r"[^]]+",
    r"[a\]]+",
    r"\(a+\)+",
    r"\bfoo\b.*bar",
    r"(?P<word>x+)y",
    r"(?<=x)y",
    r"a{",
    r"{}",
    r"x{2,}",
    r"(?:a|b)c??",
    r"",
    r"|",
]
SLOW = [
    r"^(a+)+$",
    r"(a*)*b",
    r"(a|a)*b",
    r"(a|ab)+c",
    r"([a-z]+\s?)+$",
    r"(a?){30}a{30}",
    "a?" * 30 + "a" * 30,
    "(a|a)" * 40 + "b",
    r"((a|a){9}){9}",
    r"(?:a{0,9}){0,9}",
    r".*a.*b.*c",
    r"(a)\1",
    r"(?P<a>x)(?P=a)",
    r"(x)?(?(1)a|b)",
    r"(?x) (a+)+  # with a comment",
    r"(?#comment)a",
    r"(a{1,200}){1,200}",
    r"(.*?,){11}P",
]


@pytest.mark.parametrize("pattern", QUICK)
def test_patterns_that_people_write_are_quick(pattern):
    """They are valid, and the worst text for them takes no time."""
    re.compile(pattern)
    assert is_quick(pattern)


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_that_may_take_for_ever_are_not(pattern):
    """Nested repetitions, alternatives that are repeated, and long products of choices."""
    re.compile(pattern)
    assert not is_quick(pattern)


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
def test_any_pattern_gets_an_answer():
    """Random strings of the characters that mean something: what is called quick is quick on texts that repeat."""
    import random

    rng = random.Random(0)
    texts = ["a" * 200 + "!", "ab" * 100 + "!", "b" * 200]
    valid = quick = 0
    for _ in range(3000):
        pattern = "".join(rng.choices("aab()()|*+?{1,2}[]^\\", k=rng.randint(1, 12)))
        answer = is_quick(pattern)
        try:
            compiled = re.compile(pattern)
        except re.error:
            continue
        valid, quick = valid + 1, quick + answer
        if answer:
            started = time.perf_counter()
            for text in texts:
                compiled.search(text)
            assert time.perf_counter() - started < 2, pattern
    assert valid > 200 and quick > 100
