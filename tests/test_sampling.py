"""Draws: weights as their papers have them, inclusion as exact as counting, noise that depends on nothing else."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.mining.sampling import (
    choose,
    distance_log_weights,
    equal_log_weights,
    gumbel,
    log_rank_log_weights,
    probabilities,
    simans_log_weights,
    softmax_log_weights,
    uniform_noise,
    window_of_survivors,
)
from tests.conftest import word_model

SCORES = torch.tensor([[0.95, 0.85, 0.80, 0.75, 0.60, 0.30]], dtype=torch.float64)
POSITIVE = torch.tensor([0.8], dtype=torch.float64)
# Below this, a sound sampler fails once in ten thousand seeds; the seeds here are fixed.
TOO_UNLIKELY = 1e-4


def first_draw(log_weights: torch.Tensor) -> list[float]:
    return probabilities(log_weights, torch.ones(log_weights.shape, dtype=torch.bool))[0].tolist()


# --- weights against the literals of the field's papers and code ------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (0.5, 0.0, [0.169056, 0.170756, 0.170969, 0.170756, 0.167584, 0.150880]),
        (0.5, 1.0, [0.209389, 0.191367, 0.182262, 0.173156, 0.146268, 0.097558]),
        # The released code has the other sign of b: this row is its b = 1.
        (0.5, -1.0, [0.130869, 0.146086, 0.153768, 0.161450, 0.184094, 0.223732]),
        (50.0, 0.0, [0.100668, 0.273644, 0.310079, 0.273644, 0.041965, 0.000001]),
        (50.0, 0.1, [0.325971, 0.325971, 0.224036, 0.119918, 0.004103, 0.0]),
        (50.0, -0.1, [0.017828, 0.131732, 0.246109, 0.358086, 0.246109, 0.000136]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simans_weighs_as_the_paper_does(a, b, expected, dtype):
    """Six candidates around a positive of 0.8, with the paper's sign of b."""
    weights = simans_log_weights(SCORES.to(dtype), POSITIVE.to(dtype), a, b)
    assert weights.dtype == torch.float64
    np.testing.assert_allclose(first_draw(weights), expected, atol=6e-7)


def test_simans_on_dot_products_of_tens():
    """At the paper's a = 0.5, scores a hundred times as large leave next to nothing but the positive's equal."""
    found = first_draw(simans_log_weights(SCORES * 100, POSITIVE * 100, 0.5, 0.0))
    np.testing.assert_allclose(found, [1.39e-49, 3.73e-6, 0.999993, 3.73e-6, 1.4e-87, 0.0], rtol=2e-2)


def test_simans_peaks_b_above_the_positive():
    """With b = 0.15, what scores 0.95 beside a positive of 0.8 is drawn most."""
    assert int(simans_log_weights(SCORES, POSITIVE, 50.0, 0.15).argmax()) == 0
    assert int(simans_log_weights(SCORES, POSITIVE, 50.0, -0.2).argmax()) == 4


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [0.207857, 0.188076, 0.178904, 0.170179, 0.146474, 0.108511]),
        (0.1, [0.568813, 0.209255, 0.126919, 0.076981, 0.017177, 0.000855]),
        (0.05, [0.830322, 0.112372, 0.041339, 0.015208, 0.000757, 0.000002]),
        (0.01, [0.999954, 4.5e-5, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_softmax_weighs_by_the_temperature(temperature, expected):
    """The same six candidates, from nearly even to nearly the first alone."""
    np.testing.assert_allclose(first_draw(softmax_log_weights(SCORES, temperature)), expected, atol=6e-7)


def test_log_rank_weighs_by_the_logarithm_of_the_rank():
    """Ranks count from 1 in the formula: 1 / ln 2, 1 / ln 3, 1 / ln 4, 1 / ln 5, divided by their sum."""
    by_hand = np.array([1.442695, 0.910239, 0.721348, 0.621335])
    found = first_draw(log_rank_log_weights(torch.arange(4)[None]))
    np.testing.assert_allclose(found, by_hand / 3.695617, atol=1e-6)
    # Raw ranks may start lower down; the weights then do, too.
    found = first_draw(log_rank_log_weights(torch.tensor([[1, 3]])))
    np.testing.assert_allclose(found, [0.910239 / 1.531574, 0.621335 / 1.531574], atol=1e-6)


def test_log_rank_draws_by_these_weights():
    """What is drawn first, over 20,000 queries, is distributed as the weights say."""
    weights = log_rank_log_weights(torch.arange(8)[None])
    drawn = draws_of(weights, 1, num_queries=20_000).flatten()
    counts = np.bincount(drawn, minlength=8)
    inverse_logs = np.array([1 / math.log(1 + rank) for rank in range(1, 9)])
    assert stats.chisquare(counts, 20_000 * inverse_logs / inverse_logs.sum()).pvalue > TOO_UNLIKELY
    assert stats.chisquare(counts).pvalue < 1e-9  # the test can tell: even draws it is not


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        (3, [0.2238, 0.2238, 0.1598, 0.1243, 0.1017, 0.08607, 0.0805, 0.0]),
        (8, [0.4465, 0.4465, 0.06996, 0.01967, 0.008248, 0.004853, 0.004284, 0.0]),
        (64, [0.5, 0.5, 3.274e-9, 1.034e-14, 2.43e-18, 2.45e-20, 1.13e-20, 0.0]),
        (128, [0.5, 0.5, 1.2e-17]),
        (768, [0.5, 0.5, 5.6e-102]),
    ],
)
def test_distance_weighs_by_the_density_of_the_sphere(dim, expected):
    """Distances from 0.3 to 1.5, cut off below at 0.5 and above at 1.4."""
    distances = torch.tensor([[0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.39, 1.5]], dtype=torch.float64)
    found = first_draw(distance_log_weights(distances, dim))
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-2)
    assert found[-1] == 0 and sum(found) == pytest.approx(1)


