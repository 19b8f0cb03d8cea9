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
from st_hardneg.training.curriculum import in_force
from st_hardneg.training.prompts import training_encodings
from st_hardneg.training.refresh import InlineRefresher, Request
from st_hardneg.training.schedules import Progress
from st_hardneg.training.targets import Target
from tests.conftest import WORDS, random_texts, run_and_leave, word_model
from tests.training.runs import table_of


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


class ComparedRefresher(InlineRefresher):
    """Mines beside every refresh, on each rank alone, with the weights of the moment."""

    def __init__(self, is_sharded):
        super().__init__()
        self.is_sharded = is_sharded
        self.alone, self.encoded = [], []

    def start(self, request, args, trainer):
        calls, infer = [], request.model._inference
        request.model._inference = lambda inputs, **options: calls.append(len(inputs)) or infer(inputs, **options)
        if self.is_sharded:
            # What a sharded model needs of the mining: no rank may sit still while another one encodes.
            flag = "is_deepspeed_enabled" if request.step == 4 else "is_fsdp_enabled"
            setattr(trainer, flag, True)
        super().start(request, args, trainer)
        if self.is_sharded:
            setattr(trainer, flag, False)
        request.model._inference = infer
        self.encoded.append(calls)
        alone = request.target.hard_negatives.compute_mining(request.model, show_progress_bar=False)
        self.alone.append(alone.negatives.ids.tolist())


class Compared(MiningCallback):
    """Refreshes with the above, and notes what the live view reads after each refresh."""

    def __init__(self, hard_negatives, is_sharded):
        super().__init__(hard_negatives, mining_steps=2)
        self.refresher = ComparedRefresher(is_sharded)
        self.tables = []

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self._refresher = self.refresher

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step in (2, 4, 6):
            self.tables.append(table_of(self.hard_negatives))


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
    arrays = {"tables": callback.tables, "alone": callback.refresher.alone, "weights": weights}
    return {key: np.asarray(value) for key, value in arrays.items()}, callback.refresher.encoded


def mine_sharded(transformer):
    """Mine with a model whose weights are split over the ranks by FSDP2; return whole and sharded tables."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # an older torch
        return {}
    model = SentenceTransformer(transformer, device="cpu")
    hard_negatives = make_negatives(2)
    expected = hard_negatives.compute_mining(model, show_progress_bar=False).negatives.ids.numpy()
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
    weights = next(model.parameters())
    # accelerate has no FSDP without an accelerator, so the trainer is a stand-in; the sharding is real.
    trainer = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    args = SentenceTransformerTrainingArguments(use_cpu=True, disable_tqdm=True, report_to="none")
    now, refresher = in_force(None, hard_negatives.config, Progress(0)), InlineRefresher()
    encodings = training_encodings(hard_negatives, args)
    refresher.start(Request(Target(hard_negatives), model, encodings, now, 1), args, trainer)
    found = next(refresher.finished(1))[1].negatives.ids.numpy()
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
