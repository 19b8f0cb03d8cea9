"""Train with refreshed negatives and each of the losses, and compare them on held-out queries.

    python examples/compare_losses.py --data DIR --model NAME_OR_PATH --static --seeds 1 2 3

The cached ranking loss computes what the uncached one does, and takes no static embeddings, so it has no row here.
Takes the options of `train_with_refresh.py`, and --losses to choose some of them.
"""

from __future__ import annotations

import copy
import logging
import statistics
import warnings
from collections.abc import Callable

from datasets import disable_progress_bars
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss
from torch import nn
from train_with_refresh import argument_parser, load, make_config, make_model, measure, train

from st_hardneg import HardNegativeDataset, MiningCallback
from st_hardneg.corpus.known import KnownPositives
from st_hardneg.losses import (
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
)

LOSSES: dict[str, Callable[[SentenceTransformer, KnownPositives], nn.Module]] = {
    "MNRL (Sentence Transformers)": lambda model, known: MultipleNegativesRankingLoss(model),
    "SemiHardMNRL": lambda model, known: SemiHardMultipleNegativesRankingLoss(model, known_positives=known),
    "SemiHardMNRL, near positives": lambda model, known: SemiHardMultipleNegativesRankingLoss(
        model, known_positives=known, max_positive_similarity=0.8
    ),
    "SemiHardTriplet": lambda model, known: SemiHardTripletLoss(model, known_positives=known),
    "SemiHardContrastive": lambda model, known: SemiHardContrastiveLoss(model, known_positives=known),
    "WeightedSum .6/.3/.1": lambda model, known: WeightedSumLoss(
        model,
        {
            "ranking": (0.6, SemiHardMultipleNegativesRankingLoss(model, known_positives=known)),
            "contrastive": (0.3, SemiHardContrastiveLoss(model, known_positives=known)),
            "cosine": (0.1, CosineSimilarityLoss(model)),
        },
    ),
}


def main() -> None:
    """Train once per loss and seed and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    arguments = parser.parse_args()
    pairs, corpus, evaluate = load(arguments.data, arguments.limit)
    config = make_config(arguments)
    base = make_model(arguments, [*pairs["anchor"], *corpus["text"]])
    print(f"\nnDCG@10 on held-out queries{'':<8}{'mean':>7}" + "".join(f"{f'seed {s}':>9}" for s in arguments.seeds))
    for name in arguments.losses:
        values = []
        for seed in arguments.seeds:
            model = copy.deepcopy(base)
            hard_negatives = HardNegativeDataset(pairs, corpus, config, batch_size=256)
            hard_negatives.mine(model, show_progress_bar=False)
            loss = LOSSES[name](model, hard_negatives.known_positives)
            callback = MiningCallback(hard_negatives, mining_strategy="epoch")
            # Sentence Transformers' own loss ignores labels, and is trained as its users do: without.
            dataset = hard_negatives.as_dataset(with_ids=type(loss) is not MultipleNegativesRankingLoss)
            train(model, dataset, arguments, seed, [callback], loss)
            values.append(measure(evaluate, model))
        row = "".join(f"{value:>9.4f}" for value in values)
        print(f"{name:<35}{statistics.mean(values):>7.4f}{row}", flush=True)


if __name__ == "__main__":
    disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    main()