def distances_on_the_sphere(count: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors and their Euclidean distances."""
    points = torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(dim))
    points = torch.nn.functional.normalize(points, dim=1)
    return points, torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def weights_of_the_miner(monkeypatch: pytest.MonkeyPatch, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the weights with which pytorch-metric-learning's DistanceWeightedMiner would draw."""
    module = pytest.importorskip("pytorch_metric_learning.miners.distance_weighted_miner")
    seen: list[torch.Tensor] = []

    def note(labels, ref_labels=None, t_per_anchor=None, weights=None):
        seen.append(weights)
        nothing = torch.zeros(0, dtype=torch.long)
        return nothing, nothing, nothing

    monkeypatch.setattr(module.lmu, "get_random_triplet_indices", note)
    module.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)(points, labels)
    return seen[0]


@pytest.mark.parametrize("dim", [2, 3, 5, 16])
def test_distance_weights_are_those_of_pytorch_metric_learning(dim, monkeypatch):
    """Where nothing underflows, all rows are the miner's."""
    points, distances = distances_on_the_sphere(40, dim)
    labels = torch.arange(40) // 2
    theirs = weights_of_the_miner(monkeypatch, points, labels)
    ours = probabilities(distance_log_weights(distances, dim), labels[:, None] != labels)
    np.testing.assert_allclose(ours, theirs.nan_to_num(0), rtol=1e-6, atol=1e-12)
    assert bool((ours > 0).any(dim=1).all())


def test_distance_weights_are_normalised_row_by_row(monkeypatch):
    """One near-duplicate in 768 dimensions empties all other rows of the miner, and none of ours."""
    points = distances_on_the_sphere(64, 768)[0].float()
    points[1] = torch.nn.functional.normalize(points[0] + 1e-3 * points[1], dim=0)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").clamp(max=1.39)
    labels = torch.arange(64)
    theirs = weights_of_the_miner(monkeypatch, points, labels).nan_to_num(0)
    assert int((theirs > 0).any(dim=1).sum()) == 2
    ours = probabilities(distance_log_weights(distances, 768), labels[:, None] != labels)
    np.testing.assert_allclose(ours.sum(dim=1), 1.0, atol=1e-12)
    # Each row is what it would be by itself.
    alone = probabilities(distance_log_weights(distances[5:6], 768), (labels[5:6, None] != labels))
    assert (ours[5] == alone[0]).all()


def test_probabilities_leave_out_what_is_not_allowed():
    """The rest is divided among the others; where nothing can be drawn, all are 0."""
    weights = torch.tensor([[0.0, math.log(3), 7.0], [1.0, 2.0, 3.0], [-math.inf] * 3], dtype=torch.float64)
    allowed = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    expected = [[0.25, 0.75, 0.0], [0.0] * 3, [0.0] * 3]
    np.testing.assert_allclose(probabilities(weights, allowed), expected, atol=1e-12)


