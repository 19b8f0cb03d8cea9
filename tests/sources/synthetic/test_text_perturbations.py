"""Typing errors."""

from __future__ import annotations

from collections import Counter

import pytest

from st_hardneg.sources.synthetic import TextPerturbations
from st_hardneg.sources.synthetic.text_perturbations import _NEARBY

WORDS = " ".join(f"word{number}" for number in range(250))


def one_edit(text: str, kind: str, count: int = 400) -> set[str]:
    return set(TextPerturbations(count, kinds=(kind,))([text])[0])


@pytest.mark.parametrize("edited", ["abdc", "abc", "abcdd", "abca", "abxd"])
def test_character_edits(edited):
    """A character is swapped, dropped, inserted, replaced by one of the text, or mistyped for its neighbour."""
    assert edited in one_edit("abcd", "character")


def test_all_character_edits_of_a_word():
    """Nothing else is written than what the five edits may write."""
    swapped = {"ba", "ab"}
    dropped = {"a", "b"}
    inserted = {"aab", "abb", "aba", "bab"} | {"abb", "aba"}
    replaced = {"bb", "aa"}
    mistyped = {near + "b" for near in _NEARBY["a"]} | {"a" + near for near in _NEARBY["b"]}
    assert one_edit("ab", "character") <= swapped | dropped | inserted | replaced | mistyped


def test_word_edits():
    """Two neighbours swapped, a word dropped, a word split."""
    assert one_edit("ab cd", "word") == {"cd ab", "cd", "ab", "a b cd", "ab c d"}
    assert one_edit("a", "word") == set()


def test_neighbours_on_the_keyboard():
    """They are next to each other in a row, or half a key away in the next row."""
    assert set(_NEARBY["g"]) == set("fhtyvb")
    assert set(_NEARBY["q"]) == set("w12a") - {"1"} | set("1")
    assert all(key in _NEARBY[other] for key, near in _NEARBY.items() for other in near)


def test_the_rate_counts():
    """It is the share of the words that are edited; character edits leave the number of words as it is."""
    changed = {}
    for rate in (0.02, 0.5):
        [[text]] = TextPerturbations(kinds=("character",), rate=rate)([WORDS])
        assert len(text.split()) == 250
        changed[rate] = sum(a != b for a, b in zip(WORDS.split(), text.split(), strict=True))
    assert 3 <= changed[0.02] <= 5 < 100 < changed[0.5] <= 125


def test_case_alphabet_and_punctuation_are_kept():
    """New letters take the case of the word and the alphabet of the text; what is no letter or digit stays."""
    assert all(text.isupper() for text in one_edit("HELLO WORLD", "character"))
    assert all(not set(text) & set("abcdefghijklmnopqrstuvwxyz") for text in one_edit("привет мир", "character"))
    assert all(Counter(text)["-"] == 2 for text in one_edit("a-b-c", "character"))
    assert len(one_edit("敏捷的棕色狐狸", "character")) > 10
    assert TextPerturbations(3)(["— …"]) == [[]]


def test_whitespace_becomes_one_space():
    """Line breaks, too."""
    for text in one_edit("ab\n\n cd\tef", "word"):
        assert "\n" not in text and "\t" not in text and "  " not in text
