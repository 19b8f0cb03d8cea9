"""Memory that runs out while texts are encoded, and the routes of a Router."""

from __future__ import annotations

import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from tests.conftest import WORDS, word_model


class Tight:
    """An encoder with memory for so many texts at once in its second shard, and for any number in the others."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[tuple[int, int]] = []

    def encode_query(self, texts, batch_size=32):
        return torch.nn.functional.one_hot(torch.tensor([len(text) % 7 for text in texts]), 7).float()

    def encode_document(self, texts, batch_size=32):
        self.tried.append((len(texts), batch_size))
        if "second shard" in texts[0] and batch_size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.encode_query(texts)


CORPUS = [f"{'second shard' if 4096 <= i < 8192 else 'text'} {i}" for i in range(9_000)]


def test_only_the_shard_that_failed_is_encoded_again(word_pairs):
    """The corpus is not encoded anew for every size that is tried."""
    found, model = HardNegativeDataset(word_pairs, CORPUS, MiningConfig(num_negatives=1)), Tight(8)
    found.mine(model, show_progress_bar=False)
    assert [size for _, size in model.tried] == [32, 32, 16, 8, 32]
    assert [count for count, _ in model.tried] == [4096] * 4 + [9_000 + 48 - 8192]


def test_memory_that_does_not_suffice_for_one_text_is_said(word_pairs):
    found = HardNegativeDataset(word_pairs, CORPUS, MiningConfig(num_negatives=1))
    with pytest.raises(MiningError, match="Expected enough memory to encode one text at a time while mining"):
        found.mine(Tight(0), show_progress_bar=False)


@pytest.fixture
def routed() -> SentenceTransformer:
    """A Router whose routes have names of their own, and vectors of their own."""
    modules = [word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(s)))[0] for s in (0, 1)]
    router = Router({"question": [modules[0]], "answer": [copy.deepcopy(modules[1])]})
    return SentenceTransformer(modules=[router], device="cpu", similarity_fn_name="cosine")


def test_routes_of_other_names_are_told_to_mine_as_to_the_trainer(routed, word_pairs):
    """`router_mapping` maps columns to routes, as the training arguments of this name do."""
    found = HardNegativeDataset(word_pairs, num_negatives=2)
    with pytest.raises(ValueError, match="task='question' and task='answer'"):
        found.mine(routed, show_progress_bar=False)
    found.mine(routed, router_mapping={"anchor": "question", "positive": "answer"}, show_progress_bar=False)
    first, query = word_pairs["positive"][0], word_pairs["anchor"][0]
    embeddings = routed.encode([query], task="question"), routed.encode([first], task="answer")
    assert found.provenance()[0]["positive_score"] == pytest.approx(float(routed.similarity(*embeddings)), abs=1e-5)
    other = HardNegativeDataset(word_pairs, num_negatives=2)
    other.mine(routed, router_mapping={"anchor": "answer", "positive": "question"}, show_progress_bar=False)
    assert (other.negative_ids != found.negative_ids).any()
    with pytest.raises(ValueError, match=r"to name the columns 'anchor' and 'positive', got \['question'\]"):
        found.mine(routed, router_mapping={"question": "question"})