# --- draws ------------------------------------------------------------------------------------------------------------


def draws_of(log_weights: torch.Tensor, num_negatives: int, num_queries: int, seed: int = 0) -> np.ndarray:
    """Draw for so many queries with one row of weights; return places of shape ``(num_queries, num_negatives)``."""
    weights = log_weights.double().expand(num_queries, -1)
    noise = uniform_noise(seed, 0, torch.arange(num_queries), torch.arange(weights.shape[1]).expand(weights.shape))
    return choose(torch.ones(weights.shape, dtype=torch.bool), num_negatives, weights, noise).numpy()


def exact_sets(weights: list[float], k: int) -> dict[frozenset[int], float]:
    """Return how probable each set of k is if k are drawn one after the other, each by the weights that are left."""
    sets: dict[frozenset[int], float] = {}
    for order in itertools.permutations(range(len(weights)), k):
        left, probability = sum(weights), 1.0
        for one in order:
            probability *= weights[one] / left
            left -= weights[one]
        sets[frozenset(order)] = sets.get(frozenset(order), 0.0) + probability
    return sets


def inclusion(sets: dict[frozenset[int], float], count: int) -> list[float]:
    return [sum(probability for some, probability in sets.items() if one in some) for one in range(count)]


def p_value(drawn: list[frozenset[int]], sets: dict[frozenset[int], float]) -> float:
    """Test drawn sets against their exact probabilities; sets of which fewer than 5 are expected count together."""
    counts = Counter(drawn)
    common = [some for some, probability in sets.items() if probability * len(drawn) >= 5]
    seen = [counts[some] for some in common]
    expected = [sets[some] * len(drawn) for some in common]
    rare = len(drawn) - sum(expected)
    if rare > 1e-9:
        seen, expected = [*seen, len(drawn) - sum(seen)], [*expected, rare]
    return float(stats.chisquare(seen, np.array(expected) / sum(expected) * sum(seen)).pvalue)


SIMANS_50 = [math.exp(-50 * (score - 0.8) ** 2) for score in SCORES[0].tolist()]


def test_three_of_six_are_drawn_as_exactly_as_one_by_one():
    """Sets of three, over 40,000 queries, against the exact sequential draw; so are the inclusion probabilities."""
    exact = exact_sets(SIMANS_50, 3)
    included = inclusion(exact, 6)
    np.testing.assert_allclose(included, [0.40122, 0.79481, 0.82966, 0.79481, 0.17949, 1e-5], atol=6e-6)
    drawn = draws_of(simans_log_weights(SCORES, POSITIVE, 50.0, 0.0), 3, num_queries=40_000)
    assert (np.diff(drawn, axis=1) > 0).all() and drawn.min() >= 0
    assert p_value([frozenset(row) for row in drawn.tolist()], exact) > TOO_UNLIKELY
    shares = np.bincount(drawn.flatten(), minlength=6) / 40_000
    sigma = np.sqrt(np.array(included) * (1 - np.array(included)) / 40_000)
    assert (np.abs(shares - included) < 5 * sigma + 1e-4).all()


def test_the_test_of_exactness_tells_a_biased_sampler():
    """SimXNS's loop fails it: three with replacement, three more of the rest until a set is full, then its first three."""
    rng = random.Random(0)
    drawn: list[frozenset[int]] = []
    for _ in range(40_000):
        chosen: set[int] = set()
        while len(chosen) < 3:
            left = [one for one in range(6) if one not in chosen]
            chosen |= set(rng.choices(left, [SIMANS_50[one] for one in left], k=3))
        drawn.append(frozenset(sorted(chosen)[:3]))
    counts = Counter(one for some in drawn for one in some)
    np.testing.assert_allclose(
        [counts[one] / 40_000 for one in range(6)], [0.551, 0.883, 0.902, 0.573, 0.092, 0.0], atol=0.01
    )
    assert p_value(drawn, exact_sets(SIMANS_50, 3)) < 1e-9


def test_weights_that_all_underflow_still_draw():
    """Log weights of -1e6 and less are as good as any: only their differences count."""
    scores = torch.tensor([[0.9, 0.5, 0.1, -0.4]], dtype=torch.float64)
    far = simans_log_weights(scores, torch.tensor([4000.0]), 50.0, 0.0)
    assert bool((far.exp() == 0).all()) and first_draw(far)[0] == 1.0
    drawn = draws_of(far, 2, num_queries=50)
    assert (drawn == [0, 1]).all()
    assert (draws_of(softmax_log_weights(scores, 1e-9), 2, num_queries=50) == [0, 1]).all()
    even = draws_of(torch.full((1, 4), -1e12, dtype=torch.float64), 2, num_queries=2000)
    assert stats.chisquare(np.bincount(even.flatten(), minlength=4)).pvalue > TOO_UNLIKELY


