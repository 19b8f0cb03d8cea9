"""Train a small cross encoder on random negatives, on negatives mined once, and on refreshed ones; rerank with it.

    python examples/train_reranker.py --data DIR --model sentence-transformers/all-MiniLM-L6-v2 --seeds 1 2 3

DIR holds a labelled retrieval set in BEIR's layout. The model, whole and frozen, finds the candidates; its first layers
with a new head are the cross encoder. Compared is nDCG@10 of the test queries, the nearest texts of each reranked.
Vectors are computed once and kept in --vectors, so that another run begins at once. On one core a seed takes minutes.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from train_with_refresh import argument_parser, load

from st_hardneg import HardNegativeDataset, MiningCallback, StoredVectors

ARMS = ("random negatives", "mined once", "refreshed each epoch")


def stored(model: str, folder: str, queries: list[str], documents: list[str]) -> StoredVectors:
    """Encode everything once, or read what was encoded before."""
    paths = [os.path.join(folder, f"{name}.npy") for name in ("queries", "documents")]
    if not all(map(os.path.exists, paths)):
        os.makedirs(folder, exist_ok=True)
        dense = SentenceTransformer(model, device="cpu")
        dense.max_seq_length = 64
        for path, texts in zip(paths, (queries, documents), strict=True):
            np.save(path, dense.encode(texts, show_progress_bar=False))
    return StoredVectors((queries, paths[0]), (documents, paths[1]))


def make_cross_encoder(arguments: argparse.Namespace, seed: int) -> CrossEncoder:
    """Return the first layers of a model, with a head that is not trained yet."""
    torch.manual_seed(seed)
    model = CrossEncoder(arguments.model, num_labels=1, max_length=arguments.max_length, device="cpu")
    bert = model.model.bert
    bert.encoder.layer = bert.encoder.layer[: arguments.layers]
    bert.config.num_hidden_layers = arguments.layers
    return model


def reranking(retriever: StoredVectors, evaluate: object, depth: int) -> CrossEncoderRerankingEvaluator:
    """Return an evaluator of the nearest texts of each test query; a right answer that is not among them is missed."""
    corpus = dict(zip(evaluate.corpus_ids, evaluate.corpus, strict=True))  # type: ignore[attr-defined]
    similarity = retriever.encode_query(evaluate.queries) @ retriever.encode_document(list(corpus.values())).T  # type: ignore[attr-defined]
    samples = [
        {
            "query": query,
            "positive": [corpus[right] for right in evaluate.relevant_docs[number]],  # type: ignore[attr-defined]
            "documents": [evaluate.corpus[place] for place in places],  # type: ignore[attr-defined]
        }
        for number, query, places in zip(
            evaluate.queries_ids,  # type: ignore[attr-defined]
            evaluate.queries,  # type: ignore[attr-defined]
            similarity.topk(depth).indices.tolist(),
            strict=True,
        )
    ]
    return CrossEncoderRerankingEvaluator(samples, batch_size=64, always_rerank_positives=False, write_csv=False)


def train(
    model: CrossEncoder,
    arm: str,
    retriever: StoredVectors,
    pairs: Dataset,
    corpus: Dataset,
    arguments: argparse.Namespace,
    seed: int,
) -> HardNegativeDataset:
    """Train with the stock trainer, and return the negatives as they are in the end."""
    number = arguments.num_negatives
    options = {"sources": {"random": number}} if arm == "random negatives" else {"num_negatives": number}
    # A cross encoder scores this many pairs at a refresh: the positives, and the nearest candidates.
    budget = len(pairs) * (1 + arguments.num_rescored)
    hard_negatives = HardNegativeDataset(pairs, corpus, rescoring_budget=budget, batch_size=64, **options)
    hard_negatives.mine(retriever, show_progress_bar=False)
    refreshed = arm == "refreshed each epoch"
    with tempfile.TemporaryDirectory() as output:
        args = CrossEncoderTrainingArguments(
            output_dir=output,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate or 1e-4,
            warmup_steps=20,
            seed=seed,
            save_strategy="no",
            report_to="none",
            logging_strategy="epoch",
            disable_tqdm=True,
            use_cpu=True,
        )
        CrossEncoderTrainer(
            model=model,
            args=args,
            train_dataset=hard_negatives.as_dataset("labeled-pair"),
            loss=BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(float(number))),
            callbacks=[MiningCallback(hard_negatives, mining_strategy="epoch", retriever=retriever)]
            if refreshed
            else [],
        ).train()
    return hard_negatives


def main() -> None:
    """Train three times per seed and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--vectors", help="folder to keep the retriever's vectors in; default: one that is deleted")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a pair")
    parser.add_argument("--depth", type=int, default=50, help="texts of each test query that are reranked")
    parser.add_argument("--num-rescored", type=int, default=10, help="candidates of a query rescored at a refresh")
    parser.set_defaults(layers=2, epochs=2)
    arguments = parser.parse_args()
    if not arguments.model or not arguments.data:
        raise SystemExit("name a set's folder with --data and a model with --model")
    torch.set_num_threads(1)
    pairs, corpus, evaluate = load(arguments.data)
    if arguments.limit:
        pairs = pairs.select(range(min(arguments.limit, len(pairs))))
    with tempfile.TemporaryDirectory() as folder:
        queries = list(dict.fromkeys([*pairs["anchor"], *evaluate.queries]))
        retriever = stored(arguments.model, arguments.vectors or folder, queries, list(corpus["text"]))
        rerank = reranking(retriever, evaluate, arguments.depth)
        compare(arguments, retriever, rerank, pairs, corpus)


def compare(
    arguments: argparse.Namespace,
    retriever: StoredVectors,
    rerank: CrossEncoderRerankingEvaluator,
    pairs: Dataset,
    corpus: Dataset,
) -> None:
    """Run every arm with every seed; each is printed when it is done."""
    found: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            started = time.perf_counter()
            model = make_cross_encoder(arguments, seed)
            hard_negatives = train(model, arm, retriever, pairs, corpus, arguments, seed)
            metrics = rerank(model)
            found.setdefault("retriever alone", []).append(metrics["base_ndcg@10"])
            found.setdefault(arm, []).append(metrics["ndcg@10"])
            took = f"{time.perf_counter() - started:.0f} s, churn {hard_negatives.report.churn or 0.0:.2f}"
            print(f"seed {seed}, {arm}: nDCG@10 {metrics['ndcg@10']:.4f} ({took})", flush=True)
    print(f"\nnDCG@10, the nearest {arguments.depth} texts of {len(rerank.samples):,} test queries reranked")
    for name, values in found.items():
        print(f"{name:<30}{statistics.mean(values):>8.4f}   " + " ".join(f"{value:.4f}" for value in values))


if __name__ == "__main__":
    disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    main()
