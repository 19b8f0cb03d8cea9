"""The drop-in against Sentence Transformers' own function, and the dataset where both should agree."""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SimilarityFunction
from sentence_transformers.util import mine_hard_negatives as reference

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError, mine_hard_negatives
from st_hardneg.corpus.identity import text_digest
from tests.conftest import WORDS, random_texts, word_model

FORMATS = ["triplet", "n-tuple", "labeled-pair", "labeled-list"]


class VectorModel:
    """A model that is a dictionary of vectors, with the methods that the mining functions call."""

    device = torch.device("cpu")

    def __init__(self, vectors: dict[str, torch.Tensor], similarity: str) -> None:
        self.vectors = vectors
        self.similarity_fn_name = similarity

    def encode(self, texts, convert_to_tensor=False, normalize_embeddings=False, **_):
        embeddings = torch.stack([self.vectors[text] for text in texts])
        if normalize_embeddings:
            embeddings = torch.nn.functional.normalize(embeddings, dim=1)
        return embeddings if convert_to_tensor else embeddings.numpy()

    encode_query = encode_document = encode

    def similarity(self, left, right):
        return SimilarityFunction.to_similarity_fn(self.similarity_fn_name)(left, right)

    def similarity_pairwise(self, left, right):
        return SimilarityFunction.to_similarity_pairwise_fn(self.similarity_fn_name)(left, right)


def random_problem(seed: int):
    """Return a dataset, a model and keyword arguments, all drawn from this seed."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    num_queries, num_documents, num_extra = rng.randint(1, 25), rng.randint(1, 30), rng.randint(0, 30)
    rows = [
        (f"q{query}", f"d{rng.randrange(num_documents)}")
        for query in range(num_queries)
        for _ in range(rng.choice([1, 1, 1, 2, 3]))
    ]
    if rng.random() < 0.4:
        rows += rng.choices(rows, k=3)
    rng.shuffle(rows)
    corpus = None
    if rng.random() < 0.5:
        corpus = [f"e{i}" for i in range(num_extra)] + [f"d{rng.randrange(num_documents)}" for _ in range(3)]
    texts = sorted({text for row in rows for text in row} | set(corpus or []))
    vectors = {text: torch.randn(8, generator=generator) + 0.5 for text in texts}
    model = VectorModel(vectors, rng.choice(["cosine", "cosine", "dot", "euclidean", "manhattan"]))
    options = {
        "num_negatives": rng.randint(1, 5),
        "output_format": rng.choice(FORMATS),
        "output_scores": rng.random() < 0.7,
        "faiss_batch_size": rng.choice([3, 16384]),
        "corpus": corpus,
        "verbose": False,
    }
    if rng.random() < 0.4:
        options["range_min"] = rng.randint(0, 5)
    if rng.random() < 0.4:
        options["range_max"] = options.get("range_min", 0) + options["num_negatives"] + rng.randint(0, 6)
    bounds = {
        "absolute_margin": (-0.1, 0.5),
        "relative_margin": (0, 0.5),
        "max_score": (-0.2, 1),
        "min_score": (-1, 0.5),
    }
    for name, (low, high) in bounds.items():
        if rng.random() < 0.3:
            options[name] = rng.uniform(low, high)
    dataset = Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [b for _, b in rows]})
    return dataset, model, options


def assert_same(ours: Dataset, theirs: Dataset) -> None:
    assert len(ours) == len(theirs)
    if not len(theirs):
        return  # ST infers the types of no rows as null
    assert ours.column_names == theirs.column_names
    assert ours.features == theirs.features
    for column in theirs.column_names:
        left, right = ours[column][:], theirs[column][:]
        if column in ("score", "scores"):
            for one, other in zip(left, right, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
        else:
            assert left == right


@pytest.mark.parametrize("block", range(8))
def test_the_drop_in_equals_sentence_transformers(block):
    """On 240 random problems: the same rows in the same order, scores to 1e-5, in all formats."""
    for seed in range(30 * block, 30 * (block + 1)):
        dataset, model, options = random_problem(seed)
        assert_same(mine_hard_negatives(dataset, model, **options), reference(dataset, model, **options))


@pytest.mark.parametrize("block", range(4))
def test_the_dataset_equals_sentence_transformers(block):
    """With unique rows, one positive each and cosine, `HardNegativeDataset` gives ST's rows, too."""
    for seed in range(1000 + 15 * block, 1000 + 15 * (block + 1)):
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        texts = [f"t{i}" for i in range(60)]
        model = VectorModel({text: torch.randn(8, generator=generator) for text in texts}, "cosine")
        dataset = Dataset.from_dict({"anchor": texts[:20], "positive": texts[20:40]})
        corpus = texts[40:] if rng.random() < 0.5 else None
        config = {"num_negatives": rng.randint(1, 4)}
        if rng.random() < 0.5:
            config |= {"range_min": rng.randint(0, 3), "range_max": rng.randint(8, 15)}
        if rng.random() < 0.5:
            config["relative_margin"] = rng.uniform(0, 0.4)
        output_format = rng.choice(FORMATS)
        hard_negatives = HardNegativeDataset(dataset, corpus, MiningConfig(**config))
        try:
            hard_negatives.mine(model, show_progress_bar=False)
        except MiningError:
            assert not len(reference(dataset, model, corpus=corpus, verbose=False, **config))
            continue
        theirs = reference(
            dataset, model, corpus=corpus, output_format=output_format, output_scores=True, verbose=False, **config
        )
        assert_same(hard_negatives.to_dataset(output_format, output_scores=True), theirs)


