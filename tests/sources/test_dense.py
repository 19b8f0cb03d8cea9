"""The nearest texts: in one space, or in two at once against trees, loops and angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset
from st_hardneg.search import ExactSearcher
from st_hardneg.sources.dense import Space
from tests.toys import BOTH, Model, by_angle, mined, rows_of, same, texts_of, wrapped


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
    found = mined(rows, Model(by_angle), corpus, {"symmetric": False}, num_negatives=5, search_spaces=BOTH)
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


@pytest.mark.parametrize(
    ("similarity", "problems"),
    [
        ("euclidean", 40),
        ("cosine", 40),
        pytest.param("euclidean", 200, marks=pytest.mark.training),
        pytest.param("cosine", 100, marks=pytest.mark.training),
    ],
)
def test_the_search_in_two_spaces_equals_ball_trees(similarity, problems):
    """Random problems without duplicates: the one negative of every row is that of two trees."""
    rng = np.random.default_rng(0)
    for size in (3, 4, 6, 9, 15):
        points, counters = np.zeros((size, 3)), np.zeros((size, 3))
        pairs, model = on_points(points, counters, similarity)
        found = wrapped(pairs, num_negatives=1, search_spaces=BOTH)
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


@pytest.mark.parametrize("chunk", [1, 3, 64, 500])
@pytest.mark.parametrize("at_once", [1, 20, 1_000])
def test_searching_ahead_changes_nothing(chunk, at_once):
    """Whatever is searched for ahead, a chunk gets its own hits, down to its own depth."""
    generator = torch.Generator().manual_seed(0)
    queries, corpus = (torch.randn(count, 6, generator=generator) for count in (90, 200))
    order = torch.randperm(90, generator=generator)
    reach = torch.tensor([5] * 50 + [8] * 30 + [60] * 10)
    searcher = Counting(at_once)
    searcher.index(corpus, "cosine")
    plain, space = Space(searcher, np.arange(200), 0), Space(searcher, np.arange(200), 0)
    space.prepare(queries, order, reach)
    for start in range(0, 90, chunk):
        ids, depth = order[start : start + chunk], int(reach[start : start + chunk].max())
        found = space.search(queries[ids], depth, ids)
        expected = plain.search(queries[ids], depth)
        assert torch.equal(found[0], expected[0]) and torch.allclose(found[1], expected[1], atol=1e-6)
        if start == 2 * chunk:  # some of them once more, further down
            again = space.search(queries[ids[::2]], 99, ids[::2])
            assert torch.equal(again[0], plain.search(queries[ids[::2]], 99)[0])
    if chunk == 3 and at_once == 20:
        searcher.asked.clear()
        space.prepare(queries, order, reach)
        for ids in order[:48].split(3):
            space.search(queries[ids], 5, ids)
        assert searcher.asked == [18, 18, 12]  # whole chunks, and none that looks deeper


class Counting(ExactSearcher):
    """Notes how many queries it is asked for."""

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self.queries_at_once, self.asked = at_once, []

    def search(self, query_embeddings, k):
        self.asked.append(len(query_embeddings))
        return super().search(query_embeddings, k)
