"""Run with one or two processes: trains with refreshes and writes what each rank ends with.

Arguments: output folder, and optionally one of these: "fail-0" or "fail-1", the rank whose encoding raises at the second
refresh; "kill-0" or "kill-1", the rank that is killed there; "resume", go on from the last checkpoint; "slow" or
"slow-silent", a search that takes longer than the ranks wait, with signs of life or without; "schedule", three epochs
with more negatives from epoch to epoch, in batches about one topic each; "drift", the second rank mines with other
weights before the training; "other-rows", so that its live view has other rows, too; "background", refreshes in a second
process of the first rank.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss, TripletLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from transformers import TrainerCallback

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.encoders import ranks
from st_hardneg.samplers import TopicAwareBatchSampler
from st_hardneg.search import ExactSearcher
from st_hardneg.training.schedules import Linear, PerEpoch
from tests.conftest import WORDS, random_texts, run_and_leave, word_model
from tests.training.runs import ids_of, table_of


class SlowSearcher(ExactSearcher):
    """Takes a second for each chunk, once training has begun."""

    seconds = 0.0

    def search(self, query_embeddings, k):
        time.sleep(self.seconds)
        return super().search(query_embeddings, k)


class Slow(TrainerCallback):
    """Lets the first rank wait for what goes on in the background, at every step but those that begin something."""

    def __init__(self, mining):
        self.mining = mining

    def on_step_end(self, args, state, control, **kwargs):
        job = self.mining._refresher._job
        while state.is_world_process_zero and state.global_step % 2 and job is not None and job.answer is None:
            time.sleep(0.01)


def main() -> None:
    """Train 8 steps with refreshes at 2, 4 and 6."""
    folder, failure = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    disable_progress_bars()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    texts = list(dict.fromkeys(random_texts(400, seed=3, length=2)))
    model = word_model(WORDS, torch.randn(200, 8, generator=torch.Generator().manual_seed(0)))
    pairs = Dataset.from_dict({"anchor": texts[:80], "positive": texts[80:160]})
    is_slow = failure.startswith("slow")
    config = MiningConfig(num_negatives=1, sampling_strategy="random", range_max=8)
    is_scheduled = failure == "schedule"
    if is_scheduled:
        config = replace(config, num_negatives=3, range_max=12)
    searcher = SlowSearcher()
    hard_negatives = HardNegativeDataset(
        pairs,
        texts[160:],
        config,
        searcher=searcher,
        query_chunk_size=10 if is_slow else 512,
        num_topics=4 if is_scheduled else None,
    )
    if failure == "other-rows":
        hard_negatives = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=3, relative_margin=0.3))
    drift = failure in ("drift", "other-rows") and rank == 1
    noise = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)) * float(drift)
    hard_negatives.mine(word_model(WORDS, model[0].embedding.weight.detach()[1:] + noise), show_progress_bar=False)
    mined_alone = ids_of(hard_negatives)
    first_tables: list[list[list[int]]] = []

    if is_slow:
        # accelerate does not hand `ddp_timeout` to gloo.
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=6))
        searcher.seconds = 1.5
        ranks._KEEP_ALIVE_SECONDS = 1.0 if failure == "slow" else 1e9
    encoded: list[int] = []
    infer = model._inference

    def counted(inputs, **options):
        encoded.append(len(inputs))
        if failure == f"fail-{rank}" and len(encoded) > 2:
            raise RuntimeError(f"simulated failure on rank {rank}")
        if failure == f"kill-{rank}" and len(encoded) > 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return infer(inputs, **options)

    model._inference = counted
    model._create_model_card = lambda *_, **__: None  # it encodes, too
    schedule = {"num_shown": PerEpoch(1, add=1), "range_min": Linear(6, 0)} if is_scheduled else None
    in_background = failure == "background"
    mining = MiningCallback(
        hard_negatives, mining_steps=6 if is_slow else 2, schedule=schedule, background=in_background
    )
    loss = MultipleNegativesRankingLoss(model) if is_scheduled or failure == "other-rows" else TripletLoss(model)
    batches: list[list[list[int]]] = []
    loss.register_forward_pre_hook(
        lambda _, given: batches.append([feature["input_ids"].tolist() for feature in given[0]])
    )
    loss.register_forward_pre_hook(lambda *_: None if first_tables else first_tables.append(table_of(hard_negatives)))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "output"),
            per_device_train_batch_size=(20 if is_scheduled else 8) // world,
            max_steps=12 if is_scheduled else 8,
            batch_sampler=TopicAwareBatchSampler if is_scheduled else BatchSamplers.BATCH_SAMPLER,
            save_strategy="steps" if failure.startswith(("kill", "resume")) else "no",
            save_steps=1,
            report_to="none",
            disable_tqdm=True,
            learning_rate=0.05,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=hard_negatives.as_dataset(),
        loss=loss,
        callbacks=[mining, Slow(mining)] if in_background else [mining],
    )
    trainer.train(resume_from_checkpoint=failure == "resume")
    view = hard_negatives.live.view
    np.savez(
        folder / f"rank{rank}-of-{world}.npz",
        table=np.asarray(table_of(hard_negatives)),
        ids=np.asarray(ids_of(hard_negatives)),
        weights=model[0].embedding.weight.detach().numpy(),
    )
    figures = {
        "encoded": encoded,
        "generation": view.table.generation,
        "steps": [r.step for r in mining.reports],
        "in_force": [dict(r.in_force) for r in mining.reports],
        "topics": None if view.topics is None else view.topics.tolist(),
        "batches": batches,
        "mined_alone": mined_alone,
        "first_table": first_tables[0],
    }
    (folder / f"rank{rank}-of-{world}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    run_and_leave(main)