class Lengths:
    """A cross encoder that scores by a fixed rule, for both functions alike."""

    def predict(self, pairs, batch_size=32, convert_to_tensor=True, show_progress_bar=False, pool=None):
        return torch.tensor([((len(q) * 7 + sum(map(ord, d))) % 97) / 97 for q, d in pairs])


@pytest.mark.parametrize("seed", range(500, 530))
def test_with_a_cross_encoder(seed):
    """Rescored candidates give the same rows and scores."""
    dataset, model, options = random_problem(seed)
    options |= {"cross_encoder": Lengths(), "output_scores": True}
    texts = {text for column in ("anchor", "positive") for text in dataset[column]} | set(options["corpus"] or [])
    # Ties are settled differently; leave only problems without any.
    scores = {sum(map(ord, text)) % 97 for text in texts}
    if len(scores) < len(texts):
        options["cross_encoder"] = None
    assert_same(mine_hard_negatives(dataset, model, **options), reference(dataset, model, **options))


def test_include_positives():
    """Positives are let through, in an n-tuple, as in ST."""
    dataset, model, _ = random_problem(3)
    options = {"include_positives": True, "num_negatives": 4, "output_scores": True, "verbose": False}
    assert_same(mine_hard_negatives(dataset, model, **options), reference(dataset, model, **options))


def test_random_sampling_draws_from_the_same_window():
    """Where the window holds exactly as many as are drawn, random sampling equals ST's."""
    dataset, model, _ = random_problem(11)
    options = {"sampling_strategy": "random", "range_max": 3, "output_format": "n-tuple", "verbose": False}
    assert_same(mine_hard_negatives(dataset, model, **options), reference(dataset, model, **options))


# --- where ST is wrong ------------------------------------------------------------------------------------------------


def test_symmetric_pairs_do_not_get_their_own_anchor(bag_of_words):
    """With (A, B) and (B, A), ST returns the anchor itself as a hard negative; the drop-in does not."""
    texts = [f"{word} w1 w2" for word in WORDS[:20]]
    dataset = Dataset.from_dict({"anchor": [*texts[:10], *texts[10:]], "positive": [*texts[10:], *texts[:10]]})
    theirs = reference(dataset, bag_of_words, verbose=False)
    assert any(row["anchor"] == row["negative"] for row in theirs)
    ours = mine_hard_negatives(dataset, bag_of_words, verbose=False)
    assert len(ours) == 60 and not any(row["negative"] in (row["anchor"], row["positive"]) for row in ours)


