"""The semi-hard triplet loss: Sentence Transformers' without a selection, a plain loop and PML with one."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric, TripletLoss
from torch import Tensor

from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.losses import SemiHardTripletLoss

METRICS = {
    "cosine": TripletDistanceMetric.COSINE,
    "euclidean": TripletDistanceMetric.EUCLIDEAN,
    "manhattan": TripletDistanceMetric.MANHATTAN,
}
COVERED = [(metric, "half-open") for metric in METRICS] + [("cosine", "facenet"), ("euclidean", "facenet")]


def _columns(num_columns: int, batch_size: int = 9, dim: int = 4, seed: int = 0, **kwargs: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(num_columns, batch_size, dim, generator=generator, dtype=torch.float64)
    columns[1] += columns[0]
    return [column.to(**kwargs).requires_grad_() for column in columns]


def _circle(*angles: float) -> Tensor:
    return torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in angles])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("triplet_margin", [0.2, 5])
def test_equals_sentence_transformers_without_a_selection(
    static_model: SentenceTransformer, metric: str, triplet_margin: float
) -> None:
    """With every triplet taking part, value and gradient are those of the loss of the same name."""
    parameters: dict[str, Any] = {"distance_metric": METRICS[metric], "triplet_margin": triplet_margin}
    columns = _columns(3, dtype=torch.float32)
    results = []
    for loss in (
        SemiHardTripletLoss(static_model, **parameters, mask_hard=False, margin=None),
        TripletLoss(static_model, **parameters),
    ):
        value = loss.compute_loss_from_embeddings(columns, None)
        results.append([value, *torch.autograd.grad(value, columns)])
    for our_result, their_result in zip(*results, strict=True):
        torch.testing.assert_close(our_result, their_result, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("metric", "definition"), COVERED)
def test_equals_a_plain_loop(
    static_model: SentenceTransformer, metric: str, definition: Any, dtype: torch.dtype
) -> None:
    """The loss is what a loop over triplets of Python numbers gives, on every metric, margin and dtype."""
    accuracy = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    distance = METRICS[metric]
    for seed, (margin, mask_hard) in enumerate(itertools.product(["triplet_margin", None, 0.1, 1.5], [True, False])):
        columns = [column.detach() for column in _columns(2 + 1 + seed % 4, seed=seed, dtype=dtype)]
        weights = torch.rand(9, generator=torch.Generator().manual_seed(seed)) if seed % 2 else None
        loss = SemiHardTripletLoss(
            static_model, distance, triplet_margin=0.4, mask_hard=mask_hard, margin=margin, definition=definition
        )
        anchors, positives, *negatives = columns
        costs = []
        positive_distances = distance(anchors, positives)
        for negative_distances in (distance(anchors, column) for column in negatives):
            for row in range(9):
                near, far = positive_distances[row], negative_distances[row]
                edge = 0.4 if margin == "triplet_margin" else margin
                if definition == "facenet":
                    if metric == "cosine":
                        gap, is_inside = 2 * (far - near), lambda gap, edge: bool(gap < edge)
                    else:
                        gap, is_inside = far**2 - near**2, lambda gap, edge: bool(gap < edge)
                else:
                    gap, is_inside = far - near, lambda gap, edge: bool(gap <= edge)
                if (mask_hard and bool(gap <= 0)) or (edge is not None and bool(gap > 0) and not is_inside(gap, edge)):
                    continue
                cost = max(near.item() - far.item() + 0.4, 0.0)
                costs.append(cost * (1.0 if weights is None else weights[row].item()))
        expected = sum(costs) / max(len(costs), 1)
        value = loss.compute_loss_from_embeddings(columns, weights).item()
        assert value == pytest.approx(expected, rel=accuracy, abs=accuracy), (seed, margin, mask_hard)


@pytest.mark.parametrize(
    ("metric", "margin", "semi_hard"),
    [("euclidean", 0.2, [45]), ("cosine", 0.2, [45]), ("cosine", 0.3, [45, 60]), ("euclidean", 0.05, [])],
)
def test_points_on_a_circle(
    static_model: SentenceTransformer, metric: str, margin: float, semi_hard: list[int]
) -> None:
    """Of six negatives on a circle, those between the positive and the margin take part."""
    distance = METRICS[metric]
    columns = [_circle(angle) for angle in (0, 40, 20, 35, 45, 60, 90, 120)]
    loss = SemiHardTripletLoss(static_model, distance, triplet_margin=margin)
    near = distance(columns[0], columns[1])
    costs = [(near - distance(columns[0], _circle(angle)) + margin).item() for angle in semi_hard]
    expected = sum(costs) / max(len(costs), 1)
    assert loss.compute_loss_from_embeddings(columns).item() == pytest.approx(expected, abs=1e-6)
    assert loss.diagnostics.pop() == {
        "masked_unfilled": 0.0,
        "masked_known_positive": 0.0,
        "masked_near_positive": 0.0,
        "masked_hard": pytest.approx(2 / 6),
        "masked_easy": pytest.approx((4 - len(semi_hard)) / 6),
    }


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_selects_the_triplets_of_pytorch_metric_learning(
    static_model: SentenceTransformer, metric: str, margin: float
) -> None:
    """On random vectors the loss is the mean cost of the triplets that an independent miner calls semi-hard."""
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    theirs = {
        "cosine": distances.CosineSimilarity(),
        "euclidean": distances.LpDistance(normalize_embeddings=False),
    }[metric]
    miner = miners.TripletMarginMiner(margin, "semihard", distance=theirs)
    columns = [column.detach() for column in _columns(5, batch_size=90)]
    anchors, positives, *negatives = columns
    rows = torch.arange(90)[:, None]
    label = torch.cat([rows, rows, rows, torch.full((90, 1), 10**6), (rows + torch.arange(3)) % 5 - 1], dim=1)
    costs = []
    for row in range(90):
        filled = [column[row] for number, column in enumerate(negatives) if label[row, 4 + number] >= 0]
        texts = torch.stack([anchors[row], positives[row], *filled])
        a, p, n = miner(texts, torch.tensor([0, *range(len(filled) + 1)]))
        for negative in n[(a == 0) & (p == 1)].tolist():
            gap = METRICS[metric](texts[:1], texts[1:2]) - METRICS[metric](texts[:1], texts[negative : negative + 1])
            costs.append(max(gap.item() + margin, 0.0))
    assert costs
    loss = SemiHardTripletLoss(static_model, METRICS[metric], triplet_margin=margin)
    assert loss.compute_loss_from_embeddings(columns, label).item() == pytest.approx(sum(costs) / len(costs), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_no_semi_hard_triplet_is_a_loss_and_gradient_of_zero(
    static_model: SentenceTransformer, metric: str, dtype: torch.dtype
) -> None:
    """Where every negative is as close as its positive, the loss is zero, connected, with a gradient of zero."""
    anchors = _columns(2, dtype=dtype)[0]
    columns = [anchors, (-anchors).detach().requires_grad_(), anchors.detach().clone().requires_grad_()]
    value = SemiHardTripletLoss(static_model, METRICS[metric]).compute_loss_from_embeddings(columns)
    value.backward()
    assert value.item() == 0.0
    for column in columns:
        assert column.grad is not None
        assert column.grad.abs().max().item() == 0.0


def test_known_positives_take_no_part(static_model: SentenceTransformer) -> None:
    """A negative that is a right answer by its id is left out; one of another row's query is not."""
    columns = [_circle(0, 90), _circle(40, 130), _circle(45, 135), _circle(50, 140)]
    known = KnownPositives.from_lists([[0, 2], [1]], identities=[0, 1, 2, 3])
    label = torch.tensor([[0, 0, 0, 10**6, 2, 3], [1, 1, 1, 10**6, 2, -1]])
    loss = SemiHardTripletLoss(static_model, TripletDistanceMetric.COSINE, 0.5, known_positives=known)
    loss.compute_loss_from_embeddings([column.requires_grad_() for column in columns], label)
    shares = loss.diagnostics.pop()
    assert (shares.pop("masked_known_positive"), shares.pop("masked_unfilled")) == (0.25, 0.25)
    assert set(shares.values()) == {0.0}


