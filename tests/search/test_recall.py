"""Recall of approximate searches: sampled, in the report, and said where it is low."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.search import ExactSearcher, FaissSearcher
from st_hardneg.search.recall import sampled_recall
from tests.conftest import random_texts


class Half(ExactSearcher):
    """A searcher that finds every other of the nearest."""

    is_exact = False

    def search(self, query_embeddings, k):
        ids, scores = super().search(query_embeddings, 2 * k)
        return ids[:, ::2][:, :k], scores[:, ::2][:, :k]


@pytest.mark.parametrize(("kind", "expected"), [(ExactSearcher, 1.0), (Half, 0.5)])
def test_the_share_of_the_nearest_that_is_found(kind, expected):
    """Of the 10 nearest, over a sample of queries."""
    queries, corpus = (torch.randn(count, 8, generator=torch.Generator().manual_seed(count)) for count in (300, 900))
    for similarity in ("cosine", "dot", "euclidean", "manhattan"):
        searcher = kind()
        searcher.index(corpus, similarity)
        assert sampled_recall(searcher, queries, corpus, similarity) == pytest.approx(expected, abs=2e-3)
    # As near as the tenth is as good as the tenth.
    same = torch.ones(50, 4)
    searcher.index(same, "cosine")
    assert sampled_recall(searcher, same[:5], same, "cosine") == 1.0


@pytest.fixture
def pairs() -> tuple[Dataset, list[str]]:
    texts = list(dict.fromkeys(random_texts(4000, seed=2)))
    return Dataset.from_dict({"anchor": texts[:60], "positive": texts[60:120]}), texts[120:]


def test_an_inverted_file_says_how_much_it_finds(bag_of_words, pairs):
    """With one list of 64 the report says that it finds little, and what to do; with all lists, that it finds all."""
    pytest.importorskip("faiss")
    config = MiningConfig(num_negatives=3)
    reports = {}
    for probes in (1, 64):
        searcher = FaissSearcher(f"IVF64,Flat,nprobe={probes}")
        found = HardNegativeDataset(*pairs, config, searcher=searcher)
        reports[probes] = found.mine(bag_of_words, show_progress_bar=False)
    low, high = reports[1], reports[64]
    assert low.recall < 0.95 < high.recall <= 1.0
    assert low.notes == (
        f"The searcher finds {low.recall:.0%} of the nearest texts. Raise its search parameters (`nprobe`, `efSearch`), "
        "or search exactly.",
    )
    assert high.notes == () and f"recall      {high.recall:.3f}" in str(high) and low.notes[0] in str(low)
    assert low.metrics()["mining/recall"] == round(low.recall, 4)


def test_an_exact_search_samples_nothing(bag_of_words, pairs):
    """No recall where all are found: with our own exact searcher, FAISS's flat index, and any that says `is_exact`."""
    for options in ({}, {"use_faiss": True}):
        if options:
            pytest.importorskip("faiss")
        report = HardNegativeDataset(*pairs, MiningConfig(), **options).mine(bag_of_words, show_progress_bar=False)
        assert report.recall is None and "recall" not in str(report) and "mining/recall" not in report.metrics()
