"""What every maker promises, and what is checked of the texts that a maker returns."""

from __future__ import annotations

import gc
import logging
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_hardneg.corpus.identity import same_text_key
from st_hardneg.errors import MiningError
from st_hardneg.sources.synthetic import KeywordEdits, TextPerturbations, checked_synthetic

PROSE = (
    "In 1998, Aspirin did not increase the 5 mg/L level of IL-6 by 12.5 % in 1,200 patients from Kenya. "
    "Before the 21st week, Marie Curie has a higher risk than Niels Bohr, who cannot walk 3 km. "
)
quick = settings(max_examples=50, deadline=None)
# Anything, and sentences in which there is something to edit.
texts = st.text(max_size=80) | st.lists(
    st.sampled_from(
        [
            *PROSE.split(),
            *"not is has a no don’t isn't - 5-7 % °C März 日本 US$ $7 ½ \u00a0 ÀÉ BRCA1 May ſafe sıx".split(),
        ]
    ),
    max_size=25,
).map(" ".join)
makers = st.sampled_from(
    [KeywordEdits(3, seed=1), KeywordEdits(2), KeywordEdits(2, entities=("Ada Lovelace", "TNF", "walk"))]
    + [KeywordEdits(4, kinds=(kind,)) for kind in ("number", "entity", "antonym", "negation")]
    + [
        TextPerturbations(2),
        TextPerturbations(3, rate=1.0, kinds=("word",)),
        TextPerturbations(3, kinds=("character",)),
    ]
)


@quick
@given(makers, st.lists(texts, min_size=1, max_size=3))
def test_texts_differ_and_do_not_depend_on_the_batch(maker, positives):
    """Whatever the text: as many lists, at most `num_texts`, no text twice or the same as the positive."""
    written = maker(positives)
    assert len(written) == len(positives)
    for text, found in zip(positives, written, strict=True):
        assert len(found) <= maker.num_texts
        assert len({same_text_key(one) for one in [text, "", *found]} - {b""}) == len(found) + 1 + (
            same_text_key(text) != same_text_key("")
        )
    assert [maker([text])[0] for text in reversed(positives)] == written[::-1]
    assert pickle.loads(pickle.dumps(maker))(positives) == written


@pytest.mark.parametrize("maker", [KeywordEdits(8), TextPerturbations(8)])
def test_global_generators_and_threads(maker):
    """Global generators are neither read nor moved, and threads do not disturb each other."""
    written = maker([PROSE])[0]
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before, before_numpy = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: maker([PROSE])[0], range(16))) == [written] * 16
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == before_numpy  # noqa: NPY002


def test_the_seed_and_the_number_of_texts_count():
    """Another seed writes another text, and more texts go on from fewer."""
    for maker in (KeywordEdits, TextPerturbations):
        assert len({maker(seed=seed)([PROSE])[0][0] for seed in range(10)}) > 4
        assert maker(6)([PROSE])[0][:2] == maker(2)([PROSE])[0]
        assert len(maker(6)([PROSE])[0]) == 6


def test_nothing_to_edit():
    """Then there is no text, rather than the same."""
    nothing = ["", " \n", "...", "Ein Satz ohne alles", "敏捷的棕色狐狸", "\ud800"]
    assert KeywordEdits(5)(nothing) == [[]] * len(nothing)
    assert TextPerturbations(5)(["", " \n", "...", "\ud800"]) == [[], [], [], []]
    assert KeywordEdits()([]) == TextPerturbations()([]) == []


