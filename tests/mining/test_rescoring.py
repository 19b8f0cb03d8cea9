"""A cross encoder's scores: each distinct pair once, long pairs together, kept while its weights stand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from st_hardneg.mining.rescoring import PairScores, cross_encoder_scores, scorer_fingerprint
from tests import tiny_models
from tests.toys import Model, by_seed, mined, random_pairs


def flat(calls: list[list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for call in calls for pair in call]


class Scorer:
    """Scores a pair by the letters of its text, and notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []

    def predict(self, pairs, **_):
        self.asked.append(list(pairs))
        return torch.tensor([sum(map(ord, query + text)) % 97 / 97 for query, text in pairs])


def test_pairs_are_scored_once_and_sorted_by_length():
    """Whatever the order and however often they are asked for, each gets its own score."""
    rng = np.random.default_rng(0)
    pairs = [(f"q{i % 5}", "x" * int(n)) for i, n in enumerate(rng.integers(1, 30, 200))]
    scorer = Scorer()
    scores = cross_encoder_scores(scorer, pairs, 8)
    (asked,) = scorer.asked
    assert len(asked) == len(set(pairs)) and set(asked) == set(pairs)
    lengths = [len(query) + len(text) for query, text in asked]
    assert lengths == sorted(lengths, reverse=True)
    torch.testing.assert_close(scores, Scorer().predict(pairs))


def test_kept_scores_are_looked_up():
    """Thousands of look-ups in any order agree with the function, which is called once for each pair."""
    calls: list[int] = []

    def score(queries, texts):
        calls.extend((queries * 1000 + texts).tolist())
        return torch.from_numpy(np.sin(queries * 31.0 + texts)).float()

    kept, rng = PairScores(1000, score), np.random.default_rng(1)
    for size in (1, 500, 3, 900, 40, 40, 2000, 7):
        queries, texts = rng.integers(0, 60, size), rng.integers(0, 50, size)
        found = kept(torch.from_numpy(queries), torch.from_numpy(texts))
        np.testing.assert_allclose(found, np.sin(queries * 31.0 + texts), atol=1e-6)
    assert len(calls) == len(set(calls))


def test_a_second_mining_scores_new_pairs_only():
    """Those of the first are kept; a teacher scores only what was mined."""
    cross_encoder, teacher = Scorer(), Scorer()
    parts = {"cross_encoder": cross_encoder, "teacher": teacher}
    corpus = [f"d{number}" for number in range(60)]
    fields = {"num_negatives": 2, "sampling_strategy": "random", "range_max": 10}
    found = mined(random_pairs(20), Model(by_seed(0)), corpus, parts, **fields)
    first = [flat(asked) for asked in (cross_encoder.asked, teacher.asked)]
    found.mine(Model(by_seed(0)), show_progress_bar=False)
    assert flat(cross_encoder.asked) == first[0]
    texts = flat(teacher.asked)
    assert len(first[1]) == 20 * 3 and len(texts) == len(set(texts)) < 20 * 5
    told = found.to_dataset("n-tuple", output_scores=True)
    for row in told:
        pairs = [(row["anchor"], row[name]) for name in ("positive", "negative_1", "negative_2")]
        assert row["scores"] == pytest.approx(Scorer().predict(pairs).tolist())


def test_scores_go_with_the_weights(tmp_path):
    """A weight that changes, or another activation, is another scorer."""
    model = tiny_models.cross_encoder(tmp_path)
    before = scorer_fingerprint(model)
    assert scorer_fingerprint(model) == before
    model.activation_fn = torch.nn.Identity()
    other = scorer_fingerprint(model)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert len({before, other, scorer_fingerprint(model)}) == 3


def test_the_benchmark_runs_in_a_small_form():
    """Scores equal the loop's, and a refresh scores new pairs only."""
    from tests.benchmarks.rescoring import measure

    found = measure(8, 10, layers=1, width=16)
    assert found["difference"] < 1e-4 and found["refresh"] < found["ours"]