@pytest.mark.parametrize("metric", METRICS)
def test_the_gradient_is_that_of_the_value(static_model: SentenceTransformer, metric: str) -> None:
    """Numerical and analytical gradients agree while negatives are masked for several reasons."""
    label = torch.tensor([[row, row, row, 700_000, -1 if row % 3 else 9, row if row % 2 else 9] for row in range(9)])
    known = KnownPositives.from_lists([[row] for row in range(9)], identities=list(range(10)))
    loss = SemiHardTripletLoss(static_model, METRICS[metric], triplet_margin=0.7, known_positives=known)
    # Some metrics compute in single precision, so the step is large and the tolerance wide.
    columns = _columns(4, seed=2)
    value = loss.compute_loss_from_embeddings(columns, label)
    gradients = torch.autograd.grad(value, columns)
    for column, gradient in zip(columns, gradients, strict=True):
        direction = torch.nn.functional.normalize(gradient.flatten(), dim=0).view_as(gradient)
        step = 1e-3 * direction
        moved = [
            loss.compute_loss_from_embeddings([c + sign * step if c is column else c for c in columns], label).item()
            for sign in (1, -1)
        ]
        assert (moved[0] - moved[1]) / 2e-3 == pytest.approx(gradient.norm().item(), rel=2e-2, abs=1e-4)
    shares = loss.diagnostics.pop()
    assert min(shares[name] for name in ("masked_unfilled", "masked_known_positive", "masked_hard")) > 0


