"""Run by one process or as one of two ranks: mines with several kinds of models, and writes what each rank ends with.

Arguments: folder, and optionally "dies" or "waits", which is what the second rank does in place of mining.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars

from st_hardneg import HardNegativeDataset
from tests import tiny_models
from tests.conftest import WORDS, random_texts, run_and_leave, word_model
from tests.toys import Model, by_seed

RANK = int(os.environ.get("RANK", 0))
TEXTS = list(dict.fromkeys(random_texts(300, seed=3, length=5) + random_texts(300, seed=4, length=2)))[:320]
PAIRS = Dataset.from_dict({"anchor": TEXTS[:80], "positive": TEXTS[80:160]})
STATIC = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))


class Service(Model):
    """An object that is no module, as a client of an embedding service is."""

    def __init__(self) -> None:
        super().__init__(by_seed(0))
        self.lengths: list[int] = []

    def encode(self, texts, **options):
        self.lengths.append(len(texts))
        return super().encode(texts, **options)

    def encode_query(self, texts):
        return self.encode(texts)

    encode_document = encode_query


def counted(model) -> list[int]:
    """Return a list to which the number of texts of every call of a model is added."""
    lengths: list[int] = []
    real = model._inference
    model._inference = lambda inputs, **options: lengths.append(len(inputs)) or real(inputs, **options)
    return lengths


def made(folder: Path) -> dict[str, tuple[object, list[int], dict[str, object]]]:
    """Return models, what they have encoded, and options, by name. With ranks, only the first would write models."""
    service, colbert, splade = (
        Service(),
        tiny_models.colbert(folder / f"c{RANK}"),
        tiny_models.splade(folder / f"s{RANK}"),
    )
    static, dense = word_model(WORDS, STATIC), word_model(WORDS, STATIC)
    cross_encoder = tiny_models.cross_encoder(folder / f"x{RANK}")
    return {
        "static": (static, counted(static), {"cache_folder": str(folder / f"cache{RANK}")}),
        "service": (service, service.lengths, {}),
        "rescored": (dense, counted(cross_encoder), {"cross_encoder": cross_encoder, "relative_margin": 0.05}),
        "colbert": (colbert, counted(colbert), {}),
        "splade": (splade, counted(splade), {}),
    }


def mined(model, lengths: list[int], options: dict[str, object]) -> dict[str, object]:
    found = HardNegativeDataset(PAIRS, TEXTS[160:], num_negatives=3, batch_size=8, **options)
    report = found.mine(model, over_ranks=True, show_progress_bar=False)
    mining = found.live.mining
    return {
        "ids": mining.negatives.ids.tolist(),
        "similarities": mining.negatives.similarities.tolist(),
        "rows": mining.positive_similarities.tolist(),
        "filled": report.num_slots,
        "encoded": sum(lengths),
        "is_training": bool(getattr(model, "training", False)),
    }


def refusals() -> dict[str, str]:
    """Return what is said where ranks do not hold the same, and where one of them fails."""
    said: dict[str, str] = {}
    for name in ("rows", "weights", "prompts", "batches", "fails"):
        model = word_model(WORDS, STATIC + (0.1 * RANK if name == "weights" else 0))
        rows = PAIRS.select(range(80 - 10 * RANK)) if name == "rows" else PAIRS
        if name == "fails" and RANK == 1:

            def fail(inputs, **options):
                raise ValueError("the disk is full")

            model._inference = fail
        found = HardNegativeDataset(rows, num_negatives=1, batch_size=8 + 8 * (name == "batches" and RANK == 1))
        prompts = {"anchor": "w1 "} if name == "prompts" and RANK == 1 else None
        try:
            found.mine(model, over_ranks=True, prompts=prompts, show_progress_bar=False)
        except (ValueError, RuntimeError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bars()
    folder, what = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    if what:
        # They meet before the time counts: a busy machine starts one long after the other.
        (folder / f"here{RANK}").touch()
        while not (folder / f"here{1 - RANK}").exists():
            time.sleep(0.05)
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=8))
        torch.distributed.barrier()
        if RANK == 1:
            time.sleep(30 if what == "waits" else 0)
            os._exit(3)
        found = HardNegativeDataset(PAIRS, num_negatives=1)
        found.mine(word_model(WORDS, STATIC), over_ranks=True, show_progress_bar=False)
        return
    results = {name: mined(*each) for name, each in made(folder).items()}
    world = int(os.environ.get("WORLD_SIZE", 1))
    said = refusals() if world > 1 else {}
    (folder / f"rank{RANK}-of-{world}.json").write_text(json.dumps({"results": results, "said": said}))


if __name__ == "__main__":
    run_and_leave(main)
