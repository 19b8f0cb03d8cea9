"""Tiny models that are built on the spot, and rows to train them on."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from st_hardneg.corpus.pairs import KnownPositives

NUM_WORDS = 100
WORDS = [f"w{number}" for number in range(NUM_WORDS)]
NUM_TOPICS = 16


def _tokenizer() -> Tokenizer:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {word: 4 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


@pytest.fixture
def build_static_model() -> Callable[..., SentenceTransformer]:
    """A factory of models with one random vector per word."""

    def build(seed: int = 0, dim: int = 16) -> SentenceTransformer:
        torch.manual_seed(seed)
        return SentenceTransformer(modules=[StaticEmbedding(_tokenizer(), embedding_dim=dim)], device="cpu")

    return build


@pytest.fixture
def static_model(build_static_model: Callable[..., SentenceTransformer]) -> SentenceTransformer:
    """A model with one random vector of 16 dimensions per word."""
    return build_static_model()


@pytest.fixture(scope="session")
def transformer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with three layers of 16 dimensions, saved."""
    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=NUM_WORDS + 4,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    return path


@pytest.fixture
def build_transformer_model(transformer_path: Path) -> Callable[[], SentenceTransformer]:
    """A factory of one and the same tiny transformer."""

    def build() -> SentenceTransformer:
        transformer = Transformer(str(transformer_path))
        return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")

    return build


@pytest.fixture
def rows() -> Dataset:
    """64 rows of an anchor, a positive that shares its words, and two negatives; some negatives are right answers."""
    generator = torch.Generator().manual_seed(0)

    def text(topic: int) -> str:
        own = torch.randint(0, 6, (3,), generator=generator).tolist()
        noise = torch.randint(0, NUM_WORDS, (1,), generator=generator).tolist()
        return " ".join(WORDS[word] for word in [topic * 6 + number for number in own] + noise)

    topics = [row % NUM_TOPICS for row in range(64)]
    return Dataset.from_dict(
        {
            "anchor": [text(topic) for topic in topics],
            "positive": [text(topic) for topic in topics],
            "negative_1": [text((topic + 1) % NUM_TOPICS) for topic in topics],
            "negative_2": [text(topic if row % 8 == 0 else topic - 1) for row, topic in enumerate(topics)],
        }
    )


@pytest.fixture
def random_ids() -> Callable[..., tuple[Tensor, KnownPositives]]:
    """A factory of labels with ids, some of unfilled slots, and of the right answers to the queries in them."""

    def draw(batch_size: int, num_negatives: int, seed: int = 0) -> tuple[Tensor, KnownPositives]:
        generator = torch.Generator().manual_seed(seed)
        num_queries, num_texts = 5, 3 * batch_size
        queries = torch.randint(0, num_queries, (batch_size,), generator=generator)
        texts = torch.randint(0, num_texts, (batch_size, 1 + num_negatives), generator=generator)
        texts[:, 1:][torch.rand(batch_size, num_negatives, generator=generator) < 0.2] = -1
        texts[0, -1] = -1 if num_negatives else texts[0, -1]
        weights = torch.randint(0, 1_500_000, (batch_size,), generator=generator)
        right_answers = [texts[queries == query, 0].tolist() for query in range(num_queries)]
        identities = [text // 2 for text in range(num_texts)]
        label = torch.column_stack([torch.arange(batch_size), queries, texts[:, 0], weights, texts[:, 1:]])
        return label, KnownPositives.from_lists(right_answers, identities)

    return draw