def test_fewer_candidates_than_are_wanted_leave_places_empty():
    """All that there is comes out, in order, and -1 stands for the rest; also where nothing is allowed."""
    allowed = torch.tensor([[False, True, True], [False, False, False], [True, True, True]])
    noise = uniform_noise(0, 0, torch.arange(3), torch.arange(3).expand(3, 3))
    expected = [[1, 2, -1, -1], [-1] * 4, [0, 1, 2, -1]]
    assert choose(allowed, 4, equal_log_weights(allowed), noise).tolist() == expected
    assert choose(allowed, 4).tolist() == expected
    assert choose(torch.ones(2, 0, dtype=torch.bool), 2).tolist() == [[-1, -1], [-1, -1]]


def test_a_weight_of_nothing_is_never_drawn():
    """What weighs exp(-inf) stays out even where places stay empty."""
    weights = torch.tensor([[0.0, -math.inf, -800.0, -math.inf]], dtype=torch.float64)
    drawn = draws_of(weights, 3, num_queries=500)
    assert (drawn == [0, 2, -1]).all()


def test_the_closest_are_taken_without_weights():
    """The first places of the mask, whatever the noise would be."""
    allowed = torch.tensor([[True, False, True, True, True]])
    assert choose(allowed, 3).tolist() == [[0, 2, 3]]


def test_a_window_of_survivors_counts_what_is_kept():
    """Ranks from 1 to 2 among the kept ones; each query has an end of its own."""
    keep = torch.tensor([[True, False, True, True, True], [False, True, True, True, True]])
    expected = [[False, False, True, True, False], [False, False, True, False, False]]
    assert window_of_survivors(keep, 1, torch.tensor([3, 2])).tolist() == expected


def test_gumbel_noise_is_finite_at_both_ends():
    """The least and the largest uniform number give finite noise, in order."""
    ends = gumbel(torch.tensor([0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53], dtype=torch.float64))
    assert bool(ends.isfinite().all()) and bool((ends.diff() > 0).all())
    assert ends[2].item() == pytest.approx(-math.log(math.log(2)))


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_does_not_depend_on_chunks_order_or_batch():
    """Each pair of a query and a candidate has its noise, wherever it stands and whatever stands around it."""
    queries, candidates = torch.arange(50) * 7919, torch.arange(30).expand(50, 30)
    whole = uniform_noise(3, 1, queries, candidates)
    order, columns = torch.randperm(50, generator=torch.Generator().manual_seed(0)), torch.arange(30).flip(0)
    assert (uniform_noise(3, 1, queries[order], candidates[order][:, columns]) == whole[order][:, columns]).all()
    chunks = [uniform_noise(3, 1, queries[i : i + 7], candidates[i : i + 7]) for i in range(0, 50, 7)]
    assert (torch.cat(chunks) == whole).all()
    assert uniform_noise(3, 1, queries[4:5], candidates[4:5, 9:10]).item() == whole[4, 9].item()


def test_noise_is_uniform():
    """Kolmogorov and Smirnov find nothing in 200,000 numbers, nor in the counters below 0 that stand for draws."""
    for candidates in (torch.arange(200), -1 - torch.arange(200), -(1 << 40) - torch.arange(200)):
        noise = uniform_noise(0, 0, torch.arange(1000), candidates.expand(1000, 200)).flatten().numpy()
        assert noise.min() >= 0 and noise.max() < 1
        assert stats.kstest(noise, "uniform").pvalue > TOO_UNLIKELY
        assert len(np.unique(noise)) == len(noise)


def test_noise_of_neighbours_is_not_correlated():
    """One more in any of the four arguments gives numbers that have nothing to do with the ones before."""

    def noise(seed: int = 5, refresh: int = 2, query: int = 0, candidate: int = 0) -> np.ndarray:
        queries = torch.arange(query, query + 400)
        candidates = torch.arange(candidate, candidate + 250).expand(400, 250)
        return uniform_noise(seed, refresh, queries, candidates).flatten().numpy()

    here = noise()
    for there in (noise(seed=6), noise(refresh=3), noise(query=1), noise(candidate=1)):
        assert abs(np.corrcoef(here, there)[0, 1]) < 5 / math.sqrt(len(here))
    # Arguments do not stand in for one another either.
    assert uniform_noise(1, 0, torch.tensor([0]), torch.tensor([[0]])) != uniform_noise(
        0, 1, torch.tensor([0]), torch.tensor([[0]])
    )


