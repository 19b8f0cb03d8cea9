"""Search in bfloat16 finds exactly what search in float32 finds, or gives way to it."""

from __future__ import annotations

import pytest
import torch

from st_hardneg.search import ExactSearcher, checked_search
from st_hardneg.search import bfloat16 as bfloat16_module
from st_hardneg.search import exact as exact_module
from st_hardneg.search.bfloat16 import RoundedCorpus


@pytest.fixture(autouse=True)
def _native(monkeypatch):
    """As on hardware that multiplies bfloat16; here it is emulated, with the same rounding."""
    monkeypatch.setattr(exact_module, "computes_bfloat16", lambda device_type: device_type == "cpu")


def clusters(count: int, dim: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Return vectors around 20 centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=torch.Generator().manual_seed(0))
    return centres[torch.randint(20, (count,), generator=generator)] + spread * torch.randn(
        count, dim, generator=generator
    )


def in_float32(queries, corpus, similarity, k, monkeypatch):
    """Search without bfloat16."""
    with monkeypatch.context() as patch:
        patch.setattr(exact_module, "computes_bfloat16", lambda _: False)
        searcher = ExactSearcher()
        searcher.index(corpus, similarity)
        return checked_search(searcher, queries, k, len(corpus))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("lengths", ["unit", "any"])
