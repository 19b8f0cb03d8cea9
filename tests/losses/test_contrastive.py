"""The semi-hard contrastive loss: Sentence Transformers' on the same pairs, a plain loop where some are left out."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import ContrastiveLoss, SiameseDistanceMetric
from torch import Tensor

from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.losses import SemiHardContrastiveLoss

METRICS = {
    "cosine": SiameseDistanceMetric.COSINE_DISTANCE,
    "euclidean": SiameseDistanceMetric.EUCLIDEAN,
    "manhattan": SiameseDistanceMetric.MANHATTAN,
}
COVERED = [(metric, "half-open") for metric in METRICS] + [("cosine", "facenet"), ("euclidean", "facenet")]


def _columns(num_columns: int, batch_size: int = 9, dim: int = 4, seed: int = 0, **kwargs: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(num_columns, batch_size, dim, generator=generator, dtype=torch.float64)
    columns[1] += columns[0]
    return [column.to(**kwargs).requires_grad_() for column in columns]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("margin", [0.5, 2.0])
@pytest.mark.parametrize("size_average", [True, False])
def test_equals_sentence_transformers(
    static_model: SentenceTransformer, metric: str, margin: float, size_average: bool
) -> None:
    """Labelled pairs, and tuples with nothing left out, cost what the loss of the same name makes of the pairs."""
    parameters: dict[str, Any] = {"distance_metric": METRICS[metric], "margin": margin, "size_average": size_average}
    columns = _columns(4, dtype=torch.float32)
    anchors, *others = columns
    pairs = [anchors.repeat(3, 1), torch.cat(others)]
    labels = torch.tensor([1] * 9 + [0] * 18)
    theirs = ContrastiveLoss(static_model, **parameters)
    ours = SemiHardContrastiveLoss(static_model, **parameters, mask_hard=False)
    results = []
    for value in (
        theirs.compute_loss_from_embeddings(pairs, labels),
        ours.compute_loss_from_embeddings(pairs, labels),
        ours.compute_loss_from_embeddings(pairs, labels.float()),
        ours.compute_loss_from_embeddings(columns),
    ):
        results.append([value, *torch.autograd.grad(value, columns, retain_graph=True)])
    for result in results[1:]:
        for our_result, their_result in zip(result, results[0], strict=True):
            torch.testing.assert_close(our_result, their_result, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("metric", "definition"), COVERED)
def test_equals_a_plain_loop(
    static_model: SentenceTransformer, metric: str, definition: Any, dtype: torch.dtype
) -> None:
    """The loss is what a loop over pairs of Python numbers gives, on every metric, margin and dtype."""
    accuracy = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    distance = METRICS[metric]
    for seed, (band, mask_hard, size_average) in enumerate(
        itertools.product([None, 0.1, 1.5], [True, False], [True, False])
    ):
        columns = [column.detach() for column in _columns(2 + 1 + seed % 4, seed=seed, dtype=dtype)]
        weights = torch.rand(9, generator=torch.Generator().manual_seed(seed)) if seed % 2 else None
        loss = SemiHardContrastiveLoss(
            static_model,
            distance,
            margin=0.8,
            size_average=size_average,
            mask_hard=mask_hard,
            semi_hard_margin=band,
            definition=definition,
        )
        anchors, positives, *negatives = columns
        costs = []
        positive_distances = distance(anchors, positives)
        negative_distances = [distance(anchors, column) for column in negatives]
        for row in range(9):
            near = positive_distances[row]
            weight = 1.0 if weights is None else weights[row].item()
            costs.append(weight * near.item() ** 2 / 2)
            for far in (column[row] for column in negative_distances):
                if definition == "facenet":
                    gap = 2 * (far - near) if metric == "cosine" else far**2 - near**2
                    is_beyond = band is not None and bool(gap >= band)
                else:
                    gap = far - near
                    is_beyond = band is not None and bool(gap > band)
                if (mask_hard and bool(gap <= 0)) or (is_beyond and bool(gap > 0)):
                    continue
                costs.append(weight * max(0.8 - far.item(), 0.0) ** 2 / 2)
        expected = sum(costs) / (len(costs) if size_average else 1)
        value = loss.compute_loss_from_embeddings(columns, weights).item()
        assert value == pytest.approx(expected, rel=accuracy, abs=accuracy), (seed, band, mask_hard)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_positives_are_the_loss_where_no_negative_is_left(
    static_model: SentenceTransformer, dtype: torch.dtype
) -> None:
    """Negatives that are left out have a gradient of zero, and the positives are still pulled."""
    anchors, positives = _columns(2, dtype=dtype)
    negatives = anchors.detach().clone().requires_grad_()
    value = SemiHardContrastiveLoss(static_model).compute_loss_from_embeddings([anchors, positives, negatives])
    value.backward()
    expected = METRICS["cosine"](anchors, positives).square().mean() / 2
    assert value.item() == pytest.approx(expected.item(), rel=2e-2)
    assert negatives.grad is not None
    assert negatives.grad.abs().max().item() == 0.0
    assert torch.isfinite(anchors.grad).all()


def test_known_positives_take_no_part(static_model: SentenceTransformer) -> None:
    """A negative that is a right answer by its id is left out, and counted as such."""
    known = KnownPositives.from_lists([[0, 2], [1]], identities=[0, 1, 2, 3])
    label = torch.tensor([[0, 0, 0, 10**6, 2, 3], [1, 1, 1, 10**6, 2, -1]])
    loss = SemiHardContrastiveLoss(static_model, mask_hard=False, known_positives=known)
    columns = _columns(4, batch_size=2)
    value = loss.compute_loss_from_embeddings(columns, label)
    assert loss.diagnostics.pop()["masked_known_positive"] == 0.25
    (gradient,) = torch.autograd.grad(value, columns[2])
    assert gradient[0].abs().max().item() == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_the_gradient_is_that_of_the_value(static_model: SentenceTransformer, metric: str) -> None:
    """Numerical and analytical gradients agree while negatives are masked for several reasons."""
    label = torch.tensor([[row, row, row, 700_000, -1 if row % 3 else 9, row if row % 2 else 9] for row in range(9)])
    known = KnownPositives.from_lists([[row] for row in range(9)], identities=list(range(10)))
    loss = SemiHardContrastiveLoss(
        static_model, METRICS[metric], margin=1.5, semi_hard_margin=0.5, known_positives=known
    )
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
    """A negative of id -1 is left out of value and gradient, whatever it scores; the mean is over the other pairs."""
    label = torch.tensor([[0, 0, 0, 10**6, -1, 3], [1, 1, 1, 500_000, 2, -1], [2, 2, 2, 10**6, -1, -1]])
    for size_average, dtype in itertools.product([True, False], [torch.int64, torch.int32]):
        loss = SemiHardContrastiveLoss(static_model, margin=3.0, size_average=size_average, mask_hard=False)
        columns = _columns(4, batch_size=3)
        anchors, positives, first, second = columns
        metric = METRICS["cosine"]
        pulled = metric(anchors, positives).square() / 2
        pushed = [(3 - metric(anchors[r : r + 1], c[r : r + 1])).square() / 2 for r, c in ((0, second), (1, first))]
        costs = torch.cat([pulled * torch.tensor([1, 0.5, 1]), pushed[0], pushed[1] * 0.5])
        value = loss.compute_loss_from_embeddings(columns, label.to(dtype))
        torch.testing.assert_close(value, costs.mean() if size_average else costs.sum())
        gradients = torch.autograd.grad(value, [first, second])
        assert [gradient.abs().sum(dim=1).gt(0).tolist() for gradient in gradients] == [
            [False, True, False],
            [True, False, False],
        ]
        shares = loss.diagnostics.pop()
        assert shares.pop("masked_unfilled") == 4 / 6
        assert set(shares.values()) == {0.0}


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float16, 100.0), (torch.bfloat16, 0.71)])
def test_the_mean_is_not_rounded_on_the_way(
    static_model: SentenceTransformer, dtype: torch.dtype, distance: float
) -> None:
    """In half precision the mean over many pairs is that of single precision, rounded once."""
    anchors, positives = torch.zeros(301, 1, dtype=dtype), torch.zeros(301, 1, dtype=dtype)
    negatives = torch.linspace(0, 0.2 * distance, 301).to(dtype)[:, None]
    loss = SemiHardContrastiveLoss(static_model, SiameseDistanceMetric.MANHATTAN, margin=2 * distance, mask_hard=False)
    value = loss.compute_loss_from_embeddings([anchors, positives, negatives])
    pushed = (2 * distance - negatives.squeeze(1)).square() / 2
    expected = (pushed.float().sum() / 602).to(dtype)
    assert value.dtype == dtype
    assert torch.isfinite(expected)
    assert value.item() == expected.item()
    # What the test is about: a sum in half precision does not give this.
    assert (pushed.sum() / 602).item() != expected.item()


EXPECTED = "Expected (anchor, positive, negative_1, …, negative_n) columns, or 2 columns with a 0/1 label. "


@pytest.mark.parametrize(
    ("num_columns", "labels", "got"),
    [
        (2, None, "2 column(s) and no label"),
        (1, torch.ones(9), "1 column(s) and a label"),
        (2, torch.ones(9, 4, dtype=torch.int64), "2 column(s) and a label with ids"),
    ],
)
def test_columns_without_negatives_or_labels_are_refused(
    static_model: SentenceTransformer, num_columns: int, labels: Tensor | None, got: str
) -> None:
    """Two columns are pairs, and pairs need a label each."""
    message = f"{EXPECTED}Got {got}. Mine negatives first, or add a label column."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SemiHardContrastiveLoss(static_model).compute_loss_from_embeddings(_columns(2)[:num_columns], labels)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"semi_hard_margin": -1},
            "Expected `semi_hard_margin`, the width of the semi-hard band, to be a number of at least 0. Got -1. "
            "Pass a width in units of the score, such as 0.1.",
        ),
        (
            {"margin": -0.5},
            "Expected `margin`, the distance that negatives should have, to be at least 0. Got -0.5.",
        ),
        (
            {"definition": "facenet", "distance_metric": SiameseDistanceMetric.MANHATTAN},
            "`definition='facenet'` measures squared L2 distances, so it needs a cosine or Euclidean "
            f"`distance_metric`. Got {SiameseDistanceMetric.MANHATTAN!r}. Use `definition='half-open'`, which takes any "
            "distance.",
        ),
    ],
)
def test_a_parameter_out_of_range_is_refused(
    static_model: SentenceTransformer, parameters: dict[str, Any], message: str
) -> None:
    """Settings that cannot be meant, and a metric that the definition does not cover, are errors."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SemiHardContrastiveLoss(static_model, **parameters)


def test_the_model_card_gets_all_parameters(static_model: SentenceTransformer) -> None:
    """The settings and both papers are offered to the model card."""
    loss = SemiHardContrastiveLoss(static_model, semi_hard_margin=0.3)
    assert loss.get_config_dict() == {
        "distance_metric": "SiameseDistanceMetric.COSINE_DISTANCE",
        "margin": 0.5,
        "size_average": True,
        "mask_hard": True,
        "semi_hard_margin": 0.3,
        "definition": "half-open",
        "known_positives": False,
    }
    assert "hadsell2006" in loss.citation
    assert "schroff2015facenet" in loss.citation
