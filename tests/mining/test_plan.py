"""How deep the search goes for each query, and what windows count."""

from __future__ import annotations

import pytest
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.search import ExactSearcher
from tests.toys import BOTH, Model, by_angle, mined, texts_of


def test_one_heavy_query_does_not_deepen_the_search_of_others(protractor):
    """200 positives of one query leave the number of candidates of the others as it was."""

    class Spy:
        is_exact = True  # or its recall would be sampled, which is a search of its own

        def __init__(self) -> None:
            self.asked: list[tuple[int, int]] = []

        def index(self, corpus_embeddings, similarity_fn_name):
            self.corpus = corpus_embeddings

        def search(self, query_embeddings, k):
            self.asked.append((len(query_embeddings), k))
            scores, ids = (query_embeddings @ self.corpus.T).topk(k, dim=1)
            return ids, scores

    rows = [("q 0°", f"p{i} {i % 360}°") for i in range(200)] + [(f"r {i}°", f"s {i}°") for i in range(1, 301)]
    pairs = Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [b for _, b in rows]})
    spy = Spy()
    found = HardNegativeDataset(pairs, None, MiningConfig(num_negatives=3), searcher=spy, query_chunk_size=100)
    found.mine(protractor, show_progress_bar=False)
    assert max(k for _, k in spy.asked[:-1]) == 5
    assert spy.asked[-1][1] > 200


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


class Depths(ExactSearcher):
    """An exact searcher that notes how deep it is asked to look."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def search(self, query_embeddings, k):
        self.asked.append(k)
        return super().search(query_embeddings, k)


def searched(corpus: list[str], **recipe) -> tuple[HardNegativeDataset, list[int]]:
    """Mine for one query at 0° whose positive lies at 170°."""
    searcher = Depths()
    options = {"num_negatives": 2, "exclude_pattern": "bad", "shortfall": "random", **recipe}
    found = mined([("q 0°", "p 170°")], Model(by_angle), corpus, {"searcher": searcher}, **options)
    return found, searcher.asked


SIXTY_BAD = [f"bad {0.5 * i}°" for i in range(60)] + [f"d {40 + i}°" for i in range(60)]


def test_a_search_goes_on_until_enough_survive():
    """Where the nearest 60 are filtered, `shortfall="random"` looks four times as deep before anything is drawn."""
    found, asked = searched(SIXTY_BAD)
    # A rule that removes the closest looks at 10 places per negative, one for the window and one for the positive.
    assert asked == [22, 88]
    assert texts_of(found) == [["d 40°", "d 41°"]] and found.report.num_mined == 2
    # The report counts what was looked at in the end.
    assert (found.report.num_candidates, found.report.removed["exclude_pattern"]) == (88, 60)
    # With a range_max, or ranks as retrieved, the caller has said how deep; other policies leave slots empty or repeat.
    for recipe, depth in (({"range_max": 21}, 22), ({"rank_window": "raw"}, 21)):
        found, asked = searched(SIXTY_BAD, **recipe)
        assert asked == [depth] and found.report.num_random == 2
    for shortfall in ("drop", "repeat", "error"):
        with pytest.raises(MiningError, match=r"the rules removed all|too few for 1 of 1 queries"):
            searched(SIXTY_BAD, shortfall=shortfall)


def test_a_search_ends_where_there_is_nothing_more():
    """A corpus that was seen to its end is not searched again, however much is missing."""
    for num_bad, expected in ((15, [17]), (25, [22, 27])):
        found, asked = searched([*SIXTY_BAD[:num_bad], "d 50°"])
        assert asked == expected
        assert texts_of(found)[0][0] == "d 50°" and found.report.num_mined == 1


def test_a_search_ends_at_a_depth():
    """Where hardly anything passes in a corpus of thousands, it ends after some two thousand places."""
    found, asked = searched([f"bad {0.01 * i}°" for i in range(3000)] + [f"d {60 + i}°" for i in range(100)])
    assert asked == [22, 88, 352, 1408, 2048]
    assert found.report.num_mined == 0 and found.report.num_candidates == 2048


def test_only_the_search_by_the_model_goes_on():
    """A search engine may be slow, and has no margin up to which to search: it is asked once."""

    class Engine:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def propose(self, queries, plan):
            self.asked.append(plan.depth)
            return [range(plan.depth) for _ in queries.texts]

    engine = Engine()
    found, _ = searched(SIXTY_BAD, sources={"mine": (engine, 2)})
    assert engine.asked == [22] and found.report.num_random == 2


def test_how_deep_a_query_looks_does_not_depend_on_others():
    """Beside a query with 80 positives, one whose best texts are filtered goes on as if it were alone."""
    # Copies of anchors in the corpus are found in both spaces, and the second one leaves an empty place at the end.
    pairs = [("q 0°", "p 170°"), *(("r 90°", f"s {100 + 0.5 * i}°") for i in range(80))]
    corpus = [*SIXTY_BAD, "R  90°"]
    recipe = {"num_negatives": 2, "exclude_pattern": "bad", "shortfall": "random", "search_spaces": BOTH}
    alone, together = (mined(pairs, Model(by_angle), corpus, {"query_chunk_size": size}, **recipe) for size in (1, 512))
    assert texts_of(alone)[0] == ["d 40°", "d 41°"] and alone.report.num_random == 0
    assert (alone.negative_ids == together.negative_ids).all()
    assert alone.report.num_candidates == together.report.num_candidates
