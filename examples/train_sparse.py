"""Train a sparse encoder on in-batch negatives, on negatives mined once, and on refreshed ones.

    python examples/train_sparse.py --data DIR --model sentence-transformers/all-MiniLM-L6-v2 --seeds 1 2 3

DIR holds a labelled retrieval set in BEIR's layout. Of the model only the tokenizer is used: the encoder has a weight for
every word piece, its inverse document frequency to begin with, and texts are compared by the words that they share.
It trains within minutes on one core. What is compared is nDCG@10 of the test queries in the whole corpus.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings

import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder import SparseEncoderTrainer, SparseEncoderTrainingArguments
from sentence_transformers.sparse_encoder.evaluation import SparseInformationRetrievalEvaluator
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from sentence_transformers.util import dot_score
from train_with_refresh import argument_parser, load
from transformers import AutoTokenizer

from st_hardneg import HardNegativeDataset, MiningCallback
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss
from st_hardneg.samplers import NoDuplicatePairsBatchSampler

ARMS = ("in-batch negatives", "mined once", "refreshed each epoch")


def make_model(name: str, texts: list[str]) -> SparseEncoder:
    """Return an encoder whose weights are inverse document frequencies, the most of which is 2."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.model_max_length = 256
    pieces = tokenizer(texts, add_special_tokens=False, truncation=True)["input_ids"]
    counts = torch.bincount(torch.tensor([piece for one in pieces for piece in set(one)]), minlength=len(tokenizer))
    weights = torch.log((1 + len(texts)) / (1 + counts.float()))
    return SparseEncoder(modules=[SparseStaticEmbedding(tokenizer, 2 * weights / weights.max())], device="cpu")


def train(
    model: SparseEncoder, arm: str, pairs: Dataset, corpus: Dataset, arguments: argparse.Namespace, seed: int
) -> HardNegativeDataset | None:
    """Train with the stock trainer, and return the negatives."""
    dataset, callbacks, found = pairs.select_columns(["anchor", "positive"]), [], None
    inner = SparseMultipleNegativesRankingLoss(model)
    if arm != "in-batch negatives":
        found = HardNegativeDataset(pairs, corpus, num_negatives=arguments.num_negatives, batch_size=128)
        found.mine(model, show_progress_bar=False)
        dataset = found.as_dataset(with_ids=True)
        inner = SemiHardMultipleNegativesRankingLoss.recommended(model, found, scale=1.0, similarity_fct=dot_score)
    if arm == "refreshed each epoch":
        callbacks = [MiningCallback(found, mining_strategy="epoch")]
    # What there is to regularise is the number of words, which is that of the text.
    loss = SpladeLoss(model, inner, document_regularizer_weight=1e-7, query_regularizer_weight=1e-7)
    with tempfile.TemporaryDirectory() as output:
        args = SparseEncoderTrainingArguments(
            output_dir=output,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate or 0.02,
            warmup_steps=20,
            batch_sampler=NoDuplicatePairsBatchSampler,
            seed=seed,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        SparseEncoderTrainer(model=model, args=args, train_dataset=dataset, loss=loss, callbacks=callbacks).train()
    return found


def main() -> None:
    """Train three times per seed and print the table."""
    parser = argument_parser(__doc__, without=("static", "layers", "relative-margin", "range-max", "shortfall"))
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    arguments = parser.parse_args()
    if not arguments.model or not arguments.data:
        raise SystemExit("name a set's folder with --data and a model with --model")
    torch.set_num_threads(1)
    pairs, corpus, dense = load(arguments.data, arguments.limit)
    queries = dict(zip(dense.queries_ids, dense.queries, strict=True))
    texts = dict(zip(dense.corpus_ids, dense.corpus, strict=True))
    evaluate = SparseInformationRetrievalEvaluator(
        queries, texts, dense.relevant_docs, ndcg_at_k=[10], batch_size=128, name="test", write_csv=False
    )
    results: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for arm in ("before training", *arguments.arms):
            model, started = make_model(arguments.model, list(corpus["text"])), time.perf_counter()
            found = None if arm == "before training" else train(model, arm, pairs, corpus, arguments, seed)
            took = time.perf_counter() - started
            results.setdefault(arm, []).append(float(evaluate(model)["test_dot_ndcg@10"]))
            churn = "" if found is None or found.report.churn is None else f", churn {found.report.churn:.2f}"
            print(f"seed {seed}, {arm}: nDCG@10 {results[arm][-1]:.4f} ({took:.0f} s{churn})", flush=True)
    print(f"\nnDCG@10 of {len(queries):,} test queries{'':<6}{'mean':>8}   by seed")
    for name, values in results.items():
        print(f"{name:<35}{statistics.mean(values):>8.4f}   " + " ".join(f"{value:.4f}" for value in values))


if __name__ == "__main__":
    disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(pin_memory|Sparse CSR).*")
    main()
