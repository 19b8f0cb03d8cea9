"""Texts to vectors: any object that encodes, prompts and routes, memory, and a model that is left as it was found."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from st_hardneg import Guide, HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.encoders import DenseEncoder, Encoding, Encodings, encoder_for
from st_hardneg.encoders.dense import as_found, encode
from tests.conftest import whole
from tests.toys import Model, by_angle, mined, rows_of, texts_of

PAIRS = [("q 0°", "p 40°"), ("r 90°", "s 130°")]
CORPUS = [f"d {angle}°" for angle in (10, 60, 100, 150)]


def as_lists(texts):
    return [list(by_angle(text)) for text in texts]


class Client:
    """A client of an embedding service: two methods of one argument, lists of floats, no `encode`."""

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = {"query": [], "document": []}

    def encode_query(self, texts):
        assert isinstance(texts, list)
        self.asked["query"] += texts
        return as_lists(texts)

    def encode_document(self, texts):
        self.asked["document"] += texts
        return as_lists(texts)


class WithPrompts(Client):
    """One that takes a prompt, and a batch size by another name."""

    def encode_query(self, inputs, prompt=None, size=8):
        return super().encode_query([f"{prompt or ''}{text}" for text in inputs])


class Anything(Client):
    """One that takes whatever it is given, and returns an array."""

    def __init__(self) -> None:
        super().__init__()
        self.options: list[dict] = []

    def encode_query(self, texts, **options):
        self.options.append(options)
        return np.array(super().encode_query(texts), dtype=np.float64)


@pytest.mark.parametrize("kind", [Client, WithPrompts, Anything])
def test_an_object_with_two_methods_is_a_model_everywhere(kind):
    """It mines, guides, and needs no `encode`, no similarity and no keyword arguments."""
    expected = mined(PAIRS, Model(by_angle), CORPUS, num_negatives=2)
    client = kind()
    found = mined(PAIRS, client, CORPUS, num_negatives=2)
    assert texts_of(found) == texts_of(expected) and found.report.similarity == "cosine"
    np.testing.assert_allclose(found.negative_scores, expected.negative_scores, atol=1e-6)
    assert client.asked["query"] == ["q 0°", "r 90°"]
    assert sorted(client.asked["document"]) == sorted([*CORPUS, "p 40°", "s 130°"])
    guided = mined(PAIRS, Model(by_angle), CORPUS, {"guide": Guide(kind(), 0.1)}, num_negatives=1)
    assert texts_of(guided)[0] == ["d 60°"] and guided.report.removed["guide"] > 0
    assert encoder_for(client, Encodings.from_config(MiningConfig())).fingerprint(["q 0°"]) is None


def test_a_client_s_similarity_is_honoured():
    """Where it names one, as text or as Sentence Transformers' own enumeration."""
    client = Client()
    client.similarity_fn_name = "euclidean"
    found = mined(PAIRS, client, CORPUS, num_negatives=1)
    assert found.report.similarity == "euclidean"
    assert found.negative_scores[0, 0] == pytest.approx(-2 * math.sin(math.radians(5)), abs=1e-6)


def test_a_prompt_goes_where_it_is_taken():
    """A method that takes a prompt gets it; for one that does not, the error says so before anything else is encoded."""
    client = WithPrompts()
    mined(PAIRS, client, CORPUS, num_negatives=1, query_prompt="find: ")
    assert client.asked["query"] == ["find: q 0°", "find: r 90°"]
    message = (
        "`encode_document` of WithPrompts takes no `prompt`, so that texts cannot be encoded with 'text: '. Leave the "
        "prompt out, or let the method take it."
    )
    with pytest.raises(MiningError, match=whole(message)):
        mined(PAIRS, WithPrompts(), CORPUS, num_negatives=1, corpus_prompt="text: ")
    options = Anything()
    mined(PAIRS, options, CORPUS, num_negatives=1, query_prompt_name="query")
    assert options.options[0]["prompt_name"] == "query" and options.options[0]["batch_size"] == 32