def test_noise_takes_every_seed_and_key_that_is_allowed():
    """The largest seed and the largest keys of 63 bits, and counters below 0."""
    most = 2**63 - 1
    noise = uniform_noise(most, 10_000, torch.tensor([most, 0]), torch.tensor([[most, -1], [-most, 0]]))
    assert noise.shape == (2, 2) and len(noise.unique()) == 4 and bool((noise < 1).all())


# --- from the config to the negatives ---------------------------------------------------------------------------------

# "40" points 40 half degrees away from "0": ranks are known, and no two texts are equally far.
HALF_DEGREES = [math.radians(number / 2) for number in range(340)]


@pytest.fixture(scope="module")
def ruler():
    """A model whose texts are numbers: the text "n x" points n/2 degrees away from "0"."""
    vectors = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in HALF_DEGREES])
    return word_model([str(number) for number in range(340)], vectors)


def cosine(number: int) -> float:
    return math.cos(HALF_DEGREES[number])


def mined(ruler, numbers, num_queries: int, positive: int = 40, **config) -> HardNegativeDataset:
    """Mine for queries at 0 with one positive in a corpus of the positive and of these numbers."""
    pairs = Dataset.from_dict(
        {"anchor": [f"q{i} 0" for i in range(num_queries)], "positive": [f"p {positive}"] * num_queries}
    )
    corpus = [f"d {number}" for number in numbers] + [f"p {positive}"]
    found = HardNegativeDataset(pairs, corpus, MiningConfig(**config))
    found.mine(ruler, show_progress_bar=False)
    return found


def density_of_six_dimensions(distance: float) -> float:
    return distance**4 * (1 - distance**2 / 4) ** 1.5


