"""Where negatives come from: two spaces, words, chance, further corpora, metadata, a writer; and who may veto them."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from st_hardneg import HardNegativeDataset, HardNegativeMiner, MiningConfig, MiningError
from st_hardneg.errors import MissingExtraError
from tests.conftest import whole

# Below this, a sound sampler fails once in ten thousand seeds; the seeds here are fixed.
TOO_UNLIKELY = 1e-4


class Model:
    """A model that computes a text's vector with a function, and counts its calls."""

    def __init__(self, vector_of: Callable[[str], Sequence[float]], similarity: str = "cosine") -> None:
        self.vector_of = vector_of
        self.similarity_fn_name = similarity
        self.calls = 0

    def encode(self, texts, **options):
        self.calls += 1
        return torch.tensor(np.array([self.vector_of(text) for text in texts]), dtype=torch.float32)

    encode_query = encode_document = encode

    def score(self, left: str, right: str) -> float:
        """Return the similarity of two texts, in float64."""
        a, b = (np.array(self.vector_of(text), dtype=np.float64) for text in (left, right))
        if self.similarity_fn_name == "euclidean":
            return -float(np.linalg.norm(a - b))
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


class Untouchable(Model):
    """A model that no text may reach."""

    def __init__(self) -> None:
        super().__init__(lambda text: [1.0])

    def encode(self, texts, **options):
        raise AssertionError("a text was encoded before the input was refused")

    encode_query = encode_document = encode


def by_angle(text: str) -> tuple[float, float]:
    """The text "note 40°" points to 40°."""
    angle = math.radians(float(text.split()[-1].rstrip("°")))
    return math.cos(angle), math.sin(angle)


def by_seed(seed: int, dim: int = 6) -> Callable[[str], np.ndarray]:
    """Give every text a random vector of its own."""
    return lru_cache(None)(lambda text: np.random.default_rng([seed, zlib.crc32(text.encode())]).standard_normal(dim))


def rows_of(pairs: Sequence[tuple[str, str]]) -> Dataset:
    return Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})


def mined(pairs, model, corpus=None, parts=None, **config) -> HardNegativeDataset:
    """Mine; ``parts`` are further arguments of the dataset."""
    pairs = pairs if isinstance(pairs, Dataset) else rows_of(pairs)
    found = HardNegativeDataset(pairs, corpus, MiningConfig(**config), **(parts or {}))
    found.mine(model, show_progress_bar=False)
    return found


def texts_of(found: HardNegativeDataset) -> list[list[str]]:
    """Return the negatives of every row as texts, without empty slots."""
    return [found.corpus.texts.take([i for i in row if i >= 0]) for row in found.negative_ids.tolist()]


def same(text: str) -> str:
    """What two texts share that are the same to a reader, written out plainly."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


# --- two spaces -------------------------------------------------------------------------------------------------------

BOTH = ("corpus", "anchors")


def space_and_row(found: HardNegativeDataset) -> list[list[tuple[int, int]]]:
    """Return each negative as (0, row) if it is an anchor, (1, row) if it is a positive; all texts are distinct."""
    size = len(found)
    return [[(0, i - size) if i >= size else (1, i) for i in row if i >= 0] for row in found.negative_ids.tolist()]


def on_points(points, counters, similarity="euclidean", names=None) -> tuple[Dataset, Model]:
    """Return rows whose anchors lie at ``points`` and whose positives lie at ``counters``, and their model."""
    names = names or [f"point {number}" for number in range(len(points))]
    others = [f"counter {number}" for number in range(len(counters))]
    places = dict(zip([*names, *others], [*points, *counters], strict=True))
    return rows_of(list(zip(names, others, strict=True))), Model(places.__getitem__, similarity)


def test_the_nearer_of_two_spaces_on_angles():
    """Points at 0, 10, 60, 100 degrees, counters at 5, 25, 63, 140; the nearest of all, the own positive, is a trap."""
    rows = [(f"point {p}°", f"counter {c}°") for p, c in ((0, 5), (10, 25), (60, 63), (100, 140))]
    found = mined(rows, Model(by_angle), num_negatives=1, search_spaces=BOTH)
    assert space_and_row(found) == [[(0, 1)], [(1, 0)], [(1, 1)], [(1, 2)]]
    names = [row[0] for row in found.provenance()["negative_sources"]]
    assert names == ["anchors", "dense", "dense", "dense"]
    assert found.report.sources == {"anchors": 1, "dense": 3}


def test_of_two_that_are_equally_near_the_anchor_is_taken():
    """Row 0 is 1.0 away from a point and from a counter."""
    points, counters = [(0, 0), (1, 0), (9, 9), (8, 8)], [(5, 5), (0, 1), (7, 7), (6, 6)]
    pairs, model = on_points(points, counters)
    found = mined(pairs, model, num_negatives=2, search_spaces=BOTH)
    assert space_and_row(found)[0] == [(0, 1), (1, 1)]


def test_a_text_that_is_the_own_anchor_is_not_returned():
    """Where the search with fixed depth returns rows 0 and 1 each other's copy, both get the nearest other text."""
    points, counters = [(0, 0), (0, 0), (5, 5), (9, 9)], [(1, 1), (2, 2), (3, 3), (4, 4)]
    pairs, model = on_points(points, counters, names=["the same", "The  SAME", "c", "d"])
    # Both rows know both positives, so that counters 0 and 1 are out, too.
    found = mined(pairs, model, num_negatives=1, search_spaces=BOTH)
    assert space_and_row(found) == [[(1, 2)], [(1, 2)], [(1, 3)], [(0, 2)]]
    # Other texts at the same place are other texts.
    found = mined(*on_points(points, counters), num_negatives=1, search_spaces=BOTH)
    assert space_and_row(found) == [[(0, 1)], [(0, 0)], [(1, 3)], [(0, 2)]]


def test_copies_of_the_own_texts_are_out_in_either_space():
    """A copy of row 0's positive among the anchors, and of its anchor among the corpus, however it is written."""
    rows = [("q 0°", "p 4°"), ("P  4°", "x 90°"), ("r 60°", "y 100°")]
    corpus = ["Q 0°", "ｑ  0°", "p\t4°", "far 30°"]
    found = mined(rows, Model(by_angle), corpus, num_negatives=5, search_spaces=BOTH)
    assert texts_of(found)[0] == ["far 30°", "r 60°", "x 90°", "y 100°"]
    # A text of both spaces stands once.
    assert [same(text) for text in texts_of(found)[2]].count("p 4°") == 1


def test_anchors_that_share_a_positive_are_left_out():
    """Questions with the same answer, also but for its spelling, are no negatives of each other."""
    rows = [("a 0°", "p 40°"), ("b 1°", "p 40°"), ("c 2°", "P  40°"), ("d 3°", "q 50°")]
    found = mined(rows, Model(by_angle), num_negatives=3, search_spaces=BOTH)
    assert texts_of(found)[:3] == [["d 3°", "q 50°"]] * 3
    assert texts_of(found)[3] == ["c 2°", "b 1°", "a 0°"]
    # b, c for a; a, c for b; a, b for c.
    assert found.report.removed["shared_positive"] == 6


