"""Whatever decides a model's vectors decides its fingerprint: caches are never stale."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from st_hardneg import HardNegativeDataset, HardNegativeMiner, mine_hard_negatives
from st_hardneg.config import MiningConfig
from st_hardneg.encoders import DenseEncoder, Encodings
from st_hardneg.encoders.fingerprint import weights_fingerprint
from tests.conftest import WORDS, random_texts, word_model


class Squash(nn.Module):
    """A module with a plain Python number, which no weight and no `str(model)` shows."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features, **_):
        features["sentence_embedding"] = torch.sin(features["sentence_embedding"] * self.factor)
        return features


def squashed(factor: float) -> SentenceTransformer:
    base = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))
    return SentenceTransformer(modules=[base[0], Squash(factor)], device="cpu", similarity_fn_name="cosine")


def fingerprint(model) -> str | None:
    return DenseEncoder(model, Encodings.from_config(MiningConfig())).fingerprint(random_texts(5, seed=0))


def test_a_plain_number_that_changes_the_vectors_changes_the_fingerprint():
    one, other = squashed(1.0), squashed(3.0)
    assert weights_fingerprint(one) == weights_fingerprint(other)  # which is why vectors of probes are in it
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(squashed(1.0))


def test_no_cache_returns_vectors_of_another_model(word_pairs, tmp_path):
    """The drop-in's folder, the miner's fingerprint, and what is kept of a frozen model."""
    models = [squashed(1.0), squashed(3.0)]
    cached = [mine_hard_negatives(word_pairs, m, verbose=False, cache_folder=str(tmp_path)).to_dict() for m in models]
    assert cached == [mine_hard_negatives(word_pairs, model, verbose=False).to_dict() for model in models]
    corpus = random_texts(30, seed=1)
    assert len({HardNegativeMiner(model, corpus, num_negatives=1).fingerprint for model in models}) == 2
    found = HardNegativeDataset(word_pairs, corpus, num_negatives=1)
    minings = [found.compute_mining(model, is_frozen=True, show_progress_bar=False) for model in models]
    for mining, model in zip(minings, models, strict=True):
        expected = found.compute_mining(model, show_progress_bar=False)
        assert torch.equal(mining.negatives.ids, expected.negatives.ids)


def test_a_frozen_model_encodes_once(bag_of_words, word_pairs, monkeypatch):
    """A retriever that is not trained finds the same vectors at every refresh; once it has changed, they are new."""
    found = HardNegativeDataset(word_pairs, num_negatives=1)
    encoded = []
    real = type(bag_of_words).encode_document
    monkeypatch.setattr(
        type(bag_of_words),
        "encode_document",
        lambda self, texts, **o: encoded.append(len(texts)) or real(self, texts, **o),
    )

    def mine() -> int:
        encoded.clear()
        found.live.apply(found.compute_mining(bag_of_words, is_frozen=True, show_progress_bar=False))
        return sum(size for size in encoded if size >= 48)

    assert [mine(), mine(), mine()] == [48, 0, 0]
    with torch.no_grad():
        bag_of_words[0].embedding.weight[3] += 1.0
    assert [mine(), mine()] == [48, 0]


def test_objects_whose_weights_cannot_be_seen_are_never_kept(word_pairs):
    class Client:
        calls = 0

        def encode_query(self, texts):
            self.calls += 1
            return torch.randn(len(texts), 4)

        encode_document = encode_query

    client, found = Client(), HardNegativeDataset(word_pairs, num_negatives=1)
    for number in (1, 2):
        found.compute_mining(client, is_frozen=True, show_progress_bar=False)
        assert client.calls == 2 * number