@pytest.mark.parametrize("make", [lambda: KeywordEdits(2, entities=("x y", "z")), lambda: TextPerturbations(2)])
@pytest.mark.parametrize("unit", [PROSE, "5 ", "1,", "is not ", "AB-", "a'", "Aa bb Cc dd ", "(", "7", "\u00e9 "])
def test_time_grows_with_the_length(unit, make):
    """Eight times the text takes about eight times as long, not sixty-four; the best of three, without pauses."""
    maker = make()
    times = []
    gc.disable()
    try:
        for length in (2_000, 16_000):
            text = unit * (length // len(unit))
            taken = []
            for _ in range(3):
                start = time.process_time()
                maker([text])
                taken.append(time.process_time() - start)
            times.append(min(taken))
    finally:
        gc.enable()
    assert times[1] < 24 * times[0] + 0.02


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KeywordEdits(0), ValueError, "Expected `num_texts` to be from 1 to 1,000, got 0"),
        (lambda: KeywordEdits(1.5), TypeError, "Expected `num_texts` to be an integer, got 1.5"),
        (lambda: KeywordEdits(True), TypeError, "Expected `num_texts` to be an integer, got True"),
        (lambda: KeywordEdits(seed=-1), ValueError, "Expected `seed` to be from 0"),
        (lambda: KeywordEdits(seed=2**63), ValueError, "Expected `seed` to be from 0"),
        (lambda: TextPerturbations(1_001), ValueError, "Expected `num_texts` to be from 1 to 1,000, got 1001"),
        (lambda: KeywordEdits(kinds=("digit",)), ValueError, r"Expected `kinds` to be some of \['number'"),
        (lambda: KeywordEdits(kinds="number"), TypeError, "Expected `kinds` to be a tuple of names"),
        (lambda: KeywordEdits(kinds=()), ValueError, "Expected `kinds` to be some of"),
        (
            lambda: TextPerturbations(kinds=("number",)),
            ValueError,
            r"some of \['character', 'word'\], got \['number'\]",
        ),
        (lambda: KeywordEdits(entities="Ada"), TypeError, "Expected `entities` to be a list of names"),
        (lambda: KeywordEdits(entities=["Ada", " "]), ValueError, "got ' ' at position 1"),
        (lambda: TextPerturbations(rate=0), ValueError, "Expected `rate` to be above 0 and at most 1"),
        (lambda: TextPerturbations(rate="much"), TypeError, "Expected `rate` to be a number"),
        (lambda: TextPerturbations(rate=float("nan")), ValueError, "Expected `rate` to be above 0"),
        (lambda: KeywordEdits()("one text"), TypeError, "Expected a list of texts, got one text"),
        (lambda: KeywordEdits()(["a", None]), TypeError, "got NoneType at position 1"),
    ],
)
def test_bad_arguments(make, error, message):
    """The error says what was expected and what came."""
    with pytest.raises(error, match=message):
        make()


def test_checked_texts(caplog):
    """Empty ones, copies and the positive itself are dropped and counted; order and batches are kept."""
    batches = []

    def maker(positives):
        batches.append(len(positives))
        return [(f"not {text}", f"NOT  {text}", text.upper(), " ", "") for text in positives]

    with caplog.at_level(logging.WARNING):
        written = checked_synthetic(maker, [f"p{i}" for i in range(2_300)])
    assert written == [[f"not p{i}"] for i in range(2_300)]
    assert batches == [1000, 1000, 300]
    assert "9,200 of 11,500 synthetic texts are dropped" in caplog.text
    assert checked_synthetic(maker, []) == []
    assert checked_synthetic(lambda texts: ([text + "!"] for text in texts), ["a"]) == [["a!"]]


@pytest.mark.parametrize(
    ("maker", "error", "message"),
    [
        (None, TypeError, "Expected a function that takes a list of texts, got NoneType"),
        (lambda texts: "text", TypeError, "to return a list of texts per positive, got str"),
        (lambda texts: None, TypeError, "to return a list of texts per positive, got NoneType"),
        (lambda texts: [["x"]], ValueError, "to return 2 lists, one per positive, got 1"),
        (lambda texts: ["x", "y"], TypeError, "for each positive, got str for positive 0"),
        (lambda texts: [["x"], None], TypeError, "for each positive, got NoneType for positive 1"),
        (lambda texts: [["x"], ["y", "\ud800"]], ValueError, "got a lone surrogate for positive 1"),
        (lambda texts: [["x"], ["y", 3]], TypeError, "to return strings, got int for positive 1"),
        (lambda texts: [[], []], MiningError, r"got no text for any of 2 positives .* \(0 were written\)"),
        (lambda texts: [[text] for text in texts], MiningError, r"got no text for any of 2 .* \(2 were written\)"),
    ],
)
def test_what_a_maker_must_not_return(maker, error, message):
    with pytest.raises(error, match=message):
        checked_synthetic(maker, ["a", "b"])
