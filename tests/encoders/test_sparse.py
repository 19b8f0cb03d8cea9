"""SparseEncoder: rows in blocks, exact search by sparse products, and the same results as dense brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import sparse

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.encoders import Encodings, SparseTextEncoder, encoder_for, sparse_rows
from st_hardneg.encoders import sparse as sparse_encoder
from st_hardneg.encoders.rows import concatenated
from st_hardneg.encoders.sparse_rows import SparseRows, similarities
from st_hardneg.search import ExactSearcher, FaissSearcher, checked_search
from tests.conftest import random_texts
from tests.tiny_models import splade, static_sparse

TEXTS = list(dict.fromkeys(random_texts(300, seed=3, length=6)))
PAIRS = Dataset.from_dict({"anchor": TEXTS[:60], "positive": TEXTS[60:120]})


def random_rows(count: int, dim: int = 500, active: int = 20, seed: int = 0) -> sparse.csr_matrix:
    """Return rows with so many positive weights each."""
    rng = np.random.default_rng(seed)
    columns = np.concatenate([np.sort(rng.choice(dim, active, replace=False)) for _ in range(count)])
    weights = rng.gamma(2.0, 0.4, size=count * active).astype(np.float32)
    return sparse.csr_matrix((weights, columns, np.arange(count + 1) * active), shape=(count, dim))


@pytest.fixture
def matrix() -> np.ndarray:
    return random_rows(50).toarray()


@pytest.fixture
def rows(matrix) -> SparseRows:
    return SparseRows.of(matrix)


@pytest.mark.parametrize(
    "make",
    [
        torch.from_numpy,
        lambda m: m,
        sparse.coo_matrix,
        lambda m: torch.from_numpy(m).to_sparse(),
        lambda m: torch.stack(list(torch.from_numpy(m).to_sparse())),
        lambda m: torch.from_numpy(m).double().to_sparse(),
    ],
)
def test_rows_of_whatever_a_model_returns(matrix, make):
    """Dense or sparse, coalesced or not, of single or double precision."""
    found = SparseRows.of(make(matrix))
    assert found.shape == (50, 500) and len(found) == 50
    assert np.array_equal(found.matrix().toarray(), matrix) and found.matrix().dtype == np.float32
    assert found.matrix().nnz == 50 * 20


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_rows_of_a_tensor_in_compressed_rows(matrix):
    found = SparseRows.of(torch.from_numpy(matrix).to_sparse_csr())
    assert np.array_equal(found.matrix().toarray(), matrix)


@pytest.mark.parametrize("sizes", [[50], [20, 30], [0, 1, 48, 0, 1], [10] * 5])
def test_rows_act_as_one_matrix_whatever_blocks_they_are_in(matrix, sizes):
    """Places with repeats in any order, slices over block borders, splits, and nothing at all."""
    parts = [SparseRows.of(some) for some in np.split(matrix, np.cumsum(sizes)[:-1])]
    rows = concatenated(parts)
    assert rows.shape == (50, 500)
    for places in (torch.tensor([3, 49, 3, 0, 20]), torch.tensor([], dtype=torch.int64), torch.arange(50).flip(0)):
        assert np.array_equal(rows[places].matrix().toarray(), matrix[places.numpy()])
    for part in (slice(0, 50), slice(15, 35), slice(49, 80), slice(20, 20), slice(None, 10), slice(-5, None)):
        assert np.array_equal(rows[part].matrix().toarray(), matrix[part])
    for size in (1, 7, 50, 100):
        blocks = list(rows.split(size))
        assert [len(block) for block in blocks] == [len(some) for some in np.split(matrix, range(size, 50, size))]
        assert np.array_equal(np.concatenate([block.matrix().toarray() for block in blocks]), matrix)
    assert rows.device == torch.device("cpu") and rows.to(torch.device("cpu")) is rows


def test_whole_blocks_are_not_copied(matrix):
    """What is searched in blocks of the encoder's size is what the encoder yielded."""
    rows = concatenated([SparseRows.of(matrix[:20]), SparseRows.of(matrix[20:])])
    assert rows[:20].parts[0] is rows.parts[0] and rows[0:50].parts[1] is rows.parts[1]