def test_the_cache_follows_the_weights(tmp_path, word_pairs):
    """After training, ST's cache returns the old negatives; the drop-in's does not, and is used where it may be."""
    models = [word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(s))) for s in (0, 1)]
    fresh = [mine_hard_negatives(word_pairs, model, verbose=False)["negative"][:] for model in models]
    cached = [
        mine_hard_negatives(word_pairs, model, verbose=False, cache_folder=str(tmp_path))["negative"][:]
        for model in (*models, models[0])
    ]
    assert cached == [*fresh, fresh[0]] and fresh[0] != fresh[1]
    names = sorted(os.listdir(tmp_path))
    assert [name.split("_embeddings_")[0] for name in names] == ["corpus", "corpus", "query", "query"]


def test_the_cache_follows_prompts(tmp_path, word_pairs, bag_of_words, capsys):
    """Another prompt is another entry; the same one is loaded."""
    for prompt in ("w1 ", "w2 ", "w1 "):
        mine_hard_negatives(word_pairs, bag_of_words, query_prompt=prompt, cache_folder=str(tmp_path))
    assert len([name for name in os.listdir(tmp_path) if name.startswith("query")]) == 2
    assert capsys.readouterr().out.count("[Cache] Loaded query embeddings") == 1


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_faiss_searches_by_the_model_s_similarity(similarity):
    """With FAISS the drop-in finds what it finds without, whatever the similarity; ST finds nothing by distance."""
    pytest.importorskip("faiss")
    dataset, model, _ = random_problem(21)
    model.similarity_fn_name = similarity
    options = {"absolute_margin": 0.0, "output_scores": True, "verbose": False}
    exact, approximate = (mine_hard_negatives(dataset, model, use_faiss=use, **options) for use in (False, True))
    assert len(exact) and exact["negative"][:] == approximate["negative"][:]
    np.testing.assert_allclose(exact["scores"][:], approximate["scores"][:], atol=1e-5)


@pytest.mark.parametrize(
    "kind", [iter, tuple, lambda texts: (text for text in texts), lambda texts: Dataset.from_dict({"text": texts})]
)
def test_a_corpus_may_be_a_generator(kind, word_pairs, bag_of_words):
    """It is read once, and wholly."""
    corpus = random_texts(20, seed=3)
    expected = mine_hard_negatives(word_pairs, bag_of_words, corpus=corpus, verbose=False)
    assert (
        mine_hard_negatives(word_pairs, bag_of_words, corpus=kind(corpus), verbose=False).to_dict()
        == expected.to_dict()
    )
    with pytest.raises(TypeError, match="got the single text 'one text'"):
        mine_hard_negatives(word_pairs, bag_of_words, corpus="one text", verbose=False)


# --- its face ---------------------------------------------------------------------------------------------------------


def test_the_signature_is_st_s():
    """Names, order and defaults of all arguments are ST's."""
    import inspect

    ours, theirs = (inspect.signature(function).parameters for function in (mine_hard_negatives, reference))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


def test_a_missing_column_falls_back_with_a_warning(word_pairs, bag_of_words, caplog):
    """As in ST the first two columns are used, but not silently."""
    with caplog.at_level(logging.WARNING):
        found = mine_hard_negatives(word_pairs, bag_of_words, anchor_column_name="ancor", verbose=False)
    assert found.column_names[0] == "anchor" and "`anchor_column_name='ancor'` is not a column" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives must be at least 1, got num_negatives=0"),
        ({"range_min": -5, "range_max": 8}, "range_min must be non-negative"),
        ({"range_min": 5, "range_max": 3}, "range_min must be smaller than range_max"),
        ({"num_negatives": 10, "range_max": 3}, "Cannot mine 10 negatives per query: only 3 candidates remain"),
        ({"faiss_batch_size": 0}, "faiss_batch_size must be a positive integer"),
        ({"output_format": "pairs"}, "Invalid output_format: pairs"),
    ],
)
def test_errors_are_st_s(word_pairs, bag_of_words, options, message):
    """Errors carry ST's words."""
    for function in (mine_hard_negatives, reference):
        with pytest.raises(ValueError, match=message):
            function(word_pairs, bag_of_words, verbose=False, **options)


