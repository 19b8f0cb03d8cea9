"""Search with anything that has two methods: here, brute force in NumPy; and filter by a rule of one's own.

python examples/custom_searcher.py
"""

from __future__ import annotations

import numpy as np
import torch
from datasets import disable_progress_bars
from docstring_pairs import standard_library_pairs
from train_with_refresh import static_model

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.candidates import Candidates
from st_hardneg.corpus.numbering import Corpus


class NumpySearcher:
    """Cosine search in NumPy."""

    def index(self, corpus_embeddings: torch.Tensor, similarity_fn_name: str) -> None:
        """Keep the corpus, scaled to unit length."""
        if similarity_fn_name != "cosine":
            raise ValueError(f"Expected a model with cosine similarity, got {similarity_fn_name!r}.")
        self.corpus = torch.nn.functional.normalize(corpus_embeddings).numpy()

    def search(self, query_embeddings: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return row numbers and scores, closest first."""
        scores = torch.nn.functional.normalize(query_embeddings).numpy() @ self.corpus.T
        closest = np.argsort(-scores, axis=1)[:, :k]
        return torch.from_numpy(closest), torch.from_numpy(np.take_along_axis(scores, closest, axis=1))


def no_doctests(candidates: Candidates, corpus: Corpus) -> torch.Tensor:
    """Keep texts without an interactive session in them; True means that a candidate may stay."""
    texts = corpus.texts.take(candidates.corpus_ids.clamp(min=0).flatten().numpy())
    return torch.tensor([">>>" not in text for text in texts]).view(candidates.corpus_ids.shape)


def main() -> None:
    """Mine with both."""
    pairs, corpus, _, _ = standard_library_pairs()
    pairs = pairs.select(range(300))
    model = static_model([*pairs["anchor"], *corpus["text"]])
    config = MiningConfig(num_negatives=3, range_max=30)
    hard_negatives = HardNegativeDataset(
        pairs, corpus, config, searcher=NumpySearcher(), extra_filters={"no_doctests": no_doctests}
    )
    print(hard_negatives.mine(model, show_progress_bar=False))


if __name__ == "__main__":
    disable_progress_bars()
    main()
