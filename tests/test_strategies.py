"""Strategies as values: weights as their papers have them, plain forms, and the tables that list them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from st_hardneg import MiningConfig, strategies
from st_hardneg.mining.sampling import probabilities
from st_hardneg.strategies import (
    REPLACEMENT,
    SAMPLING,
    Distance,
    Easy,
    LogRank,
    SimANS,
    Softmax,
    Uniform,
    Window,
    checked_strategy,
    plain_strategy,
)
from tests.conftest import whole
from tests.toys import Model, by_angle, mined, texts_of

SCORES = torch.tensor([[0.95, 0.85, 0.80, 0.75, 0.60, 0.30]], dtype=torch.float64)
POSITIVE = torch.tensor([0.8], dtype=torch.float64)


def window(scores=SCORES, positive=POSITIVE, ranks=None, distances=None, dim=16) -> Window:
    """Return what a strategy looks at."""
    ranks = torch.arange(scores.shape[1]).expand(scores.shape) if ranks is None else ranks
    return Window(scores, positive, ranks, lambda: distances, dim)


def simans(scores, positive, a, b):
    return SimANS(a, b).log_weights(window(scores, positive))


def softmax(scores, temperature):
    return Softmax(temperature).log_weights(window(scores))


def log_rank(ranks):
    return LogRank().log_weights(window(torch.zeros(ranks.shape), ranks=ranks))


def by_distance(distances, dim):
    # The embeddings' own dimension counts where the strategy names none.
    scores = torch.zeros(distances.shape)
    named = Distance(dim).log_weights(window(scores, distances=distances, dim=999))
    assert (named == Distance().log_weights(window(scores, distances=distances, dim=dim))).all()
    return named


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
    weights = simans(SCORES.to(dtype), POSITIVE.to(dtype), a, b)
    assert weights.dtype == torch.float64
    np.testing.assert_allclose(first_draw(weights), expected, atol=6e-7)


def test_simans_on_dot_products_of_tens():
    """At the paper's a = 0.5, scores a hundred times as large leave next to nothing but the positive's equal."""
    found = first_draw(simans(SCORES * 100, POSITIVE * 100, 0.5, 0.0))
    np.testing.assert_allclose(found, [1.39e-49, 3.73e-6, 0.999993, 3.73e-6, 1.4e-87, 0.0], rtol=2e-2)


def test_simans_peaks_b_above_the_positive():
    """With b = 0.15, what scores 0.95 beside a positive of 0.8 is drawn most."""
    assert int(simans(SCORES, POSITIVE, 50.0, 0.15).argmax()) == 0
    assert int(simans(SCORES, POSITIVE, 50.0, -0.2).argmax()) == 4


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
    np.testing.assert_allclose(first_draw(softmax(SCORES, temperature)), expected, atol=6e-7)


def test_log_rank_weighs_by_the_logarithm_of_the_rank():
    """Ranks count from 1 in the formula: 1 / ln 2, 1 / ln 3, 1 / ln 4, 1 / ln 5, divided by their sum."""
    by_hand = np.array([1.442695, 0.910239, 0.721348, 0.621335])
    found = first_draw(log_rank(torch.arange(4)[None]))
    np.testing.assert_allclose(found, by_hand / 3.695617, atol=1e-6)
    # Raw ranks may start lower down; the weights then do, too.
    found = first_draw(log_rank(torch.tensor([[1, 3]])))
    np.testing.assert_allclose(found, [0.910239 / 1.531574, 0.621335 / 1.531574], atol=1e-6)


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
    found = first_draw(by_distance(distances, dim))
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
    ours = probabilities(by_distance(distances, dim), labels[:, None] != labels)
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
    ours = probabilities(by_distance(distances, 768), labels[:, None] != labels)
    np.testing.assert_allclose(ours.sum(dim=1), 1.0, atol=1e-12)
    # Each row is what it would be by itself.
    alone = probabilities(by_distance(distances[5:6], 768), (labels[5:6, None] != labels))
    assert (ours[5] == alone[0]).all()


def test_ends_of_the_scales():
    """A distance of exactly the maximum is never drawn; even weights are zeros in float64."""
    weights = by_distance(torch.tensor([[1.39, 1.4, 1.41]], dtype=torch.float64), 8)
    assert weights.isfinite().tolist() == [[True, False, False]]
    even = Uniform().log_weights(window(torch.zeros(1, 2)))
    assert even.dtype == torch.float64 and even.tolist() == [[0.0, 0.0]]


# --- replacement ------------------------------------------------------------------------------------------------------


def test_negatives_that_have_become_easy():
    """`ratio * now < first` and `|now| < score`, both strictly; by the loop, and at the bounds."""
    now = torch.tensor([[0.5, 0.25, -0.75, 0.0], [0.75, -0.5, 0.125, -0.8]])
    first = torch.tensor([[1.0, 0.5, 0.0, 0.0], [1.0, 0.5, 0.125, 0.9]])
    assert Easy(2.0, 0.75).is_easy(now, first).tolist() == [[False, False, False, False], [False, True, False, False]]
    assert Easy(1.0, 0.8).is_easy(now, first).tolist() == [[True, True, True, False], [True, True, False, False]]
    expected = [
        [1.15 * s < s0 and abs(s) < 0.8 for s, s0 in zip(*rows, strict=True)] for rows in zip(now, first, strict=True)
    ]
    assert Easy().is_easy(now, first).tolist() == [[bool(one) for one in row] for row in expected]


# --- the tables -------------------------------------------------------------------------------------------------------

VALUES = [
    ("sampling_strategy", "top", "top", "top"),
    ("sampling_strategy", "random", "random", "random"),
    ("sampling_strategy", Uniform(), "random", "random"),
    ("sampling_strategy", "softmax", Softmax(1.0), {"name": "softmax", "temperature": 1.0}),
    ("sampling_strategy", Softmax(0.05), Softmax(0.05), {"name": "softmax", "temperature": 0.05}),
    ("sampling_strategy", "simans", SimANS(50.0, 0.0), {"name": "simans", "a": 50.0, "b": 0.0}),
    ("sampling_strategy", {"name": "simans", "b": 0.1}, SimANS(50.0, 0.1), {"name": "simans", "a": 50.0, "b": 0.1}),
    ("sampling_strategy", "log_rank", LogRank(), "log_rank"),
    ("sampling_strategy", {"name": "log_rank"}, LogRank(), "log_rank"),
    ("sampling_strategy", "distance", Distance(None), {"name": "distance", "dim": None}),
    ("sampling_strategy", Distance(dim=8), Distance(8), {"name": "distance", "dim": 8}),
    ("replacement", "all", "all", "all"),
    ("replacement", "easy", Easy(1.15, 0.8), {"name": "easy", "ratio": 1.15, "score": 0.8}),
    ("replacement", Easy(score=0.5), Easy(1.15, 0.5), {"name": "easy", "ratio": 1.15, "score": 0.5}),
]


@pytest.mark.parametrize(("field", "given", "value", "plain"), VALUES)
def test_every_form_of_a_strategy_is_the_value(field, given, value, plain):
    """Names, plain forms and values are the same recipe, which round-trips through JSON."""
    config = MiningConfig(**{field: given})
    assert getattr(config, field) == value and type(getattr(config, field)) is type(value)
    assert config.to_dict()[field] == plain
    again = MiningConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)
    assert MiningConfig(**{field: plain}) == config


def test_a_recipe_round_trips_through_yaml():
    """Where there is a library for YAML, a recipe with every kind of value comes back from it."""
    yaml = pytest.importorskip("yaml")
    for field, given, _, _ in VALUES:
        config = MiningConfig(num_negatives=4, sources={"dense": 3, "random": 1}, search_spaces=("corpus", "anchors"),
                              exclude_pattern="^x: [y]", **{field: given})  # fmt: skip
        assert MiningConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_every_strategy_of_the_tables_is_tried():
    """A strategy that is added has an example here, and every class of the module is in a table."""
    tried = {type(value) for _, given, value, _ in VALUES for value in (given, value)}
    assert set(SAMPLING.values()) | set(REPLACEMENT.values()) == tried - {str, dict}
    defined = {value for value in vars(strategies).values() if hasattr(value, "log_weights")}
    assert defined == set(SAMPLING.values())
    assert {value for value in vars(strategies).values() if hasattr(value, "is_easy")} == set(REPLACEMENT.values())


@dataclass(frozen=True)
class Farthest:
    """A strategy that takes the last of the window."""

    power: float = 1000.0

    def log_weights(self, window: Window) -> torch.Tensor:
        return window.ranks.double() * self.power


def test_a_strategy_in_the_table_is_enough(monkeypatch):
    """A class and a line in the table: the name, the plain form and the draw follow."""
    corpus = [f"d {angle}°" for angle in range(50, 90)]

    def take():
        found = mined([("q 0°", "p 40°")], Model(by_angle), corpus, num_negatives=2, sampling_strategy="farthest")
        return found.config, texts_of(found)

    with pytest.raises(ValueError, match=whole(
        "Expected `sampling_strategy` to be one of ['top', 'random', 'softmax', 'simans', 'log_rank', 'distance'], got "
        "'farthest'."
    )):  # fmt: skip
        take()
    monkeypatch.setitem(SAMPLING, "farthest", Farthest)
    config, texts = take()
    assert config.sampling_strategy == Farthest(1000.0)
    assert config.to_dict()["sampling_strategy"] == {"name": "farthest", "power": 1000.0}
    # A draw looks 10 times as deep: 20 survivors and the place of the positive.
    assert texts == [["d 69°", "d 70°"]]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            "softmx",
            ValueError,
            "Expected `sampling_strategy` to be one of ['top', 'random', 'softmax', 'simans', 'log_rank', 'distance'], "
            "got 'softmx'. Did you mean 'softmax'?",
        ),
        ({"name": "softmax", "temprature": 1}, ValueError, "The strategy 'softmax' has no ['temprature']; it has "
         "['temperature']."),
        ({"name": "top", "k": 1}, ValueError, "The strategy 'top' has no ['k']; it has no numbers."),
        ({"name": "log_rank", "k": 1}, ValueError, "The strategy 'log_rank' has no ['k']; it has no numbers."),
        (
            {"temperature": 1.0},
            TypeError,
            "Expected `sampling_strategy` to be one of ['top', 'random', 'softmax', 'simans', 'log_rank', 'distance'] or "
            "a Uniform, Softmax, SimANS, LogRank, Distance, got {'temperature': 1.0}.",
        ),
        (
            Easy(1.15, 0.8),
            TypeError,
            "Expected `sampling_strategy` to be one of ['top', 'random', 'softmax', 'simans', 'log_rank', 'distance'] or "
            "a Uniform, Softmax, SimANS, LogRank, Distance, got Easy(ratio=1.15, score=0.8).",
        ),
        ({"name": "softmax", "temperature": 0.0}, ValueError, "Expected `temperature` of Softmax to be above 0, got 0.0."),
        ({"name": "softmax", "temperature": "hot"}, TypeError, "Expected `temperature` of Softmax to be a finite number, "
         "got 'hot'."),
        ({"name": "softmax", "temperature": True}, TypeError, "Expected `temperature` of Softmax to be a finite number, "
         "got True."),
        ({"name": "softmax", "temperature": math.nan}, TypeError, "Expected `temperature` of Softmax to be a finite "
         "number, got nan."),
        ({"name": "simans", "a": -1}, ValueError, "Expected `a` of SimANS to be at least 0, got -1."),
        ({"name": "simans", "b": None}, TypeError, "Expected `b` of SimANS to be a finite number, got None."),
        ({"name": "distance", "dim": 1}, ValueError, "Expected `dim` of Distance to be at least 2, got 1."),
    ],
)  # fmt: skip
def test_what_is_no_strategy_is_refused(given, error, message):
    """The whole message is compared."""
    with pytest.raises(error, match=whole(message)):
        MiningConfig(sampling_strategy=given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("hard", ValueError, "Expected `replacement` to be one of ['all', 'easy'], got 'hard'."),
        ({"name": "easy", "ratio": 0}, ValueError, "Expected `ratio` of Easy to be above 0, got 0."),
        ({"name": "easy", "score": -1}, ValueError, "Expected `score` of Easy to be at least 0, got -1."),
        (Softmax(), TypeError, "Expected `replacement` to be one of ['all', 'easy'] or a Easy, got "
         "Softmax(temperature=1.0)."),
    ],
)  # fmt: skip
def test_what_is_no_rule_of_replacement_is_refused(given, error, message):
    """The whole message is compared."""
    with pytest.raises(error, match=whole(message)):
        MiningConfig(replacement=given)


def test_a_value_that_is_in_no_table_has_no_plain_form():
    """Nothing falls back to a default: a strategy that the table lacks raises."""
    with pytest.raises(StopIteration):
        plain_strategy(Farthest(), SAMPLING)
    with pytest.raises(TypeError):
        checked_strategy(Farthest(), SAMPLING, "top", "sampling_strategy")
    assert replace(Softmax(0.5), temperature=2.0) == Softmax(2.0)
