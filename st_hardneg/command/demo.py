"""``st-hardneg demo``: all of it once, on text that is on every machine, without a network."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars

from st_hardneg.command.docstrings import docstring_pairs
from st_hardneg.command.mine import check_writable
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss
from st_hardneg.training.callback import MiningCallback

_PAIRS, _EPOCHS, _WORDS, _DIMENSIONS = 1_500, 4, 6_000, 128


def run(asked: argparse.Namespace) -> None:
    """Mine, train with a refresh before every epoch, and write the negatives, the report and a page to label.

    Raises:
        OSError: If the folder cannot be written.
    """
    started = time.perf_counter()
    disable_progress_bars()  # of `datasets`; those of mining and training stay
    saved = os.path.join(asked.output, "hard-negatives")
    check_writable(saved)
    os.makedirs(asked.output, exist_ok=True)
    pairs, corpus, held_out = docstring_pairs(_PAIRS)
    print(f"{len(pairs):,} pairs of Python's docstrings, summary -> rest; {len(corpus):,} texts to search")
    model = word_model([*pairs["anchor"], *corpus])
    hard_negatives = HardNegativeDataset(pairs, corpus, batch_size=256)
    before = accuracy(model, held_out, corpus)
    hard_negatives.mine(model)
    train(model, hard_negatives)
    print(f"\n{hard_negatives.report}")
    hard_negatives.save_to_disk(saved)
    report, review = (os.path.join(asked.output, name) for name in ("report.html", "review.html"))
    hard_negatives.report.save(report)
    hard_negatives.to_review(review, 50)
    after = accuracy(model, held_out, corpus)
    print(f"\nheld-out summaries whose own text is the nearest: {before:.1%} before, {after:.1%} after training")
    print(f"the report, with pictures:        {report}\ndoubtful texts, to be labelled:   {review}")
    print(f"the negatives, for `st-hardneg`:  {saved}\n{time.perf_counter() - started:.0f} s in all")


def word_model(texts: Sequence[str]) -> Any:
    """Return a static embedding of the most frequent words of some texts, with random vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:_WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=_DIMENSIONS)], device="cpu")


def train(model: Any, hard_negatives: HardNegativeDataset) -> None:
    """Train with the stock trainer, and with new negatives before every epoch."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    with tempfile.TemporaryDirectory() as output:
        args = SentenceTransformerTrainingArguments(
            output_dir=output,
            num_train_epochs=_EPOCHS,
            per_device_train_batch_size=64,
            learning_rate=0.02,
            save_strategy="no",
            report_to="none",
            logging_strategy="epoch",
            use_cpu=True,
        )
        SentenceTransformerTrainer(
            model=model,
            args=args,
            train_dataset=hard_negatives.as_dataset(with_ids=True),
            loss=SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives),
            callbacks=[MiningCallback(hard_negatives, mining_strategy="epoch")],
        ).train()


def accuracy(model: Any, pairs: Dataset, corpus: Sequence[str]) -> float:
    """Return the share of pairs whose positive is nearest to its anchor of all texts."""
    anchors, texts = (
        torch.as_tensor(encode(list(some), batch_size=256, show_progress_bar=False, normalize_embeddings=True))
        for encode, some in ((model.encode_query, pairs["anchor"]), (model.encode_document, corpus))
    )
    place = {text: number for number, text in enumerate(corpus)}
    own = torch.tensor([place[text] for text in pairs["positive"]])
    return float(((anchors @ texts.T).argmax(dim=1) == own).float().mean())