@pytest.mark.parametrize(("dim", "k"), [(32, 1), (384, 10), (768, 60)])
def test_it_finds_what_float32_finds(similarity, lengths, dim, k, monkeypatch):
    """The same texts, and their scores in float32, in several blocks."""
    queries, corpus = clusters(50, dim, 1), clusters(6_000, dim, 2)
    if lengths == "unit":
        queries, corpus = (torch.nn.functional.normalize(one, dim=1) for one in (queries, corpus))
    else:
        corpus *= torch.rand(len(corpus), 1, generator=torch.Generator().manual_seed(3)) + 0.5
    searcher = ExactSearcher(corpus_chunk_size=2_500)
    searcher.index(corpus, similarity)
    ids, scores = checked_search(searcher, queries, k, len(corpus))
    assert searcher._may_round, "most queries should have been proven"
    wanted_ids, wanted = in_float32(queries, corpus, similarity, k, monkeypatch)
    torch.testing.assert_close(scores, wanted, atol=1e-6, rtol=5e-6)
    # Another order of the same sums changes last bits; texts that change places score alike but for these.
    rows = (ids != wanted_ids).any(dim=1).nonzero().flatten()
    assert (ids != wanted_ids).float().mean() < 0.01
    exact = (
        queries.double()
        @ (corpus.double() / (1 if similarity == "dot" else corpus.double().norm(dim=1, keepdim=True))).T
    )
    if similarity == "cosine":
        exact /= queries.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(exact.gather(1, ids)[rows], exact.gather(1, wanted_ids)[rows], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("dim", [16, 384])
def test_the_bound_holds(similarity, dim):
    """No exact score lies further above its rounded score than the bound says."""
    queries, corpus = clusters(60, dim, 4), clusters(2_000, dim, 5)
    inverse = None
    if similarity == "cosine":
        queries = torch.nn.functional.normalize(queries, dim=1)
        inverse = 1.0 / torch.linalg.vector_norm(corpus, dim=1)
    rounded = RoundedCorpus(corpus, inverse, chunk_size=700)
    near = rounded.scores(queries.bfloat16(), corpus, 0).T.float()
    exact = queries.double() @ corpus.double().T * (1.0 if inverse is None else inverse.double())
    for column in range(0, 2_000, 50):
        bound = rounded._bound(queries, near[:, column])
        assert (exact[:, column] <= near[:, column] + bound).all()
    assert 0.05 < ((exact - near).max() / rounded._bound(queries, near.max(dim=1).values).max()) < 1.0


def test_what_cannot_be_proven_is_searched_in_float32(monkeypatch):
    """Texts that lie too close together: the answer is that of float32, and bfloat16 is tried no more."""
    corpus = torch.nn.functional.normalize(clusters(8_000, 32, 6, spread=1e-3), dim=1)
    queries = corpus[:40] + 1e-4
    searcher = ExactSearcher()
    searcher.index(corpus, "cosine")
    asked = []
    monkeypatch.setattr(RoundedCorpus, "scores", lambda *a, of=RoundedCorpus.scores: asked.append(1) or of(*a))
    blocks = []
    for _ in range(2):
        ids, scores = checked_search(searcher, queries, 10, len(corpus))
        wanted_ids, wanted = in_float32(queries, corpus, "cosine", 10, monkeypatch)
        torch.testing.assert_close(scores, wanted, atol=1e-6, rtol=0)
        assert (ids == wanted_ids).float().mean() > 0.9  # ties within a few units of the last place
        assert not searcher._may_round
        blocks.append(len(asked))
    assert blocks[0] == blocks[1] > 0


def test_some_that_cannot_be_proven(monkeypatch):
    """A few queries among texts that lie close together are searched anew, each in its place."""
    far = clusters(7_000, 32, 7)
    close = clusters(1, 32, 8) + 1e-3 * torch.randn(1_000, 32, generator=torch.Generator().manual_seed(8))
    corpus = torch.nn.functional.normalize(torch.cat([far, close]), dim=1)
    queries = torch.nn.functional.normalize(clusters(60, 32, 9), dim=1)
    queries[::10] = corpus[7_000:7_006]
    searcher = ExactSearcher()
    searcher.index(corpus, "dot")
    proven = []
    nearest = RoundedCorpus.nearest

    def noted(*arguments):
        found = nearest(*arguments)
        proven.append(found[2])
        return found

    monkeypatch.setattr(RoundedCorpus, "nearest", noted)
    _, scores = checked_search(searcher, queries, 5, len(corpus))
    assert 0 < int((~proven[0]).sum()) < 15 and searcher._may_round
    torch.testing.assert_close(scores, in_float32(queries, corpus, "dot", 5, monkeypatch)[1], atol=1e-6, rtol=0)


def test_numbers_that_are_none_are_reported():
    """Not proven, searched in float32, and named there."""
    corpus = clusters(4_000, 16, 10)
    corpus[77] = torch.nan
    searcher = ExactSearcher()
    searcher.index(corpus, "dot")
    with pytest.raises(ValueError, match="NaN"):
        checked_search(searcher, clusters(3, 16, 11), 5, len(corpus))


@pytest.mark.parametrize(
    ("similarity", "dtype", "size"),
    [("euclidean", torch.float32, 5_000), ("cosine", torch.float64, 5_000), ("cosine", torch.float32, 1_000)],
)
def test_where_it_is_not_for(similarity, dtype, size, monkeypatch):
    """Other similarities and types, and corpora that are searched as quickly without."""
    monkeypatch.setattr(RoundedCorpus, "scores", lambda *a: pytest.fail("was searched in bfloat16"))
    searcher = ExactSearcher()
    searcher.index(clusters(size, 16, 12).to(dtype), similarity)
    assert searcher.search(clusters(4, 16, 13).to(dtype), 3)[0].shape == (4, 3)


def test_candidates_are_gathered_in_parts(monkeypatch):
    """So that many queries do not hold many times the corpus."""
    queries, corpus = clusters(30, 16, 14), clusters(3_000, 16, 15)
    rounded = RoundedCorpus(corpus, None, 1_000)
    ids = torch.randint(3_000, (30, 70), generator=torch.Generator().manual_seed(0))
    whole = rounded.exact_scores(queries, ids)
    torch.testing.assert_close(whole, (queries @ corpus.T).gather(1, ids), atol=1e-4, rtol=1e-5)
    monkeypatch.setattr(bfloat16_module, "_GATHERED", 3_000)
    assert torch.equal(rounded.exact_scores(queries, ids), whole)
