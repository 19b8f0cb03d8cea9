"""BM25 rankings of texts that do not change are computed once, however often negatives are refreshed."""

from __future__ import annotations

import pickle

import pytest
import torch

from st_hardneg import HardNegativeDataset, MiningConfig
from tests.conftest import random_texts

pytest.importorskip("bm25s")


def test_a_refresh_computes_no_ranking_anew(bag_of_words, word_pairs, monkeypatch):
    import bm25s

    config = MiningConfig(num_negatives=2, sources={"dense": 1, "lexical": 1})
    found = HardNegativeDataset(word_pairs, random_texts(200, seed=3), config)
    calls = []
    real = bm25s.BM25.get_scores
    monkeypatch.setattr(bm25s.BM25, "get_scores", lambda self, *args: calls.append(1) or real(self, *args))
    found.mine(bag_of_words, show_progress_bar=False)
    assert len(calls) == 48
    first = found.negative_ids
    found.mine(bag_of_words, show_progress_bar=False)
    assert len(calls) == 48 and (found.negative_ids == first).all()


def test_a_deeper_search_ranks_anew_and_a_shallower_one_does_not(word_pairs):
    from st_hardneg.corpus.numbering import number_texts
    from st_hardneg.corpus.texts import TextColumn
    from st_hardneg.sources.lexical import LexicalIndex

    corpus = number_texts(TextColumn.of(random_texts(100, seed=3))).corpus
    index, queries = LexicalIndex(corpus), [*word_pairs["anchor"][:5], word_pairs["anchor"][0], "nothing at all"]
    for k in (3, 20, 7):
        ids, scores = index.search(queries, k)
        other_ids, other_scores = LexicalIndex(corpus).search(queries, k)
        assert torch.equal(ids, other_ids) and torch.equal(scores, other_scores)
    assert index.num_kept > 0 and pickle.loads(pickle.dumps(index)).num_kept == 0
