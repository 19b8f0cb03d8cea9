"""Train with negatives that follow the model, and see what that is worth.

Compares, on held-out queries: the model before training, training on in-batch negatives only, on negatives mined once,
and on negatives refreshed before every epoch. Without arguments it needs no network and no data: the texts are the
docstrings of Python's standard library (summary line -> rest), the model is a static embedding made on the spot.

    python examples/train_with_refresh.py
    python examples/train_with_refresh.py --data DIR --model NAME_OR_PATH [--static] --seeds 1 2 3

DIR holds a labelled retrieval set in BEIR's layout: corpus.jsonl, queries.jsonl (both may end in .gz), qrels/train.tsv
and qrels/test.tsv.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from docstring_pairs import standard_library_pairs
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.formats.beir import read_beir
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss
from st_hardneg.samplers import NoDuplicatePairsBatchSampler

OPTIONS: dict[str, dict[str, Any]] = {
    "data": {"help": "folder in BEIR's layout; default: the standard library's docstrings"},
    "model": {"help": "a Sentence Transformer; default: a static embedding made on the spot"},
    "static": {"action": "store_true", "help": "use only the model's tokenizer and word embeddings"},
    "layers": {"type": int, "help": "use only so many of the model's first layers"},
    "seeds": {"type": int, "nargs": "+", "default": [1]},
    "epochs": {"type": int, "default": 4},
    "batch-size": {"type": int, "default": 32},
    "learning-rate": {"type": float, "help": "default: 0.02 for a static embedding, 2e-5 otherwise"},
    "num-negatives": {"type": int, "default": 3},
    "relative-margin": {"type": float, "help": "a plain margin in place of the recommended recipe"},
    "range-max": {"type": int, "help": "how many candidates to consider for each query"},
    "limit": {"type": int, "help": "train on so many pairs only"},
    "shortfall": {"default": "random", "choices": ["drop", "random", "repeat"]},
}


def argument_parser(description: str | None, without: Collection[str] = ()) -> argparse.ArgumentParser:
    """Return the options that this example and others share, without those that one has no use for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name, option in OPTIONS.items():
        if name not in without:
            parser.add_argument(f"--{name}", **option)
    return parser


def make_config(arguments: argparse.Namespace) -> MiningConfig:
    """Return the mining recipe: the recommended one, unless a plain margin is asked for."""
    fields = {
        "num_negatives": arguments.num_negatives,
        "range_max": arguments.range_max,
        "shortfall": arguments.shortfall,
    }
    if arguments.relative_margin is None:
        return MiningConfig.recommended(**fields)
    return MiningConfig(relative_margin=arguments.relative_margin, **fields)


def load(data: str | None, limit: int | None = None) -> tuple[Dataset, Dataset, InformationRetrievalEvaluator]:
    """Return training pairs, at most ``limit``, the corpus, and an evaluator on queries that are not trained on."""
    if data is None:
        pairs, documents, queries, relevant = standard_library_pairs()
        texts = dict(zip(documents["_id"], documents["text"], strict=True))
        return first(pairs, limit), documents, evaluator(queries, texts, relevant)
    corpus, queries = (
        next(p for p in (f"{data}/{name}.jsonl", f"{data}/{name}.jsonl.gz") if os.path.exists(p))
        for name in ("corpus", "queries")
    )
    train, documents = read_beir(corpus, queries, f"{data}/qrels/train.tsv")
    test, _ = read_beir(corpus, queries, f"{data}/qrels/test.tsv")
    relevant: dict[str, set[str]] = {}
    for query_id, corpus_id in zip(test["query-id"], test["corpus-id"], strict=True):
        relevant.setdefault(query_id, set()).add(corpus_id)
    anchors = dict(zip(test["query-id"], test["anchor"], strict=True))
    texts = dict(zip(documents["_id"], documents["text"], strict=True))
    return first(train, limit), documents, evaluator(anchors, texts, relevant)


def first(pairs: Dataset, limit: int | None) -> Dataset:
    """Return the first pairs, all of them without a limit."""
    return pairs if limit is None else pairs.select(range(min(limit, len(pairs))))


def evaluator(
    queries: dict[str, str], corpus: dict[str, str], relevant: dict[str, set[str]]
) -> InformationRetrievalEvaluator:
    """Measure nDCG@10."""
    return InformationRetrievalEvaluator(
        queries, corpus, relevant, ndcg_at_k=[10], map_at_k=[10], mrr_at_k=[10], accuracy_at_k=[10],
        precision_recall_at_k=[10], batch_size=256, name="test", write_csv=False,
    )  # fmt: skip