def test_anchors_that_share_a_positive_do_not_use_up_the_search():
    """Twelve questions with one answer are nearest to each other; each still gets the nearest of the rest."""
    rows = [(f"a{i} {i}°", "p 5°") for i in range(12)] + [("z 90°", "y 95°")]
    found = mined(rows, Model(by_angle), num_negatives=1, search_spaces=BOTH)
    assert texts_of(found)[:12] == [["z 90°"]] * 12


def nearest_of_two_trees(points: np.ndarray, counters: np.ndarray) -> list[tuple[int, int]]:
    """The search as it was first described, with scikit-learn: nearest non-self hit of either tree, ties to the point."""
    from sklearn.neighbors import BallTree

    trees = BallTree(points, leaf_size=2), BallTree(counters, leaf_size=2)
    result = []
    for row, point in enumerate(points):
        hits = []
        for tree in trees:
            distances, ids = tree.query(point[None], k=3)
            hits.append(next((d, i) for d, i in zip(distances[0], ids[0], strict=True) if i != row))
        (to_point, point_id), (to_counter, counter_id) = hits
        result.append((1, int(counter_id)) if to_point > to_counter else (0, int(point_id)))
    return result


@pytest.mark.parametrize(("similarity", "problems"), [("euclidean", 200), ("cosine", 100)])
def test_the_search_in_two_spaces_equals_ball_trees(similarity, problems):
    """Random problems without duplicates: the one negative of every row is that of two trees."""
    rng = np.random.default_rng(0)
    for size in (3, 4, 6, 9, 15):
        points, counters = np.zeros((size, 3)), np.zeros((size, 3))
        pairs, model = on_points(points, counters, similarity)
        config = MiningConfig(num_negatives=1, search_spaces=BOTH)
        found = HardNegativeDataset(pairs, None, config)
        for _ in range(problems // 5):
            points, counters = rng.standard_normal((2, size, 3)).astype(np.float32).astype(np.float64)
            if similarity == "cosine":
                points, counters = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (points, counters))
            model.vector_of = on_points(points, counters)[1].vector_of
            found.mine(model, show_progress_bar=False)
            assert [row[0] for row in space_and_row(found)] == nearest_of_two_trees(points, counters)


@pytest.mark.parametrize("options", [{}, {"relative_margin": 0.1}, {"absolute_margin": 0.2, "min_score": -0.7}])
def test_three_of_two_spaces_equal_a_loop(options):
    """The three nearest of both spaces that pass the margins, against a loop over all texts."""
    rng = np.random.default_rng(1)
    for size in (4, 7, 12):
        for _ in range(6):
            points, counters = rng.standard_normal((2, size, 3))
            pairs, model = on_points(points, counters, "cosine")
            found = mined([*zip(pairs["anchor"], pairs["positive"], strict=True)], model, num_negatives=3,
                          search_spaces=BOTH, **options)  # fmt: skip
            for row, negatives in enumerate(space_and_row(found)):
                anchor = f"point {row}"
                positive = model.score(anchor, f"counter {row}")
                bound = min(
                    positive - abs(positive) * options.get("relative_margin", -math.inf),
                    positive - options.get("absolute_margin", -math.inf),
                )
                others = [(space, i) for space in (0, 1) for i in range(size) if i != row]
                scores = {one: model.score(anchor, f"{('point', 'counter')[one[0]]} {one[1]}") for one in others}
                kept = [one for one in others if options.get("min_score", -9) <= scores[one] <= bound]
                assert negatives == sorted(kept, key=lambda one: -scores[one])[:3]


# --- the random rate --------------------------------------------------------------------------------------------------


def random_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [(f"q{i} {rng.random():.4f}", f"p{i} {rng.random():.4f}") for i in range(count)]


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
    found = HardNegativeDataset(rows_of(rows), None, MiningConfig(num_negatives=1, search_spaces=BOTH, random_rate=1.0))
    seen: Counter[tuple[int, int, int]] = Counter()
    for _ in range(60):
        found.mine(Model(by_angle), show_progress_bar=False)
        seen.update((row, *codes[0]) for row, codes in enumerate(space_and_row(found)))
    assert all(row != other for row, _, other in seen)
    # Either space and any of its three other rows: 24 outcomes, each of one sixth of its row's draws.
    assert len(seen) == 24 and stats.chisquare(list(seen.values()), ddof=3).pvalue > TOO_UNLIKELY


def test_random_draws_are_uniform_over_what_is_allowed():
    """First a space, then one of its texts; again where it is filtered, the anchor, a positive or a copy of one."""
    rows = [(f"a{i} {20 * i}°", f"p{i} {20 * i + 7}°") for i in range(4)]
    corpus = [p for _, p in rows] + [f"d{i} {15 * i}°" for i in range(6)] + ["bad 1°", "bad 2°", " P0  7°", "A1 20°"]
    found = HardNegativeDataset(
        rows_of(rows), corpus,
        MiningConfig(num_negatives=1, search_spaces=BOTH, random_rate=1.0, exclude_pattern="bad", seed=1),
    )  # fmt: skip
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
        mined(pairs, model, num_negatives=4, query_chunk_size=size, relative_margin=0.05, **config)
        for size in (1, 7, 512)
    ]
    assert all((one.negative_ids == results[0].negative_ids).all() for one in results)
    before = results[0].negative_ids
    results[0].mine(model, show_progress_bar=False)
    assert (results[0].negative_ids != before).any()


# --- windows as FlagEmbedding has them --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((0, 6), [[7, 20, 35, 41, 45], [91, 110, 88, 121, 73], [52, 73, 45, 41]]),
        ((2, 9), [[35, 41, 45, 52, 62, 65], [110, 88, 121, 73, 65, 62], [52, 73, 45, 41, 40, 88, 35]]),
        (
            (10, 18),
            [
                [88, 91, 95, 110, 121, 130, 140, 171],
                [52, 45, 41, 40, 35, 171, 20, 7],
                [95, 20, 110, 7, 121, 130, 140, 171],
            ],
        ),
    ],
)
def test_raw_windows_are_those_of_flagembedding(window, expected):
    """What ``find_knn_neg`` of FlagEmbedding 1.2.11 returned, run on these texts, before it padded with random ones.

    Its padding repeated negatives, such as "d 41°" for the first query and window 0-6; ours leaves the slots empty.
    """
    rows = [("q 0°", "p 40°"), ("q 100°", "p 95°"), ("q 100°", "p 130°"), ("d 62°", "p 65°")]
    corpus = ["p 40°", "p 95°", "p 130°", "p 65°"]
    corpus += [f"d {angle}°" for angle in (7, 20, 35, 41, 45, 52, 62, 73, 88, 91, 110, 121, 140, 171)]
    start, stop = window
    found = mined(
        rows, Model(by_angle), corpus, num_negatives=stop - start, rank_window="raw", range_min=start, range_max=stop
    )
    angles = [[int(text.split()[1].rstrip("°")) for text in texts] for texts in texts_of(found)]
    assert [angles[0], angles[1], angles[3]] == expected and angles[2] == angles[1]
    assert found.report.num_missing == 3 * (stop - start) - sum(map(len, expected))


