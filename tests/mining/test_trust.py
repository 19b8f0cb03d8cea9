"""The typical rank of the right answer, and the strength of adaptive bounds that follows from it."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from numpy.typing import NDArray

from st_hardneg import Adaptive, HardNegativeDataset, MiningConfig
from st_hardneg.mining.trust import doubt_of

Vectors = NDArray[np.float32]
DIM, NUM_TEXTS = 16, 60


def test_doubt_grows_with_the_logarithm_of_the_rank():
    """From 0 up to rank 1.5 to 1 at rank 10; equal factors of the rank are equal steps."""
    assert [doubt_of(rank) for rank in (1.0, 1.5)] == [0.0, 0.0]
    assert doubt_of(np.sqrt(1.5 * 10.0)) == pytest.approx(0.5)
    assert doubt_of(10.0) == doubt_of(101.0) == 1.0


class Known:
    """A model whose vectors are given."""

    def __init__(self, queries: Vectors, texts: Vectors) -> None:
        self.queries, self.texts = queries, texts

    def encode_query(self, sentences: list[str], **_: object) -> Vectors:
        """Return a vector for each "q7"."""
        return self.queries[[int(text[1:]) for text in sentences]]

    def encode_document(self, sentences: list[str], **_: object) -> Vectors:
        """Return a vector for each "t7"."""
        return self.texts[[int(text[1:]) for text in sentences]]


def highest_share(dataset: HardNegativeDataset, queries: Vectors, texts: Vectors) -> float:
    """Return how far the hardest negative gets on the way from chance to the right answer."""
    unit_queries, unit_texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, texts))
    cosine = unit_queries @ unit_texts.T
    chance, own = cosine.mean(axis=1), cosine.diagonal()
    mined = dataset.provenance()
    return max(
        (cosine[query, text] - chance[query]) / (own[query] - chance[query])
        for query, ids in enumerate(mined["negative_ids"])
        for text in ids
        if own[query] - chance[query] > 0.05
    )


@pytest.mark.parametrize(("share", "doubted"), [(0.1, True), (3.0, False)])
def test_the_margin_follows_the_rank(share: float, doubted: bool):
    """Right answers at low ranks: 80 % of the way from chance is allowed; where they come first, 95 %."""
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((NUM_TEXTS, DIM)).astype(np.float32)
    # A large component that all vectors share: random pairs score high, and the margin is counted from there.
    common = np.full(DIM, 2.0, dtype=np.float32)
    queries = rng.standard_normal((NUM_TEXTS, DIM)).astype(np.float32) + share * texts
    anchors, positives = ([f"{kind}{i}" for i in range(NUM_TEXTS)] for kind in "qt")
    pairs = Dataset.from_dict({"anchor": anchors, "positive": positives})
    dataset = HardNegativeDataset(pairs, num_negatives=1, max_relative_positive_similarity=None)
    report = dataset.mine(Known(queries + common, texts + common), show_progress_bar=False)
    assert (report.typical_rank > 8.0) == doubted
    assert report.doubt == pytest.approx(doubt_of(report.typical_rank))
    bound = MiningConfig.recommended().relative_margin
    assert isinstance(bound, Adaptive)
    highest = highest_share(dataset, queries + common, texts + common)
    assert 0.4 < highest <= 1.0 - bound.at(report.doubt) + 1e-5


def test_doubt_lasts():
    """Once the positives come first by themselves, the doubt of the first mining is still in force."""
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((NUM_TEXTS, DIM)).astype(np.float32)
    lost = rng.standard_normal((NUM_TEXTS, DIM)).astype(np.float32)
    anchors, positives = ([f"{kind}{i}" for i in range(NUM_TEXTS)] for kind in "qt")
    dataset = HardNegativeDataset(Dataset.from_dict({"anchor": anchors, "positive": positives}), num_negatives=1)
    first = dataset.mine(Known(lost, texts), show_progress_bar=False)
    report = dataset.mine(Known(texts + 0.3 * lost, texts), show_progress_bar=False)
    assert report.typical_rank < 1.5
    assert report.doubt == first.doubt > 0.9
