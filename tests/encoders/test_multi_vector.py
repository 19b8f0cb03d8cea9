"""MultiVectorEncoder: a first stage, MaxSim over its candidates, and tokens of a few texts at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.util.similarity import maxsim, mean_maxsim

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.encoders import Encodings, LateInteraction, MultiVectorTextEncoder, encoder_for, token_rows
from st_hardneg.encoders.rows import concatenated
from st_hardneg.encoders.token_rows import TokenRows, maxsim_of_all, maxsim_of_pairs
from tests.conftest import WORDS, random_texts, word_model
from tests.tiny_models import static_sparse

TEXTS = list(dict.fromkeys(random_texts(400, seed=3, length=6)))
SHORT = list(dict.fromkeys(random_texts(100, seed=4, length=2)))
PAIRS = Dataset.from_dict({"anchor": [*TEXTS[:30], *SHORT[:30]], "positive": TEXTS[60:120]})
CORPUS = TEXTS[120:]


class MultiVectorEncoder:
    """A stand-in: a token is a word, with a random vector of unit length; queries have a token more."""

    def __init__(self, similarity: str = "maxsim", seed: int = 0) -> None:
        self.similarity_fn_name = similarity
        vectors = torch.randn(201, 8, generator=torch.Generator().manual_seed(seed))
        self.vectors = torch.nn.functional.normalize(vectors, dim=1)
        self.asked: list[list[str]] = []

    def encode_document(self, texts, **_):
        self.asked.append(list(texts))
        return [self.vectors[[WORDS.index(word) for word in text.split()]] for text in texts]

    def encode_query(self, texts, **_):
        return [torch.cat([self.vectors[200:], tokens]) for tokens in self.encode_document(texts)]

    def similarity(self, queries: list[str], texts: list[str]) -> torch.Tensor:
        """Return all scores of texts."""
        function = maxsim if self.similarity_fn_name == "maxsim" else mean_maxsim
        return function(self.encode_query(queries), self.encode_document(texts))


def rows_of(model, queries: list[str], texts: list[str], **setting) -> tuple[TokenRows, TokenRows]:
    encoder = encoder_for(LateInteraction(model, **setting), Encodings.from_config(MiningConfig()))
    assert isinstance(encoder, MultiVectorTextEncoder)
    return encoder.queries(queries), concatenated(list(encoder.corpus(texts)))


def mined(model, config: MiningConfig, **options) -> HardNegativeDataset:
    found = HardNegativeDataset(PAIRS, CORPUS, config, **options)
    found.mine(model, show_progress_bar=False)
    return found


@pytest.mark.parametrize("texts_at_once", [512, 15])
@pytest.mark.parametrize("name", ["maxsim", "meanmaxsim"])
def test_scores_are_those_of_sentence_transformers(name, texts_at_once, monkeypatch):
    """Pairs and all with all, with repeats, of queries and texts and of texts and texts, few texts at a time."""
    monkeypatch.setattr(token_rows, "_TEXTS", texts_at_once)
    model = MultiVectorEncoder(name)
    queries, texts = rows_of(model, [*TEXTS[:20], *SHORT[:20]], CORPUS[:50])
    expected = model.similarity([*TEXTS[:20], *SHORT[:20]], CORPUS[:50])
    torch.testing.assert_close(maxsim_of_all(queries, texts), expected, atol=1e-6, rtol=1e-6)
    left, right = torch.randint(40, (300,)), torch.randint(50, (300,))
    torch.testing.assert_close(
        maxsim_of_pairs(queries[left], texts[right]), expected[left, right], atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(maxsim_of_all(queries[left[:9]], texts[right[:30]]), expected[left[:9]][:, right[:30]])
    # Two texts compare by the mean, and so do a text and a query.
    documents = model.encode_document(CORPUS[:50])
    torch.testing.assert_close(maxsim_of_all(texts, texts), mean_maxsim(documents, documents))
    both = concatenated([texts[:3], queries[:2]])
    tokens = [*documents[:3], *model.encode_query(TEXTS[:2])]
    torch.testing.assert_close(maxsim_of_all(texts, both), mean_maxsim(documents, tokens))
    assert both.are_equal(both).all() and not texts[:5].are_equal(texts[5:10]).any()
    torch.testing.assert_close(both.first[:3], texts.first[:3])
    torch.testing.assert_close(both.first[3:], queries.first[:2])


def test_tokens_of_few_texts_are_in_memory_at_once(monkeypatch):
    """Never those of the whole corpus: the first stage keeps one vector a text."""
    monkeypatch.setattr(token_rows, "_TEXTS", 16)
    model = MultiVectorEncoder()
    queries, texts = rows_of(model, TEXTS[:40], CORPUS, first_stage_depth=8)
    assert texts.first.shape == (len(CORPUS), 8) and texts.shape == (len(CORPUS), 8)
    model.asked.clear()
    left = torch.arange(40).repeat_interleave(8)
    maxsim_of_pairs(queries[left], texts[torch.randint(len(CORPUS), (320,))])
    assert model.asked and max(len(some) for some in model.asked) <= 16


@pytest.mark.parametrize("name", ["maxsim", "meanmaxsim"])
def test_a_mining_equals_brute_force(name):
    """With a first stage that finds everything: all ids and scores to 1e-5."""
    model = MultiVectorEncoder(name)
    found = mined(LateInteraction(model, first_stage_depth=1000), MiningConfig(num_negatives=5))
    texts = found.corpus.texts.take(range(len(found.corpus)))
    scores = model.similarity(PAIRS["anchor"], texts)
    positives = torch.tensor([texts.index(text) for text in PAIRS["positive"]])
    torch.testing.assert_close(found.live.mining.positive_similarities, scores[torch.arange(60), positives])
    scores[torch.arange(60), positives] = -torch.inf
    for row, anchor in enumerate(PAIRS["anchor"]):
        scores[row, [i for i, text in enumerate(texts) if text == anchor]] = -torch.inf
    best = scores.topk(5, dim=1)
    torch.testing.assert_close(torch.as_tensor(found.negative_scores), best.values, atol=1e-5, rtol=0)
    ids = torch.as_tensor(found.negative_ids)
    torch.testing.assert_close(scores.gather(1, ids), best.values, atol=1e-5, rtol=0)
    assert (ids == best.indices).float().mean() > 0.95  # ties aside


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_retriever_finds_the_candidates(kind):
    """MaxSim then orders what it finds, and the retriever encodes once as long as it stays the same."""
    model = MultiVectorEncoder()
    retriever = word_model(WORDS, model.vectors[:200]) if kind == "dense" else static_sparse()
    encoded = []
    real = retriever.encode_document
    retriever.encode_document = lambda texts, **o: encoded.append(len(texts)) or real(texts, **o)
    setting = LateInteraction(model, retriever, first_stage_depth=20)
    found = mined(setting, MiningConfig(num_negatives=3))
    texts = found.corpus.texts.take(range(len(found.corpus)))
    similar = retriever.similarity(retriever.encode_query(PAIRS["anchor"]), real(texts))
    least = similar.topk(20, dim=1).values[:, -1:]
    ids = torch.as_tensor(found.negative_ids)
    assert (similar.gather(1, ids) >= least - 1e-5).all()
    scores = model.similarity(PAIRS["anchor"], texts)
    torch.testing.assert_close(torch.as_tensor(found.negative_scores), scores.gather(1, ids), atol=1e-5, rtol=0)
    # Where the twentieth is no tie, the best of the twenty are found.
    scores[similar < least] = -torch.inf
    positives = torch.tensor([texts.index(text) for text in PAIRS["positive"]])
    scores[torch.arange(60), positives] = -torch.inf
    is_cut = (scores.isfinite().sum(dim=1) <= 20) & (torch.as_tensor(found.negative_scores) > 0).all(dim=1)
    best = scores.topk(3, dim=1).values[is_cut]
    assert len(best) > 5
    torch.testing.assert_close(torch.as_tensor(found.negative_scores)[is_cut], best, atol=1e-5, rtol=0)
    mined(setting, MiningConfig(num_negatives=3))
    assert [size for size in encoded if size > 20] == [len(found.corpus)]


@pytest.mark.training  # takes ten seconds or more
def test_margins_and_bounds_go_by_the_mean(monkeypatch):
    """Short and long queries alike: the same bounds remove the same, whether the model's score is a sum or a mean."""
    for fields in (
        {"absolute_margin": 0.05},
        {"max_score": 0.8},
        {"min_score": 0.75},
        {"relative_margin": 0.05},
        {"max_positive_similarity": 0.7},
        {"max_relative_positive_similarity": 0.9},
    ):
        config = MiningConfig(num_negatives=3, range_max=40, shortfall="drop", **fields)
        sums, means = (
            mined(LateInteraction(MultiVectorEncoder(name), first_stage_depth=1000), config)
            for name in ("maxsim", "meanmaxsim")
        )
        (field,) = fields
        assert sums.report.removed == means.report.removed and sums.report.removed[field] > 0
        assert (sums.negative_ids == means.negative_ids).all()
        assert sums.report.hardness == pytest.approx(means.report.hardness) and sums.report.similarity == "meanmaxsim"
        num_tokens = np.array([len(text.split()) + 1 for text in PAIRS["anchor"]])[:, None]
        np.testing.assert_allclose(sums.negative_scores, means.negative_scores * num_tokens, rtol=1e-5)
        assert -1.0 <= sums.report.scores["positive"]["mean"] <= 1.0