# --- words ------------------------------------------------------------------------------------------------------------

FRUIT = [
    "apple pie with cinnamon and apple jam",
    "apple tree",
    "pear tree in the garden",
    "the garden of the neighbour",
    "cinnamon",
    "a stone wall",
    "plum jam, plum cake and a plum tree",
    "garden tools",
]


def bm25(query: str, documents: Sequence[str]) -> list[float]:
    """BM25 as Lucene has it, k1 = 1.5 and b = 0.75, in plain Python."""
    split = [re.findall(r"\w\w+", text.lower()) for text in documents]
    average = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for word in re.findall(r"\w\w+", query.lower()):
            frequency, holders = words.count(word), sum(word in other for other in split)
            idf = math.log(1 + (len(split) - holders + 0.5) / (holders + 0.5))
            score += idf * frequency / (frequency + 1.5 * (1 - 0.75 + 0.75 * len(words) / average))
        scores.append(score)
    return scores


LEXICAL_ROWS = [("Apple tree jam", "orchard"), ("the plum garden", "fruit"), ("cinnamon wall cinnamon", "spice")]


@pytest.fixture
def bm25s():
    return pytest.importorskip("bm25s")


def test_lexical_negatives_are_those_of_bm25(bm25s):
    """Order, scores and ranks are a plain loop's; what shares no word is not returned."""
    found = mined(LEXICAL_ROWS, Model(by_seed(0)), FRUIT, num_negatives=6, sources={"lexical": 6})
    documents = [*FRUIT, "orchard", "fruit", "spice"]
    provenance = found.provenance()
    for row, (query, _) in enumerate(LEXICAL_ROWS):
        scores = bm25(query, documents)
        wanted = sorted((i for i in range(len(documents)) if scores[i] > 0), key=lambda i: -scores[i])[:6]
        assert texts_of(found)[row] == [documents[i] for i in wanted]
        empty = 6 - len(wanted)
        np.testing.assert_allclose(
            provenance["bm25_scores"][row][: len(wanted)], [scores[i] for i in wanted], rtol=1e-5
        )
        assert np.isnan(provenance["bm25_scores"][row][len(wanted) :]).all()
        assert provenance["negative_ranks"][row] == [*range(len(wanted)), *[-1] * empty]
        assert provenance["negative_sources"][row] == ["lexical"] * len(wanted) + [None] * empty
    assert found.report.num_missing == 18 - sum(map(len, texts_of(found))) > 0


def test_lexical_ties_go_to_the_lower_id_whatever_the_chunks(bm25s):
    """Forty texts score alike: the first three are taken, alone and beside a query that looks deeper."""
    corpus = [f"common u{i:02d}" for i in range(40)]
    rows = [("common", "zz yy"), ("common thing", "kk yy"), *(("other", f"pp{i:02d} yy") for i in range(30))]
    for size in (1, 512):
        found = mined(rows, Model(by_seed(0)), corpus, num_negatives=3, sources={"lexical": 3}, query_chunk_size=size)
        assert found.negative_ids[:2].tolist() == [[0, 1, 2]] * 2


def test_texts_without_words_have_no_lexical_negatives(bm25s):
    """Words are of two letters or digits; a corpus or a query without any leaves the slots empty, and no more."""
    for query, corpus in (
        ("apple 0°", ["x 50°", "y 60°"]),
        ("q 0°", ["apple x 50°", "y 60°"]),
        ("plum 0°", ["apple 50°"]),
    ):
        found = mined([(query, "p 4°")], Model(by_angle), corpus, num_negatives=2, sources={"dense": 1, "lexical": 1})
        assert texts_of(found) == [[corpus[0]]]


def test_lexical_negatives_pass_the_filters(bm25s):
    """Copies of the anchor and the positive are out, and so is what the model scores above the margin."""
    rows = [("apple tree 0°", "apple wood 40°")]
    corpus = ["Apple  TREE 0°", "APPLE wood 40°", "apple jam 20°", "apple pie 60°", "tree 90°"]
    found = mined(rows, Model(by_angle), corpus, num_negatives=3, sources={"lexical": 3}, relative_margin=0.05)
    assert texts_of(found) == [["tree 90°", "apple pie 60°"]] or texts_of(found) == [["apple pie 60°", "tree 90°"]]


def test_lexical_negatives_in_a_miner_for_map(bm25s, bag_of_words, word_pairs):
    """``HardNegativeMiner`` finds what the dataset finds, batch by batch."""
    corpus = [*word_pairs["positive"], *word_pairs["anchor"][:20]]
    config = MiningConfig(num_negatives=3, sources={"dense": 1, "lexical": 1, "random": 1})
    expected = HardNegativeDataset(word_pairs, corpus, config)
    expected.mine(bag_of_words, show_progress_bar=False)
    assert set(expected.report.sources) == {"dense", "lexical", "random"}
    miner = HardNegativeMiner(bag_of_words, corpus, config, positives=word_pairs)
    found = word_pairs.map(miner, batched=True, batch_size=10)
    assert found["negative_2"][:] == [texts[1] for texts in texts_of(expected)]
    assert found["negative_3"][:] == [texts[2] for texts in texts_of(expected)]


def test_a_missing_extra_is_named(monkeypatch):
    """Without ``bm25s``, the error says what to install, before anything is encoded."""
    monkeypatch.setattr("st_hardneg.errors.find_spec", lambda module: None)
    message = whole(
        "The source 'lexical' needs `bm25s`, which is not installed. Install it with "
        '`pip install "st-hardneg[lexical]"`.'
    )
    with pytest.raises(MissingExtraError, match=message):
        mined(LEXICAL_ROWS, Untouchable(), FRUIT, sources={"dense": 2, "lexical": 1})
    with pytest.raises(MissingExtraError, match=message):
        HardNegativeMiner(Untouchable(), FRUIT, MiningConfig(num_negatives=1, sources={"lexical": 1}))


# --- chance, further corpora, metadata --------------------------------------------------------------------------------


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


