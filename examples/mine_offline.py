"""Mine once, look at the report, write plain datasets: no training, no network.

python examples/mine_offline.py
"""

from __future__ import annotations

import tempfile

from datasets import Dataset, disable_progress_bars, load_from_disk
from docstring_pairs import standard_library_pairs
from train_with_refresh import static_model

from st_hardneg import HardNegativeDataset, MiningConfig


def main() -> None:
    """Mine negatives for docstrings and read them back without this package."""
    pairs, corpus, _, _ = standard_library_pairs()
    pairs = pairs.select(range(500))
    model = static_model([*pairs["anchor"], *corpus["text"]])

    config = MiningConfig(num_negatives=3, relative_margin=0.05, max_positive_similarity=0.95, shortfall="random")
    hard_negatives = HardNegativeDataset(pairs, corpus, config)
    print(hard_negatives.mine(model, show_progress_bar=False))

    triplets = hard_negatives.to_dataset("triplet", output_scores=True)
    print(triplets)
    print({name: str(value)[:70] for name, value in triplets[0].items()})
    with tempfile.TemporaryDirectory() as folder:
        triplets.save_to_disk(f"{folder}/triplets")  # plain Arrow
        assert isinstance(load_from_disk(f"{folder}/triplets"), Dataset)
        hard_negatives.save_to_disk(f"{folder}/mined")  # everything: pairs, corpus, ids, scores, recipe, report
        print(HardNegativeDataset.load_from_disk(f"{folder}/mined"))


if __name__ == "__main__":
    disable_progress_bars()
    main()
