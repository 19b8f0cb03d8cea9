"""One real model of each kind, trained for some steps, with refreshes that are compared with brute force.

    python tests/benchmarks/real_models.py --data DIR --model sentence-transformers/all-MiniLM-L6-v2 [--kinds dense sparse]

DIR holds a labelled set in BEIR's layout. All are made of one BERT, whole: dense as it is; sparse (SPLADE) with a masked
language model's head of its own word vectors; multi-vector with a projection of its tokens; a cross encoder with a new
head. After each refresh the scores in force are compared with the highest that the model gives to any text (a cross
encoder's with what it gives to the same pairs), and every row at the loss with what was to be read at that step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "examples")]

import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from train_with_refresh import load
from transformers import BertForMaskedLM, TrainerCallback

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from tests.training.test_surroundings import TRAINERS, ranking_loss


def make_model(kind: str, name: str, folder: Path, max_length: int) -> Any:
    """Return a model of a kind."""
    torch.manual_seed(0)
    if kind == "cross":
        return CrossEncoder(name, num_labels=1, max_length=2 * max_length, device="cpu")
    whole: Any = SentenceTransformer(name, device="cpu")
    bert, tokenizer = whole[0].auto_model, whole.tokenizer
    if kind == "sparse":
        masked = BertForMaskedLM(bert.config)
        masked.bert.load_state_dict(bert.state_dict(), strict=False)
        masked.tie_weights()
        bert = masked
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind == "sparse":
        transformer = Transformer(str(folder), transformer_task="fill-mask")
        model = SparseEncoder(modules=[transformer, SpladePooling()], device="cpu")
    else:
        transformer = Transformer(str(folder))
        if kind == "dense":
            model = SentenceTransformer(modules=[transformer, Pooling(bert.config.hidden_size)], device="cpu")
        else:
            identity, tokens = torch.nn.Identity(), "token_embeddings"
            size = bert.config.hidden_size
            dense = Dense(size, 128, bias=False, activation_function=identity, module_input_name=tokens)
            last = Normalize(module_input_name=tokens)
            model = MultiVectorEncoder(modules=[transformer, dense, MultiVectorMask(), last], device="cpu")
    model.max_seq_length = max_length
    return model


def own_scores(kind: str, model: Any, anchors: list[str], texts: list[list[str]]) -> torch.Tensor:
    """Return the scores of each anchor with its texts, by the model's own methods."""
    if kind == "cross":
        pairs = [(anchor, text) for anchor, some in zip(anchors, texts, strict=True) for text in some]
        return torch.as_tensor(model.predict(pairs, show_progress_bar=False)).view(len(anchors), -1)
    options = {"show_progress_bar": False} | ({"convert_to_sparse_tensor": False} if kind == "sparse" else {})
    distinct = list(dict.fromkeys(text for some in texts for text in some))
    queries, documents = model.encode_query(anchors, **options), model.encode_document(distinct, **options)
    scores = torch.as_tensor(model.similarity(queries, documents))
    places = {text: place for place, text in enumerate(distinct)}
    return scores.gather(1, torch.tensor([[places[text] for text in some] for some in texts]))


