"""Which texts count as one: copies of a right answer are no negatives, and what is merged is counted and can be kept."""

from __future__ import annotations

import time
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.corpus.digests import digests_of_bytes
from st_hardneg.corpus.identity import (
    _INVISIBLE,
    IDENTITIES,
    _not_plain,
    draw_keys,
    identity_keys,
    same_text_key,
    text_digest,
    text_digests,
)
from tests.toys import Model, by_seed, mined, texts_of

INVISIBLE = ["\u200b", "\u00ad", "\ufeff", "\u200e", "\u2060", "\ufe0f"]
QUIZ = Dataset.from_dict(
    {"anchor": ["what is 5 squared", "how many ways to choose"], "positive": ["25", "10"]}
)  # answers of digits only


def mined_with(pairs, corpus=None, *, model, n=1, **fields) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=n, **fields))
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
def test_a_copy_of_the_positive_with_an_invisible_character_is_no_negative(character, bag_of_words):
    pairs = Dataset.from_dict({"anchor": ["w1 w2"], "positive": ["w3 w4"]})
    found = mined_with(pairs, [f"w3{character} w4", "w90 w91"], model=bag_of_words)
    assert found.to_dataset()["negative"][:] == ["w90 w91"]


def test_answers_that_differ_in_a_superscript_are_merged_counted_and_can_be_kept_apart(bag_of_words):
    """2⁵ is 25 for Unicode's normal form, and not for a quiz: the report counts it, and `identity="exact"` keeps them."""
    corpus = ["25", "2⁵", "52", "10"]
    merged = mined_with(QUIZ, corpus, model=bag_of_words, n=3)
    assert "1 of the texts are copies of another one" in repr(merged)
    assert merged.report.num_merged_texts == 1 and "1 of the texts are copies" in str(merged.report)
    assert not {"2⁵", "25"} & set(merged.to_dataset().filter(lambda row: row["positive"] == "25")["negative"])
    exact = mined_with(QUIZ, corpus, model=bag_of_words, n=3, identity="exact")
    assert exact.report.num_merged_texts == 0 and "count as the same" not in repr(exact)
    rows = exact.to_dataset().filter(lambda row: row["positive"] == "25")
    assert set(rows["negative"]) == {"2⁵", "52", "10"}


def test_code_that_differs_in_indentation_can_be_a_negative_if_asked_for(bag_of_words):
    pairs = Dataset.from_dict({"anchor": ["w1 w2", "w7"], "positive": ["if x:\n    w3\n    w4", "w8"]})
    other = "if x:\n    w3\nw4"
    negatives = {}
    for identity in ("normalized", "exact"):
        found = mined_with(pairs, [other], model=bag_of_words, n=2, identity=identity)
        negatives[identity] = {row["negative"] for row in found.to_dataset() if row["anchor"] == "w1 w2"}
    assert negatives == {"normalized": {"w8"}, "exact": {"w8", other}}


def test_thousands_of_spellings_of_one_anchor_are_built_and_mined_in_time(bag_of_words):
    """Whitespace and case variants: near-linear, and no variant is another one's negative."""
    spellings = [" " * (1 + number) + "w1" for number in range(2_000)]
    pairs = Dataset.from_dict({"anchor": spellings, "positive": [f"w2 x{number}" for number in range(2_000)]})
    started = time.process_time()
    hard_negatives = HardNegativeDataset(pairs, ["w3 w4", "w5 w6"], MiningConfig(num_negatives=1))
    assert time.process_time() - started < 2.0
    assert len(hard_negatives.known_positives.keys) < 5_000
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    assert time.process_time() - started < 7.0
    assert set(hard_negatives.to_dataset()["negative"]) <= {"w3 w4", "w5 w6"}


def plain_identity(text: str) -> str:
    """NFKC_Casefold, spelled out: folded and normalised until nothing changes, invisible characters left out."""
    before = None
    while text != before:
        before, seen = text, _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
        text = unicodedata.normalize("NFKC", seen.casefold())
    return " ".join(text.split())


@given(st.text(max_size=30), st.text(max_size=30))
def test_text_identity(left, right):
    """Two texts share a key exactly if they are equal after NFKC_Casefold and collapsing of whitespace."""
    assert (same_text_key(left) == same_text_key(right)) == (plain_identity(left) == plain_identity(right))
    assert same_text_key(left) == same_text_key(f"  {left.upper() if left.isascii() else left}\n")
    assert (text_digest(left) == text_digest(right)) == (left == right)
    assert 0 <= int(draw_keys(digests_of_bytes([same_text_key(left)]))[0]) < 2**63