def test_one_further_corpus_has_a_name_of_its_own():
    """A list is the source "cross_domain"; it is searched by itself, and the corpus does not see its texts."""
    further = ["x 1°", "X  1°", "Q 0°", "p 40°", "x 50°", "x 90°"]
    found = mined(
        [("q 0°", "p 40°")], Model(by_angle), ["d 60°", "d 70°"], {"cross_domain": further},
        num_negatives=4, sources={"dense": 2, "cross_domain": 2},
    )  # fmt: skip
    assert texts_of(found) == [["d 60°", "d 70°", "x 1°", "x 50°"]]
    assert found.provenance()["negative_sources"][0] == ["dense", "dense", "cross_domain", "cross_domain"]
    # Among the corpus's texts, numbered from 3 on, copies of the anchor and the positive hold ranks 0 and 2.
    assert found.provenance()["negative_ranks"][0] == [1, 2, 1, 3]


def test_several_further_corpora_and_a_text_of_two_of_them():
    """A list and a Dataset with another column; a text of both, and of the corpus, stands in a row once."""
    web = Dataset.from_dict({"url": ["a", "b", "c"], "text": ["both 10°", "d 60°", "web 30°"]})
    found = mined(
        [("q 0°", "p 40°")], Model(by_angle), ["d 60°", "d 70°", "d 80°"],
        {"cross_domain": {"wiki": ["Both  10°", "wiki 20°"], "web": web.remove_columns("url")}},
        num_negatives=4, sources={"wiki": 1, "web": 2, "dense": 1},
    )  # fmt: skip
    assert texts_of(found) == [["Both  10°", "web 30°", "d 60°", "d 70°"]]
    assert found.report.sources == {"wiki": 1, "web": 2, "dense": 1}


def dated(texts: Sequence[str], years: Sequence[int], domains: Sequence[str]) -> Dataset:
    """Return a corpus with ids, years and domains."""
    ids = [f"doc{number}" for number in range(len(texts))]
    return Dataset.from_dict({"_id": ids, "text": list(texts), "year": list(years), "domain": list(domains)})


def test_a_metadata_filter_decides_what_may_be_a_negative():
    """Old texts are out for search, random draws and filling; of equal texts, the one that may stay stands for both."""
    corpus = dated(
        ["d 10°", "D 10°", "d 20°", "d 60°", "d 70°"],
        [1990, 2020, 1990, 2020, 2021],
        ["law", "law", "art", "art", "law"],
    )
    found = mined(
        [("q 0°", "p 40°"), ("r 5°", "s 45°")], Model(by_angle), corpus,
        {"metadata_filter": lambda row: row["year"] >= 2000},
        num_negatives=4, sources={"dense": 2, "random": 2}, shortfall="random",
    )  # fmt: skip
    provenance = found.provenance()
    for ids in provenance["negative_ids"]:
        # The positives of the other row have no year.
        assert set(ids) - {None} == {"doc1", "doc3", "doc4"} and ids[0] == "doc1"
    assert found.report.num_missing == 2


def test_metadata_sources_are_searched_by_themselves():
    """The nearest of each domain, in the order of the quotas; a text of two sources comes once."""
    angles, years = [10, 20, 60, 70, 80, 90], [1990, 2020, 2020, 1990, 2021, 2022]
    corpus = dated([f"d {a}°" for a in angles], years, ["law", "art", "art", "law", "law", "art"])
    found = mined(
        [("q 0°", "p 40°")], Model(by_angle), corpus,
        {"metadata_sources": {"law": lambda row: row["domain"] == "law", "new": lambda row: row["year"] >= 2020}},
        num_negatives=5, sources={"law": 2, "dense": 1, "new": 2},
    )  # fmt: skip
    assert texts_of(found) == [["d 10°", "d 70°", "d 20°", "d 60°", "d 80°"]]
    assert found.provenance()["negative_sources"][0] == ["law", "law", "dense", "new", "new"]
    assert found.provenance()["negative_ranks"][0] == [0, 1, 1, 1, 2]


def write_two(positives: list[str]) -> list[list[str]]:
    """Write two wrong answers for each positive."""
    return [[f"not {text}", f"hardly {text}"] for text in positives]


VOCABULARY = "apple pear plum tree garden wall jam cake stone wood leaf root".split()


def everything(seed: int = 0, chunk: int = 512, **changes) -> tuple[HardNegativeDataset, dict]:
    """Return a dataset with every kind of source, and the parts it was made of."""
    rng = random.Random(seed)

    def some_texts(name: str, count: int) -> list[str]:
        return [f"{name}{i} " + " ".join(rng.choices(VOCABULARY, k=3)) for i in range(count)]

    anchors, positives, documents = some_texts("q", 20), some_texts("p", 20), some_texts("d", 60)
    corpus = dated(documents + positives[:10], [1980 + i for i in range(70)], ["law", "art"] * 35)
    parts = {
        "cross_domain": {"wiki": [*some_texts("k", 15), *documents[30:35], positives[0].upper()],
                         "web": some_texts("w", 9)},
        "metadata_filter": lambda row: row["year"] >= 1990,
        "metadata_sources": {"law": lambda row: row["domain"] == "law", "new": lambda row: row["year"] >= 2030},
        "synthetic": write_two,
    }  # fmt: skip
    quotas = {"dense": 3, "lexical": 1, "random": 1, "synthetic": 1, "wiki": 2, "web": 1, "law": 1, "new": 2}
    options = {"num_negatives": 12, "sources": quotas, "search_spaces": BOTH, "max_score": 0.9, **changes}
    pairs = rows_of([*zip(anchors, positives, strict=True), (anchors[0], positives[1])])
    return HardNegativeDataset(pairs, corpus, MiningConfig(query_chunk_size=chunk, **options), **parts), parts


def test_all_sources_at_once(bm25s):
    """Quotas are honoured, no text comes twice, nothing known to be right comes, and provenance says what is true."""
    found, parts = everything()
    model = Model(by_seed(3))
    found.apply_mining(found.compute_mining(model, step=17, show_progress_bar=False))
    quotas, corpus = found.config.sources, found.corpus
    given, provenance = corpus.given, found.provenance()
    wanted = [name for name, quota in quotas.items() for _ in range(quota)]
    rows = [(a, p) for a, p in found.known_pairs()]
    assert provenance.column_names[-1] == "bm25_scores" and found.report.num_missing == 0
    all_texts = texts_of(found)
    for number, row in enumerate(provenance):
        anchor, positive = rows[number]
        texts = all_texts[number]
        right = {same(p) for a, p in rows if a == anchor}
        assert len({same(text) for text in texts}) == 12
        assert not {same(text) for text in texts} & {same(anchor), *right}
        names = row["negative_sources"]
        assert ["dense" if name == "anchors" else name for name in names] == wanted
        np.testing.assert_allclose(row["negative_scores"], [model.score(anchor, text) for text in texts], atol=1e-6)
        assert row["positive_score"] == pytest.approx(model.score(anchor, positive), abs=1e-6)
        assert row["negative_steps"] == [17] * 12 and row["negative_slots"] == ["mined"] * 12
        for name, text, own_id, rank, words in zip(
            names, texts, row["negative_ids"], row["negative_ranks"], row["bm25_scores"], strict=True
        ):
            assert math.isnan(words) == (name != "lexical")
            check_origin(name, text, own_id, right, parts, given)
            if name in ("random", "synthetic"):
                assert rank == -1
            elif name in ("law", "new", "wiki", "web"):
                ranked = sorted(texts_in(name, parts, given, rows), key=lambda other: -model.score(anchor, other))
                assert rank == ranked.index(text)
        check_nearest(anchor, texts, quotas, right, parts, given, rows, model)
    counts = Counter(name for row in provenance.select(range(20)) for name in row["negative_sources"])
    assert found.report.sources == counts and counts["anchors"] > 0


