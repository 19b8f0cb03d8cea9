"""Exact search against brute force and against Sentence Transformers' own, and what any searcher has to return."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sentence_transformers import SimilarityFunction
from sentence_transformers.util import cos_sim, dot_score, semantic_search

from st_hardneg.search import ExactSearcher, FaissSearcher, Searcher, checked_search
from st_hardneg.search import exact as exact_module
from st_hardneg.search.exact import GROUP, Highest
from tests.conftest import whole


def vectors(count: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def brute_force(similarity: str, queries: torch.Tensor, corpus: torch.Tensor) -> np.ndarray:
    """Return all similarities in float64, by NumPy."""
    left, right = queries.double().numpy(), corpus.double().numpy()
    if similarity == "dot":
        return left @ right.T
    if similarity == "cosine":
        return (left / np.linalg.norm(left, axis=1, keepdims=True)) @ (
            right / np.linalg.norm(right, axis=1, keepdims=True)
        ).T
    differences = left[:, None] - right[None]
    return -np.sqrt((differences**2).sum(-1)) if similarity == "euclidean" else -np.abs(differences).sum(-1)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("chunk", [7, 64, 100_000])
@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_it_finds_what_brute_force_finds(similarity, chunk, kind, monkeypatch):
    """With every similarity, in blocks of texts and of queries."""
    if kind == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(exact_module, "_MAX_FLOATS", 300)
    queries, corpus = vectors(40, seed=1), vectors(150)
    searcher = ExactSearcher(corpus_chunk_size=chunk) if kind == "exact" else FaissSearcher()
    assert isinstance(searcher, Searcher) and searcher.is_exact
    searcher.index(corpus, similarity)
    ids, scores = checked_search(searcher, queries, 12, len(corpus))
    expected = brute_force(similarity, queries, corpus)
    wanted = np.argsort(-expected, axis=1, kind="stable")[:, :12]
    assert (ids.numpy() == wanted).all()
    np.testing.assert_allclose(scores, np.take_along_axis(expected, wanted, 1), atol=2e-5)


@pytest.mark.parametrize(("similarity", "function"), [("cosine", cos_sim), ("dot", dot_score)])
@pytest.mark.parametrize("is_unit", [False, True])
def test_it_finds_what_semantic_search_finds(similarity, function, is_unit):
    """Sentence Transformers' own search returns the same texts and the same scores."""
    queries, corpus = vectors(30, seed=2), vectors(500, seed=3)
    if is_unit:  # lengths are looked at once, and need no division
        queries, corpus = (torch.nn.functional.normalize(one, dim=1) for one in (queries, corpus))
    searcher = ExactSearcher(corpus_chunk_size=90)
    searcher.index(corpus, similarity)
    assert (searcher._inverse_lengths is None) == (is_unit or similarity == "dot")
    ids, scores = searcher.search(queries, 20)
    theirs = semantic_search(queries, corpus, corpus_chunk_size=90, top_k=20, score_function=function)
    assert ids.tolist() == [[hit["corpus_id"] for hit in hits] for hits in theirs]
    np.testing.assert_allclose(scores, [[hit["score"] for hit in hits] for hits in theirs], atol=1e-6)


def test_it_searches_by_a_function_of_the_model_s():
    """A similarity of the caller's own stands in for the one of the name."""
    queries, corpus = vectors(5), vectors(20, seed=5)
    searcher = ExactSearcher(score_function=lambda a, b: -torch.cdist(a, b, p=float("inf")))
    searcher.index(corpus, "cosine")
    ids, _ = searcher.search(queries, 3)
    assert (ids == torch.cdist(queries, corpus, p=float("inf")).topk(3, largest=False).indices).all()