SAME = [
    ("soft\u00adhyphen", "softhyphen"),
    ("zero\u200bwidth", "zerowidth"),
    ("\ufeffmark", "mark"),
    ("left\u200eright", "leftright"),
    ("word\u2060joiner", "wordjoiner"),
    ("heart\ufe0f", "heart"),
    ("Straße", "STRASSE"),
    ("ﬁne", "FINE"),
    ("a\u00a0b", "a b"),
    ("e\u0301", "é"),
    ("İ", "i̇"),
    ("ᾳ", "αι"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_texts_that_a_reader_cannot_tell_apart(left, right):
    """Invisible characters, case, ligatures and combining marks."""
    assert same_text_key(left) == same_text_key(right)
    assert text_digest(left) != text_digest(right)


@pytest.mark.parametrize(("left", "right"), [("a b", "ab"), ("résumé", "resume"), ("1.5", "15"), ("", "a"), ("ı", "i")])
def test_texts_that_are_different(left, right):
    """Spaces, accents and points are seen."""
    assert same_text_key(left) != same_text_key(right)


def test_a_lone_surrogate_has_a_key():
    """What no encoding can write is a text like others."""
    assert same_text_key("a\ud800") != same_text_key("a") and text_digest("\ud800") != text_digest("\ud801")


DUPLICATES = [("CO burns", "2⁵ is it"), ("def f():\n  x", "right 2")]
CORPUS = ["25 is it", "Co burns", "def f(): x", "2⁵ is it", "other", "OTHER"]


def test_identity_exact_tells_texts_apart_that_differ_by_a_character():
    """Superscripts, case and indentation count where the recipe says so: such texts can be negatives."""
    found = mined(DUPLICATES, Model(by_seed(1)), CORPUS, num_negatives=7, identity="exact")
    assert sorted(texts_of(found)[0]) == sorted({*CORPUS, "right 2"} - {"2⁵ is it"})
    assert found.report.num_merged_texts == 0 and len(found.corpus.searched) == 7
    merged = mined(DUPLICATES, Model(by_seed(1)), CORPUS, num_negatives=4)
    # "25 is it" is the positive, "Co burns" the query itself, and of the two others one stands for both.
    assert sorted(texts_of(merged)[0]) == ["def f(): x", "other", "right 2"]
    assert merged.report.num_merged_texts == 2 and "2 of the texts are copies of another one" in str(merged.report)
    assert "2 of the texts are copies of another one" in repr(merged)


def test_identity_exact_holds_for_queries_and_draws():
    """Queries that differ by case have positives of their own, and draws of their own."""
    pairs = Dataset.from_dict({"anchor": ["co", "CO"], "positive": ["first", "second"]})
    known = {}
    for identity in IDENTITIES:
        found = HardNegativeDataset(pairs, None, MiningConfig(num_negatives=1, identity=identity))
        known[identity] = [found._wrapped.pairs.positives_of(query).tolist() for query in range(2)]
        keys = found._wrapped.pairs.draw_keys
        assert (keys[0] == keys[1]) == (identity == "normalized")
    assert known == {"normalized": [[0, 1], [0, 1]], "exact": [[0], [1]]}
    found = mined(pairs, Model(by_seed(0)), num_negatives=1, identity="exact")
    assert texts_of(found) == [["second"], ["first"]]


SPELLINGS = [
    "plain words",
    "Upper",
    "two  spaces",
    " before",
    "after ",
    "a\tb",
    "a\nb",
    "\x7f",
    "~!",
    "é",
    "ﬁ",
    "",
    " ",
    "x",
    "\x00",
]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("start, length", [(0, 15), (1, 14), (3, 5), (4, 1), (11, 2), (14, 1), (15, 0), (2, 0)])
@pytest.mark.parametrize("identity", sorted(IDENTITIES))
def test_keys_of_a_column_are_the_keys_of_its_texts(kind, start, length, identity):
    """Also of a slice, whose bytes begin and end in the middle of a buffer."""
    texts = pa.array(SPELLINGS, kind).slice(start, length)
    expected = digests_of_bytes([IDENTITIES[identity](one) for one in texts.to_pylist()])
    np.testing.assert_array_equal(identity_keys(texts, identity), expected, strict=True)
    expected = digests_of_bytes([text_digest(one) for one in texts.to_pylist()])
    np.testing.assert_array_equal(text_digests(texts), expected, strict=True)


@pytest.mark.parametrize("place", range(15))
def test_a_text_of_any_spelling_beside_plain_ones(place):
    """One of them alone decides whether it is looked at by itself; its neighbours do not."""
    texts = pa.array(["a", SPELLINGS[place], "b c"])
    expected = [same_text_key(one) for one in ("a", SPELLINGS[place], "b c")]
    np.testing.assert_array_equal(identity_keys(texts, "normalized"), digests_of_bytes(expected), strict=True)
    looked_at = SPELLINGS[place] not in ("plain words", "Upper", "~!", "", "x")
    assert _not_plain(texts).tolist() == [1] * looked_at


def test_no_texts_have_no_keys():
    """An array without buffers, as a filter leaves it, and one of nulls only."""
    for identity in IDENTITIES:
        assert identity_keys(pa.array([], pa.string()), identity).shape == (0, 2)
    nothing = digests_of_bytes([text_digest(""), text_digest("")])
    np.testing.assert_array_equal(text_digests(pa.array([None, None], pa.string())), nothing, strict=True)


def test_what_draws_go_by_has_63_bits_of_the_key():
    """Signed integers, never negative: half of the first eight bytes, read with the lowest first."""
    keys = [bytes(range(16)), bytes([255] * 16)]
    drawn = draw_keys(digests_of_bytes(keys))
    assert drawn.dtype == np.int64
    assert drawn.tolist() == [int.from_bytes(key[:8], "little") >> 1 for key in keys]
