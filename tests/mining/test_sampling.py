"""Draws: inclusion as exact as counting, windows, and what reaches the negatives."""

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
from st_hardneg.draws import uniform_noise
from st_hardneg.mining.sampling import choose, gumbel, probabilities, window_of_survivors
from st_hardneg.strategies import Distance, LogRank, SimANS, Softmax
from tests.conftest import word_model
from tests.test_strategies import POSITIVE, SCORES, first_draw, log_rank, simans, softmax
from tests.toys import TOO_UNLIKELY, Model, by_seed, random_pairs, texts_of, wrapped


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
    drawn = draws_of(simans(SCORES, POSITIVE, 50.0, 0.0), 3, num_queries=40_000)
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
    far = simans(scores, torch.tensor([4000.0]), 50.0, 0.0)
    assert bool((far.exp() == 0).all()) and first_draw(far)[0] == 1.0
    drawn = draws_of(far, 2, num_queries=50)
    assert (drawn == [0, 1]).all()
    assert (draws_of(softmax(scores, 1e-9), 2, num_queries=50) == [0, 1]).all()
    even = draws_of(torch.full((1, 4), -1e12, dtype=torch.float64), 2, num_queries=2000)
    assert stats.chisquare(np.bincount(even.flatten(), minlength=4)).pvalue > TOO_UNLIKELY


def test_fewer_candidates_than_are_wanted_leave_places_empty():
    """All that there is comes out, in order, and -1 stands for the rest; also where nothing is allowed."""
    allowed = torch.tensor([[False, True, True], [False, False, False], [True, True, True]])
    noise = uniform_noise(0, 0, torch.arange(3), torch.arange(3).expand(3, 3))
    expected = [[1, 2, -1, -1], [-1] * 4, [0, 1, 2, -1]]
    assert choose(allowed, 4, torch.zeros(allowed.shape, dtype=torch.float64), noise).tolist() == expected
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


def test_log_rank_draws_by_these_weights():
    """What is drawn first, over 20,000 queries, is distributed as the weights say."""
    weights = log_rank(torch.arange(8)[None])
    drawn = draws_of(weights, 1, num_queries=20_000).flatten()
    counts = np.bincount(drawn, minlength=8)
    inverse_logs = np.array([1 / math.log(1 + rank) for rank in range(1, 9)])
    assert stats.chisquare(counts, 20_000 * inverse_logs / inverse_logs.sum()).pvalue > TOO_UNLIKELY
    assert stats.chisquare(counts).pvalue < 1e-9  # the test can tell: even draws it is not


def mask(*rows: str) -> torch.Tensor:
    """Return a boolean tensor; "1" is True."""
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def test_windows_count_survivors():
    """Ranks are counted among what was kept, from 0; each query has its own end."""
    keep = mask("110101", "011011", "000000")
    assert (window_of_survivors(keep, 0, torch.tensor([2, 9, 3])) == mask("110000", "011011", "000000")).all()
    assert (window_of_survivors(keep, 1, torch.tensor([3, 2, 3])) == mask("010100", "001000", "000000")).all()
    assert (window_of_survivors(keep, 3, torch.tensor([4, 4, 3])) == mask("000001", "000001", "000000")).all()


def test_top_takes_the_closest():
    """Places come closest first, and -1 where there are too few."""
    allowed = mask("01101", "00010", "00000")
    assert choose(allowed, 2).tolist() == [[1, 2], [3, -1], [-1, -1]]
    assert choose(allowed, 7).tolist() == [[1, 2, 4, -1, -1, -1, -1], [3] + [-1] * 6, [-1] * 7]
    assert choose(allowed, 1).dtype == torch.int64
    # Noise is for draws only.
    assert choose(allowed, 2, noise=torch.zeros(3, 5, dtype=torch.float64)).tolist()[0] == [1, 2]


def test_equal_weights_take_those_with_the_most_noise():
    """What is not allowed is never drawn, whatever its noise; the drawn come closest first."""
    allowed = mask("11101", "00010", "00000")
    noise = torch.tensor([[0.5, 0.1, 0.8, 0.99, 0.9], [0.9, 0.8, 0.7, 0.1, 0.99], [0.9] * 5], dtype=torch.float64)
    weights = torch.zeros_like(noise)
    assert choose(allowed, 2, weights, noise).tolist() == [[2, 4], [3, -1], [-1, -1]]
    assert choose(allowed, 3, weights, noise).tolist() == [[0, 2, 4], [3, -1, -1], [-1] * 3]
    assert choose(allowed, 6, weights, noise).tolist()[0] == [0, 1, 2, 4, -1, -1]
    # Equal noise: the closer one is drawn.
    assert choose(allowed, 2, weights, torch.full((3, 5), 0.5, dtype=torch.float64)).tolist()[0] == [0, 1]


def test_a_draw_among_many_ties_is_stable():
    """With equal noise, the closest are drawn, however many there are."""
    allowed = torch.ones(1, 5000, dtype=torch.bool)
    noise = torch.full((1, 5000), 0.5, dtype=torch.float64)
    assert choose(allowed, 40, torch.zeros_like(noise), noise)[0].tolist() == list(range(40))


