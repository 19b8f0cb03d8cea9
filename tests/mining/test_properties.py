"""Invariants that hold for every input: no text that is known to be right, or that a filter removed, comes back."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.candidates import LAST_RESORT
from tests.conftest import WORDS, word_model

WORD = st.sampled_from(["w1", "w2", "w3", "W1", "ｗ2", "w4"])
TEXT = st.builds(
    lambda words, gap, edge: edge + gap.join(words) + edge,
    st.lists(WORD, min_size=1, max_size=3),
    st.sampled_from([" ", "  ", "\t"]),
    st.sampled_from(["", " "]),
)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=12)
CONFIG = st.fixed_dictionaries(
    {
        "num_negatives": st.integers(1, 4),
        "range_max": st.none() | st.integers(4, 20),
        "absolute_margin": st.none() | st.floats(0, 0.5),
        "relative_margin": st.none() | st.floats(0, 0.5),
        "max_score": st.none() | st.floats(0, 1),
        "min_score": st.none() | st.floats(-1, 0),
        "max_positive_similarity": st.none() | st.floats(0.5, 1),
        "min_words": st.none() | st.integers(0, 2),
        "exclude_pattern": st.none() | st.just("w4"),
        "sampling_strategy": st.sampled_from(["top", "random"]),
        "rank_window": st.sampled_from(["survivors", "raw"]),
        "shortfall": st.sampled_from(["drop", "random", "repeat"]),
        "seed": st.integers(0, 3),
    }
)


def plain_identity(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def model_of(seed: int):
    return word_model([*WORDS, "W1", "ｗ2"], torch.randn(202, 4, generator=torch.Generator().manual_seed(seed)))


MODELS = [model_of(seed) for seed in range(3)]


RUN = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
INPUTS = (
    ROWS,
    st.none() | st.lists(TEXT, min_size=1, max_size=25),
    CONFIG,
    st.lists(st.integers(0, 2), max_size=3),
    st.fixed_dictionaries({"query_chunk_size": st.integers(1, 5), "corpus_chunk_size": st.integers(1, 30)}),
)


@settings(max_examples=40, **RUN)
@given(*INPUTS)
def test_nothing_wrong_is_ever_returned(rows, corpus, options, refreshes, chunks):
    """Over random corpora full of duplicates, filters, windows, draws, policies and refreshes."""
    mine_and_check(rows, corpus, options, refreshes, chunks)


@pytest.mark.training
@settings(max_examples=200, **RUN)
@given(*INPUTS)
def test_nothing_wrong_is_ever_returned_at_length(rows, corpus, options, refreshes, chunks):
    """The same, five times as often."""
    mine_and_check(rows, corpus, options, refreshes, chunks)


def mine_and_check(rows, corpus, options, refreshes, chunks) -> None:
    """Mine and refresh, and hold every negative against the rows and the rules."""
    pairs = Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [p for _, p in rows]})
    found = HardNegativeDataset(pairs, corpus, MiningConfig(**options), **chunks)
    right: dict[str, set[str]] = {}
    for anchor, positive in rows:
        right.setdefault(plain_identity(anchor), {plain_identity(anchor)}).add(plain_identity(positive))
    for number, model in enumerate([MODELS[0], *(MODELS[i] for i in refreshes)]):
        before = None if number == 0 else found.negative_ids
        try:
            report = found.mine(model, show_progress_bar=False)
        except MiningError:
            if before is not None:
                assert (found.negative_ids == before).all()
            return
        texts = found.corpus.texts
        assert (
            report.num_missing
            + report.num_mined
            + report.num_carried_over
            + report.num_random
            + (report.num_repeated + report.num_last_resort)
            == report.num_slots
        )
        for row, ids in enumerate(found.negative_ids):
            filled = [number for number in ids if number >= 0]
            identities = [plain_identity(text) for text in texts.take(filled)]
            assert not set(identities) & right[plain_identity(rows[row][0])]
            if options["shortfall"] == "drop":
                assert len(set(identities)) == len(identities)
            elif options["shortfall"] == "random":  # the last resort may be one of the row's own once more
                origins = found.live.mining.negatives.origins[int(found._wrapped.pairs.row_query[row])]
                own = [one for one, origin in zip(identities, origins.tolist(), strict=False) if origin != LAST_RESORT]
                assert len(set(own)) == len(own)
            check_filters(found, row, filled, options)


def check_filters(found: HardNegativeDataset, row: int, filled: list[int], options: dict) -> None:
    """No view was made, so every negative has to pass today's rules, but for those that are said to be a last resort."""
    mining, pairs = found.live.mining, found._wrapped.pairs
    query = int(pairs.row_query[row])
    negatives = mining.negatives.rows(torch.tensor([query]))
    is_last_resort = (negatives.origins[0] == LAST_RESORT).tolist()
    assert not any(is_last_resort) or options["shortfall"] == "random"
    passing = [number for number, stands_in in zip(filled, is_last_resort, strict=False) if not stands_in]
    scores = negatives.similarities[0][: len(filled)].numpy().astype(np.float64)[: len(passing)]
    # What stands in comes after what passes.
    assert is_last_resort == sorted(is_last_resort)
    # Anchors that are the same text, however it is spelled, share their lowest positive.
    anchor = plain_identity(pairs.anchors.take([row])[0])
    rows = [r for r, text in enumerate(pairs.anchors.take(range(len(found)))) if plain_identity(text) == anchor]
    lowest = min(float(mining.positive_similarities[r]) for r in rows)
    if options["absolute_margin"] is not None:
        assert (scores <= lowest - options["absolute_margin"] + 1e-5).all()
    if options["relative_margin"] is not None:
        assert (scores <= lowest - abs(lowest) * options["relative_margin"] + 1e-5).all()
    if options["max_score"] is not None:
        assert (scores <= options["max_score"] + 1e-6).all()
    if options["min_score"] is not None:
        assert (scores >= options["min_score"] - 1e-6).all()
    for text in found.corpus.texts.take(passing):
        assert options["min_words"] is None or len(text.split()) >= options["min_words"]
        assert options["exclude_pattern"] is None or "w4" not in text
