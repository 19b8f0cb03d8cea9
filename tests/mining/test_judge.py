"""Scores and rules together: what a guide vetoes."""

from __future__ import annotations

import pytest

from st_hardneg import Guide, HardNegativeDataset
from tests.conftest import whole
from tests.toys import Model, by_angle, by_seed, mined, random_pairs, texts_of, wrapped


@pytest.mark.parametrize("margin", [0.0, 0.15, -0.2])
def test_a_guide_vetoes_what_it_scores_above_the_positive(margin):
    """The model ranks, the guide vetoes: against a loop, with two positives of which the lower one counts."""
    pairs = random_pairs(30, seed=7)
    pairs.append((pairs[0][0], "another positive"))
    corpus = [f"d{i}" for i in range(40)]
    model, guide = Model(by_seed(0)), Model(by_seed(9))
    found = mined(pairs, model, corpus, {"guide": Guide(guide, margin)}, num_negatives=3, range_max=200)
    everything, negatives = [*corpus, *(p for _, p in pairs)], texts_of(found)
    num_vetoed = 0
    for row, (anchor, _) in enumerate(pairs):
        own = [p for a, p in pairs if a == anchor]
        bound = min(guide.score(anchor, p) for p in own) - margin
        allowed = [t for t in everything if t not in own and guide.score(anchor, t) <= bound]
        num_vetoed += len(everything) - len(own) - len(allowed)
        assert negatives[row] == sorted(allowed, key=lambda text: -model.score(anchor, text))[:3]
    assert num_vetoed > 100 and found.report.removed["guide"] > 100


def test_a_guide_makes_the_search_look_deeper():
    """Five texts above the positive are vetoed, and the two below it are found all the same."""
    corpus = [f"d {angle}°" for angle in (5, 10, 15, 20, 25, 50, 60)]
    found = mined([("q 0°", "p 40°")], Model(by_angle), corpus, {"guide": Model(by_angle)}, num_negatives=2)
    assert texts_of(found) == [["d 50°", "d 60°"]]


def test_a_guide_is_encoded_once():
    """Two minings embed with the model twice, with the guide once."""
    pairs = random_pairs(10)
    model, guide = Model(by_seed(0)), Model(by_seed(1))
    found = wrapped(pairs, None, {"guide": guide}, num_negatives=2)
    assert guide.calls == 0
    found.mine(model, show_progress_bar=False)
    calls = guide.calls
    found.mine(model, show_progress_bar=False)
    assert calls == 2 == guide.calls and model.calls == 4


def test_a_guide_is_asked_for_again_when_loading(tmp_path):
    """Files hold no model; with it, the loaded dataset mines as the saved one."""
    pairs = random_pairs(12)
    guide = Model(by_seed(1))
    found = mined(pairs, Model(by_seed(0)), None, {"guide": guide}, num_negatives=2)
    found.save_to_disk(tmp_path / "saved")
    message = (
        "The saved recipe was mined with guide, which files cannot hold. Pass it to `load_from_disk` again."
    )  # fmt: skip
    with pytest.raises(ValueError, match=whole(message)):
        HardNegativeDataset.load_from_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved", guide=guide)
    for hard_negatives in (found, loaded):
        hard_negatives.mine(Model(by_seed(2)), show_progress_bar=False)
    assert (loaded.negative_ids == found.negative_ids).all() and loaded.report.removed["guide"] > 0