@pytest.mark.parametrize("name", ["dot", "cosine", "euclidean"])
def test_similarities_are_those_of_dense_vectors(name, matrix, monkeypatch):
    """Row by row and all with all, in blocks of whatever size, to six digits."""
    from sentence_transformers import SimilarityFunction

    other = random_rows(50, seed=1).toarray()
    other[7], other[8] = 0.0, matrix[8]
    left, right = SparseRows.of(matrix), concatenated([SparseRows.of(other[:31]), SparseRows.of(other[31:])])
    of_pairs, of_all = similarities(name)
    a, b = torch.from_numpy(matrix).double(), torch.from_numpy(other).double()
    expected = SimilarityFunction.to_similarity_fn(name)(a, b)
    for texts, pairs in ((4096, 1_000_000), (9, 30), (1, 50)):
        monkeypatch.setattr(sparse_rows, "_TEXTS", texts)
        monkeypatch.setattr(sparse_rows, "_PAIRS", pairs)
        torch.testing.assert_close(of_all(left, right), expected.float(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(of_pairs(left, right), expected.diagonal().float(), atol=2e-6, rtol=1e-6)
    cosine = torch.nn.functional.cosine_similarity(a, b)
    torch.testing.assert_close(SparseRows.cosine(left, right), cosine.float(), atol=2e-6, rtol=1e-6)


def test_equal_rows_are_told(matrix):
    """Up to rounding, and whatever lies in between."""
    other = matrix.copy()
    other[3] *= 1.0 + 1e-7
    other[4, other[4].argmax()] *= 1.01
    equal = SparseRows.of(matrix).are_equal(SparseRows.of(other))
    assert equal.tolist() == [row != 4 for row in range(50)]
    assert SparseRows.of(matrix[:0]).are_equal(SparseRows.of(matrix[:0])).tolist() == []


def test_search_equals_brute_force():
    """All ids and scores, of the nearest and of all, where some have nothing in common with the query."""
    corpus, queries = random_rows(700, active=6), random_rows(40, active=6, seed=1)
    rows = concatenated([SparseRows.of(corpus[:300]), SparseRows.of(corpus[300:])])
    searcher = rows.searcher(ExactSearcher(corpus_chunk_size=97))
    assert searcher.is_exact
    searcher.score_function = similarities("dot")[1]
    searcher.index(rows, "dot")
    expected = torch.from_numpy((queries.astype(np.float64) @ corpus.astype(np.float64).T).toarray())
    for k in (1, 10, 700):
        ids, scores = checked_search(searcher, SparseRows.of(queries), k, 700)
        best = expected.topk(k, dim=1).values
        torch.testing.assert_close(scores, best.float(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(expected.gather(1, ids).float(), scores, atol=1e-6, rtol=1e-6)
        assert all(len(set(row)) == k for row in ids.tolist())


def test_faiss_is_refused_for_sparse_vectors(rows):
    """It would need a dense matrix of all dimensions."""
    with pytest.raises(ValueError, match="FAISS searches dense vectors, and those of a SparseEncoder are sparse"):
        rows.searcher(FaissSearcher())


def test_a_searcher_of_the_caller_s_gets_the_rows():
    """An inverted index may be a searcher."""

    class Inverted:
        is_exact = False

        def index(self, corpus, similarity):
            self.inverted, self.similarity = corpus.matrix().T.tocsr(), similarity

        def search(self, queries, k):
            scores = torch.from_numpy((queries.matrix() @ self.inverted).toarray())
            return tuple(reversed(scores.topk(k, dim=1)))

    searcher = Inverted()
    config = MiningConfig(num_negatives=2)
    found = HardNegativeDataset(PAIRS, TEXTS[120:], config, searcher=searcher)
    found.mine(static_sparse(), show_progress_bar=False)
    expected = HardNegativeDataset(PAIRS, TEXTS[120:], config)
    expected.mine(static_sparse(), show_progress_bar=False)
    assert searcher.similarity == "dot" and found.report.recall == pytest.approx(1.0)
    np.testing.assert_allclose(found.negative_scores, expected.negative_scores, rtol=1e-6)


@pytest.mark.parametrize("recipe", [MiningConfig(num_negatives=4), MiningConfig.recommended()])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_mining_equals_that_of_dense_vectors(tmp_path, recipe, similarity):
    """Everything: the same negatives and scores as those of a model that returns the same vectors in full."""
    model = splade(tmp_path)
    model.similarity_fn_name = similarity

    class Dense:
        similarity_fn_name = similarity

        def encode_query(self, texts):
            return model.encode_query(texts, convert_to_sparse_tensor=False)

        def encode_document(self, texts):
            return model.encode_document(texts, convert_to_sparse_tensor=False)

    minings = []
    for one in (model, Dense()):
        found = HardNegativeDataset(PAIRS, TEXTS[120:], recipe, num_topics=3)
        found.mine(one, show_progress_bar=False)
        minings.append(found)
    ours, theirs = minings
    np.testing.assert_allclose(ours.negative_scores, theirs.negative_scores, rtol=1e-5)
    assert ours.report.similarity == similarity and ours.report.removed.keys() == theirs.report.removed.keys()
    assert (torch.as_tensor(ours.negative_ids) == torch.as_tensor(theirs.negative_ids)).all()
    assert ours.report.removed == theirs.report.removed
    assert len(set(ours.live.mining.topics.tolist())) == 3


def test_vectors_of_sparse_models_are_sparse_throughout(tmp_path, monkeypatch):
    """Nothing that is kept or searched is a matrix of all dimensions."""
    model = splade(tmp_path)
    asked = []
    real = model.encode_document
    monkeypatch.setattr(model, "encode_document", lambda texts, **o: asked.append(o) or real(texts, **o))
    encoder = encoder_for(model, Encodings.from_config(MiningConfig()))
    assert isinstance(encoder, SparseTextEncoder) and encoder.similarity == "dot"
    monkeypatch.setattr(sparse_encoder, "_SHARD", 20)
    shards = list(encoder.corpus(TEXTS[:50]))
    assert [len(shard) for shard in shards] == [20, 20, 10] and all(isinstance(one, SparseRows) for one in shards)
    assert all(options["convert_to_sparse_tensor"] and options["save_to_cpu"] for options in asked)
    whole = model.encode_document(TEXTS[:50], convert_to_sparse_tensor=False).numpy()
    np.testing.assert_allclose(concatenated(shards).matrix().toarray(), whole, rtol=1e-5)


def test_prompts_modes_and_draws(tmp_path):
    """Prompts are used, and the model and torch's generator are left as they were found."""
    model = splade(tmp_path)
    model.train()
    state = torch.get_rng_state()
    found = HardNegativeDataset(PAIRS, config=MiningConfig(num_negatives=1, query_prompt="w0 w1 "))
    found.mine(model, show_progress_bar=False)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    prompted = model.encode_query(TEXTS[:1], prompt="w0 w1 ")
    positive = float(model.similarity(prompted, model.encode_document(TEXTS[60:61])))
    assert found.provenance()[0]["positive_score"] == pytest.approx(positive, rel=1e-5)


def test_what_is_wrong_is_said(tmp_path):
    """A similarity without products, weights that diverged, and a model that loses texts."""
    model = splade(tmp_path)
    model.similarity_fn_name = "manhattan"
    with pytest.raises(ValueError, match=r"one of \['dot', 'cosine', 'euclidean'\], got 'manhattan'"):
        HardNegativeDataset(PAIRS).mine(model)
    model.similarity_fn_name = "dot"
    real = model.encode_query
    model.encode_query = lambda texts, **options: real(texts[1:], **options)
    with pytest.raises(MiningError, match="one vector per text from SparseEncoder, got 59 for 60 texts"):
        HardNegativeDataset(PAIRS).mine(model, show_progress_bar=False)
    model.encode_query = real
    with torch.no_grad():
        next(model.parameters())[7] = torch.nan
    with pytest.raises(MiningError, match="Expected finite embeddings, got NaN or infinity for"):
        HardNegativeDataset(PAIRS).mine(model, show_progress_bar=False)


def test_the_fingerprint_follows_weights_and_prompts(tmp_path):
    model = splade(tmp_path)

    def fingerprint(**fields):
        return encoder_for(model, Encodings.from_config(MiningConfig(**fields))).fingerprint(TEXTS[:3])

    first = fingerprint()
    assert first == fingerprint() and first != fingerprint(query_prompt="w3 ")
    model.max_active_dims = 5
    fewer = fingerprint()
    assert fewer != first
    with torch.no_grad():
        next(model.parameters())[7] += 1.0
    assert fingerprint() != fewer