def test_unfilled_slots_take_no_part(static_model: SentenceTransformer) -> None:
    """A negative of id -1 is left out, whatever it scores; the mean is over the other triplets."""
    label = torch.tensor([[0, 0, 0, 10**6, -1, 3], [1, 1, 1, 500_000, 2, -1], [2, 2, 2, 10**6, -1, -1]])
    columns = _columns(4, batch_size=3)
    anchors, positives, first, second = columns
    metric = TripletDistanceMetric.COSINE
    for dtype in (torch.int64, torch.int32):
        loss = SemiHardTripletLoss(static_model, metric, triplet_margin=2.0, mask_hard=False, margin=None)
        value = loss.compute_loss_from_embeddings(columns, label.to(dtype))
        costs = (
            metric(anchors, positives)[:2] + 2 - torch.stack([metric(anchors, second)[0], metric(anchors, first)[1]])
        )
        torch.testing.assert_close(value, (costs * torch.tensor([1, 0.5])).mean())
        gradients = torch.autograd.grad(value, [first, second])
        assert [gradient.abs().sum(dim=1).gt(0).tolist() for gradient in gradients] == [
            [False, True, False],
            [True, False, False],
        ]
        shares = loss.diagnostics.pop()
        assert shares.pop("masked_unfilled") == 4 / 6
        assert set(shares.values()) == {0.0}


def test_nothing_filled_is_a_loss_and_gradient_of_zero(static_model: SentenceTransformer) -> None:
    """Where no slot is filled, the loss is zero, and every column has a gradient of zero."""
    columns = _columns(3, batch_size=2)
    label = torch.tensor([[0, 0, 0, 10**6, -1], [1, 1, 1, 10**6, -1]])
    loss = SemiHardTripletLoss(static_model, mask_hard=False, margin=None)
    value = loss.compute_loss_from_embeddings(columns, label)
    assert value.item() == 0.0
    assert all(gradient.abs().max().item() == 0.0 for gradient in torch.autograd.grad(value, columns))


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float16, 400.0), (torch.bfloat16, 0.75)])
def test_the_mean_is_not_rounded_on_the_way(
    static_model: SentenceTransformer, dtype: torch.dtype, distance: float
) -> None:
    """In half precision the mean over many triplets is that of single precision, rounded once."""
    anchors, positives = torch.zeros(301, 1, dtype=dtype), torch.full((301, 1), distance, dtype=dtype)
    negatives = torch.linspace(0, 0.2 * distance, 301).to(dtype)[:, None]
    loss = SemiHardTripletLoss(
        static_model, lambda a, b: (a - b).abs().sum(dim=1), triplet_margin=0.5, mask_hard=False, margin=None
    )
    value = loss.compute_loss_from_embeddings([anchors, positives, negatives])
    costs = (positives - negatives + 0.5).squeeze(1)
    expected = (costs.float().sum() / 301).to(dtype)
    assert value.dtype == dtype
    assert torch.isfinite(expected)
    assert value.item() == expected.item()
    # What the test is about: a sum in half precision does not give this.
    assert (costs.sum() / 301).item() != expected.item()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"margin": -1},
            "Expected `margin`, the width of the semi-hard band, to be a number of at least 0. Got -1. "
            "Pass a width in units of the score, such as 0.1.",
        ),
        (
            {"margin": "triplet"},
            "Expected `margin` to be a number of at least 0, 'triplet_margin' or None. Got 'triplet'.",
        ),
        (
            {"definition": "facenet", "distance_metric": TripletDistanceMetric.MANHATTAN},
            "`definition='facenet'` measures squared L2 distances, so it needs a cosine or Euclidean "
            f"`distance_metric`. Got {TripletDistanceMetric.MANHATTAN!r}. Use `definition='half-open'`, which takes any "
            "distance.",
        ),
    ],
)
def test_a_parameter_out_of_range_is_refused(
    static_model: SentenceTransformer, parameters: dict[str, Any], message: str
) -> None:
    """Settings that cannot be meant, and a metric that the definition does not cover, are errors."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SemiHardTripletLoss(static_model, **parameters)


def test_a_missing_negative_is_refused(static_model: SentenceTransformer) -> None:
    """Anchor and positive alone are an error."""
    message = (
        "Expected at least 3 columns, anchor, positive and negative. Got 2. "
        "Mine negatives first, or pass (anchor, positive, negative_1, …, negative_n) columns in this order."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SemiHardTripletLoss(static_model).compute_loss_from_embeddings(_columns(2))


def test_the_model_card_gets_all_parameters(static_model: SentenceTransformer) -> None:
    """The settings and both papers are offered to the model card."""
    loss = SemiHardTripletLoss(static_model, TripletDistanceMetric.COSINE, 0.2)
    assert loss.get_config_dict() == {
        "distance_metric": "TripletDistanceMetric.COSINE",
        "triplet_margin": 0.2,
        "mask_hard": True,
        "margin": "triplet_margin",
        "definition": "half-open",
        "known_positives": False,
    }
    assert "schroff2015facenet" in loss.citation
