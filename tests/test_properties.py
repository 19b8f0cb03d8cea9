"""Invariants that hold for every input: no text that is known to be right, or that a filter removed, comes back."""

from __future__ import annotations

import unicodedata

import numpy as np
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.corpus.texts import same_text_key
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
        "query_chunk_size": st.integers(1, 5),
        "corpus_chunk_size": st.integers(1, 30),
        "seed": st.integers(0, 3),
    }
)


def plain_identity(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def model_of(seed: int):
    return word_model([*WORDS, "W1", "ｗ2"], torch.randn(202, 4, generator=torch.Generator().manual_seed(seed)))


MODELS = [model_of(seed) for seed in range(3)]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(ROWS, st.none() | st.lists(TEXT, min_size=1, max_size=25), CONFIG, st.lists(st.integers(0, 2), max_size=3))
def test_nothing_wrong_is_ever_returned(rows, corpus, options, refreshes):
    """Over random corpora full of duplicates, filters, windows, draws, policies and refreshes."""
    pairs = Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [p for _, p in rows]})
    found = HardNegativeDataset(pairs, corpus, MiningConfig(**options))
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
            if options["shortfall"] != "repeat":
                assert len(set(identities)) == len(identities)
            check_filters(found, row, filled, options)


def check_filters(found: HardNegativeDataset, row: int, filled: list[int], options: dict) -> None:
    """No view was made, so every negative has to pass today's filters."""
    mining = found._mining
    scores = mining.negative_scores[row][: len(filled)].astype(np.float64)
    anchor = plain_identity(found._pairs.anchors.take([row])[0])
    rows = [r for r, text in enumerate(found._pairs.anchors.take(range(len(found)))) if plain_identity(text) == anchor]
    same_text = found._pairs.anchors.take([row])[0]
    lowest = min(float(mining.positive_scores[r]) for r in rows if found._pairs.anchors.take([r])[0] == same_text)
    if options["absolute_margin"] is not None:
        assert (scores <= lowest - options["absolute_margin"] + 1e-5).all()
    if options["relative_margin"] is not None:
        assert (scores <= lowest - abs(lowest) * options["relative_margin"] + 1e-5).all()
    if options["max_score"] is not None:
        assert (scores <= options["max_score"] + 1e-6).all()
    if options["min_score"] is not None:
        assert (scores >= options["min_score"] - 1e-6).all()
    for text in found.corpus.texts.take(filled):
        assert options["min_words"] is None or len(text.split()) >= options["min_words"]
        assert options["exclude_pattern"] is None or "w4" not in text


@given(st.text(max_size=30), st.text(max_size=30))
def test_text_identity(left, right):
    """Two texts share a key exactly if they are equal after NFKC, casefolding and collapsing of whitespace."""
    assert (same_text_key(left) == same_text_key(right)) == (plain_identity(left) == plain_identity(right))
    assert same_text_key(left) == same_text_key(f"  {left.upper() if left.isascii() else left}\n")


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5),
    st.lists(st.integers(0, 9), min_size=10, max_size=10),
)
def test_known_positives_equal_a_loop(right_answers, identities):
    """The sorted-key lookup says what a loop over sets says."""
    known = KnownPositives.from_lists(right_answers, identities)
    queries, texts = torch.arange(len(right_answers)), torch.tensor([*range(10), -1])
    expected = [
        [number >= 0 and identities[number] in {identities[i] for i in answers} for number in texts.tolist()]
        for answers in right_answers
    ]
    assert known.is_positive(queries, texts).tolist() == expected
