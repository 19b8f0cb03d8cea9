"""When two texts are the same text."""

from __future__ import annotations

import unicodedata

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.corpus.identity import IDENTITIES, _INVISIBLE, draw_key, same_text_key, text_digest
from tests.toys import Model, by_seed, mined, texts_of


def plain_identity(text: str) -> str:
    """NFKC_Casefold, spelled out: folded and normalised until nothing changes, invisible characters left out."""
    before = None
    while text != before:
        before, text = text, unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold())
    return " ".join(text.split())


@given(st.text(max_size=30), st.text(max_size=30))
def test_text_identity(left, right):
    """Two texts share a key exactly if they are equal after NFKC_Casefold and collapsing of whitespace."""
    assert (same_text_key(left) == same_text_key(right)) == (plain_identity(left) == plain_identity(right))
    assert same_text_key(left) == same_text_key(f"  {left.upper() if left.isascii() else left}\n")
    assert (text_digest(left) == text_digest(right)) == (left == right)
    assert 0 <= draw_key(same_text_key(left)) < 2**63


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
    assert merged.report.num_merged_texts == 2 and "2 texts count as the same as another one" in str(merged.report)
    assert "2 texts count as the same as another one" in repr(merged)


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