STRATEGIES = {
    "random": ({}, lambda number, rank: 1.0),
    "softmax": ({"softmax_temperature": 0.1}, lambda number, rank: math.exp(cosine(number) / 0.1)),
    "simans": (
        {"simans_a": 40.0, "simans_b": 0.02},
        lambda number, rank: math.exp(-40 * (cosine(number) - cosine(40) - 0.02) ** 2),
    ),
    "log_rank": ({}, lambda number, rank: 1 / math.log(rank + 2)),
    "distance": (
        {"distance_dim": 6},
        lambda number, rank: 1 / density_of_six_dimensions(max(0.5, 2 * math.sin(HALF_DEGREES[number] / 2))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rank_window", ["survivors", "raw"])
def test_each_strategy_draws_by_its_formula(ruler, strategy, rank_window):
    """Over 1,500 queries, the one negative is distributed as a formula in plain Python says, inside of the window."""
    numbers = [20, 30, 50, 60, 80, 100, 120, 140, 180]
    options, weight = STRATEGIES[strategy]
    # As retrieved: 20 30 (positive 40) 50 60 80 …, of which 30 is filtered and the first is skipped by the window.
    found = mined(
        ruler, numbers, 1500, num_negatives=1, sampling_strategy=strategy, range_min=1, range_max=6,
        exclude_pattern=r"^d 30$", rank_window=rank_window, **options,
    )  # fmt: skip
    if rank_window == "raw":
        window = {50: 3, 60: 4, 80: 5}
    else:
        window = {50: 1, 60: 2, 80: 3, 100: 4}
    weights = np.array([weight(number, rank) for number, rank in window.items()])
    counts = Counter(numbers[place] for place in found.negative_ids[:, 0].tolist())
    assert set(counts) <= set(window)
    seen = [counts[number] for number in window]
    assert stats.chisquare(seen, weights / weights.sum() * 1500).pvalue > TOO_UNLIKELY


@pytest.mark.parametrize("strategy", ["random", "softmax", "simans", "log_rank", "distance"])
@pytest.mark.parametrize("rank_window", ["survivors", "raw"])
def test_a_draw_is_the_same_in_any_chunk_batch_and_order(bag_of_words, word_pairs, strategy, rank_window):
    """Chunks of 1, 7 and 512 queries, shuffled rows and half of the rows: each query gets the same negatives."""
    options = {
        "sampling_strategy": strategy, "rank_window": rank_window, "range_min": 2, "range_max": 25, "max_score": 0.9,
        "softmax_temperature": 0.1, "distance_dim": 4,
    }  # fmt: skip
    corpus = word_pairs["positive"][:]

    def draws(pairs: Dataset, chunk: int) -> dict[str, list[int]]:
        found = HardNegativeDataset(pairs, corpus, MiningConfig(query_chunk_size=chunk, **options))
        found.mine(bag_of_words, show_progress_bar=False)
        return dict(zip(pairs["anchor"], found.negative_ids.tolist(), strict=True))

    whole = draws(word_pairs, 512)
    assert draws(word_pairs, 1) == whole and draws(word_pairs, 7) == whole
    assert draws(word_pairs.shuffle(seed=3), 7) == whole
    half = draws(word_pairs.select(range(24)), 512)
    assert half == {anchor: whole[anchor] for anchor in half}
    top = HardNegativeDataset(word_pairs, corpus, MiningConfig(**{**options, "sampling_strategy": "top"}))
    top.mine(bag_of_words, show_progress_bar=False)
    assert top.negative_ids.tolist() != list(whole.values())


def test_simans_b_moves_the_draw(ruler):
    """The band lies where the positive's cosine plus b is: at 60°, at 30°, and at 80°, for b = 0, 0.366, -0.326."""
    numbers = [*range(2, 120, 2), *range(122, 260, 2)]
    for b, angle in ((0.0, 60), (math.cos(math.pi / 6) - 0.5, 30), (math.cos(math.radians(80)) - 0.5, 80)):
        found = mined(
            ruler, numbers, 300, positive=120, num_negatives=1, sampling_strategy="simans", simans_a=2000.0,
            simans_b=b, range_max=200,
        )  # fmt: skip
        assert found.negative_scores.mean() == pytest.approx(math.cos(math.radians(angle)), abs=0.01)


def test_the_recipe_of_flagembedding(ruler):
    """15 of ranks 10 to 209 as retrieved, drawn evenly; the positive holds a rank and is never drawn."""
    numbers = [number for number in range(1, 301) if number != 100]
    found = mined(
        ruler, numbers, 1000, positive=100, num_negatives=15, sampling_strategy="random", rank_window="raw",
        range_min=10, range_max=210,
    )  # fmt: skip
    # Retrieved in the order 1, 2, 3 …, so that rank r holds the number r + 1.
    drawn = np.array(found.corpus.texts.take(found.negative_ids.flatten()))
    counts = Counter(int(text.split()[1]) for text in drawn)
    window = [number for number in range(11, 211) if number != 100]
    assert sorted(counts) == window and all(text.startswith("d ") for text in drawn)
    assert all(len(set(row)) == 15 for row in found.negative_ids.tolist())
    # 15 of 199 without replacement: the variance of a count is that of one draw, shrunk a little.
    expected, sigma = 1000 * 15 / 199, math.sqrt(1000 * 15 / 199 * 184 / 199)
    assert max(abs(count - expected) for count in counts.values()) < 5 * sigma
    ranks = found.provenance()["negative_ranks"]
    assert sorted({rank for row in ranks for rank in row}) == [number - 1 for number in window]


def test_too_few_candidates_follow_the_shortfall_policy(ruler):
    """Weights that underflow and windows that run out raise nothing: slots stay empty, or are filled as asked."""
    for strategy in STRATEGIES:
        options = {"sampling_strategy": strategy, "simans_a": 1e9, "softmax_temperature": 1e-12, "num_negatives": 5}
        dropped = mined(ruler, [20, 60, 100], 4, **options)
        assert [sorted(row) for row in dropped.negative_ids.tolist()] == [[-1, -1, 0, 1, 2]] * 4
        repeated = mined(ruler, [20, 60, 100], 4, shortfall="repeat", **options)
        assert repeated.report.num_repeated == 8 and repeated.report.num_missing == 0


def test_nothing_farther_than_the_cut_off_is_drawn_by_distance(ruler):
    """From a Euclidean distance of 1.4 on, 88.85°, slots stay empty rather than being filled."""
    found = mined(ruler, [20, 177, 178, 200], 3, num_negatives=3, sampling_strategy="distance", distance_dim=3)
    assert found.negative_ids.tolist() == [[0, 1, -1]] * 3