def texts_in(name: str, parts: dict, given: Dataset, rows: list[tuple[str, str]]) -> list[str]:
    """Return the texts that a source searches by itself."""
    if name in parts["cross_domain"]:
        return parts["cross_domain"][name]
    is_in = parts["metadata_sources"].get(name, lambda row: True)
    texts = [row["text"] for row in given if is_in(row) and parts["metadata_filter"](row)]
    return texts + list({anchor for anchor, _ in rows}) if name == "dense" else texts


def check_nearest(anchor, texts, quotas, right, parts, given, rows, model) -> None:
    """Each source that is searched gave the nearest of its texts that pass and that no source before it gave."""
    start = 0
    asks_the_same = {a for a, p in rows if same(p) in right}
    for name, quota in quotas.items():
        taken = {same(text) for text in texts[:start]}
        if name not in ("lexical", "random", "synthetic"):
            passing = [
                text
                for text in texts_in(name, parts, given, rows)
                if not {same(text)} & {same(anchor), *right, *taken}
                and text not in asks_the_same
                and model.score(anchor, text) <= 0.9
            ]
            nearest = sorted(passing, key=lambda text: -model.score(anchor, text))[:quota]
            assert texts[start : start + quota] == nearest
        start += quota


def check_origin(name: str, text: str, own_id: str, right: set[str], parts: dict, given: Dataset) -> None:
    """A negative is a text of its source, under the id that the caller knows."""
    rows = {row["_id"]: row for row in given}
    if name in ("wiki", "web"):
        assert text in parts["cross_domain"][name] and re.fullmatch(rf"{name}-\d+", own_id)
    elif name == "synthetic":
        assert text in {f"{how} {positive}" for positive in right for how in ("not", "hardly")}
        assert re.fullmatch(r"synthetic-\d+", own_id)
    elif name == "anchors" or (name == "random" and own_id not in rows):
        assert text.startswith("q") and re.fullmatch(r"anchor-\d+", own_id)
    else:
        assert rows[own_id]["text"] == text and parts["metadata_filter"](rows[own_id])
        assert name not in parts["metadata_sources"] or parts["metadata_sources"][name](rows[own_id])


def test_all_sources_are_the_same_in_any_chunk(bm25s):
    """Chunks of 1, 3 and 512 queries."""
    results = []
    for size in (1, 3, 512):
        found = everything(chunk=size, sampling_strategy="softmax", random_rate=0.3)[0]
        found.mine(Model(by_seed(3)), show_progress_bar=False)
        results.append(found.provenance().to_dict())
    for result in results[1:]:
        for name, column in result.items():
            if name.endswith(("score", "scores")):
                np.testing.assert_allclose(column, results[0][name], atol=1e-6)
            else:
                assert column == results[0][name]


@pytest.mark.parametrize("shortfall", ["drop", "random", "repeat", "error"])
def test_what_a_source_lacks_is_left_to_the_shortfall_policy(shortfall):
    """A further corpus of one text has a quota of two; another source is not made to stand in."""
    corpus = [f"d {angle}°" for angle in range(50, 120, 10)]

    def mine():
        return mined(
            [("q 0°", "p 40°")], Model(by_angle), corpus, {"cross_domain": ["x 60°", "P 40°"]},
            num_negatives=4, sources={"dense": 2, "cross_domain": 2}, shortfall=shortfall,
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


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_every_source_survives_saving(bm25s, tmp_path):
    """Further corpora, metadata and written texts come back; mining again gives what it would have given."""
    found = everything()[0]
    found.mine(Model(by_seed(3)), show_progress_bar=False)
    found.save_to_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    assert str(loaded.provenance().to_dict()) == str(found.provenance().to_dict())
    assert loaded.source_names == found.source_names and loaded.report == found.report
    assert loaded.corpus.blocks == found.corpus.blocks
    for hard_negatives in (found, loaded):
        hard_negatives.mine(Model(by_seed(4)), show_progress_bar=False)
    assert str(loaded.provenance().to_dict()) == str(found.provenance().to_dict())
    loaded.save_to_disk(tmp_path / "again")
    assert (HardNegativeDataset.load_from_disk(tmp_path / "again").negative_ids == found.negative_ids).all()


@pytest.fixture(scope="module")
def one_save(tmp_path_factory):
    """A save of everything, mined once, which no test changes."""
    pytest.importorskip("bm25s")
    path = tmp_path_factory.mktemp("everything") / "saved"
    found = everything()[0]
    found.mine(Model(by_seed(3)), show_progress_bar=False)
    found.save_to_disk(path)
    return path


@pytest.fixture
def saved(one_save, tmp_path):
    """A copy of that save."""
    return shutil.copytree(one_save, tmp_path / "saved")


def rewritten(path, name: str, columns: dict) -> None:
    """Put another dataset in the place of a part of a save."""
    Dataset.from_dict(columns).save_to_disk(str(path / "new"))
    os.rename(path / name, path / "old")
    os.rename(path / "new", path / name)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: os.rename(path / "cross_domain_1", path / "lost"), "'cross_domain_1' cannot be read"),
        (lambda path: os.rename(path / "metadata_source_0", path / "lost"), "'metadata_source_0' cannot be read"),
        (lambda path: os.rename(path / "metadata_filter", path / "lost"), "'metadata_filter' cannot be read"),
        (lambda path: os.rename(path / "synthetic", path / "lost"), "'synthetic' cannot be read"),
        (lambda path: rewritten(path, "cross_domain_0", {"text": [1, 2]}), "'cross_domain_0' does not hold the columns"),
        (lambda path: rewritten(path, "cross_domain_0", {"text": ["a", None]}), "'cross_domain_0' has rows without"),
        (lambda path: rewritten(path, "cross_domain_0", {"text": ["a", "b"]}), "the texts are not those"),
        (lambda path: rewritten(path, "synthetic", {"text": ["a"]}), "'synthetic' does not hold the columns"),
        (lambda path: rewritten(path, "synthetic", {"positive": ["a"], "text": ["b"]}), "the texts are not those"),
        (lambda path: rewritten(path, "metadata_filter", {"row": [3, 2]}), "ascending row numbers of the corpus"),
        (lambda path: rewritten(path, "metadata_filter", {"row": [0, 70]}), "ascending row numbers of the corpus"),
        (lambda path: rewritten(path, "metadata_filter", {"row": [-1, 1]}), "ascending row numbers of the corpus"),
        (lambda path: rewritten(path, "metadata_source_1", {"row": ["x"]}), "does not hold row numbers"),
        (lambda path: rewritten(path, "metadata_source_1", {"row": [1, None]}), "does not hold row numbers"),
    ],
)  # fmt: skip
def test_damaged_additions_are_refused(saved, damage, said):
    """Loading says which part is not what was written."""
    damage(saved)
    with pytest.raises(ValueError, match=rf"got a damaged one: .*{re.escape(said)}"):
        HardNegativeDataset.load_from_disk(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cross_domain", "wiki"),
        ("metadata_sources", [1]),
        ("cross_domain", ["wiki", "web", "more"]),
        ("has_metadata_filter", None),
        ("has_synthetic", "yes"),
    ],
)
def test_a_damaged_list_of_sources_is_refused(saved, name, value):
    """Names that are no names, one too many, and flags that are none."""
    content = json.loads((saved / "st_hardneg.json").read_text(encoding="utf-8"))
    (saved / "st_hardneg.json").write_text(json.dumps({**content, name: value}), encoding="utf-8")
    with pytest.raises(ValueError, match="got a damaged one"):
        HardNegativeDataset.load_from_disk(saved)


