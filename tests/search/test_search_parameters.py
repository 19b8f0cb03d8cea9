"""FAISS indexes that are approximate: their parameters, and their recall in words."""

from __future__ import annotations

import pytest
import torch

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.search import FaissSearcher
from tests.conftest import random_texts


def test_search_parameters_of_an_index_can_be_set():
    """An inverted-file index looks into one list unless it is told otherwise."""
    corpus = torch.nn.functional.normalize(torch.randn(4_000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    exact = FaissSearcher("Flat")
    exact.index(corpus, "cosine")
    wanted = exact.search(corpus[:50], 20)[0]

    def recall(factory: str) -> float:
        searcher = FaissSearcher(factory)
        searcher.index(corpus, "cosine")
        found = searcher.search(corpus[:50], 20)[0]
        return float((found[:, :, None] == wanted[:, None, :]).any(2).float().mean())

    assert recall("IVF64,Flat,nprobe=64") > 0.999 > 0.9 > recall("IVF64,Flat")
    with pytest.raises(ValueError, match="does not take the search parameters 'nprobe=3': it compares everything"):
        FaissSearcher("Flat,nprobe=3").index(corpus, "cosine")


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("num_queries", [3, 400])
def test_scores_of_a_flat_index_are_the_similarities(similarity, num_queries):
    corpus, queries = (torch.randn(n, 48, generator=torch.Generator().manual_seed(n)) for n in (900, num_queries))
    searcher = FaissSearcher()
    searcher.index(corpus, similarity)
    ids, scores = searcher.search(queries, 12)
    unit = torch.nn.functional.normalize
    left, right = (queries, corpus) if similarity == "dot" else (unit(queries, dim=1), unit(corpus, dim=1))
    expected = (left.double() @ right.double().T).topk(12)
    torch.testing.assert_close(scores.double(), expected.values, rtol=1e-5, atol=1e-5)
    assert (ids == expected.indices).float().mean() > 0.99


def test_an_index_that_finds_half_is_said_to(bag_of_words, word_pairs):
    """The recall of a sample stands in the report, in its log line and, where it is low, in a note."""
    corpus = random_texts(3_000, seed=9, length=6)
    recalls = {}
    for factory in ("IVF64,Flat", "IVF64,Flat,nprobe=64", "Flat"):
        found = HardNegativeDataset(word_pairs, corpus, MiningConfig(num_negatives=3), searcher=FaissSearcher(factory))
        report = found.mine(bag_of_words, show_progress_bar=False)
        recalls[factory] = report.recall
        if factory == "IVF64,Flat":
            assert "of the nearest texts. Raise its search parameters (`nprobe`" in str(report)
            assert report.metrics()["mining/recall"] == round(report.recall, 4)
        else:
            assert not [note for note in report.notes if "nearest texts" in note]
    assert recalls["IVF64,Flat"] < 0.95 < recalls["IVF64,Flat,nprobe=64"] and recalls["Flat"] is None
