"""Measure what the losses cost beside those of Sentence Transformers: forward and backward, batch 64, 5 negatives.

Both losses of a pair get the same texts and the same model, in turns, each as often first as second. Printed are the
median CPU times on one thread, and the median of the ratios of neighbours, which share whatever else the machine is
doing.

    python tests/benchmarks/loss_cost.py [--repeats 20]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    ContrastiveLoss,
    MultipleNegativesRankingLoss,
    TripletLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.losses import (
    SemiHardCachedMultipleNegativesRankingLoss,
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
)

BATCH_SIZE, NUM_NEGATIVES, NUM_WORDS, TEXT_LENGTH = 64, 5, 2000, 24
Step = Callable[[], Tensor]


def build_model() -> SentenceTransformer:
    """Build a random BERT of 2 layers and 128 dimensions."""
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{number}": number + 2 for number in range(NUM_WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with tempfile.TemporaryDirectory() as path:
        BertModel(config).save_pretrained(path)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
        fast.save_pretrained(path)
        return SentenceTransformer(modules=[Transformer(path), Pooling(128)], device="cpu")


def pairs_of_steps(model: SentenceTransformer) -> dict[str, tuple[Step, Step]]:
    """Return, for each of our losses, one step with it and one with its counterpart."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, NUM_WORDS, (2 + NUM_NEGATIVES, BATCH_SIZE, TEXT_LENGTH), generator=generator)
    # Positives share half of the anchor's words, or everything would be masked.
    numbers[1, :, : TEXT_LENGTH // 2] = numbers[0, :, : TEXT_LENGTH // 2]
    columns = [[" ".join(f"w{number}" for number in text) for text in column] for column in numbers.tolist()]
    features = [dict(model.preprocess(column)) for column in columns]
    rows = torch.arange(BATCH_SIZE)
    negatives = torch.randint(BATCH_SIZE, 50_000, (BATCH_SIZE, NUM_NEGATIVES), generator=generator)
    ids = torch.column_stack([rows, rows, rows, torch.full_like(rows, 10**6), negatives])
    known = KnownPositives.from_lists([[row] for row in range(10_000)], identities=list(range(50_000)))

    def copied() -> list[dict[str, Tensor]]:
        return [dict(column) for column in features]

    def on_pairs() -> Tensor:
        anchors, *others = embed_columns(model, copied())
        labels = (torch.arange(BATCH_SIZE * len(others)) < BATCH_SIZE).long()
        pairs = [anchors.repeat(len(others), 1), torch.cat(others)]
        return ContrastiveLoss(model).compute_loss_from_embeddings(pairs, labels)

    def on_triplets() -> Tensor:
        anchors, positives, *others = embed_columns(model, copied())
        repeats = (len(others), 1)
        triplets = [anchors.repeat(repeats), positives.repeat(repeats), torch.cat(others)]
        return TripletLoss(model).compute_loss_from_embeddings(triplets, None)

    ranking = MultipleNegativesRankingLoss(model)
    cached = CachedMultipleNegativesRankingLoss(model)
    semi_hard = SemiHardMultipleNegativesRankingLoss(model)
    identified = SemiHardMultipleNegativesRankingLoss(model, margin=0.5, known_positives=known)
    semi_hard_cached = SemiHardCachedMultipleNegativesRankingLoss(model)
    triplet, contrastive = SemiHardTripletLoss(model), SemiHardContrastiveLoss(model)
    return {
        "ranking": (lambda: semi_hard(copied(), None), lambda: ranking(copied(), None)),
        "ranking, margin and ids": (lambda: identified(copied(), ids), lambda: ranking(copied(), None)),
        "cached ranking": (lambda: semi_hard_cached(copied(), None), lambda: cached(copied(), None)),
        "triplet": (lambda: triplet(copied(), None), on_triplets),
        "contrastive": (lambda: contrastive(copied(), None), on_pairs),
    }


def seconds(model: SentenceTransformer, step: Step) -> float:
    """Time one forward and backward."""
    model.zero_grad()
    start = time.process_time()
    step().backward()
    return time.process_time() - start


def main() -> None:
    """Print one line per loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_model()
    for name, (ours, theirs) in pairs_of_steps(model).items():
        for step in (ours, theirs):
            seconds(model, step)
        times = []
        for turn in range(repeats):
            first, second = (ours, theirs) if turn % 2 else (theirs, ours)
            measured = seconds(model, first), seconds(model, second)
            times.append(measured if turn % 2 else measured[::-1])
        mine, other = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(our_time / their_time for our_time, their_time in times)
        print(f"{name:<24} {mine * 1e3:7.1f} ms  Sentence Transformers {other * 1e3:7.1f} ms  ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