def test_the_gpu_cap_is_in_the_error(word_pairs, bag_of_words, monkeypatch):
    """Where FAISS has a GPU, the derived window is capped, and errors say so."""
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    for options, message in (
        ({"range_min": 2050}, "range_min must be smaller than range_max.*range_max was capped to 2047"),
        ({"range_min": 2040, "num_negatives": 10}, "range_max was capped to 2047 because FAISS on GPU"),
    ):
        with pytest.raises(ValueError, match=message):
            mine_hard_negatives(word_pairs, bag_of_words, use_faiss=True, verbose=False, **options)


def test_deprecated_arguments(word_pairs, bag_of_words, caplog):
    """`as_triplets`, `margin` and "n-tuple-scores" still work, with a warning each."""
    with caplog.at_level(logging.WARNING):
        pairs = mine_hard_negatives(word_pairs, bag_of_words, as_triplets=False, margin=0.1, verbose=False)
        scores = mine_hard_negatives(word_pairs, bag_of_words, output_format="n-tuple-scores", verbose=False)
    assert "negative_3" in pairs.column_names and scores.column_names[-1] == "scores"
    for word in ("`as_triplets`", "`margin`", "'n-tuple-scores'"):
        assert word in caplog.text


def test_verbose_prints_statistics(word_pairs, bag_of_words, capsys):
    """The numbers that ST prints are printed, and equal ST's."""
    printed = []
    for function in (mine_hard_negatives, reference):
        function(word_pairs, bag_of_words, relative_margin=0.9, num_negatives=5)
        lines = capsys.readouterr().out.splitlines()
        printed.append([line.split() for line in lines if line.split()[0] in ("Count", "Mean", "Min", "Max", "Could")])
    assert printed[0][:4] == printed[1][:4]
    assert printed[0][4][:9] == printed[1][4][:9]


def test_a_missing_negative_is_explained(capsys):
    """With only range_max to suggest, the message names it."""
    vectors = {"q": torch.tensor([1.0, 0.0]), "p": torch.tensor([0.9, 0.1]), "n": torch.tensor([0.0, 1.0])}
    dataset = Dataset.from_dict({"query": ["q"], "positive": ["p"]})
    mine_hard_negatives(dataset, VectorModel(vectors, "cosine"), corpus=["n"], num_negatives=5)
    assert "Consider adjusting the range_max parameter if" in capsys.readouterr().out


def test_the_search_uses_the_model_s_own_similarity_in_chunks(word_pairs, bag_of_words, monkeypatch):
    """A `model.similarity` that is not ST's own is what is called, for at most `faiss_batch_size` queries at once."""
    original, sizes = bag_of_words.similarity, []

    def spy(left, right):
        sizes.append(len(left))
        return original(left, right)

    monkeypatch.setattr(bag_of_words, "similarity", spy)
    mine_hard_negatives(word_pairs, bag_of_words, faiss_batch_size=20, verbose=False)
    assert sizes == [20, 20, 8]


def test_a_pool_is_stopped_when_encoding_fails(word_pairs, bag_of_words, monkeypatch):
    """No worker outlives an error."""
    events = []
    cls = type(bag_of_words)
    monkeypatch.setattr(cls, "start_multi_process_pool", lambda self, target_devices=None: events.append("start") or {})
    monkeypatch.setattr(cls, "stop_multi_process_pool", lambda self, pool: events.append("stop"))

    def fail(*args, **kwargs):
        raise RuntimeError("simulated")

    monkeypatch.setattr(bag_of_words, "encode_document", fail)
    with pytest.raises(RuntimeError, match="simulated"):
        mine_hard_negatives(word_pairs, bag_of_words, use_multi_process=["cpu"], verbose=False)
    assert events == ["start", "stop"]