def test_an_unknown_source_in_the_negatives_is_refused(saved):
    """A source number beyond those of the dataset is damage."""
    negatives = load_from_disk(str(saved / "negatives"))
    broken = negatives.map(lambda row: {"sources": [40] * 12}, features=negatives.features)
    broken.save_to_disk(str(saved / "new"))
    os.rename(saved / "negatives", saved / "old")
    os.rename(saved / "new", saved / "negatives")
    with pytest.raises(ValueError, match="got a damaged one: there are unknown sources"):
        HardNegativeDataset.load_from_disk(saved)


# --- written texts ----------------------------------------------------------------------------------------------------


def test_synthetic_negatives_come_from_the_own_positives_only():
    """Of six texts for its two positives, a query gets its quota, and none that was written for others."""
    rows = [("q 0°", "p 40°"), ("q 0°", "s 50°"), ("r 90°", "t 100°")]

    def write(positives):
        return [[f"{how} {text}" for how in ("not", "no", "never")] for text in positives]

    found = mined(
        rows, Model(by_angle), None, {"synthetic": write}, num_negatives=5, sources={"synthetic": 5}
    )  # fmt: skip
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
        rows, Model(by_angle), ["d 90°", "d 95°"], {"synthetic": write}, num_negatives=3,
        sources={"dense": 2, "synthetic": 1}, relative_margin=0.05,
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
        {"guide_margin": 0.5},
    ],
)
def test_bounds_against_unknown_answers_do_not_hold_for_synthetic_texts(bounds):
    """A text written to be wrong lies close to the positive on purpose; corpus texts there are held off."""
    parts = {"synthetic": lambda positives: [[f"not {text}"] for text in positives]}
    parts |= {"guide": Model(by_angle)} if "guide_margin" in bounds else {}
    found = mined(
        [("q 0°", "p 40°")], Model(by_angle), ["d 39°", "d 41°", "d 170°"], parts, num_negatives=2,
        sources={"dense": 1, "synthetic": 1}, range_max=9, **bounds,
    )  # fmt: skip
    assert texts_of(found) == [["d 170°", "not p 40°"]]


def test_identity_length_and_pattern_hold_for_synthetic_texts():
    """What is the anchor, another positive, too short or excluded is not returned, and nothing comes twice."""
    rows = [("q 0°", "p 40°"), ("q 0°", "s 50°")]
    written = {
        "p 40°": ["Q  0°", "S 50°", "one two 40°", "One  TWO 40°", "40°", "bad word 40°", "in corpus 60°"],
        "s 50°": ["three four 50°"],
    }
    found = mined(
        rows, Model(by_angle), ["in corpus 60°"], {"synthetic": lambda texts: [written[text] for text in texts]},
        num_negatives=5, sources={"dense": 1, "synthetic": 4}, min_words=2, exclude_pattern="bad",
    )  # fmt: skip
    assert texts_of(found)[0][0] == "in corpus 60°"
    assert sorted(same(text) for text in texts_of(found)[0][1:]) == ["one two 40°", "three four 50°"]
    assert found.report.num_missing == 2


# --- negatives that have become easy ----------------------------------------------------------------------------------


def test_only_negatives_that_have_become_easy_are_replaced():
    """Slot by slot over three refreshes: kept as long as 1.15 s is not below s0 or |s| is 0.8, and filters pass."""
    pairs = random_pairs(40, seed=5)
    found = HardNegativeDataset(rows_of(pairs), [f"d{i}" for i in range(60)], MiningConfig(
        num_negatives=4, replacement="easy", relative_margin=-0.4, exclude_pattern="d3", range_max=200))  # fmt: skip
    first = {}
    num_kept = 0
    for refresh, mix in enumerate((0.0, 0.35, 0.6, 0.8)):
        here, there = by_seed(1, 4), by_seed(2, 4)
        model = Model(lambda text, mix=mix, a=here, b=there: (1 - mix) * a(text) + mix * b(text))
        before = texts_of(found) if refresh else [[]] * 40
        found.apply_mining(found.compute_mining(model, step=refresh * 10, show_progress_bar=False))
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
            mining = found._mining
            np.testing.assert_allclose(mining.first_scores[row], [first[row, t][0] for t in kept + new], atol=1e-5)
            assert mining.steps[row].tolist() == [first[row, t][1] for t in kept + new]
            num_kept += len(kept)
            assert provenance["negative_slots"][row] == ["carried over"] * len(kept) + ["mined"] * len(new)
            assert provenance["negative_sources"][row] == ["dense"] * 4
    assert 50 < num_kept < 400  # of 480: the test has seen both


def test_kept_negatives_count_in_the_quota_of_their_source():
    """After every refresh each row has three of the search, two of a further corpus and one by chance."""
    pairs = random_pairs(25, seed=6)
    found = HardNegativeDataset(
        rows_of(pairs), [f"d{i}" for i in range(50)],
        MiningConfig(num_negatives=6, sources={"dense": 3, "web": 2, "random": 1}, replacement="easy"),
        cross_domain={"web": [f"w{i}" for i in range(40)]},
    )  # fmt: skip
    for seed in range(4):
        found.mine(Model(by_seed(seed)), show_progress_bar=False)
        for names in found.provenance()["negative_sources"]:
            assert Counter(names) == {"dense": 3, "web": 2, "random": 1}
        assert all(len(set(row)) == 6 for row in found.negative_ids.tolist())
        assert (found.report.num_carried_over > 0) == (seed > 0)


