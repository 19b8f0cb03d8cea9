"""An old negative's fate, and how empty slots are filled."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError, Texts
from st_hardneg.candidates import CARRIED_OVER, MINED
from tests.conftest import other_model
from tests.toys import Model, by_angle, by_seed, mined, random_pairs, texts_of, wrapped

PAIR = [("q 0°", "d 40°")]
CORPUS = [f"d {angle}°" for angle in (40, 20, 35, 41, 45, 60, 90, 120)]


def test_shortfall_drop_leaves_slots_empty(protractor):
    """Missing negatives are -1, with the score -inf, and are counted."""
    found = mined(PAIR, protractor, CORPUS[:3], num_negatives=4)
    assert found.negative_ids.tolist() == [[1, 2, -1, -1]]
    assert found.negative_scores[0, 2:].tolist() == [-math.inf, -math.inf]
    assert (found.report.num_missing, found.report.num_incomplete_rows) == (2, 1)


def test_shortfall_repeat(protractor):
    """The row's own negatives are repeated in turn."""
    found = mined(PAIR, protractor, CORPUS[:3], num_negatives=5, shortfall="repeat")
    assert found.negative_ids.tolist() == [[1, 2, 1, 2, 1]]
    assert found.report.num_repeated == 3


def test_shortfall_random_passes_every_filter(protractor):
    """Random texts fill the slots, none of them filtered, the positive or the anchor."""
    corpus = [f"d {angle}°" for angle in range(360)]
    found = mined(
        PAIR, protractor, corpus, num_negatives=8, range_max=8, relative_margin=0.3, shortfall="random", max_score=0.2
    )
    scores = found.negative_scores[0]
    assert (found.negative_ids >= 0).all() and len(set(found.negative_ids[0].tolist())) == 8
    assert (scores <= 0.2).all() and found.report.num_random == 8


def test_shortfall_error_names_a_query(protractor):
    """The error says how many queries lack negatives, and names one."""
    with pytest.raises(MiningError, match=r"too few for 1 of 1 queries \(1 empty slots\), such as 'q 0°'"):
        mined(PAIR, protractor, CORPUS[:3], num_negatives=3, shortfall="error")


@pytest.mark.parametrize("shortfall", ["drop", "random", "repeat", "error"])
def test_what_a_source_lacks_is_left_to_the_shortfall_policy(shortfall):
    """A further corpus of one text has a quota of two; another source is not made to stand in."""
    corpus = [f"d {angle}°" for angle in range(50, 120, 10)]

    def mine():
        return mined(
            [("q 0°", "p 40°")], Model(by_angle), corpus, num_negatives=4, shortfall=shortfall,
            sources={"dense": 2, "other": Texts(["x 60°", "P 40°"], 2)},
        )  # fmt: skip

    if shortfall == "error":
        with pytest.raises(MiningError, match=r"too few for 1 of 1 queries \(1 empty slots\), such as 'q 0°'"):
            mine()
        return
    found = mine()
    texts, provenance = texts_of(found)[0], found.provenance()
    assert texts[:3] == ["d 50°", "d 60°", "x 60°"]
    names, slots = provenance["negative_sources"][0], provenance["negative_slots"][0]
    if shortfall == "drop":
        assert len(texts) == 3 and names[3] is None and slots[3] is None and found.report.num_missing == 1
    elif shortfall == "random":
        assert texts[3] in corpus[2:] and (names[3], slots[3]) == ("random", "random")
    else:
        assert texts[3] == "d 50°" and slots[3] == "repeated" and found.report.num_repeated == 1


def test_repeated_negatives_are_repeated_again_at_a_refresh():
    """A live view stays complete where a row has one negative only, which is repeated."""
    pairs = Dataset.from_dict({"anchor": ["w1", "w2"], "positive": ["w11", "w12"]})
    hard_negatives = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=2, shortfall="repeat"))
    hard_negatives.mine(other_model(0), show_progress_bar=False)
    hard_negatives.as_dataset()
    for seed in (1, 2):
        report = hard_negatives.mine(other_model(seed), show_progress_bar=False)
        assert hard_negatives.negative_ids.tolist() == [[1, 1], [0, 0]]
        assert (report.num_mined, report.num_repeated, report.num_missing) == (2, 2, 0)


def test_only_negatives_that_have_become_easy_are_replaced():
    """Slot by slot over three refreshes: kept as long as 1.15 s is not below s0 or |s| is 0.8, and filters pass."""
    pairs = random_pairs(40, seed=5)
    found = wrapped(
        pairs, [f"d{i}" for i in range(60)], num_negatives=4, replacement="easy", relative_margin=-0.4,
        exclude_pattern="d3", range_max=200,
    )  # fmt: skip
    first = {}
    num_kept = 0
    for refresh, mix in enumerate((0.0, 0.35, 0.6, 0.8)):
        here, there = by_seed(1, 4), by_seed(2, 4)
        model = Model(lambda text, mix=mix, a=here, b=there: (1 - mix) * a(text) + mix * b(text))
        before = texts_of(found) if refresh else [[]] * 40
        found.live.apply(found.compute_mining(model, step=refresh * 10, show_progress_bar=False))
        after = texts_of(found)
        everything, provenance = found.corpus.texts.take(found.corpus.searched), found.provenance()
        for row, (anchor, positive) in enumerate(pairs):
            bound = model.score(anchor, positive)
            bound += 0.4 * abs(bound)
            scores = {text: model.score(anchor, text) for text in everything}
            passing = [t for t in everything if scores[t] <= bound and t != positive and "d3" not in t]
            kept = [
                text
                for text in before[row]
                if text in passing and not (1.15 * scores[text] < first[row, text][0] and abs(scores[text]) < 0.8)
            ]
            new = sorted((t for t in passing if t not in kept), key=lambda t: -scores[t])[: 4 - len(kept)]
            assert after[row] == kept + new
            first = {key: value for key, value in first.items() if key[0] != row or key[1] in kept}
            first |= {(row, text): (scores[text], refresh * 10) for text in new}
            negatives = found.live.mining.negatives
            similarities = [first[row, text][0] for text in kept + new]
            np.testing.assert_allclose(negatives.first_similarities[row], similarities, atol=1e-5)
            assert negatives.steps[row].tolist() == [first[row, text][1] for text in kept + new]
            num_kept += len(kept)
            assert provenance["negative_slots"][row] == ["carried over"] * len(kept) + ["mined"] * len(new)
            assert provenance["negative_sources"][row] == ["dense"] * 4
    assert 50 < num_kept < 400  # of 480: the test has seen both