@pytest.mark.parametrize("missing", ["encode_query", "encode_document"])
def test_what_cannot_encode_is_refused(missing):
    """Both methods are needed; a number, a name and a class are no model."""
    client = Client()
    setattr(client, missing, None)
    for model in (client, 7, "bge-base"):
        with pytest.raises(TypeError, match=r"^Expected a SentenceTransformer model, or an object with `encode_query`"):
            HardNegativeDataset(rows_of(PAIRS)).mine(model)
    client = Client()
    client.similarity_fn_name = "jaccard"
    with pytest.raises(ValueError, match=r"^Expected a model whose `similarity_fn_name` is one of \['cosine', 'dot', "):
        HardNegativeDataset(rows_of(PAIRS)).mine(client)


@pytest.mark.parametrize("name", ["CrossEncoder"])
def test_models_that_cannot_search_are_told_apart_by_their_class(name):
    """Also by a class that derives from one."""
    kind = type("Mine", (type(name, (Client,), {}),), {})
    with pytest.raises(ValueError, match=rf"^A {name} cannot search for negatives itself yet\."):
        encoder_for(kind(), Encodings.from_config(MiningConfig()))


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list, tuple])
def test_vectors_may_come_in_a_list(kind):
    """As services return them, each of whatever kind."""
    client = Client()
    client.encode_query = lambda texts: [kind([1.0, 2.0]), kind([3.0, 4.0])]
    assert encode(client, ["a", "b"], Encoding("query")).tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("result", [None, [None, None], [[1.0], [1.0, 2.0]], [np.ones(1), np.ones(2)], {"a": 1}, "ab"])
def test_what_is_no_vector_is_refused(result):
    """In our words, whatever it is."""
    client = Client()
    client.encode_query = lambda texts: result
    with pytest.raises(
        MiningError, match=r"Expected one vector per text from Client, got .*return an array or a tensor"
    ):
        encode(client, ["a", "b"], Encoding("query"))


def test_queries_and_documents_of_another_width_are_refused():
    """Whichever is encoded first; nothing reaches the search."""
    client = Client()
    client.encode_query = lambda texts: [[1.0] * 3] * len(texts)
    client.encode_document = lambda texts: [[1.0] * 4] * len(texts)
    found = HardNegativeDataset(rows_of([("a", "b")]), ["c", "d"], MiningConfig())
    with pytest.raises(MiningError, match=r"of one width, got . and . from Client"):
        found.mine(client, show_progress_bar=False)


def test_the_bar_ends_at_all_texts(bag_of_words, capsys):
    """Also where nobody asks for more after the last of them."""
    encoder = DenseEncoder(bag_of_words, Encodings.from_config(MiningConfig()))
    encoder.queries(["w1", "w2"], show_progress_bar=True)
    shards = encoder.corpus(["w1", "w2", "w3"], show_progress_bar=True)
    next(shards)
    shards.close()
    said = capsys.readouterr().err
    assert "Encoding queries: 100%" in said and "Encoding texts: 100%" in said