@pytest.mark.parametrize("corpus", [3, "corpus.txt"])
def test_what_is_no_corpus_is_refused(bag_of_words, word_pairs, corpus):
    """In our words."""
    with pytest.raises(TypeError, match=r"^Expected `corpus` to be a list of texts"):
        mine_hard_negatives(word_pairs, bag_of_words, corpus=corpus, verbose=False)


# --- what would be lost without a word --------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [{"anchor_column_name": "answer"}, {"positive_column_name": "question"}])
def test_one_column_for_both_is_refused(names):
    """The other column would be lost; Sentence Transformers fails, too."""
    model = word_model(WORDS, torch.randn(len(WORDS), 16, generator=torch.Generator().manual_seed(0)))
    pairs = Dataset.from_dict({"question": random_texts(8, seed=0), "answer": random_texts(8, seed=1)})
    with pytest.raises(ValueError, match="Expected different columns for anchor and positive, got"):
        mine_hard_negatives(pairs, model, verbose=False, **names)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("negative", {}),
        ("scores", {"output_scores": True}),
        ("negative_2", {"output_format": "n-tuple", "num_negatives": 2}),
        ("label", {"output_format": "labeled-pair"}),
        ("score", {"output_format": "labeled-pair", "output_scores": True}),
        ("labels", {"output_format": "labeled-list"}),
        ("scores", {"output_format": "labeled-list", "output_scores": True}),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_column_that_the_output_would_overwrite_is_refused(name, options, place):
    """Whether it holds anchors or positives; other formats, which have no such column, take it."""
    model = word_model(WORDS, torch.randn(len(WORDS), 16, generator=torch.Generator().manual_seed(0)))
    columns = [name, "text"] if place == 0 else ["text", name]
    pairs = Dataset.from_dict({one: random_texts(12, seed=seed) for seed, one in enumerate(columns)})
    options = {"num_negatives": 1, **options}
    with pytest.raises(ValueError, match=f"The output has a column '{name}' of its own"):
        mine_hard_negatives(pairs, model, verbose=False, **options)
    other = "triplet" if name != "negative" else "n-tuple"
    kept = mine_hard_negatives(pairs, model, verbose=False, num_negatives=1, output_format=other)
    assert set(columns) <= set(kept.column_names)


@pytest.mark.parametrize("bound", [{"max_score": float("inf")}, {"min_score": float("-inf")}])
def test_an_infinite_bound_still_lets_a_cross_encoder_decide(bound):
    """As in Sentence Transformers, where a bound that is given has candidates rescored, whatever it is."""

    class Unequal:
        """No two pairs have one score."""

        def __init__(self) -> None:
            self.num_pairs = 0

        def predict(self, pairs, batch_size=32, convert_to_tensor=True, show_progress_bar=False, pool=None):
            self.num_pairs += len(pairs)
            return torch.tensor([int(text_digest(query + text)[:3].hex(), 16) / 2**24 for query, text in pairs])

    model = word_model(WORDS, torch.randn(len(WORDS), 16, generator=torch.Generator().manual_seed(0)))
    pairs = Dataset.from_dict({"q": random_texts(12, seed=0), "p": random_texts(12, seed=1)})
    options = {"num_negatives": 2, "output_format": "n-tuple", "output_scores": True, "verbose": False, **bound}
    found = []
    for mine in (mine_hard_negatives, reference):
        options["cross_encoder"] = Unequal()
        found.append(mine(pairs, model, corpus=random_texts(40, seed=2), **options))
        assert options["cross_encoder"].num_pairs > 12
    assert_same(*found)
