"""Vectors from columns and files, shortened and coarsened ones, and models whose weights are in another runtime."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig, ReducedVectors, StoredVectors
from st_hardneg.encoders import DenseEncoder, Encodings
from tests.conftest import random_texts, whole
from tests.toys import Model, by_angle, by_seed, texts_of

TEXTS = list(dict.fromkeys(random_texts(200, seed=3, length=4)))
PAIRS = Dataset.from_dict({"anchor": TEXTS[:40], "positive": TEXTS[40:80]})
CORPUS = TEXTS[80:]
VECTOR_OF = by_seed(0, dim=16)
CONFIG = MiningConfig(num_negatives=3, relative_margin=0.05)


def vectors_of(texts) -> np.ndarray:
    return np.array([VECTOR_OF(text) for text in texts], dtype=np.float32)


def mined(model, config=CONFIG, corpus=CORPUS) -> HardNegativeDataset:
    found = HardNegativeDataset(PAIRS, corpus, config)
    found.mine(model, show_progress_bar=False)
    return found


@pytest.fixture
def expected() -> HardNegativeDataset:
    return mined(Model(VECTOR_OF))


def is_same(found: HardNegativeDataset, expected: HardNegativeDataset) -> bool:
    np.testing.assert_allclose(found.negative_scores, expected.negative_scores, atol=1e-5)
    return bool((found.negative_ids == expected.negative_ids).all())


def test_vectors_of_columns(expected):
    """Beside anchors and positives and beside the corpus's texts, under whatever names."""
    pairs = Dataset.from_dict(
        {
            **PAIRS.to_dict(),
            "q_vec": vectors_of(PAIRS["anchor"]).tolist(),
            "p_vec": vectors_of(PAIRS["positive"]).tolist(),
        }
    )
    corpus = Dataset.from_dict({"text": CORPUS, "embedding": vectors_of(CORPUS).tolist()})
    columns = {"anchor": ("anchor", "q_vec"), "positive": ("positive", "p_vec")}
    stored = StoredVectors.from_columns(pairs, corpus, **columns)
    assert is_same(mined(stored, corpus=corpus.select_columns(["text"])), expected)
    named = HardNegativeDataset(pairs, corpus, CONFIG, anchor_column_name="anchor", positive_column_name="positive")
    named.mine(stored, show_progress_bar=False)
    assert is_same(named, expected)
    with pytest.raises(ValueError, match="Expected a column 'anchor_embedding' of texts or their vectors"):
        StoredVectors.from_columns(pairs, corpus, positive=columns["positive"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_vectors_of_files(expected, tmp_path, dtype):
    """Memory-mapped, in whatever precision they were written."""
    np.save(tmp_path / "queries.npy", vectors_of(PAIRS["anchor"]).astype(dtype))
    np.save(tmp_path / "corpus.npy", vectors_of(CORPUS).astype(dtype))
    positives = (PAIRS["positive"], torch.from_numpy(vectors_of(PAIRS["positive"])))
    stored = StoredVectors(
        (PAIRS["anchor"], tmp_path / "queries.npy"), [(CORPUS, str(tmp_path / "corpus.npy")), positives]
    )
    found = mined(stored)
    np.testing.assert_allclose(
        found.negative_scores, expected.negative_scores, atol=2e-3 if dtype == np.float16 else 1e-5
    )
    assert stored.encode_query([]).shape == (0, 16)


def test_stored_vectors_find_candidates_while_another_model_trains():
    """They are a retriever, too, and their similarity is the one that is named."""
    queries, corpus = (PAIRS["anchor"], vectors_of(PAIRS["anchor"])), [(TEXTS[40:], vectors_of(TEXTS[40:]))]
    stored = StoredVectors(queries, corpus, similarity_fn_name="dot")
    assert MiningCallback(retriever=stored).retriever is stored
    found = mined(stored, MiningConfig(num_negatives=3))
    scores = vectors_of(PAIRS["anchor"]) @ vectors_of(found.corpus.texts.take(range(len(found.corpus)))).T
    np.testing.assert_allclose(found.negative_scores, np.take_along_axis(scores, found.negative_ids, 1), atol=1e-5)


def test_wrong_tables_are_refused():
    """Too few vectors, other lengths, no vectors, and texts that have none."""
    texts, vectors = ["a", "b"], np.eye(2)
    with pytest.raises(ValueError, match=whole("Expected a vector for each of the 3 texts in `corpus`, got 2.")):
        StoredVectors((texts, vectors), (["a", "b", "c"], vectors))
    with pytest.raises(ValueError, match="vectors of one length, got 2 dimensions for queries and 3 for the corpus"):
        StoredVectors((texts, vectors), (texts, np.ones((2, 3))))
    with pytest.raises(TypeError, match=r"Expected `queries` to be texts and vectors, as in .* got str"):
        StoredVectors(["vectors.npy"], (texts, vectors))
    with pytest.raises(ValueError, match="got an array of shape"):
        StoredVectors((texts, np.ones((2, 3, 2))), (texts, vectors))
    stored = StoredVectors((texts, vectors), (texts, vectors))
    with pytest.raises(ValueError, match="1 of 2 texts have no stored vector in `corpus`, such as 'c'"):
        stored.encode_document(["a", "c"])
    with pytest.raises(ValueError, match="160 of 160 texts have no stored vector in `corpus`"):
        mined(stored)


def test_shortened_vectors_are_the_first_dimensions(bag_of_words):
    """As ST's own `truncate_dim`, with the model left as it is."""
    found = mined(ReducedVectors(bag_of_words, truncate_dim=5))
    bag_of_words.truncate_dim = 5
    assert is_same(mined(bag_of_words), found)
    assert is_same(found, mined(Model(lambda text: bag_of_words.encode_query(text)[:5])))
    with pytest.raises(ValueError, match="at least `truncate_dim=64` dimensions, got 16"):
        mined(ReducedVectors(Model(VECTOR_OF), truncate_dim=64))


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_coarse_vectors_score_as_what_is_served(bag_of_words, precision):
    """Bits by their agreement, steps to their width; queries and texts by the same steps."""
    vectors = bag_of_words.encode(TEXTS)
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    found = mined(ReducedVectors(bag_of_words, precision=precision, ranges=ranges), MiningConfig(num_negatives=3))
    texts = found.corpus.texts.take(range(len(found.corpus)))
    if precision in ("binary", "ubinary"):
        a, b = (bag_of_words.encode(some, precision="ubinary") for some in (PAIRS["anchor"], texts))
        differ = np.unpackbits(a[:, None] ^ b[None], axis=-1).sum(axis=-1)
        scores, tolerance = 1.0 - 2.0 * differ / 16, 1e-6
    else:
        a, b = bag_of_words.encode(PAIRS["anchor"]), bag_of_words.encode(texts)
        a, b = (some / np.linalg.norm(some, axis=1, keepdims=True) for some in (a, b))
        scores, tolerance = a @ b.T, 0.01
    np.testing.assert_allclose(found.negative_scores, np.take_along_axis(scores, found.negative_ids, 1), atol=tolerance)
    own = found.positive_column_name == "positive" and found.live.mining.positive_similarities.numpy()
    rows = np.array([texts.index(text) for text in PAIRS["positive"]])
    np.testing.assert_allclose(own, scores[np.arange(40), rows], atol=tolerance)


def test_ranges_of_steps_may_be_given(bag_of_words):
    """Those of a calibration set, as for ST's function."""
    vectors = bag_of_words.encode(TEXTS)
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    model = ReducedVectors(bag_of_words, precision="int8", ranges=ranges)
    width = (ranges[1] - ranges[0]) / 255
    assert (np.abs(model.encode_query(TEXTS).numpy() - vectors) <= width * 0.51 + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate_dim": 0}, "`truncate_dim` to be a number from 1 up, or None, got 0"),
        ({"precision": "int4"}, "`precision` to be one of .*, got 'int4'"),
    ],
)
def test_reductions_that_there_are_not_are_refused(bag_of_words, options, message):
    with pytest.raises(ValueError, match=message):
        ReducedVectors(bag_of_words, **options)


class Session:
    """A runtime's session: texts to angles, of whatever text."""

    def __init__(self, turn: float) -> None:
        self.turn = turn

    def run(self, texts):
        last = [text.split()[-1].rstrip("°") if text else "0" for text in texts]
        degrees = [float(word) if word.lstrip("-").isdigit() else len(word) for word in last]
        angles = [math.radians(one * self.turn) for one in degrees]
        return np.array([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=np.float32)


class OtherRuntime(nn.Module):
    """As ONNX's and OpenVINO's models are in a SentenceTransformer: an object inside a module, with no weight to see."""

    def __init__(self, turn: float) -> None:
        super().__init__()
        self.session = Session(turn)
        self.max_seq_length = 16

    def preprocess(self, inputs, prompt=None, **_):
        return {"numbers": torch.arange(len(inputs)), "texts": list(inputs)}

    tokenize = preprocess

    def forward(self, features, **_):
        features["sentence_embedding"] = torch.from_numpy(self.session.run(features["texts"]))
        return features


def runtime(turn: float = 1.0) -> SentenceTransformer:
    return SentenceTransformer(modules=[OtherRuntime(turn)], device="cpu", similarity_fn_name="cosine")


ANGLES = [f"q {angle}°" for angle in (0, 5, 90, -3)]
FAR = [f"d {angle}°" for angle in (10, 20, 40, 75, 120, 180)]


def test_models_of_another_runtime_mine(tmp_path):
    """ONNX and OpenVINO backends: encoded by their own `encode`, told apart by their vectors, and cached by them."""
    pairs = Dataset.from_dict({"anchor": ANGLES[:2], "positive": ANGLES[2:]})
    found, vectors = [], Encodings.from_config(MiningConfig())
    for model in (runtime(), Model(by_angle), runtime(2.0)):
        one = HardNegativeDataset(pairs, FAR, MiningConfig(num_negatives=2), cache_folder=tmp_path)
        one.mine(model, show_progress_bar=False)
        found.append(texts_of(one))
    assert found[0] == found[1] != found[2]
    assert not list(runtime().parameters())
    probes = [*ANGLES, "0°"]
    prints = [DenseEncoder(runtime(turn), vectors).fingerprint(probes) for turn in (1.0, 1.0, 2.0)]
    assert prints[0] == prints[1] != prints[2]
