"""FAISS: scores are the model's own whatever an index stores, and what it cannot do is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SimilarityFunction

from st_hardneg.errors import MissingExtraError
from st_hardneg.search import FaissSearcher, checked_search
from tests.conftest import whole

faiss = pytest.importorskip("faiss")


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat,nprobe=8", "SQ8", "PQ4x4", "IVF8,PQ4x4,nprobe=4"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_scores_are_the_model_s_own(factory, similarity):
    """Compressed or not: each score is the similarity of the two vectors, and -inf where nothing was found."""
    queries, corpus = vectors(30, 0), vectors(800, 1)
    searcher = FaissSearcher(factory)
    searcher.index(corpus, similarity)
    ids, scores = checked_search(searcher, queries, 5, len(corpus))
    expected = SimilarityFunction.to_similarity_fn(similarity)(queries, corpus).gather(1, ids.clamp(min=0))
    np.testing.assert_allclose(scores, expected.masked_fill(ids < 0, -torch.inf), atol=1e-4)
    assert bool((scores[:, :-1] >= scores[:, 1:]).all())
    assert searcher.is_exact == (factory == "Flat")


def test_fewer_texts_than_are_asked_for():
    """Missing places have the number -1."""
    searcher = FaissSearcher()
    searcher.index(vectors(3, 1), "cosine")
    ids, scores = searcher.search(vectors(2, 0), 5)
    assert (ids[:, 3:] == -1).all() and bool(scores[:, 3:].isneginf().all())


def test_the_library_s_threshold_is_given_back():
    """A setting of the whole process is as it was, also after an error."""
    before = faiss.cvar.distance_compute_blas_threshold
    searcher = FaissSearcher()
    searcher.index(vectors(30, 1), "cosine")
    searcher.search(vectors(2, 0), 2)
    assert faiss.cvar.distance_compute_blas_threshold == before
    with pytest.raises(Exception):  # noqa: B017 - FAISS's own, of whatever kind
        searcher.search(torch.zeros(2, 3), 2)
    assert faiss.cvar.distance_compute_blas_threshold == before


@pytest.mark.parametrize(
    ("factory", "similarity", "said"),
    [
        ("Flad", "cosine", r"^Expected a FAISS index factory string, got 'Flad'"),
        (
            "IVF900,Flat",
            "cosine",
            r"^Expected a corpus that is large enough to train the FAISS index 'IVF900,Flat', got",
        ),
        ("Flat,nprobe=3", "cosine", r"does not take the search parameters 'nprobe=3'"),
        ("IVF4,Flat,efSearch=3", "cosine", r"'IVF4,Flat' does not take the search parameters 'efSearch=3'"),
        ("HNSW16", "manhattan", r"^Expected .*'Flat' with the model's similarity 'manhattan', got 'HNSW16'"),
        ("Flat", "chebyshev", r"^Expected a similarity that FAISS can search by, one of \['cosine', "),
    ],
)
def test_what_an_index_cannot_do_is_said(factory, similarity, said):
    """In our words, with the library's reason."""
    with pytest.raises(ValueError, match=said) as error:
        searcher = FaissSearcher(factory)
        if similarity == "chebyshev":
            searcher._pairwise = None
            searcher._metric(faiss, similarity)
        else:
            searcher.index(vectors(40, 1), similarity)
    assert "faiss_index" not in str(error.value)  # no argument has that name


def test_a_missing_extra_is_named(monkeypatch):
    """Before anything is computed."""
    monkeypatch.setattr("st_hardneg.errors.find_spec", lambda module: None)
    message = (
        '`use_faiss=True` needs `faiss`, which is not installed. Install it with `pip install "st-hardneg[faiss]"`.'
    )
    with pytest.raises(MissingExtraError, match=whole(message)):
        FaissSearcher()
