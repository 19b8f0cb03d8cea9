"""How deep the search goes for each query, and what windows count."""

from __future__ import annotations

import pytest
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from tests.toys import Model, by_angle, mined, texts_of


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
