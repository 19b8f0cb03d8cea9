"""Choosing from candidates that are kept against mining anew: seconds, and whether both find the same.

    python tests/benchmarks/choose.py --data PATH_OF_scifact [--model sentence-transformers/all-MiniLM-L6-v2] [--keep 300]

``--data`` is a folder with `corpus.jsonl.gz`, `queries.jsonl.gz` and `qrels/train.tsv`. A mining is encoding, search and
rules; what is chosen from the candidates is rules only. Each recipe is mined with the same vectors, so that the search is
compared, too; the first mining says what encoding takes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from datasets import disable_progress_bars

from st_hardneg import HardNegativeDataset, MiningConfig, SimANS


def main() -> None:
    """Mine once, choose with several recipes, and compare each with a mining."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--keep", type=int, default=300)
    args = parser.parse_args()
    disable_progress_bars()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(args.model, device="cpu")
    tables = [os.path.join(args.data, name) for name in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels/train.tsv")]
    with tempfile.TemporaryDirectory() as folder:

        def dataset(config: MiningConfig) -> HardNegativeDataset:
            return HardNegativeDataset.from_beir(*tables, config, cache_folder=folder)

        pool = dataset(MiningConfig(keep_candidates=args.keep))
        started = time.perf_counter()
        pool.mine(model, show_progress_bar=False)
        mining = time.perf_counter() - started
        print(
            f"{len(pool):,} rows, {len(pool.corpus):,} texts: mined with encoding, {args.keep} kept, in {mining:.1f} s"
        )
        for config in (
            MiningConfig(),
            MiningConfig(num_negatives=5, relative_margin=0.05),
            MiningConfig.recommended(shortfall="drop"),
            MiningConfig(range_max=100, sampling_strategy=SimANS()),
        ):
            fresh = dataset(config)
            fresh.mine(model, show_progress_bar=False)  # vectors are read from the folder
            started = time.perf_counter()
            chosen = pool.choose(config)
            seconds = time.perf_counter() - started
            same = (chosen.negative_ids == fresh.negative_ids).mean()
            print(
                f"  chosen in {seconds:.3f} s, {mining / seconds:,.0f} times as fast; {same:.2%} of the slots are equal"
            )


if __name__ == "__main__":
    main()
