"""Texts that are wrong because somebody says so: written for positives, or given by the user."""

from __future__ import annotations

import pytest

from st_hardneg import Guide, Written
from tests.toys import Model, by_angle, mined, same, texts_of


def test_synthetic_negatives_come_from_the_own_positives_only():
    """Of six texts for its two positives, a query gets its quota, and none that was written for others."""
    rows = [("q 0°", "p 40°"), ("q 0°", "s 50°"), ("r 90°", "t 100°")]

    def write(positives):
        return [[f"{how} {text}" for how in ("not", "no", "never")] for text in positives]

    found = mined(rows, Model(by_angle), None, num_negatives=5, sources={"synthetic": Written(write, 5)})
    own = {f"{how} {text}" for text in ("p 40°", "s 50°") for how in ("not", "no", "never")}
    assert len(set(texts_of(found)[0])) == 5 and set(texts_of(found)[0]) < own
    assert texts_of(found)[1] == texts_of(found)[0]
    # Three were written for the last row: two slots are short.
    assert sorted(texts_of(found)[2]) == ["never t 100°", "no t 100°", "not t 100°"]
    assert found.report.num_missing == 2 and found.report.sources == {"synthetic": 8}
    seen = set()
    for _ in range(8):
        found.mine(Model(by_angle), show_progress_bar=False)
        seen.update(texts_of(found)[0])
    assert seen == own  # which of them come is drawn anew each time


def test_the_writer_gets_every_positive_once_and_the_search_does_not_see_its_texts():
    """Dense negatives are corpus texts, though written ones would be nearer."""
    asked: list[list[str]] = []

    def write(positives):
        asked.append(list(positives))
        return [[f"not {text}"] for text in positives]

    rows = [("q 0°", "p 40°"), ("r 5°", "p 40°"), ("s 9°", "t 42°")]
    found = mined(
        rows, Model(by_angle), ["d 90°", "d 95°"], num_negatives=3,
        sources={"dense": 2, "synthetic": Written(write, 1)}, relative_margin=0.05,
    )  # fmt: skip
    assert asked == [["p 40°", "t 42°"]]
    assert texts_of(found) == [["d 90°", "d 95°", f"not {positive}"] for _, positive in rows]
    found.mine(Model(by_angle), show_progress_bar=False)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "bounds",
    [
        {"relative_margin": 0.05},
        {"absolute_margin": 0.1},
        {"max_score": 0.1},
        {"max_positive_similarity": 0.3},
        {"max_relative_positive_similarity": 0.3},
        {"guide": Guide(Model(by_angle), 0.5)},
    ],
)
def test_bounds_against_unknown_answers_do_not_hold_for_synthetic_texts(bounds):
    """A text written to be wrong lies close to the positive on purpose; corpus texts there are held off."""
    parts = {name: bound for name, bound in bounds.items() if name == "guide"}
    writer = Written(lambda positives: [[f"not {text}"] for text in positives], 1)
    found = mined(
        [("q 0°", "p 40°")], Model(by_angle), ["d 39°", "d 41°", "d 170°"], parts, num_negatives=2,
        sources={"dense": 1, "synthetic": writer}, range_max=9, **({} if parts else bounds),
    )  # fmt: skip
    assert texts_of(found) == [["d 170°", "not p 40°"]]


def test_identity_length_and_pattern_hold_for_synthetic_texts():
    """What is the anchor, another positive, too short or excluded is not returned, and nothing comes twice."""
    rows = [("q 0°", "p 40°"), ("q 0°", "s 50°")]
    written = {
        "p 40°": ["Q  0°", "S 50°", "one two 40°", "One  TWO 40°", "40°", "bad word 40°", "in corpus 60°"],
        "s 50°": ["three four 50°"],
    }
    writer = Written(lambda texts: [written[text] for text in texts], 4)
    found = mined(
        rows, Model(by_angle), ["in corpus 60°"], num_negatives=5, sources={"dense": 1, "synthetic": writer},
        min_words=2, exclude_pattern="bad",
    )  # fmt: skip
    assert texts_of(found)[0][0] == "in corpus 60°"
    assert sorted(same(text) for text in texts_of(found)[0][1:]) == ["one two 40°", "three four 50°"]
    assert found.report.num_missing == 2