def test_fewer_texts_than_are_asked_for():
    """As many as there are come out; a vector of zeros is similar to nothing, and no NaN."""
    searcher = ExactSearcher()
    searcher.index(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "cosine")
    ids, scores = searcher.search(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 5)
    assert ids.shape == (2, 2) and scores.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert searcher.search(torch.zeros(0, 2), 1)[0].shape == (0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_searched(dtype):
    """Vectors in half precision or double find the same nearest text."""
    corpus = vectors(30)
    for similarity in ("cosine", "dot"):
        searcher = ExactSearcher()
        searcher.index(corpus.to(dtype), similarity)
        ids, scores = searcher.search(corpus[:10].to(dtype), 1)
        expected = SimilarityFunction.to_similarity_fn(similarity)(corpus[:10], corpus).argmax(dim=1)
        assert scores.dtype == torch.float32 and (ids[:, 0] == expected).float().mean() >= 0.9


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("order", ["any", "rising", "falling"])
def test_small_blocks_find_what_one_product_finds(k, order, monkeypatch):
    """Of later blocks only what beats the best so far is looked at, whether hardly anything does or everything."""
    monkeypatch.setattr(exact_module, "_CPU_FLOATS", 1)
    queries, corpus = vectors(9, seed=1), vectors(3_001)
    if order != "any":
        corpus = corpus[(queries[0] @ corpus.T).argsort(descending=order == "falling")]
    searcher = ExactSearcher()
    searcher.index(corpus, "dot")
    assert searcher._block_shape(9, k, True)[1] == 64 * k
    ids, scores = searcher.search(queries, k)
    wanted = np.argsort(-brute_force("dot", queries, corpus), axis=1, kind="stable")[:, :k]
    assert (ids.numpy() == wanted).all()
    assert torch.allclose(scores, (queries @ corpus.T).gather(1, ids), atol=1e-5)
    corpus[2_000] = torch.nan
    assert searcher.search(queries, k)[1].isnan().any(dim=1).all()  # so that it is reported


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_a_searcher_travels_without_its_corpus(kind):
    """To another process, which indexes its own; and it is searched again with other numbers of queries and texts."""
    if kind == "faiss":
        pytest.importorskip("faiss")
    searcher = ExactSearcher(500) if kind == "exact" else FaissSearcher("IVF4,Flat,nprobe=4")
    searcher.of_a_subclass = "its own"
    corpus = vectors(2_000, dim=16)
    searcher.index(corpus, "cosine")
    expected = searcher.search(corpus[:100], 5)
    sent = pickle.dumps(searcher)
    assert len(sent) < 1_000
    again = pickle.loads(sent)
    assert again.of_a_subclass == "its own"
    again.index(corpus, "cosine")
    for count in (3, 100, 17):
        found = again.search(corpus[:count], 5)
        assert torch.equal(found[0], expected[0][:count]) and torch.allclose(found[1], expected[1][:count], atol=1e-6)


def test_a_function_may_count_in_integers():
    """Hamming distances, for example; they come out as float32."""
    searcher, corpus = ExactSearcher(score_function=lambda a, b: -(torch.cdist(a, b) * 100).long()), vectors(3_000)
    searcher.index(corpus, "cosine")
    ids, scores = searcher.search(corpus[:5], 3)
    assert ids[:, 0].tolist() == list(range(5)) and scores.dtype == torch.float32
    assert torch.equal(scores, (-(torch.cdist(corpus[:5], corpus) * 100).long()).topk(3).values.float())


def test_a_function_may_rule_texts_out():
    """With scores of -inf: each text stands once, also where hardly any is left."""
    table = torch.full((17, 3_000), -torch.inf)
    table[3] = torch.randn(3_000, generator=torch.Generator().manual_seed(0))
    table[3, 2_500:2_900] += 10
    table[4, 2_999] = 1.0
    searcher = ExactSearcher(500, score_function=lambda a, b: table[a[:, 0].long()][:, b[:, 0].long()])
    searcher.index(torch.arange(3_000).float()[:, None], "cosine")
    ids, scores = searcher.search(torch.arange(17).float()[:, None], 10)
    assert all(len(set(row)) == 10 for row in ids.tolist())
    assert torch.equal(scores, table.topk(10).values) and ids[4, 0] == 2_999


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_inference_mode_may_come_and_go(similarity):
    """What is kept from one search for the next serves in both modes."""
    searcher, corpus = ExactSearcher(), vectors(200)
    searcher.index(corpus, similarity)
    with torch.inference_mode():
        expected = searcher.search(corpus[:5], 3)
    assert torch.equal(searcher.search(corpus[:5], 3)[0], expected[0])
    with torch.inference_mode():
        assert torch.equal(searcher.search(corpus[:5], 3)[0], expected[0])


def test_threads_share_a_searcher():
    """Each has memory of its own for the scores."""
    searcher, corpus = ExactSearcher(), vectors(3_000, dim=16)
    searcher.index(corpus, "dot")
    expected = (corpus @ corpus.T).topk(4, dim=1)
    with ThreadPoolExecutor(4) as threads:
        for start, (ids, scores) in enumerate(
            threads.map(lambda i: searcher.search(corpus[i : i + 40], 4), range(200))
        ):
            assert torch.equal(ids, expected.indices[start : start + 40])
            assert torch.allclose(scores, expected.values[start : start + 40], atol=1e-5)


# --- the highest so far ----------------------------------------------------------------------------------------------


def added(scores: torch.Tensor, k: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is found of scores of shape ``(num_queries, num_texts)`` that come in blocks of texts."""
    highest = Highest(k)
    for first in range(0, scores.shape[1], block):
        highest.add(scores[:, first : first + block].T, first)
    ids, values = highest.found()
    return ids.numpy(), values.numpy()


@pytest.mark.parametrize("block", [1, GROUP - 1, GROUP, 100, 640, 5_003])
@pytest.mark.parametrize("k", [1, 7, 150])
@pytest.mark.parametrize("order", ["any", "rising", "falling"])
def test_it_finds_what_a_sort_finds(block, k, order):
    """In blocks of any size, whether later ones hold the highest, none of them, or some."""
    scores = torch.randn(11, 5_003, generator=torch.Generator().manual_seed(block + k))
    if order != "any":
        scores = scores.sort(dim=1, descending=order == "falling").values
    ids, values = added(scores, k, block)
    wanted = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    assert (ids == wanted).all()
    assert (values == np.take_along_axis(scores.numpy(), wanted, 1)).all()


@pytest.mark.parametrize("block", [64, 1_000])
def test_equal_scores_are_all_as_good(block):
    """Each text stands once, and no lower score stands for one of the highest."""
    scores = torch.randint(0, 4, (9, 4_000), generator=torch.Generator().manual_seed(0)).float()
    scores[0] = 1.0
    scores[1] = -torch.inf
    ids, values = added(scores, 20, block)
    assert (np.take_along_axis(scores.numpy(), ids, 1) == values).all()
    assert (values == -np.sort(-scores.numpy(), axis=1)[:, :20]).all()
    assert all(len(set(row)) == 20 for row in ids.tolist())


@pytest.mark.parametrize("place", [0, 17, 3_998])
def test_what_is_no_number_comes_out(place):
    """So that it is reported; it hides no number of another query."""
    scores = torch.randn(5, 4_000, generator=torch.Generator().manual_seed(1))
    scores[2, place] = torch.nan
    ids, values = added(scores, 10, 999)
    assert np.isnan(values[2]).sum() == 1 and ids[2][np.isnan(values[2])] == [place]
    others = [0, 1, 3, 4]
    assert (ids[others] == np.argsort(-scores[others].numpy(), axis=1, kind="stable")[:, :10]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    """Scores come out in single precision."""
    scores = torch.randn(6, 2_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    ids, values = added(scores, 5, 700)
    assert values.dtype == np.float32
    assert (values == scores.sort(dim=1, descending=True).values[:, :5].float().numpy()).all()
    assert (np.take_along_axis(scores.float().numpy(), ids, 1) == values).all()


def test_memory_may_lie_in_any_way():
    """Rows of a wider table, and columns."""
    wide = torch.randn(3_000, 40, generator=torch.Generator().manual_seed(3))
    highest = Highest(8)
    highest.add(wide[:2_000, 5:25], 0)
    highest.add(wide.T.contiguous().T[2_000:, 5:25], 2_000)
    ids, values = highest.found()
    expected = wide[:, 5:25].T.topk(8, dim=1)
    assert torch.equal(ids, expected.indices) and torch.equal(values, expected.values)


# --- what any searcher returns ----------------------------------------------------------------------------------------


class Returns:
    """A searcher that returns what it was given."""

    def __init__(self, ids, scores) -> None:
        self.found = ids, scores

    def index(self, corpus_embeddings, similarity_fn_name):
        pass

    def search(self, query_embeddings, k):
        return self.found


def test_answers_are_ordered_by_score_then_id_and_each_text_stands_once():
    """Lists or tensors; what was returned is not changed in place."""
    ids = torch.tensor([[3, 1, 2, 1], [0, 4, 5, -1], [2, -1, 1, 0]])
    scores = torch.tensor([[0.5, 0.5, 0.9, 0.7], [0.9, 0.8, 0.7, 5.0], [0.1, 9.0, 0.2, 0.3]])
    before = ids.clone(), scores.clone()
    found, similarities = checked_search(Returns(ids, scores), torch.zeros(3, 2), 4, 6)
    assert found.tolist() == [[2, 1, -1, 3], [0, 4, 5, -1], [0, 1, 2, -1]]
    expected = [[0.9, 0.7, -torch.inf, 0.5], [0.9, 0.8, 0.7, -torch.inf], [0.3, 0.2, 0.1, -torch.inf]]
    np.testing.assert_allclose(similarities, expected)
    assert (ids == before[0]).all() and (scores == before[1]).all()
    again, _ = checked_search(Returns(ids.tolist(), scores.tolist()), torch.zeros(3, 2), 4, 6)
    assert (again.sort(dim=1).values == found.sort(dim=1).values).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_equals_a_plain_sort(seed):
    """Rows in order, rows with ties, rows in disorder and rows with repeats and gaps, against Python's own sort."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, 12, (60, 9))
    ids[:20] = np.sort(rng.permuted(np.tile(np.arange(12), (20, 1)), axis=1)[:, :9])
    scores = rng.integers(0, 6, (60, 9)) / 4
    scores[:20] = np.sort(scores[:20], axis=1)[:, ::-1]
    scores[:10] = np.linspace(1, 0, 9)
    found, similarities = checked_search(Returns(ids, scores), torch.zeros(60, 2), 9, 12)
    for row in range(60):
        best: dict[int, float] = {}
        for one, score in zip(ids[row].tolist(), scores[row].tolist(), strict=True):
            if one >= 0:
                best[one] = max(score, best.get(one, -1.0))
        wanted = sorted(best, key=lambda one: (-best[one], one))
        assert [one for one in found[row].tolist() if one >= 0] == wanted
        assert [score for score in similarities[row].tolist() if score > -torch.inf] == [best[one] for one in wanted]


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        (
            [[0, 1]],
            [[1.0]],
            "Expected Returns.search to return ids and scores of shape (1, 2), got (1, 2) and (1, 1). Pad missing places "
            "with id -1 and score -inf.",
        ),
        (
            [[0, 3]],
            [[1.0, 0.5]],
            "Expected Returns.search to return ids in [0, 3) or -1, got ids from 0 to 3. Return row numbers of the "
            "indexed corpus.",
        ),
        (
            [[-2, 1]],
            [[1.0, 0.5]],
            "Expected Returns.search to return ids in [0, 3) or -1, got ids from -2 to 1. Return row numbers of the "
            "indexed corpus.",
        ),
        (
            [[0, 1]],
            [[1.0, float("nan")]],
            "Expected Returns.search to return scores that are numbers, got NaN. Check its similarity.",
        ),
    ],
)
def test_what_is_no_answer_is_refused(ids, scores, message):
    """Shapes, numbers and NaN; the whole message is compared."""
    with pytest.raises(ValueError, match=whole(message)):
        checked_search(Returns(ids, scores), torch.zeros(1, 2), 2, 3)