@pytest.mark.parametrize(
    ("result", "got"),
    [
        ([[1.0, 0.0]], "(1, 2) for 2 texts"),
        ([1.0, 2.0], "(2,) for 2 texts"),
        ([[[1.0]], [[1.0]]], "(2, 1, 1) for 2 texts"),
    ],
)
def test_another_number_of_vectors_is_refused(result, got):
    """One vector per text."""
    client = Client()
    client.encode_query = lambda texts: result
    with pytest.raises(MiningError, match=whole(f"Expected one vector per text from Client, got shape {got}.")):
        encode(client, ["a", "b"], Encoding("query"))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_vector_that_is_not_finite_is_named(bad):
    """The texts are in the error, and the earlier negatives stay."""
    found = mined(PAIRS, Model(by_angle), CORPUS, num_negatives=1)
    before = found.negative_ids
    broken = Model(lambda text: (bad, 0.0) if text == "d 60°" else by_angle(text))
    said = r"^Expected finite embeddings, got NaN or infinity for 1 of \d+ texts, such as 'd 60°'"
    with pytest.raises(MiningError, match=said):
        found.mine(broken, show_progress_bar=False)
    assert (found.negative_ids == before).all()


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory", None])
def test_where_memory_does_not_suffice_batches_become_smaller(message, caplog):
    """Halved as often as needed, once more for each text that is too long; at one text the error is ours."""

    class Small(Client):
        most = 5

        def encode_query(self, texts, batch_size=32):
            sizes.append(batch_size)
            if batch_size > self.most:
                raise RuntimeError(message) if message else torch.OutOfMemoryError("out")
            return as_lists(texts)

    sizes: list[int] = []
    vectors = encode(Small(), ["a 1°"] * 3, Encoding("query", batch_size=32))
    assert vectors.shape == (3, 2) and sizes == [32, 16, 8, 4]
    assert "going on with 4" in caplog.text
    Small.most = 0
    with pytest.raises(MiningError, match=r"^Expected enough memory to encode one text at a time while mining"):
        encode(Small(), ["a 1°"], Encoding("query", batch_size=2))


def test_other_errors_of_a_model_are_its_own():
    """They are not taken for a lack of memory."""
    client = Client()

    def fail(texts):
        raise RuntimeError("no connection")

    client.encode_query = fail
    with pytest.raises(RuntimeError, match=r"^no connection$"):
        encode(client, ["a"], Encoding("query"))


def test_unit_vectors_where_the_method_makes_none():
    """`normalize_embeddings` is done here for a client that does not take it."""
    client = Client()
    client.encode_query = lambda texts: [[3.0, 4.0]] * len(texts)
    found = encode(client, ["a"], Encoding("query", normalize_embeddings=True))
    np.testing.assert_allclose(found, [[0.6, 0.8]], atol=1e-6)


def test_a_model_and_random_states_are_left_as_they_were_found(bag_of_words):
    """Modes of modules one by one, and Python's, NumPy's and torch's states, also where encoding fails."""
    bag_of_words.train()
    bag_of_words[0].eval()

    class Rude:
        def encode_query(self, texts):
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
            return as_lists(texts)

        encode_document = encode_query

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    encode(Rude(), ["a 1°"], Encoding("query"))
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    encode(bag_of_words, ["w1"], Encoding("query"))
    assert bag_of_words.training and not bag_of_words[0].training
    with pytest.raises(KeyError), as_found(bag_of_words):
        bag_of_words.eval()
        raise KeyError
    assert bag_of_words.training and not bag_of_words[0].training


def test_the_corpus_comes_in_shards(monkeypatch):
    """4,096 texts at a time, in order, and nothing for no texts."""
    monkeypatch.setattr("st_hardneg.encoders.dense._SHARD", 3)
    encoder = DenseEncoder(Client(), Encodings.from_config(MiningConfig()))
    texts = [f"d {angle}°" for angle in range(8)]
    shards = list(encoder.corpus(texts))
    assert [len(shard) for shard in shards] == [3, 3, 2]
    np.testing.assert_allclose(torch.cat(shards), as_lists(texts), atol=1e-6)
    assert list(encoder.corpus([])) == []


def test_a_prompt_that_the_model_does_not_have_is_named(bag_of_words, word_pairs):
    """Before anything is encoded."""
    bag_of_words.prompts = {"query": "ask: ", "document": "read: "}
    hard_negatives = HardNegativeDataset(word_pairs, num_negatives=1, corpus_prompt_name="passage")
    message = (
        "Expected `corpus_prompt_name` to be one of the model's prompts, ['document', 'query'], got 'passage'. Give the "
        "text itself as `corpus_prompt`, or add it to `model.prompts`."
    )
    with pytest.raises(ValueError, match=whole(message)):
        hard_negatives.mine(bag_of_words)
