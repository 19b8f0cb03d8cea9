"""Run by ``torchrun`` with two processes: trains every loss for four steps and writes how far the ranks differ."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import load_from_disk
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    BatchSemiHardTripletLoss,
    CosineSimilarityLoss,
    MatryoshkaLoss,
)
from torch import Tensor, nn

from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.losses import (
    LossDiagnosticsCallback,
    SemiHardCachedMultipleNegativesRankingLoss,
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
)
from tests.conftest import run_and_leave


def _sum(model: SentenceTransformer) -> nn.Module:
    ranking, triplet = SemiHardMultipleNegativesRankingLoss(model), SemiHardTripletLoss(model)
    return WeightedSumLoss(
        model, {"ranking": (0.6, ranking), "triplet": (0.4, triplet), "cosine": (0.1, CosineSimilarityLoss(model))}
    )


KNOWN = KnownPositives.from_lists([[query] for query in range(16)], identities=list(range(64)))
LOSSES: dict[str, Callable[[SentenceTransformer], nn.Module]] = {
    "ranking": SemiHardMultipleNegativesRankingLoss,
    "gathered": lambda model: SemiHardMultipleNegativesRankingLoss(
        model, gather_across_devices=True, known_positives=KNOWN
    ),
    "cached": lambda model: SemiHardCachedMultipleNegativesRankingLoss(model, mini_batch_size=4),
    "cached_gathered": lambda model: SemiHardCachedMultipleNegativesRankingLoss(
        model, mini_batch_size=4, gather_across_devices=True, known_positives=KNOWN
    ),
    "triplet": SemiHardTripletLoss,
    "contrastive": SemiHardContrastiveLoss,
    "sum": _sum,
    "matryoshka": lambda model: MatryoshkaLoss(model, _sum(model), [16, 8]),
    "matryoshka_cached": lambda model: MatryoshkaLoss(
        model, SemiHardCachedMultipleNegativesRankingLoss(model, mini_batch_size=4), [16, 8]
    ),
}


def _divergence(model: SentenceTransformer) -> float:
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    ranks = [torch.zeros_like(flat) for _ in range(2)]
    dist.all_gather(ranks, flat)
    return (ranks[0] - ranks[1]).abs().max().item()


def _train(model: SentenceTransformer, loss: nn.Module, data: Any, path: str) -> dict[str, Any]:
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    args = SentenceTransformerTrainingArguments(
        output_dir=path,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        max_steps=4,
        per_device_train_batch_size=8,
        logging_steps=2,
        learning_rate=0.01,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=loss)
    trainer.add_callback(LossDiagnosticsCallback(trainer))
    trainer.train()
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {
        "divergence": _divergence(model),
        "moved": (after - before).abs().max().item(),
        "log": next(entry for entry in trainer.state.log_history if "loss" in entry),
    }


def _gathered_against_whole(model: SentenceTransformer, data: Any) -> dict[str, float]:
    """Compare the loss of two gathered halves with that of the whole batch in one process."""
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(0)
    columns = list(torch.nn.functional.normalize(torch.randn(4, 16, 8, generator=generator), dim=-1))
    columns[1] = columns[0] + 0.5 * columns[1]
    label = torch.tensor(data["label"][:16])
    label[::3, 4] = label[1::5, 5] = -1
    results = {}
    all_directions = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    by_score = {"margin": 0.8, "max_positive_similarity": 0.6}
    for name, settings in {
        "one_direction": {"known_positives": KNOWN, **by_score},
        "four_directions": {"known_positives": KNOWN, "directions": all_directions, **by_score},
        "unfilled_only": {"mask_hard": False, "directions": all_directions},
        "no_label": {"directions": all_directions, **by_score},
    }.items():
        if name == "no_label":
            label = None
        whole = SemiHardMultipleNegativesRankingLoss(model, **settings)
        columns_of_one = [column.clone().requires_grad_() for column in columns]
        expected = whole.compute_loss_from_embeddings(columns_of_one, label)
        expected.backward()
        half = slice(8 * rank, 8 * rank + 8)
        columns_of_two = [column[half].clone().requires_grad_() for column in columns]
        gathered = SemiHardMultipleNegativesRankingLoss(model, gather_across_devices=True, **settings)
        value = gathered.compute_loss_from_embeddings(columns_of_two, None if label is None else label[half])
        value.backward()
        mean = value.detach().clone()
        dist.all_reduce(mean)
        results[f"value_{name}"] = (mean / 2 - expected.detach()).abs().item()
        # Each rank's loss is a mean over half the rows, so the gathered gradients are twice those of the whole.
        results[f"gradient_{name}"] = max(
            (two.grad / 2 - one.grad[half]).abs().max().item()
            for one, two in zip(columns_of_one, columns_of_two, strict=True)
        )
        results[f"shares_{name}"] = max(
            abs(a - b) for a, b in zip(_pooled(gathered), whole.diagnostics.pop().values(), strict=True)
        )
    return results


def _two_datasets(model: SentenceTransformer) -> dict[str, float]:
    """Gather rows of two datasets, one on each rank, whose numbers mean different texts."""
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(1)
    columns = list(torch.nn.functional.normalize(torch.randn(3, 8, 8, generator=generator), dim=-1))
    # On rank 0 there are four texts, on rank 1 ten thousand. On both, the first rows share a query and a positive.
    known = KnownPositives.from_lists([[0], [1]], list(range(4)))
    if rank == 1:
        known = KnownPositives.from_lists([[0], [9000]], list(range(10_000)))
    texts = [0, 0, 1, 1] if rank == 0 else [0, 0, 9000, 9000]
    label = torch.tensor(
        [[row, row // 2, text, 10**6, [2, -1, 3, 2][row] + 90 * rank * (row != 1)] for row, text in enumerate(texts)]
    )
    half = slice(4 * rank, 4 * rank + 4)
    # The whole, under one numbering: other texts have other numbers.
    whole_known = KnownPositives.from_lists([[0], [1], [2], [3]], list(range(8)))
    whole_label = torch.tensor([[row, row // 2, row // 2, 10**6, -1 if row % 4 == 1 else 7] for row in range(8)])
    results = {}
    for name, has_ids in (("both", True), ("one_without", rank == 0)):
        if name == "one_without":
            whole_label[4:, 1] = whole_label[4:, 2] = torch.arange(4, 8)
            whole_label[:, 4] = torch.tensor([8, -1, 8, 8, 8, 8, 8, 8])
            whole_known = KnownPositives.from_lists([[0], [1], [], [], [4], [5], [6], [7]], list(range(9)))
        whole = SemiHardMultipleNegativesRankingLoss(model, mask_hard=False, known_positives=whole_known)
        batch, _ = whole.rank_batch(columns, whole_label)
        expected = whole.row_losses(batch, 4 * rank, 4 * rank + 4).mean()
        loss = SemiHardMultipleNegativesRankingLoss(
            model, mask_hard=False, gather_across_devices=True, known_positives=known if has_ids else None
        )
        value = loss.compute_loss_from_embeddings([column[half] for column in columns], label if has_ids else None)
        difference = (value - expected).abs()
        dist.all_reduce(difference)
        results[name] = difference.item()
    return results


def _pooled(loss: Any) -> list[float]:
    counts: Tensor = loss.diagnostics.pop_counts()
    dist.all_reduce(counts)
    return (counts[:-1] / counts[-1]).tolist()


def main() -> None:
    """Train everything and write the figures."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
    # accelerate and Sentence Transformers call what torch 2.13 renames: `broadcast_buffers`, `nn.functional.all_gather`.
    warnings.filterwarnings("ignore", category=FutureWarning)
    model_path, data_path, out_path = sys.argv[1:]
    dist.init_process_group("gloo")
    data = load_from_disk(data_path)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as path:
        for name, build in LOSSES.items():
            model = SentenceTransformer(model_path, device="cpu")
            rows = data if "gathered" in name else data.remove_columns("label")
            results[name] = _train(model, build(model), rows, path)
        model = SentenceTransformer(model_path, device="cpu")
        classes = data.select_columns(["anchor"]).add_column("label", [row % 16 for row in range(64)])
        results["sentence_transformers"] = _train(model, BatchSemiHardTripletLoss(model), classes, path)
    results["whole"] = _gathered_against_whole(model, data)
    results["two_datasets"] = _two_datasets(model)
    if dist.get_rank() == 0:
        Path(out_path).write_text(json.dumps(results))


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    run_and_leave(main)