def test_ends_of_the_scales():
    """Noise of 0 and of almost 1 is finite, by half a step."""
    ends = gumbel(torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64))
    assert torch.allclose(
        ends, torch.tensor([-math.log(54 * math.log(2)), 53 * math.log(2)], dtype=torch.float64), rtol=1e-14
    )


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
    "random": ("random", lambda number, rank: 1.0),
    "softmax": (Softmax(0.1), lambda number, rank: math.exp(cosine(number) / 0.1)),
    "simans": (
        SimANS(40.0, 0.02),
        lambda number, rank: math.exp(-40 * (cosine(number) - cosine(40) - 0.02) ** 2),
    ),
    "log_rank": (LogRank(), lambda number, rank: 1 / math.log(rank + 2)),
    "distance": (
        Distance(6),
        lambda number, rank: 1 / density_of_six_dimensions(max(0.5, 2 * math.sin(HALF_DEGREES[number] / 2))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rank_window", ["survivors", "raw"])
def test_each_strategy_draws_by_its_formula(ruler, strategy, rank_window):
    """Over 1,500 queries, the one negative is distributed as a formula in plain Python says, inside of the window."""
    numbers = [20, 30, 50, 60, 80, 100, 120, 140, 180]
    value, weight = STRATEGIES[strategy]
    # As retrieved: 20 30 (positive 40) 50 60 80 …, of which 30 is filtered and the first is skipped by the window.
    found = mined(
        ruler, numbers, 1500, num_negatives=1, sampling_strategy=value, range_min=1, range_max=6,
        exclude_pattern=r"^d 30$", rank_window=rank_window,
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


@pytest.mark.parametrize("strategy", ["random", Softmax(0.1), SimANS(), LogRank(), Distance(4)])
@pytest.mark.parametrize("rank_window", ["survivors", "raw"])
def test_a_draw_is_the_same_in_any_chunk_batch_and_order(bag_of_words, word_pairs, strategy, rank_window):
    """Chunks of 1, 7 and 512 queries, shuffled rows and half of the rows: each query gets the same negatives."""
    options = {
        "sampling_strategy": strategy, "rank_window": rank_window, "range_min": 2, "range_max": 25, "max_score": 0.9,
    }  # fmt: skip
    corpus = word_pairs["positive"][:]

    def draws(pairs: Dataset, chunk: int) -> dict[str, list[int]]:
        found = HardNegativeDataset(pairs, corpus, MiningConfig(**options), query_chunk_size=chunk)
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
            ruler, numbers, 300, positive=120, num_negatives=1, sampling_strategy=SimANS(2000.0, b),
            range_max=200,
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
    for strategy in ("random", Softmax(1e-12), SimANS(1e9), LogRank(), Distance(6)):
        options = {"sampling_strategy": strategy, "num_negatives": 5}
        dropped = mined(ruler, [20, 60, 100], 4, **options)
        assert [sorted(row) for row in dropped.negative_ids.tolist()] == [[-1, -1, 0, 1, 2]] * 4
        repeated = mined(ruler, [20, 60, 100], 4, shortfall="repeat", **options)
        assert repeated.report.num_repeated == 8 and repeated.report.num_missing == 0


def test_nothing_farther_than_the_cut_off_is_drawn_by_distance(ruler):
    """From a Euclidean distance of 1.4 on, 88.85°, slots stay empty rather than being filled."""
    found = mined(ruler, [20, 177, 178, 200], 3, num_negatives=3, sampling_strategy=Distance(3))
    assert found.negative_ids.tolist() == [[0, 1, -1]] * 3


# --- the order of the corpus ------------------------------------------------------------------------------------------

DRAWS = {
    "softmax": {"sampling_strategy": Softmax(0.3), "range_max": 30},
    "random": {"sampling_strategy": "random", "range_max": 30},
    "log_rank, raw": {"sampling_strategy": LogRank(), "range_max": 30, "rank_window": "raw"},
    "a source by chance": {"sources": {"dense": 1, "random": 2}},
    "a rate": {"random_rate": 0.7},
    "fillers": {"max_score": -0.2, "range_max": 4, "shortfall": "random"},
    "both spaces": {"random_rate": 0.5, "search_spaces": ("corpus", "anchors"), "sampling_strategy": Softmax(0.3)},
}


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_do_not_depend_on_the_order_of_the_corpus(draw):
    """A corpus and rows in another order: the same texts are drawn for each query, at the same places."""
    model, pairs, corpus = Model(by_seed(4)), random_pairs(25, seed=3), [f"d{i}" for i in range(80)]

    def drawn(rows, texts) -> dict[str, list[str]]:
        found = wrapped(rows, texts, num_negatives=3, **DRAWS[draw])
        result = []
        for _ in range(2):
            found.mine(model, show_progress_bar=False)
            result.append(dict(zip([anchor for anchor, _ in rows], texts_of(found), strict=True)))
        # Another refresh draws anew; fillers that still pass are carried over.
        assert (result[0] == result[1]) == (draw == "fillers")
        return result

    shuffled = random.Random(1).sample(corpus, len(corpus))
    whole = drawn(pairs, corpus)
    assert drawn(pairs, shuffled) == whole
    assert drawn(random.Random(2).sample(pairs, len(pairs)), [*shuffled, *corpus[:10]]) == whole