# --- a guide ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.15, -0.2])
def test_a_guide_vetoes_what_it_scores_above_the_positive(margin):
    """The model ranks, the guide vetoes: against a loop, with two positives of which the lower one counts."""
    pairs = random_pairs(30, seed=7)
    pairs.append((pairs[0][0], "another positive"))
    corpus = [f"d{i}" for i in range(40)]
    model, guide = Model(by_seed(0)), Model(by_seed(9))
    found = mined(pairs, model, corpus, {"guide": guide}, num_negatives=3, guide_margin=margin, range_max=200)
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
    found = HardNegativeDataset(rows_of(pairs), None, MiningConfig(num_negatives=2), guide=guide)
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


# --- bad input --------------------------------------------------------------------------------------------------------

SMALL = dated(["d 10°", "d 20°"], [1990, 2020], ["law", "art"])


@pytest.mark.parametrize(
    ("config", "parts", "error", "message"),
    [
        (
            {"num_negatives": 4, "sources": {"dense": 2, "random": 1}},
            {},
            ValueError,
            "Expected the quotas in `sources` to add up to `num_negatives=4`, got {'dense': 2, 'random': 1}, which add "
            "up to 3. Set `num_negatives=3`, or change the quotas.",
        ),
        (
            {"sources": {"dense": 2, "anchors": 1}},
            {},
            ValueError,
            "Expected the sources of `sources`, got 'anchors', which are a search space: with "
            "`search_spaces=('corpus', 'anchors')`, \"dense\" finds negatives among them, too.",
        ),
        (
            {"sources": {"dense": 4, "random": -1}},
            {},
            ValueError,
            "Expected `sources` to map names to numbers of negatives from 0 up, got 'random': -1. Write "
            "`sources={'dense': 2, 'lexical': 1}`, for example.",
        ),
        (
            {"sources": {"dense": 2, "lexcal": 1}},
            {},
            ValueError,
            "Expected `sources` to name sources of this dataset, got 'lexcal'. Sources are ['dense', 'lexical', 'random', "
            "'synthetic']; further ones come with `cross_domain` and `metadata_sources`. Did you mean 'lexical'?",
        ),
        (
            {"sources": {"dense": 2, "web": 1}},
            {"cross_domain": {"wed": ["x 1°"]}},
            ValueError,
            "Expected `sources` to name sources of this dataset, got 'web'. Sources are ['dense', 'lexical', 'random', "
            "'synthetic', 'wed']; further ones come with `cross_domain` and `metadata_sources`. Did you mean 'wed'?",
        ),
        (
            {},
            {"metadata_filter": "year >= 2000"},
            TypeError,
            "Expected `metadata_filter` to be a function of a corpus row (a dictionary) that returns True or False, got "
            "str. Pass `lambda row: row['year'] >= 2020`, for example.",
        ),
        (
            {},
            {"metadata_filter": lambda row: row["year"] > 3000},
            ValueError,
            "Expected `metadata_filter` to be true for some of the 2 rows of the corpus, got none: it removes everything. "
            "Columns are ['_id', 'text', 'year', 'domain'].",
        ),
        (
            {},
            {"metadata_filter": lambda row: row["year"]},
            TypeError,
            "Expected `metadata_filter` to return True or False, got 1990 for row 0 of the corpus. Compare a column with "
            "a value, for example.",
        ),
        (
            {},
            {"metadata_filter": lambda row: True, "corpus": None},
            ValueError,
            "Expected a `corpus` with columns for `metadata_filter` to look at, got none. Pass a `datasets.Dataset` as "
            "`corpus`.",
        ),
        (
            {"sources": {"dense": 2, "new": 1}},
            {"metadata_sources": {"new": 2020}},
            TypeError,
            "Expected `metadata_sources['new']` to be a function of a corpus row (a dictionary) that returns True or "
            "False, got int. Pass `lambda row: row['year'] >= 2020`, for example.",
        ),
        (
            {"sources": {"dense": 2, "new": 1}},
            {"metadata_sources": {"new": lambda row: row["year"] < 2000}, "metadata_filter": lambda r: r["year"] > 2000},
            ValueError,
            "Expected texts in `metadata_sources['new']`, got none that `metadata_filter` lets through. Loosen one of the "
            "two.",
        ),
        (
            {"sources": {"dense": 2, "new": 1}},
            {"metadata_sources": [lambda row: True]},
            TypeError,
            "Expected `metadata_sources` to map names to functions of a corpus row, got list. Pass "
            "`{'recent': lambda row: row['year'] >= 2020}`, for example.",
        ),
        (
            {"sources": {"dense": 2, "web": 1}},
            {"cross_domain": {"web": ["x 1°"]}, "metadata_sources": {"web": lambda row: True}},
            ValueError,
            "Expected different names in `cross_domain` and `metadata_sources`, got ['web'] in both.",
        ),
        (
            {"sources": {"dense": 2, "random": 1}},
            {"cross_domain": {"random": ["x 1°"]}},
            ValueError,
            "Expected a name of its own for each further source, got 'random'. Names of built-in sources are ['dense', "
            "'anchors', 'lexical', 'random', 'synthetic'].",
        ),
        (
            {},
            {"cross_domain": {"web": ["x 1°"]}, "synthetic": write_two},
            ValueError,
            "Expected a quota for every source that was given, got none for ['web', 'synthetic'], so that nothing would "
            "come from there. Name them in `MiningConfig(sources={...})` (0 for a source that a schedule brings in "
            "later), or leave them out.",
        ),
        (
            {"sources": {"dense": 2, "synthetic": 1}},
            {},
            ValueError,
            "Expected `synthetic=` to write the texts for the quota of 'synthetic', got None. Pass a maker, for example "
            "`st_hardneg.sources.synthetic.KeywordEdits()`.",
        ),
        (
            {"sources": {"dense": 2, "synthetic": 1}},
            {"synthetic": ["not d 10°"]},
            TypeError,
            "Expected `synthetic` to be a function from positives to texts for each, got list. Pass a maker of "
            "`st_hardneg.sources.synthetic`, for example `KeywordEdits()`.",
        ),
        (
            {"sources": {"dense": 2, "cross_domain": 1}},
            {"cross_domain": []},
            ValueError,
            "Expected a cross_domain['cross_domain'] with at least one text, got an empty one. Leave it out.",
        ),
        (
            {"sources": {"dense": 2, "web": 1}},
            {"cross_domain": {"web": ["x 1°", 5]}},
            TypeError,
            "Expected `cross_domain['web']` to be a list of texts, got int at position 1. Pass strings only.",
        ),
        (
            {"sources": {"dense": 2, "cross_domain": 1}},
            {"cross_domain": 7},
            TypeError,
            "Expected `cross_domain['cross_domain']` to be a list of texts, a `datasets.Dataset` or None, got int. Turn "
            "it into one of these.",
        ),
        (
            {},
            {"guide": "bge-base"},
            TypeError,
            "Expected a SentenceTransformer model, got str, which has no `encode_query`. Load one with "
            "`SentenceTransformer(name_or_path)`.",
        ),
        (
            {"random_rate": 1.5},
            {},
            ValueError,
            "Expected `random_rate` to be from 0 to 1, got 1.5. Choose another value.",
        ),
        (
            {"random_rate": "often"},
            {},
            TypeError,
            "Expected `random_rate` to be a finite number, got 'often' (str). Pass a value of that type.",
        ),
        (
            {"search_spaces": ("anchors",)},
            {},
            ValueError,
            "Expected `search_spaces` to be one of [('corpus',), ('corpus', 'anchors')], got ('anchors',). Choose another "
            "value.",
        ),
        (
            {"search_spaces": "anchors"},
            {},
            TypeError,
            "Expected `search_spaces` to be a tuple of strings, got 'anchors' (str). Pass a value of that type.",
        ),
        (
            {"sources": ["dense"]},
            {},
            TypeError,
            "Expected `sources` to be a dictionary, got ['dense'] (list). Pass a value of that type.",
        ),
        (
            {"num_topics": 3},
            {},
            ValueError,
            "Expected `num_topics` to be at most the number of queries, 2, got 3. Lower it; a topic should have several "
            "batches of anchors.",
        ),
        (
            {"replacement": "hard"},
            {},
            ValueError,
            "Expected `replacement` to be one of ['all', 'easy'], got 'hard'. Choose another value.",
        ),
        (
            {"sampling_strategy": "simons"},
            {},
            ValueError,
            "Expected `sampling_strategy` to be one of ['top', 'random', 'softmax', 'simans', 'log_rank', 'distance'], "
            "got 'simons'. Choose another value.",
        ),
        (
            {"softmax_temperature": 0.0},
            {},
            ValueError,
            "Expected `softmax_temperature` to be above 0, got 0.0. Choose another value.",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_encoded(config, parts, error, message):
    """The whole message is compared; neither the model nor the guide sees a text."""
    corpus = parts.get("corpus", SMALL)
    parts = {name: part for name, part in parts.items() if name != "corpus"}
    with pytest.raises(error, match=whole(message)):
        mined([("q 0°", "p 40°"), ("r 5°", "s 45°")], Untouchable(), corpus, parts, **config)


# --- for every input --------------------------------------------------------------------------------------------------

WORD = st.sampled_from(["w1", "w2", "w3", "W1", "ｗ2", "w4"])
TEXT = st.builds(
    lambda words, gap: gap.join(words), st.lists(WORD, min_size=1, max_size=3), st.sampled_from([" ", "  "])
)
PROBLEM = st.fixed_dictionaries(
    {
        "rows": st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=8),
        "corpus": st.lists(TEXT, min_size=1, max_size=15),
        "web": st.lists(TEXT, min_size=1, max_size=6),
        "quotas": st.fixed_dictionaries(
            {name: st.integers(0, 2) for name in ("dense", "lexical", "random", "synthetic", "web", "even")}
        ),
        "is_filtered": st.booleans(),
        "refreshes": st.lists(st.integers(0, 2), min_size=1, max_size=2),
    }
)
OPTIONS = st.fixed_dictionaries(
    {
        "search_spaces": st.sampled_from([("corpus",), BOTH]),
        "random_rate": st.sampled_from([0.0, 0.5, 1.0]),
        "sampling_strategy": st.sampled_from(["top", "random", "softmax", "simans", "log_rank", "distance"]),
        "rank_window": st.sampled_from(["survivors", "raw"]),
        "shortfall": st.sampled_from(["drop", "random"]),
        "replacement": st.sampled_from(["all", "easy"]),
        "relative_margin": st.none() | st.floats(0, 0.3),
        "max_score": st.none() | st.floats(0.2, 1),
        "min_score": st.none() | st.floats(-1, -0.3),
        "exclude_pattern": st.none() | st.just("w4"),
        "query_chunk_size": st.integers(1, 5),
        "seed": st.integers(0, 3),
    }
)


def write_some(positives: list[str]) -> list[list[str]]:
    """Write a wrong answer with a new word, one in capitals, and one that is known."""
    return [[f"new {text}", f"NEW {text}", "w1 w2"] for text in positives]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(PROBLEM, OPTIONS)
def test_nothing_wrong_comes_from_any_source(problem, options):
    """Over random sources, strategies, spaces, rates and refreshes: nothing right, filtered or twice in a row."""
    pytest.importorskip("bm25s")
    quotas = problem["quotas"] if any(problem["quotas"].values()) else {**problem["quotas"], "dense": 1}
    corpus = Dataset.from_dict({"text": problem["corpus"], "number": list(range(len(problem["corpus"])))})
    found = HardNegativeDataset(
        rows_of(problem["rows"]),
        corpus,
        MiningConfig(num_negatives=sum(quotas.values()), sources=quotas, **options),
        cross_domain={"web": problem["web"]},
        metadata_sources={"even": lambda row: row["number"] % 2 == 0},
        metadata_filter=(lambda row: row["number"] < 8) if problem["is_filtered"] else None,
        synthetic=write_some,
    )
    for seed in problem["refreshes"]:
        model = Model(by_seed(seed, 3))
        try:
            found.mine(model, show_progress_bar=False)
        except MiningError:
            return
        check_rows(found, model, problem, options)


def check_rows(found: HardNegativeDataset, model: Model, problem: dict, options: dict) -> None:
    """Check every negative of every row against the rows as they were given."""
    names, negatives = found.provenance()["negative_sources"], texts_of(found)
    allowed = {same(text) for text in problem["corpus"][:8]} | {same(text) for text in problem["web"]}
    for row, (anchor, _) in enumerate(problem["rows"]):
        own = [p for a, p in problem["rows"] if a == anchor]
        right = {same(p) for a, p in problem["rows"] if same(a) == same(anchor)} | {same(anchor)}
        texts = negatives[row]
        identities = [same(text) for text in texts]
        assert len(set(identities)) == len(identities)
        assert not set(identities) & right
        lowest = min(model.score(anchor, p) for a, p in problem["rows"] if same(a) == same(anchor)) if own else 0.0
        for text, name in zip(texts, names[row], strict=False):
            score = model.score(anchor, text)
            assert options["exclude_pattern"] is None or "w4" not in text
            assert options["min_score"] is None or score >= options["min_score"] - 1e-5
            if name == "synthetic":
                positives = {p for a, p in problem["rows"] if same(a) == same(anchor)}
                assert text in {one for written in write_some(sorted(positives)) for one in written}
                continue
            assert options["max_score"] is None or score <= options["max_score"] + 1e-5
            if options["relative_margin"] is not None:
                assert score <= lowest - abs(lowest) * options["relative_margin"] + 1e-5
            if problem["is_filtered"] and name not in ("anchors", "random", "web"):
                assert same(text) in allowed