def test_kept_negatives_count_in_the_quota_of_their_source():
    """After every refresh each row has three of the search, two of a further corpus and one by chance."""
    pairs = random_pairs(25, seed=6)
    web = Texts([f"w{i}" for i in range(40)], 2)
    found = wrapped(
        pairs, [f"d{i}" for i in range(50)], num_negatives=6, sources={"dense": 3, "web": web, "random": 1},
        replacement="easy",
    )  # fmt: skip
    for seed in range(4):
        found.mine(Model(by_seed(seed)), show_progress_bar=False)
        for names in found.provenance()["negative_sources"]:
            assert Counter(names) == {"dense": 3, "web": 2, "random": 1}
        assert all(len(set(row)) == 6 for row in found.negative_ids.tolist())
        assert (found.report.num_carried_over > 0) == (seed > 0)


# --- a last resort, and what an old negative keeps --------------------------------------------------------------------


def test_where_nothing_passes_the_least_similar_stand_in():
    """No row is lost: of the texts that are drawn, those furthest from the query, marked, and never a right answer."""
    pairs = [("q 0°", "p 40°"), ("r 180°", "s 179°")]
    corpus = [f"d {angle}°" for angle in range(0, 100, 5)]
    found = mined(pairs, Model(by_angle), corpus, num_negatives=2, max_score=-0.3, shortfall="random")
    provenance = found.provenance()
    assert provenance["negative_slots"][1] == ["mined", "mined"]
    # The only texts that lie far enough from 0° are the other row's positive, and 110° and more are not there.
    assert provenance["negative_slots"][0] == ["mined", "last resort"]
    assert texts_of(found)[0] == ["s 179°", "d 75°"]
    assert provenance["negative_sources"][0] == ["dense", "random"]
    assert (found.report.num_last_resort, found.report.num_missing) == (1, 0)
    # The drop keeps the slot empty.
    dropped = mined(pairs, Model(by_angle), corpus, num_negatives=2, max_score=-0.3)
    assert dropped.negative_ids[0, 1] == -1 and dropped.report.num_last_resort == 0


def test_a_last_resort_is_never_right():
    """With a corpus of copies of right answers and the anchor, what stands in is the row's own negative once more."""
    corpus = ["P  40°", "Q 0°", "p\t40°", "d 100°"]
    found = mined([("q 0°", "p 40°")], Model(by_angle), corpus, num_negatives=3, shortfall="random")
    assert texts_of(found) == [["d 100°"] * 3]
    assert found.provenance()["negative_slots"][0] == ["mined", "last resort", "last resort"]
    with pytest.raises(MiningError, match="got none"):
        mined([("q 0°", "p 40°")], Model(by_angle), corpus[:3], num_negatives=1, shortfall="random")


def test_a_negative_that_is_carried_over_keeps_source_step_and_first_similarity():
    """It is scored anew; where it came from, when, and what it scored then stay."""
    corpus = [f"d {angle}°" for angle in (50, 60)]
    other = Texts(["w 55°"], 1)
    found = wrapped([("q 0°", "p 40°")], corpus, num_negatives=3, sources={"dense": 2, "web": other}, max_score=0.7)
    found.live.apply(found.compute_mining(Model(by_angle), step=10, show_progress_bar=False))
    # Today only half of the texts are found by the search: the first keep their slots as what they were.
    config = MiningConfig(num_negatives=3, sources={"dense": 3}, range_max=3, max_score=0.9)

    def turned(text: str) -> tuple[float, float]:
        angle = math.radians(float(text.split()[-1].rstrip("°")) * 0.9)
        return math.cos(angle), math.sin(angle)

    mining = found.compute_mining(Model(turned), step=20, config=config, show_progress_bar=False)
    negatives = mining.negatives
    names = [mining.source_names[number] for number in negatives.sources[0].tolist()]
    assert found.corpus.texts.take(negatives.ids[0].numpy()) == ["d 50°", "d 60°", "w 55°"]
    assert names == ["dense", "dense", "web"]
    assert negatives.origins[0].tolist() == [MINED, MINED, CARRIED_OVER]
    assert negatives.steps[0].tolist() == [20, 20, 10]
    cosines = [math.cos(math.radians(angle)) for angle in (45.0, 54.0, 49.5)]
    np.testing.assert_allclose(negatives.similarities[0], cosines, atol=1e-6)
    np.testing.assert_allclose(negatives.first_similarities[0], [*cosines[:2], math.cos(math.radians(55))], atol=1e-6)
