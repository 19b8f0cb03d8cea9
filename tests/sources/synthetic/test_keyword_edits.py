"""Keyword edits, rule by rule."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_hardneg.sources.synthetic import KeywordEdits, checked_synthetic
from st_hardneg.sources.synthetic.edit_words import OPPOSITES
from st_hardneg.sources.synthetic.quantities import other_numbers, other_quantities
from tests.sources.synthetic.test_makers import PROSE, quick, texts


def only(text: str, kind: str, count: int = 100, **arguments: object) -> set[str]:
    """Return what edits of one kind make of a text."""
    return set(KeywordEdits(count, kinds=(kind,), **arguments)([text])[0])


def num_in_common(before: list[str], after: list[str]) -> int:
    """Return the length of the longest common subsequence. `difflib` looks for long blocks, and finds less at times."""
    lengths = [0] * (len(after) + 1)
    for word in before:
        last = 0
        for place, other in enumerate(after, start=1):
            last, lengths[place] = (
                lengths[place],
                last + 1 if word == other else max(lengths[place], lengths[place - 1]),
            )
    return lengths[-1]


@quick
@given(texts)
def test_an_edit_keeps_the_wording(text):
    """Of the words, all but a few are in both texts."""
    for edited in KeywordEdits(3, kinds=("number", "antonym", "negation"))([text])[0]:
        before, after = (re.findall(r"\w+|\S", one) for one in (text, edited))
        assert len(before) - num_in_common(before, after) <= 4


def test_all_kinds_take_turns():
    """As many texts as there are kinds are one of each; every text has draws of its own."""
    kinds = {kind: only(PROSE, kind, 200) for kind in ("number", "entity", "antonym", "negation")}
    for seed in range(10):
        left = dict(kinds)
        for edited in KeywordEdits(4, seed=seed)([PROSE])[0]:
            left = {kind: found for kind, found in left.items() if edited not in found}
        assert not left, f"{list(left)} was left out"
    born = KeywordEdits(kinds=("entity",))([f"child {number} was born in May" for number in range(20)])
    assert len({text.split()[-1] for [text] in born}) > 5


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("It lasts 5 days.", "number", "It lasts 50 days."),
        ("a share of 12.5 %", "number", "a share of 22.5 %"),
        ("seen in 1998", "number", "seen in 1989"),
        ("of 1,234 people", "number", "of 2,234 people"),
        ("on the 21st day", "number", "on the 22nd day"),
        ("on the 10th day", "number", "on the 13th day"),
        ("in the 1990s", "number", "in the 1980s"),
        ("at -5 °C", "number", "at -7 °C"),
        ("p < 0.05", "number", "p < 0.02"),
        ("type 2 diabetes", "number", "type 1 diabetes"),
        ("it weighs 5kg", "number", "it weighs 7kg"),
        ("an 8-day stay", "number", "a 5-day stay"),
        ("a 5-year plan", "number", "an 8-year plan"),
        ("a two-fold rise", "number", "an eight-fold rise"),
        ("TWO OF THEM", "number", "SEVEN OF THEM"),
        ("12,5 Prozent der Häuser", "number", "22,5 Prozent der Häuser"),
        ("他有5个苹果", "number", "他有7个苹果"),
        ("he met Ada Lovelace in Paris today", "entity", "he met Paris in Ada Lovelace today"),
        ("Ada Lovelace met Charles Babbage", "entity", "Charles Babbage met Ada Lovelace"),
        ("that NATO left IBM-2 here", "entity", "that IBM-2 left NATO here"),
        ("als Anna dann Berta sah", "entity", "als Berta dann Anna sah"),
        ("born in May", "entity", "born in June"),
        ("on Monday", "entity", "on Friday"),
        ("Increases were seen", "antonym", "Decreases were seen"),
        ("AN INCREASE", "antonym", "A DECREASE"),
        ("An early train", "antonym", "A late train"),
        ("a safe trip", "antonym", "an unsafe trip"),
        ("vitamin A increases it", "antonym", "vitamin A decreases it"),
        ("it reduced growth", "antonym", "it increased growth"),
        ("they are including it", "antonym", "they are excluding it"),
        ("before lunch", "antonym", "after lunch"),
        ("he always wins", "antonym", "he never wins"),
        ("all the birds sing", "antonym", "none of the birds sing"),
        ("all birds sing", "antonym", "none of the birds sing"),
        ("at least 5", "antonym", "at most 5"),
        ("he no longer works", "antonym", "he still works"),
        ("a stable and long-term effect", "antonym", "a stable and short-term effect"),
        ("it is safe", "negation", "it is not safe"),
        ("it is not safe", "negation", "it is safe"),
        ("it isn't safe", "negation", "it is safe"),
        ("it CAN’T WORK", "negation", "it CAN WORK"),
        ("it cannot work", "negation", "it can work"),
        ("it can work", "negation", "it can not work"),
        ("it has been shown", "negation", "it has not been shown"),
        ("it has a role", "negation", "it has no role"),
        ("there is a way", "negation", "there is no way"),
        ("No effect was it", "negation", "Some effect was it"),
        ("he does not work", "negation", "he does work"),
    ],
)
def test_what_an_edit_may_write(text, kind, wanted):
    """Each is among what is drawn."""
    found = only(text, kind)
    assert wanted in found, sorted(found)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("IL-6 and p53 and COVID-19 and 5-HT, a 3'-end, CD4+, 3D", "number"),
        ("10:30, 1.2.3, 12/05/2010, 2010-05-12, 10.1038/x, 5-10, 5 – 10", "number"),
        ("as in Figure 3 and [12] and (2)", "number"),
        ("in their 50s, 1 year, twenty-two, two-thirds", "number"),
        ("We met The Team. Mice ran. OBJECTIVE: Rats ran.", "entity"),
        ("with NATO and IBM-2", "entity"),
        ("a club of the Town (BOTA) here", "entity"),
        ("he may march", "entity"),
        ("some PCR-amplified DNA", "entity"),
        ("it was Crohn's Disease", "entity"),
        ("The Ancient House of the Lonely Sisters In London Town", "entity"),
        ("the High Court at North Bridge", "antonym"),
        ("more or less, after all, at last, look after it", "antonym"),
        ("a pre-increase and over-high-er", "antonym"),
        ("not only this, is it? Is it so? There it is.", "negation"),
        ("it is not only safe", "negation"),
        ("he has two", "negation"),
        ("the can of May", "negation"),
        ("in May people", "negation"),
        ("it no longer works", "negation"),
        ("el perro no ladra que es de la casa", "negation"),
        ("El perro no ladra que es de la casa", "antonym"),
        ("das ist der Hund, all will was", "antonym"),
        ("Der Vater ist hier und nicht dort, was all", "negation"),
    ],
)
def test_what_is_left_alone(text, kind):
    """Names with numbers, sentence starts, lists, words with another meaning, other languages."""
    assert only(text, kind) == set()


@quick
@given(st.decimals(min_value=0, max_value=10**6, places=2) | st.integers(0, 10**9), st.booleans())
def test_another_number_keeps_the_format(number, grouped):
    """Separators and decimals stay, the value does not."""
    text = f"{number:,}" if grouped else str(number)
    for changed in other_numbers(text):
        assert float(changed.replace(",", "")) != float(number)
        assert ("." in changed) == ("." in text)
        assert "," not in text or "." in text or changed == f"{int(changed.replace(',', '')):,}"
        assert not (len(changed) > 1 and changed[0] == "0" and changed[1] != ".")
    [(start, end, others)] = list(other_quantities(text + " apples")) or [(0, len(text), other_numbers(text))]
    assert (start, end) == (0, len(text)) and others == other_numbers(text)


def test_a_share_stays_a_share():
    """No per cent above 100, no probability above 1, no year that has not come."""
    shares = [float(re.search(r"[\d.]+", one)[0]) for one in only("in 12.5 % of them", "number")]
    shares += [float(re.search(r"[\d.]+", one)[0]) for one in only("in 50 percent so", "number")]
    assert len(shares) > 9 and max(shares) <= 100
    assert only("in 100 % of them", "number") == {f"in {n} % of them" for n in range(10, 100, 10)}
    assert all(float(one[4:]) < 1 for one in only("p = 0.052", "number"))
    assert max(map(int, only("2024", "number"))) <= 2030
    assert max(map(int, other_numbers("2053"))) == 2051


def test_names_come_from_the_pool():
    """Names are replaced by others from it, and never by themselves."""
    pool = ("Adam", "Berta", "Charles Babbage")
    assert only("we saw Adam", "entity", entities=pool) == {"we saw Berta", "we saw Charles Babbage"}
    assert KeywordEdits(entities={"b", "a"}).entities == ("a", "b")


def test_the_word_list():
    """No word is its own opposite, words are lower case, and what is left alone has no opposite."""
    assert all(word != other and word == word.lower() for word, other in OPPOSITES.items())
    assert OPPOSITES["increased"] == "decreased" and OPPOSITES["improving"] == "worsening"
    assert OPPOSITES["more or less"] == ""


def test_the_labelled_set(data_dir):
    """Most claims of SciFact have an edit, although they are about one field of science."""
    with gzip.open(Path(data_dir) / "scifact" / "queries.jsonl.gz", "rt", encoding="utf-8") as file:
        claims = [json.loads(line)["text"] for line in file][:400]
    written = checked_synthetic(KeywordEdits(), claims)
    assert sum(map(bool, written)) > 0.7 * len(claims)
