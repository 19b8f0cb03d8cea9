"""Draws by chance: a source of its own, and what replaces some of the search's negatives."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from scipy import stats

from st_hardneg import HardNegativeDataset, MiningConfig
from tests.conftest import other_model, random_texts
from tests.toys import BOTH, TOO_UNLIKELY, Model, by_angle, by_seed, mined, random_pairs, same, texts_of, wrapped

TEXTS = list(dict.fromkeys(random_texts(500, seed=8, length=2)))


def space_and_row(found: HardNegativeDataset) -> list[list[tuple[int, int]]]:
    """Return each negative as (0, row) if it is an anchor, (1, row) if it is a positive; all texts are distinct."""
    size = len(found)
    return [[(0, i - size) if i >= size else (1, i) for i in row if i >= 0] for row in found.negative_ids.tolist()]


def test_the_random_rate_is_the_share_of_replaced_draws():
    """2,500 slots at a rate of 0.3, within 5 sigma; the others are what they are without, at their places."""
    pairs, model = random_pairs(500), Model(by_seed(0))
    plain = mined(pairs, model, num_negatives=5, search_spaces=BOTH)
    found = mined(pairs, model, num_negatives=5, search_spaces=BOTH, random_rate=0.3)
    names = np.array(found.provenance()["negative_sources"][:])
    replaced = names == "random"
    assert abs(replaced.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 2500)
    assert (found.negative_ids[~replaced] == plain.negative_ids[~replaced]).all()
    assert (found.negative_ids[replaced] != plain.negative_ids[replaced]).mean() > 0.98
    assert "random" not in plain.report.sources
    assert found.report.sources["random"] == replaced.sum()
    assert all(len(set(row)) == 5 for row in found.negative_ids.tolist())
    # Slots are replaced independently of each other and of their place.
    assert stats.chisquare(replaced.sum(axis=0)).pvalue > TOO_UNLIKELY
    by_row = np.bincount(replaced.sum(axis=1), minlength=6)
    expected = stats.binom.pmf(np.arange(6), 5, 0.3) * 500
    assert stats.chisquare([*by_row[:4], by_row[4:].sum()], [*expected[:4], expected[4:].sum()]).pvalue > TOO_UNLIKELY


def test_at_a_rate_of_one_no_row_gets_its_own_text():
    """In four rows, where a draw over all rows returns the own one in a quarter of cases, ours never does."""
    rows = [(f"point {p}°", f"counter {c}°") for p, c in ((0, 5), (10, 25), (60, 63), (100, 140))]
    found = wrapped(rows, num_negatives=1, search_spaces=BOTH, random_rate=1.0)
    seen: Counter[tuple[int, int, int]] = Counter()
    for _ in range(60):
        found.mine(Model(by_angle), show_progress_bar=False)
        seen.update((row, *codes[0]) for row, codes in enumerate(space_and_row(found)))
    assert all(row != other for row, _, other in seen)
    # Either space and any of its three other rows: 24 outcomes, each of one sixth of its row's draws.
    assert len(seen) == 24 and stats.chisquare(list(seen.values()), ddof=3).pvalue > TOO_UNLIKELY


@pytest.mark.training
def test_random_draws_are_uniform_over_what_is_allowed():
    """First a space, then one of its texts; again where it is filtered, the anchor, a positive or a copy of one."""
    rows = [(f"a{i} {20 * i}°", f"p{i} {20 * i + 7}°") for i in range(4)]
    corpus = [p for _, p in rows] + [f"d{i} {15 * i}°" for i in range(6)] + ["bad 1°", "bad 2°", " P0  7°", "A1 20°"]
    found = wrapped(rows, corpus, num_negatives=1, search_spaces=BOTH, random_rate=1.0, exclude_pattern="bad", seed=1)
    counts: Counter[tuple[int, str]] = Counter()
    for _ in range(100):
        found.mine(Model(by_angle), show_progress_bar=False)
        counts.update((row, same(texts[0])) for row, texts in enumerate(texts_of(found)))
    seen, expected = [], []
    in_corpus = {same(text) for text in corpus}
    anchors = {same(anchor) for anchor, _ in rows}
    for row, (anchor, positive) in enumerate(rows):
        allowed = {text for text in in_corpus | anchors if "bad" not in text} - {same(anchor), same(positive)}
        weights = {
            text: (text in in_corpus) / (2 * len(in_corpus)) + (text in anchors) / (2 * len(anchors))
            for text in sorted(allowed)
        }
        seen += [counts[row, text] for text in weights]
        expected += [100 * weight / sum(weights.values()) for weight in weights.values()]
    assert sum(seen) == 400  # nothing else was drawn
    assert stats.chisquare(seen, np.array(expected) * 400 / sum(expected), ddof=3).pvalue > TOO_UNLIKELY


@pytest.mark.parametrize(
    "config", [{"search_spaces": BOTH, "random_rate": 0.4}, {"sources": {"dense": 2, "random": 2}}]
)
def test_random_draws_do_not_depend_on_chunks(config):
    """Chunks of 1, 7 and 512 queries give the same negatives; another refresh gives others."""
    pairs, model = random_pairs(40, seed=2), Model(by_seed(0))
    results = [
        mined(pairs, model, parts={"query_chunk_size": size}, num_negatives=4, relative_margin=0.05, **config)
        for size in (1, 7, 512)
    ]
    assert all((one.negative_ids == results[0].negative_ids).all() for one in results)
    before = results[0].negative_ids
    results[0].mine(model, show_progress_bar=False)
    assert (results[0].negative_ids != before).any()


def test_the_random_source_draws_evenly_and_without_looking_at_scores():
    """Over 600 queries every allowed text comes equally often; ranks are none, similarities are the model's."""
    rows = [(f"q{i} 0°", "p 40°") for i in range(600)]
    corpus = [f"d {angle}°" for angle in range(0, 180, 15)] + ["Q0 0°", "P 40°"]
    found = mined(rows, Model(by_angle), corpus, num_negatives=2, sources={"random": 2}, range_min=3, range_max=5)
    counts = Counter(text for texts in texts_of(found) for text in texts)
    # The window of ranks does not hold for draws by chance.
    assert set(counts) - {"Q0 0°"} == set(corpus[:12])
    assert "Q0 0°" not in texts_of(found)[0]
    assert stats.chisquare([counts[text] for text in corpus[:12]]).pvalue > TOO_UNLIKELY
    assert all(row[0] != row[1] for row in found.negative_ids.tolist())
    provenance = found.provenance()
    assert provenance["negative_ranks"][:] == [[-1, -1]] * 600
    for text, score in zip(texts_of(found)[7], found.negative_scores[7], strict=True):
        assert score == pytest.approx(math.cos(math.radians(float(text.split()[1].rstrip("°")))), abs=1e-6)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_draws_never_bring_a_text_that_stays(rate):
    """Where draws run out, because a filter lets few texts pass, no row has a text twice."""
    pairs = Dataset.from_dict({"anchor": TEXTS[:40], "positive": TEXTS[40:80]})
    corpus = [*TEXTS[80:300], *(f"{text} good" for text in TEXTS[300:303])]
    config = MiningConfig(num_negatives=2, random_rate=rate, range_max=300, exclude_pattern="^(?!.* good$)")
    hard_negatives = HardNegativeDataset(pairs, corpus, config)
    hard_negatives.mine(other_model(0), show_progress_bar=False)
    ids = hard_negatives.negative_ids
    assert (ids >= 220).all() and (ids < 223).all() and (ids[:, 0] != ids[:, 1]).all()