@pytest.mark.training  # takes ten seconds or more
def test_the_recommended_recipe_topics_and_both_spaces():
    """Adaptive bounds, clusters, and anchors that are searched with their tokens as queries."""
    found = {
        name: mined(
            LateInteraction(MultiVectorEncoder(name), first_stage_depth=1000),
            MiningConfig.recommended(search_spaces=("corpus", "anchors")),
            num_topics=3,
        )
        for name in ("maxsim", "meanmaxsim")
    }
    ours, theirs = found["maxsim"], found["meanmaxsim"]
    assert ours.report.removed == theirs.report.removed and (ours.negative_ids == theirs.negative_ids).all()
    assert ours.report.num_missing == 0 and len(set(ours.live.mining.topics.tolist())) == 3


def test_approximate_first_stages_are_searchers():
    """A searcher of the caller's searches the pooled vectors; its recall is that of the mining."""
    from st_hardneg.search import ExactSearcher

    class Half:
        def index(self, corpus, similarity):
            self.name, self.exact = similarity, ExactSearcher()
            self.exact.index(corpus[::2], similarity)

        def search(self, queries, k):
            ids, scores = self.exact.search(queries, min(k, 150))
            missing = k - ids.shape[1]
            ids = torch.nn.functional.pad(ids * 2, (0, missing), value=-1)
            return ids, torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)

    searcher = Half()
    found = mined(MultiVectorEncoder(), MiningConfig(num_negatives=1), searcher=searcher)
    assert searcher.name == "cosine" and 0.2 < found.report.recall < 0.8


def test_what_is_wrong_is_said():
    """Another similarity, vectors that are no matrices, and weights that diverged."""
    model = MultiVectorEncoder("cosine")
    with pytest.raises(ValueError, match="'maxsim' or 'meanmaxsim', got 'cosine'"):
        mined(model, MiningConfig())
    model = MultiVectorEncoder()
    model.encode_query = lambda texts, **_: torch.ones(len(texts), 4)
    with pytest.raises(MiningError, match="one matrix of token vectors per text, got 60 of shapes such as"):
        mined(model, MiningConfig())
    model = MultiVectorEncoder()
    model.vectors[WORDS.index(CORPUS[0].split()[0])] = torch.nan
    with pytest.raises(MiningError, match="Expected finite embeddings, got NaN or infinity for"):
        mined(model, MiningConfig())