class Compare(TrainerCallback):
    """Compares what is in force with what the model says, right after each refresh."""

    def __init__(self, kind: str, found: HardNegativeDataset, corpus: list[str], steps: list[int]) -> None:
        self.kind, self.found, self.corpus, self.steps = kind, found, corpus, steps
        self.states = {0: self._now()}
        self.worst, self.wrong = 0.0, 0

    def _now(self) -> list[list[str]]:
        return [self.found.corpus.texts.take(row) for row in self.found.negative_ids]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Compare, if there was a refresh."""
        if state.global_step not in self.steps:
            return
        was_training = model.training
        rows, now = self.found.to_dataset("n-tuple"), self._now()
        self.states[state.global_step] = now
        anchors, negatives = list(rows["anchor"]), self.found.live.mining.negatives
        given = negatives.cross_encoder_scores if self.kind == "cross" else negatives.similarities
        if self.kind == "cross":
            expected = own_scores(self.kind, model, anchors, now)
        else:
            scores = own_scores(self.kind, model, anchors, [self.corpus] * len(anchors))
            for row, positive in enumerate(rows["positive"]):
                scores[row, self.corpus.index(positive)] = -torch.inf
            expected = scores.topk(len(now[0])).values
        difference = (given - expected).abs() / expected.abs().clamp(min=1.0)
        self.worst = max(self.worst, float(difference.max()))
        self.wrong += int((~(difference <= 1e-5)).sum())  # what is no number is wrong, too
        model.train(was_training)


def measure(kind: str, arguments: argparse.Namespace) -> bool:
    """Train one model, print what was found, and tell whether all was right."""
    started = time.perf_counter()
    pairs, documents, _ = load(arguments.data)
    first_of = {anchor: row for row, anchor in reversed(list(enumerate(pairs["anchor"])))}
    pairs = pairs.select(sorted(first_of.values())[: arguments.pairs]).select_columns(["anchor", "positive"])
    corpus = list(dict.fromkeys([*pairs["positive"], *documents["text"]]))[: arguments.texts]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(kind, arguments.model, Path(folder) / "model", arguments.max_length)
        depth = 8 if kind == "cross" else len(corpus) + 1
        config = MiningConfig(num_negatives=2, range_max=depth)
        found = HardNegativeDataset(pairs, corpus, config, batch_size=64)
        retriever = SentenceTransformer(arguments.model, device="cpu") if kind == "cross" else None
        if retriever is not None:
            retriever.max_seq_length = arguments.max_length
        found.mine(retriever or model, show_progress_bar=False)
        compare, batches = Compare(kind, found, corpus, [3, 6]), list[Any]()
        loss = ranking_loss(kind, model)
        loss.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
        trainer_class, args_class = TRAINERS[kind]
        args = args_class(
            output_dir=folder, max_steps=8, per_device_train_batch_size=8, save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=True, learning_rate=1e-4, logging_strategy="no",
        )  # fmt: skip
        callback = MiningCallback(found, 3, retriever=retriever)
        trainer = trainer_class(
            model=model, args=args, train_dataset=found.as_dataset(), loss=loss, callbacks=[callback, compare]
        )
        trainer.train()
    # From which step on the loss sees each mining is what the log has stated.
    stated = [
        int(line["mining/seen_from_step"]) for line in trainer.state.log_history if "mining/seen_from_step" in line
    ]
    read_from = dict(zip(compare.states, [1, *stated], strict=True))
    wrong_rows = rows_not_as_stated(batches, model, pairs, compare.states, read_from)
    churn = [round(report.churn or 0.0, 3) for report in callback.reports]
    print(
        f"{kind}: {len(pairs)} pairs, {len(corpus)} texts, churn {churn}, largest relative difference "
        f"{compare.worst:.1e}, {compare.wrong} scores off by more than 1e-5, {wrong_rows} of {8 * len(batches)} rows at "
        f"the loss not as stated, {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    return not compare.wrong and not wrong_rows and len(callback.reports) == 2


def rows_not_as_stated(
    batches: list[Any], model: Any, pairs: Dataset, states: dict[int, list[list[str]]], read_from: dict[int, int]
) -> int:
    """Return how many rows at the loss are not those of the dataset with the negatives that were to be read then.

    Args:
        batches: What the loss got, by step.
        model: The model, whose tokenizer has made it.
        pairs: Anchors and positives.
        states: The negatives of each row, by the step at which they were mined.
        read_from: The first step at which each of them is read.
    """
    wrong = 0
    rows = list(zip(pairs["anchor"], pairs["positive"], strict=True))
    for step, columns in enumerate(batches, start=1):
        negatives = states[max(mined for mined, first in read_from.items() if first <= step)]
        read = zip(*(_texts(column, model) for column in columns), strict=True)
        known = {_as_read([*rows[row], *negatives[row]], columns, model) for row in range(len(rows))}
        wrong += sum(tuple(one) not in known for one in read)
    return wrong


def _texts(column: Any, model: Any) -> list[Any]:
    if isinstance(column, (list, tuple)):
        return list(column)
    ids, mask = column["input_ids"].tolist(), column["attention_mask"].tolist()
    return [tuple(i for i, m in zip(one, use, strict=True) if m) for one, use in zip(ids, mask, strict=True)]


def _as_read(texts: list[str], columns: Any, model: Any) -> tuple[Any, ...]:
    if isinstance(columns[0], (list, tuple)):
        return tuple(texts)
    length = model.max_seq_length
    return tuple(tuple(ids) for ids in model.tokenizer(texts, truncation=True, max_length=length)["input_ids"])


def main() -> None:
    """Measure each kind; end with status 1 if something was not right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--kinds", nargs="+", default=list(TRAINERS), choices=list(TRAINERS))
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=48)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(int(not all([measure(kind, arguments) for kind in arguments.kinds])))


if __name__ == "__main__":
    disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*(pin_memory|Sparse CSR).*")
    main()