def make_model(arguments: argparse.Namespace, texts: list[str]) -> SentenceTransformer:
    """Load the model, take its word embeddings only, or make a static embedding from scratch."""
    if arguments.static and not arguments.model:
        raise SystemExit("--static takes the word embeddings of a model: name one with --model")
    if arguments.model and not arguments.static:
        return cut(SentenceTransformer(arguments.model), arguments.layers)
    if arguments.model:
        return word_vectors(arguments.model)
    return static_model(texts)


def word_vectors(path: str) -> SentenceTransformer:
    """Return a static embedding: the model's tokenizer and word vectors, and nothing else of it."""
    source = SentenceTransformer(path, device="cpu")
    tokenizer = Tokenizer.from_str(source.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = source[0].auto_model.get_input_embeddings().weight.detach().numpy()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=words)], device="cpu")


def cut(model: SentenceTransformer, layers: int | None) -> SentenceTransformer:
    """Keep only the first layers of a BERT: a small transformer that trains within minutes without a GPU."""
    if layers is not None:
        bert = model[0].auto_model
        bert.encoder.layer = bert.encoder.layer[:layers]
        bert.config.num_hidden_layers = layers
    return model


def static_model(texts: list[str]) -> SentenceTransformer:
    """Make a static embedding: the 8 000 most frequent words of the texts, and a random vector for each.

    The vocabulary is made in plain Python: the trainers of `tokenizers` settle ties differently in every run.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:8000]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=256)], device="cpu")


def train(
    model: SentenceTransformer,
    dataset: Dataset,
    arguments: argparse.Namespace,
    seed: int,
    callbacks: list[MiningCallback] | None = None,
    loss: nn.Module | None = None,
) -> None:
    """Train with the stock trainer."""
    is_static = isinstance(model[0], StaticEmbedding)
    with tempfile.TemporaryDirectory() as output:
        args = SentenceTransformerTrainingArguments(
            output_dir=output,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate or (0.02 if is_static else 2e-5),
            warmup_steps=max(1, len(dataset) // arguments.batch_size // 2),
            batch_sampler=NoDuplicatePairsBatchSampler,
            seed=seed,
            save_strategy="no",
            report_to="none",
            logging_strategy="epoch",
        )
        SentenceTransformerTrainer(
            model=model,
            args=args,
            train_dataset=dataset,
            loss=loss or MultipleNegativesRankingLoss(model),
            callbacks=callbacks,
        ).train()


def main() -> None:
    """Train three times per seed and print the table."""
    arguments = argument_parser(__doc__).parse_args()
    started = time.perf_counter()
    pairs, corpus, evaluate = load(arguments.data, arguments.limit)
    config = make_config(arguments)
    base = make_model(arguments, [*pairs["anchor"], *corpus["text"]])
    print(f"{len(pairs):,} training pairs, {len(corpus):,} texts to search, {len(evaluate.queries):,} test queries")

    results: dict[str, list[float]] = {"before training": [measure(evaluate, base)] * len(arguments.seeds)}
    for seed in arguments.seeds:
        model = copy.deepcopy(base)
        train(model, pairs.select_columns(["anchor", "positive"]), arguments, seed)
        results.setdefault("in-batch negatives", []).append(measure(evaluate, model))

        for name, callbacks in (("mined once", False), ("refreshed each epoch", True)):
            model = copy.deepcopy(base)
            hard_negatives = HardNegativeDataset(pairs, corpus, config, batch_size=256)
            print(hard_negatives.mine(model))
            refresh = [MiningCallback(hard_negatives, mining_strategy="epoch")] if callbacks else None
            # The recommended recipe comes with its loss, which masks known right answers by id.
            masks = arguments.relative_margin is None
            loss = SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives) if masks else None
            train(model, hard_negatives.as_dataset(with_ids=masks), arguments, seed, refresh, loss)
            results.setdefault(name, []).append(measure(evaluate, model))
            if refresh:
                print(hard_negatives.report)

    print(f"\nnDCG@10 on held-out queries{'':<8}{'mean':>7}" + "".join(f"{f'seed {s}':>9}" for s in arguments.seeds))
    for name, values in results.items():
        print(f"{name:<35}{statistics.mean(values):>7.4f}" + "".join(f"{value:>9.4f}" for value in values))
    print(f"{time.perf_counter() - started:.0f} s in all. One seed differs from the next by about .01.")


def measure(evaluate: InformationRetrievalEvaluator, model: SentenceTransformer) -> float:
    """Return nDCG@10."""
    return float(evaluate(model)["test_cosine_ndcg@10"])


if __name__ == "__main__":
    disable_progress_bars()  # of `datasets`; those of mining and training stay
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    main()
