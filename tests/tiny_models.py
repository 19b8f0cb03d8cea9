"""Tiny models of the kinds that Sentence Transformers trains, made on the spot of the words of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.conftest import WORDS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer() -> Any:
    """Return a tokenizer of whole words, and of those special tokens that BERT has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=32, **names)


def bert_config(**changes: Any) -> Any:
    """Return a BERT of one layer with 16 dimensions."""
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    options = {"max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(vocab_size=len(SPECIAL) + len(WORDS), **{**sizes, **options, **changes})


def saved(folder: Path, model: Any) -> str:
    """Save a model and the tokenizer, as a downloaded one lies on disk."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def dense(folder: Path, seed: int = 0, *, num_layers: int = 1) -> Any:
    """Return a dense model of 16 dimensions."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertModel

    torch.manual_seed(seed)
    path = saved(folder, BertModel(bert_config(initializer_range=0.5, num_hidden_layers=num_layers)))
    model = SentenceTransformer(modules=[Transformer(path), Pooling(16)], device="cpu")
    model._create_model_card = lambda *_, **__: None
    return model


def splade(folder: Path, seed: int = 0) -> Any:
    """Return a SPLADE model of 205 dimensions, about half of which are active in a text."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from transformers import BertForMaskedLM

    torch.manual_seed(seed)
    path = saved(folder, BertForMaskedLM(bert_config(initializer_range=0.5)))
    model = SparseEncoder(modules=[Transformer(path, transformer_task="fill-mask"), SpladePooling()], device="cpu")
    model._create_model_card = lambda *_, **__: None
    return model


def autoencoded(folder: Path, seed: int = 0) -> Any:
    """Return a sparse model of 32 dimensions, 8 of which are active: a dense one and an autoencoder (CSR)."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    model = SparseEncoder(modules=[*dense(folder, seed), SparseAutoEncoder(16, 32, k=8, k_aux=16)], device="cpu")
    model._create_model_card = lambda *_, **__: None
    return model


def static_sparse(seed: int = 0) -> Any:
    """Return a sparse model that weighs the words of a text."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

    weights = torch.rand(len(SPECIAL) + len(WORDS), generator=torch.Generator().manual_seed(seed)) + 0.5
    return SparseEncoder(modules=[SparseStaticEmbedding(tokenizer(), weights)], device="cpu")


def colbert(folder: Path, seed: int = 0) -> Any:
    """Return a late-interaction model of 8 dimensions a token."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize
    from transformers import BertModel

    torch.manual_seed(seed)
    path = saved(folder, BertModel(bert_config(initializer_range=0.5)))
    dense = Dense(16, 8, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    modules = [Transformer(path), dense, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    model = MultiVectorEncoder(modules=modules, device="cpu")
    model._create_model_card = lambda *_, **__: None
    return model


def cross_encoder(folder: Path, seed: int = 0, *, num_labels: int = 1) -> Any:
    """Return a cross encoder whose scores differ from pair to pair."""
    from sentence_transformers import CrossEncoder
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    path = saved(folder, BertForSequenceClassification(bert_config(initializer_range=0.5, num_labels=num_labels)))
    model = CrossEncoder(path, num_labels=num_labels, device="cpu")
    with torch.no_grad():
        model.model.classifier.weight.mul_(5.0)
    model._create_model_card = lambda *_, **__: None
    return model
