"""Run with two processes: trains every semi-hard loss with three refreshes and writes what each rank ends with.

Arguments: output folder, folder of a tiny transformer.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss, TripletLoss

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.losses import (
    SemiHardCachedMultipleNegativesRankingLoss,
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
)
from st_hardneg.training.callback import _Target
from tests.conftest import WORDS, random_texts, run_and_leave, word_model


def weighted_sum(model):
    parts = {
        "ranking": (0.6, SemiHardMultipleNegativesRankingLoss(model, gather_across_devices=True)),
        "contrastive": (0.3, SemiHardContrastiveLoss(model)),
        "triplet": (0.1, SemiHardTripletLoss(model)),
    }
    return WeightedSumLoss(model, parts)


class Hidden(torch.nn.Module):
    """Keeps its model from the trainer, so that nobody brings the gradients of the ranks together."""

    def __init__(self, model):
        super().__init__()
        self.inner = MultipleNegativesRankingLoss(model)

    def forward(self, sentence_features, labels):
        return self.inner(sentence_features, labels)


LOSSES = {
    "plain": TripletLoss,
    "ranking": lambda model: SemiHardMultipleNegativesRankingLoss(model, gather_across_devices=True),
    "cached": lambda model: SemiHardCachedMultipleNegativesRankingLoss(
        model, mini_batch_size=2, gather_across_devices=True
    ),
    "triplet": SemiHardTripletLoss,
    "contrastive": SemiHardContrastiveLoss,
    "sum": weighted_sum,
    "sharded": TripletLoss,
    "diverging": Hidden,
}


class Compared(MiningCallback):
    """Mines beside every refresh, on each rank alone, with the weights of the moment."""

    def __init__(self, hard_negatives, is_sharded):
        super().__init__(hard_negatives, mining_steps=2)
        self.is_sharded = is_sharded
        self.tables, self.alone, self.encoded = [], [], []

    def _compute(self, target, args, step, trained, config):
        calls, infer = [], trained._inference
        trained._inference = lambda inputs, **options: calls.append(len(inputs)) or infer(inputs, **options)
        if self.is_sharded:
            # What a sharded model needs of the mining: no rank may sit still while another one encodes.
            flag = "is_deepspeed_enabled" if step == 4 else "is_fsdp_enabled"
            setattr(self.trainer, flag, True)
        mining = super()._compute(target, args, step, trained, config)
        if self.is_sharded:
            setattr(self.trainer, flag, False)
        trained._inference = infer
        self.encoded.append(calls)
        self.alone.append(target.hard_negatives.compute_mining(trained, show_progress_bar=False).negative_ids)
        return mining

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step in (2, 4, 6):
            rows = np.arange(len(self.hard_negatives))
            self.tables.append(self.hard_negatives._table.read(rows))


def make_negatives(num_negatives):
    """Return 80 pairs and a corpus, not yet mined."""
    texts = list(dict.fromkeys(random_texts(400, seed=3, length=2)))
    pairs = Dataset.from_dict({"anchor": texts[:80], "positive": texts[80:160]})
    config = MiningConfig(num_negatives=num_negatives, sampling_strategy="random", range_max=8)
    return HardNegativeDataset(pairs, texts[160:], config)


def train(name, folder, transformer, world):
    """Train eight steps with refreshes at 2, 4 and 6."""
    if name == "cached":  # which does not take static embeddings
        model = SentenceTransformer(transformer, device="cpu")
    else:
        model = word_model(WORDS, torch.randn(200, 8, generator=torch.Generator().manual_seed(0)))
    hard_negatives = make_negatives(1 if LOSSES[name] is TripletLoss else 2)
    hard_negatives.mine(model, show_progress_bar=False)
    callback = Compared(hard_negatives, name == "sharded")
    torch.manual_seed(0)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "output"),
            per_device_train_batch_size=8 // world,
            max_steps=8,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            learning_rate=0.05 if name != "cached" else 0.002,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=hard_negatives.as_dataset(),
        loss=LOSSES[name](model),
        callbacks=[callback],
    )
    trainer.train()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).numpy()
    arrays = {"tables": callback.tables, "alone": callback.alone, "weights": weights}
    return {key: np.asarray(value) for key, value in arrays.items()}, callback.encoded


def mine_sharded(transformer):
    """Mine with a model whose weights are split over the ranks by FSDP2; return whole and sharded tables."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # an older torch
        return {}
    model = SentenceTransformer(transformer, device="cpu")
    hard_negatives = make_negatives(2)
    expected = hard_negatives.compute_mining(model, show_progress_bar=False).negative_ids
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
    weights = next(model.parameters())
    callback = MiningCallback(hard_negatives)
    # accelerate has no FSDP without an accelerator, so the trainer is a stand-in; the sharding is real.
    trainer = SimpleNamespace(is_fsdp_enabled=True)
    callback._trainer = lambda: trainer
    args = SentenceTransformerTrainingArguments(use_cpu=True, disable_tqdm=True, report_to="none")
    found = callback._compute(_Target(None, hard_negatives), args, 1, model, hard_negatives.config).negative_ids
    sizes = [weights.to_local().numel(), weights.numel()]
    return {"fsdp2_expected": expected, "fsdp2_found": found, "fsdp2_sizes": sizes}


def main() -> None:
    """Train everything and write the figures."""
    folder, transformer = Path(sys.argv[1]), sys.argv[2]
    disable_progress_bars()
    rank = os.environ["RANK"]
    arrays, encoded = {}, {}
    for name in LOSSES:
        found, encoded[name] = train(name, folder, transformer, world=2)
        arrays |= {f"{name}_{key}": value for key, value in found.items()}
    arrays |= mine_sharded(transformer)
    np.savez(folder / f"losses{rank}.npz", **arrays)
    (folder / f"encoded{rank}.json").write_text(json.dumps(encoded))


if __name__ == "__main__":
    run_and_leave(main)
