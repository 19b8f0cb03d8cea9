"""Mine with Ray Data: rows are shared out over workers of a cluster, each of which holds model and corpus once.

Without arguments it needs no network and no data: pairs are docstrings of Python's standard library, the model is a
static embedding made on the spot, and the cluster is this machine. On a real one, only ``ray.init(address="auto")``
changes.

    pip install ".[ray]"
    python examples/mine_with_ray.py [--workers 2] [--limit 500]
"""

from __future__ import annotations

import argparse
import pickle
from typing import Any

import numpy as np
import ray
from docstring_pairs import standard_library_pairs
from train_with_refresh import static_model

from st_hardneg import HardNegativeMiner


class MineBatch:
    """What a worker does: it unpacks the miner once, and mines batch by batch.

    Args:
        miner: The miner, pickled: arrays that a worker gets from Ray's store of objects cannot be written to.
    """

    def __init__(self, miner: Any) -> None:
        self.miner: HardNegativeMiner = pickle.loads(ray.get(miner))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the batch with its negatives."""
        return self.miner({name: list(values) for name, values in batch.items()})


def main() -> None:
    """Mine over workers, and compare with one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=500, help="mine for so many pairs only")
    arguments = parser.parse_args()
    pairs, documents, _, _ = standard_library_pairs()
    pairs = pairs.select(range(min(arguments.limit, len(pairs)))).select_columns(["anchor", "positive"])
    model = static_model([*pairs["anchor"], *documents["text"]])
    miner = HardNegativeMiner(model, documents, positives=pairs, num_negatives=2)

    ray.init(num_cpus=arguments.workers, include_dashboard=False, ignore_reinit_error=True)
    mined = (
        ray.data.from_items(pairs.to_list())
        .map_batches(
            MineBatch,
            fn_constructor_args=(ray.put(pickle.dumps(miner)),),
            batch_size=100,
            concurrency=arguments.workers,
        )
        .take_all()
    )
    ray.shutdown()
    alone = miner.map(pairs).to_list()
    same = sorted(mined, key=str) == sorted(alone, key=str)
    print(
        f"{len(mined):,} rows by {arguments.workers} workers, {'the same' if same else 'NOT THE SAME'} as by one process"
    )
    print({name: text[:60] for name, text in mined[0].items()})


if __name__ == "__main__":
    main()
