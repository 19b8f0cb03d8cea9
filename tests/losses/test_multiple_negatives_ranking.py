"""The semi-hard ranking loss: Sentence Transformers' where nothing is masked, a plain loop where something is."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim
from torch import Tensor

from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss
from st_hardneg.losses.masking import rounding_tolerance

ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
DIRECTIONS = [
    (("query_to_doc",), "joint"),
    (("query_to_doc",), "per_direction"),
    (("query_to_doc", "doc_to_query"), "joint"),
    (("query_to_doc", "doc_to_query"), "per_direction"),
    (("query_to_doc", "query_to_query"), "joint"),
    (("query_to_doc", "doc_to_doc"), "joint"),
    (ALL_DIRECTIONS, "joint"),
]
HARDNESS = [
    (None, 0.0),
    ("in_batch_negatives", 9.0),
    ("hard_negatives", 5.0),
    ("all_negatives", 5.0),
]
LABEL_IDS = Callable[..., tuple[Tensor, KnownPositives]]


def _columns(num_columns: int, batch_size: int = 7, dim: int = 5, seed: int = 0, **kwargs: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(num_columns, batch_size, dim, generator=generator, dtype=torch.float64)
    return [column.to(**kwargs).requires_grad_() for column in columns]


def _value_and_gradients(loss: torch.nn.Module, columns: list[Tensor], labels: Tensor | None = None) -> list[Tensor]:
    for column in columns:
        column.grad = None
    value = loss.compute_loss_from_embeddings(columns, labels)
    value.backward()
    return [value.detach(), *(column.grad for column in columns)]


@pytest.mark.parametrize(("directions", "partition_mode"), DIRECTIONS)
@pytest.mark.parametrize(("hardness_mode", "hardness_strength"), HARDNESS)
@pytest.mark.parametrize("num_negatives", [0, 1, 3])
def test_equals_sentence_transformers_with_the_masks_off(
    static_model: SentenceTransformer,
    directions: Any,
    partition_mode: Any,
    hardness_mode: Any,
    hardness_strength: float,
    num_negatives: int,
) -> None:
    """Value and gradient are those of the loss of the same name for every parameter that both take."""
    for similarity_fct, scale in ((cos_sim, 20.0), (cos_sim, 3.0), (dot_score, 1.0), (euclidean_sim, 1.0)):
        parameters: dict[str, Any] = {
            "scale": scale,
            "similarity_fct": similarity_fct,
            "directions": directions,
            "partition_mode": partition_mode,
            "hardness_mode": hardness_mode,
            "hardness_strength": hardness_strength,
        }
        columns = _columns(2 + num_negatives, dtype=torch.float32)
        ours = SemiHardMultipleNegativesRankingLoss(static_model, **parameters, mask_hard=False)
        theirs = MultipleNegativesRankingLoss(static_model, **parameters)
        results = zip(_value_and_gradients(ours, columns), _value_and_gradients(theirs, columns), strict=True)
        for our_result, their_result in results:
            torch.testing.assert_close(our_result, their_result, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("directions", "partition_mode"), DIRECTIONS)
def test_equals_sentence_transformers_when_no_negative_is_hard(
    static_model: SentenceTransformer, directions: Any, partition_mode: Any
) -> None:
    """With every positive closer than every negative, the masks of the default settings change nothing."""
    anchors, positives, *negatives = _columns(4, dim=16, dtype=torch.float32)
    positives = (anchors + 0.05 * positives).detach().requires_grad_()
    columns = [anchors, positives, *negatives]
    ours = SemiHardMultipleNegativesRankingLoss(
        static_model, directions=directions, partition_mode=partition_mode, margin=math.inf
    )
    theirs = MultipleNegativesRankingLoss(static_model, directions=directions, partition_mode=partition_mode)
    results = zip(_value_and_gradients(ours, columns), _value_and_gradients(theirs, columns), strict=True)
    for our_result, their_result in results:
        torch.testing.assert_close(our_result, their_result, atol=1e-6, rtol=1e-6)
    assert set(ours.diagnostics.pop().values()) == {0.0}


def _loop(columns: list[Tensor], loss: Any, label: Tensor | None, known: KnownPositives | None) -> float:  # noqa: C901
    """The loss of one batch, pair by pair, on Python numbers."""
    queries, *documents = columns
    batch_size = len(queries)
    flat = torch.cat(documents)
    dtype = loss.similarity_fct(queries, queries).dtype
    tolerance = rounding_tolerance(dtype)
    scores = {
        "query_to_doc": loss.similarity_fct(queries, flat).tolist(),
        "query_to_query": loss.similarity_fct(queries, queries).tolist(),
        "doc_to_query": loss.similarity_fct(queries, documents[0]).T.tolist(),
        "doc_to_doc": loss.similarity_fct(flat, documents[0]).T.tolist(),
    }
    near = loss.similarity_fct(documents[0], flat).tolist()

    def right(row: int, column: int, of: int) -> bool:
        if known is None or label is None:
            return False
        text = label[of, [2, *range(4, label.shape[1])][column]]
        return bool(known.is_positive(label[row : row + 1, 1], text[None])[0, 0])

    def is_unfilled(column: int, of: int) -> bool:
        return label is not None and column > 0 and label[of, 3 + column].item() == -1

    def stays(direction: str, row: int, column: int, other: int) -> bool:  # noqa: C901
        positive = scores["query_to_doc"][row][row]
        score = scores[direction][row][column * batch_size + other]
        own = row == other
        if direction in ("query_to_query", "doc_to_doc") and own:
            return False
        if own and column == 0:
            return True
        if is_unfilled(column, other):
            return False
        if {
            "query_to_doc": right(row, column, other),
            "query_to_query": right(row, 0, other) or right(other, 0, row),
            "doc_to_query": right(other, 0, row),
            "doc_to_doc": right(row, column, other) or (column == 0 and right(other, 0, row)),
        }[direction]:
            return False
        if loss.mask_mode == "hard_negatives" and not own:
            return True
        if loss.mask_mode == "in_batch_negatives" and own:
            return True
        if loss.max_positive_similarity is not None:
            limit = torch.tensor(loss.max_positive_similarity, dtype=dtype).item()
            if near[row][column * batch_size + other] > limit:
                return False
        if loss.mask_hard and score >= positive - tolerance * max(1.0, abs(positive)):
            return False
        if loss.margin is None:
            return True
        # Whether a rounded score is within a rounded margin is a matter of the rounding.
        gap = (torch.tensor(positive, dtype=dtype) - torch.tensor(score, dtype=dtype)).item()
        edge = torch.tensor(loss.margin, dtype=dtype).item()
        return gap <= edge if loss.definition == "half-open" else 2 * gap < edge or gap <= 0

    def log_sum(direction: str, row: int) -> list[float]:
        logits = []
        for column, other in itertools.product(range(len(scores[direction][0]) // batch_size), range(batch_size)):
            score = scores[direction][row][column * batch_size + other]
            logit = score * loss.scale
            own = row == other
            if direction == "query_to_doc" and not (own and column == 0):
                mode = loss.hardness_mode
                if (
                    mode == "all_negatives"
                    or (mode == "hard_negatives" and own)
                    or (mode == "in_batch_negatives" and not own)
                ):
                    logit += loss.hardness_strength * score
            if stays(direction, row, column, other):
                logits.append(logit)
        return logits

    def logsumexp(logits: list[float]) -> float:
        highest = max(logits)
        return highest + math.log(sum(math.exp(logit - highest) for logit in logits))

    total = 0.0
    for row in range(batch_size):
        logits = [log_sum(direction, row) for direction in loss.directions]
        if loss.partition_mode == "joint":
            log_partition = logsumexp([logit for part in logits for logit in part])
        else:
            log_partition = sum(logsumexp(part) for part in logits) / len(logits)
        weight = 1.0 if label is None else (label[row, 3].float() / 1e6).item()
        total += weight * (log_partition - scores["query_to_doc"][row][row] * loss.scale)
    return total / batch_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("directions", "partition_mode"), DIRECTIONS)
def test_equals_a_plain_loop(
    static_model: SentenceTransformer,
    random_ids: LABEL_IDS,
    dtype: torch.dtype,
    directions: Any,
    partition_mode: Any,
) -> None:
    """The loss is what a loop over pairs of Python numbers gives, on random vectors and random settings."""
    # The loop gets the same rounded scores; only what comes after them is computed in low precision.
    accuracy = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    settings = itertools.product(
        ["all_negatives", "hard_negatives", "in_batch_negatives"],
        [(None, "half-open"), (0.1, "half-open"), (0.7, "half-open"), (0.4, "facenet")],
        [True, False],
    )
    for seed, (mask_mode, (margin, definition), mask_hard) in enumerate(settings):
        num_negatives = seed % 3
        label, known = random_ids(6, num_negatives, seed)
        hardness_mode, hardness_strength = HARDNESS[seed % 4]
        # Cosines are computed in single precision whatever the vectors are; dot products are not.
        similarity_fct = cos_sim if definition == "facenet" or seed % 4 < 2 else dot_score
        loss = SemiHardMultipleNegativesRankingLoss(
            static_model,
            scale=5.0 if similarity_fct is cos_sim else 0.5,
            similarity_fct=similarity_fct,
            directions=directions,
            partition_mode=partition_mode,
            hardness_mode=hardness_mode,
            hardness_strength=hardness_strength,
            mask_hard=mask_hard,
            margin=margin,
            max_positive_similarity=0.4 if seed % 3 == 1 else None,
            mask_mode=mask_mode,
            definition=definition,
            known_positives=known if seed % 2 else None,
        )
        columns = [column.detach() for column in _columns(2 + num_negatives, 6, seed=seed, dtype=dtype)]
        columns[1] = columns[1] + columns[0]
        used_label = label if seed % 2 or seed % 5 == 0 else None
        with torch.enable_grad():
            value = loss.compute_loss_from_embeddings(columns, used_label).item()
        expected = _loop(columns, loss, used_label, known if seed % 2 else None)
        assert value == pytest.approx(expected, rel=accuracy, abs=accuracy), (seed, mask_mode, margin, mask_hard)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("hardness_mode", "hardness_strength"), HARDNESS)
@pytest.mark.parametrize("similarity_fct", [cos_sim, dot_score])
@pytest.mark.parametrize("partition_mode", ["joint", "per_direction"])
def test_nothing_left_is_a_loss_and_gradient_of_zero(
    static_model: SentenceTransformer,
    dtype: torch.dtype,
    hardness_mode: Any,
    hardness_strength: float,
    similarity_fct: Any,
    partition_mode: Any,
) -> None:
    """Where every negative outranks its positive, the loss is zero, not NaN, and every column has a zero gradient."""
    anchors, negatives = _columns(2, dtype=dtype)
    same_anchors = anchors[:1].repeat(7, 1).detach().requires_grad_()
    columns = [same_anchors, (-same_anchors).detach().requires_grad_(), negatives]
    loss = SemiHardMultipleNegativesRankingLoss(
        static_model,
        similarity_fct=similarity_fct,
        partition_mode=partition_mode,
        hardness_mode=hardness_mode,
        hardness_strength=hardness_strength,
    )
    value, *gradients = _value_and_gradients(loss, columns)
    assert value.item() == 0.0
    for gradient in gradients:
        assert gradient.abs().max().item() == 0.0
    assert loss.diagnostics.pop()["masked_hard"] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_left_in_any_direction_has_no_gradient(static_model: SentenceTransformer, dtype: torch.dtype) -> None:
    """The joint softmax over all directions counts the positive twice, a constant of log 2 without a gradient."""
    anchors = _columns(1, dtype=dtype)[0][:1].repeat(7, 1).detach().requires_grad_()
    columns = [anchors, (-anchors).detach().requires_grad_(), (0.5 * anchors).detach().requires_grad_()]
    loss = SemiHardMultipleNegativesRankingLoss(static_model, directions=ALL_DIRECTIONS)
    value, *gradients = _value_and_gradients(loss, columns)
    assert value.item() == pytest.approx(math.log(2), abs=0.1 if dtype != torch.float32 else 1e-6)
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max().item() <= (1e-6 if dtype == torch.float32 else 0.2)


def test_a_copy_of_the_positive_is_never_a_negative(static_model: SentenceTransformer) -> None:
    """A text equal to the positive ties with it, up to rounding, and is masked in any column and row."""
    anchors, positives, negatives = (column.detach() for column in _columns(3, 8, 32, dtype=torch.float32))
    positives = anchors + 0.1 * positives
    positives[3] = positives[0] * (1 + 1e-7)
    negatives[0] = positives[0] * (1 - 1e-7)
    loss = SemiHardMultipleNegativesRankingLoss(static_model)
    loss.compute_loss_from_embeddings([anchors, positives, negatives])
    masked = round(loss.diagnostics.pop()["masked_hard"] * (8 * 16 - 8))
    scores = cos_sim(anchors, torch.cat([positives, negatives]))
    expected = (scores >= scores.diagonal()[:, None] - 1e-6).sum().item() - 8
    assert masked == expected >= 2


def test_row_weights_scale_the_rows(static_model: SentenceTransformer) -> None:
    """The loss is the mean of weight times row loss, from float labels of both shapes and from ids."""
    columns = _columns(3, 4, dtype=torch.float64)
    loss = SemiHardMultipleNegativesRankingLoss(static_model)
    single = []
    for row in range(4):
        weights = torch.zeros(4)
        weights[row] = 1.0
        single.append(loss.compute_loss_from_embeddings(columns, weights).item())
    weights = torch.tensor([0.7, 0.0, 1.0, 2.0])
    expected = sum(weight * value for weight, value in zip(weights.tolist(), single, strict=True))
    ids = torch.tensor([[0, 0, 0, 700_000, 9], [1, 1, 1, 0, 9], [2, 2, 2, 1_000_000, 9], [3, 3, 3, 2_000_000, 9]])
    for labels in (weights, weights[:, None], ids):
        assert loss.compute_loss_from_embeddings(columns, labels).item() == pytest.approx(expected, rel=1e-6)
    unweighted = loss.compute_loss_from_embeddings(columns)
    assert loss.compute_loss_from_embeddings(columns, torch.ones(4)).item() == pytest.approx(unweighted.item())


def test_weights_of_zero_give_zero(static_model: SentenceTransformer) -> None:
    """A batch whose rows all weigh nothing has a loss and gradient of zero."""
    columns = _columns(3, dtype=torch.float32)
    value, *gradients = _value_and_gradients(
        SemiHardMultipleNegativesRankingLoss(static_model), columns, torch.zeros(7)
    )
    assert value.item() == 0.0
    assert all(gradient.abs().max().item() == 0.0 for gradient in gradients)


def test_known_positives_are_masked_whatever_they_score(static_model: SentenceTransformer) -> None:
    """Rows of one query, and texts equal to its positive, are no negatives, and the diagnostics count them."""
    columns = [column.detach() for column in _columns(3, 3, dtype=torch.float64)]
    known = KnownPositives.from_lists([[0, 1], [2]], identities=[0, 1, 2, 0, 4])
    label = torch.tensor([[0, 0, 0, 10**6, 4], [1, 0, 1, 10**6, 3], [2, 1, 2, 10**6, -1]])
    loss = SemiHardMultipleNegativesRankingLoss(static_model, mask_hard=False, known_positives=known)
    value = loss.compute_loss_from_embeddings(columns, label).item()
    scores = 20 * cos_sim(columns[0], torch.cat(columns[1:]))
    # Documents are 0, 1, 2, then 4, 3, none. Rows 0 and 1 ask the same, and text 3 equals text 0.
    keep = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    expected = scores.masked_fill(~keep, -math.inf).logsumexp(dim=1) - scores.diagonal()
    assert value == pytest.approx(expected.mean().item(), rel=1e-9)
    shares = loss.diagnostics.pop()
    assert (shares["masked_known_positive"], shares["masked_unfilled"]) == pytest.approx((4 / 15, 3 / 15))


@pytest.mark.parametrize("known_positives", [None, KnownPositives.from_lists([[0], [1], [2]], [0, 1, 2, 3])])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_unfilled_slots_are_nobodys_negatives(
    static_model: SentenceTransformer, known_positives: KnownPositives | None, dtype: torch.dtype
) -> None:
    """A text of id -1 has no effect on value and gradient of any row in any direction."""
    label = torch.tensor([[0, 0, 0, 10**6, -1], [1, 1, 1, 10**6, 3], [2, 2, 2, 10**6, -1]], dtype=dtype)
    loss = SemiHardMultipleNegativesRankingLoss(
        static_model, directions=ALL_DIRECTIONS, mask_hard=False, known_positives=known_positives
    )
    columns = _columns(3, 3)
    value, *gradients = _value_and_gradients(loss, columns, label)
    assert gradients[2].abs().sum(dim=1).gt(0).tolist() == [False, True, False]
    other = columns[2].detach().clone()
    other[[0, 2]] = columns[1].detach()[[0, 1]]
    assert loss.compute_loss_from_embeddings([*columns[:2], other], label).item() == value.item()
    # Two of three texts, in two of four directions: 3 rows x 2 texts as negatives of an anchor, and of 2 other
    # documents each.
    shares = loss.diagnostics.pop()
    assert shares.pop("masked_unfilled") == pytest.approx((6 + 4) / (3 * 5 + 3 * 2 + 3 * 2 + 3 * 4))
    assert set(shares.values()) == {0.0}


def test_a_row_without_filled_slots_ranks_nothing(static_model: SentenceTransformer) -> None:
    """One row whose only negative is unfilled has a loss and gradient of zero, whatever else is masked."""
    for settings in ({}, {"mask_hard": False}, {"hardness_mode": "all_negatives", "hardness_strength": 5.0}):
        loss = SemiHardMultipleNegativesRankingLoss(static_model, **settings)
        columns = _columns(3, 1)
        value, *gradients = _value_and_gradients(loss, columns, torch.tensor([[0, 0, 0, 10**6, -1]]))
        assert value.item() == 0.0
        assert all(gradient.abs().max().item() == 0.0 for gradient in gradients)
        assert loss.diagnostics.pop()["masked_unfilled"] == 1.0


@pytest.mark.parametrize(("directions", "partition_mode"), DIRECTIONS)
def test_the_gradient_is_that_of_the_value(
    static_model: SentenceTransformer, random_ids: LABEL_IDS, directions: Any, partition_mode: Any
) -> None:
    """Numerical and analytical gradients agree while candidates are masked for several reasons."""
    label, known = random_ids(4, 2)
    loss = SemiHardMultipleNegativesRankingLoss(
        static_model,
        scale=2.0,
        similarity_fct=dot_score,
        directions=directions,
        partition_mode=partition_mode,
        margin=2.0,
        known_positives=known,
    )
    columns = _columns(4, 4, 3)
    assert torch.autograd.gradcheck(lambda *given: loss.compute_loss_from_embeddings(list(given), label), columns)
    shares = loss.diagnostics.pop()
    assert min(shares[name] for name in ("masked_unfilled", "masked_known_positive", "masked_hard")) > 0


def test_near_copies_of_the_positive_are_masked(static_model: SentenceTransformer) -> None:
    """A text too similar to the positive is left out even where the anchor scores it lower."""
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    positives = torch.tensor([[0.9, 0.2], [0.2, 0.9]])
    negatives = torch.tensor([[0.9, 0.3], [0.9, 0.3]])
    loss = SemiHardMultipleNegativesRankingLoss(static_model, max_positive_similarity=0.98)
    loss.compute_loss_from_embeddings([anchors, positives, negatives])
    # Both negatives are near-copies of the first positive, and of the first only.
    assert loss.diagnostics.pop() == {
        "masked_unfilled": 0.0,
        "masked_known_positive": 0.0,
        "masked_near_positive": pytest.approx(2 / 6),
        "masked_hard": 0.0,
        "masked_easy": 0.0,
    }


def test_evaluation_data_need_no_ids(static_model: SentenceTransformer) -> None:
    """Without gradients the loss takes data without ids even if it knows the positives."""
    known = KnownPositives.from_lists([[0]], identities=[0])
    loss = SemiHardMultipleNegativesRankingLoss(static_model, known_positives=known)
    with torch.no_grad():
        value = loss.compute_loss_from_embeddings(_columns(3), None)
    plain = SemiHardMultipleNegativesRankingLoss(static_model).compute_loss_from_embeddings(_columns(3), None)
    assert value.item() == plain.item()
    assert set(loss.diagnostics.pop().values()) == {0.0}


def test_missing_ids_and_columns_are_refused(static_model: SentenceTransformer) -> None:
    """Known positives without ids to look up, and anchors without positives, are errors."""
    known = KnownPositives.from_lists([[0]], identities=[0])
    loss = SemiHardMultipleNegativesRankingLoss(static_model, known_positives=known)
    message = (
        "Expected a label with ids, because `known_positives` was given. Got a label without ids. "
        "Train on `HardNegativeDataset.as_dataset(with_ids=True)`, or leave `known_positives` out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loss.compute_loss_from_embeddings(_columns(3), None)
    message = (
        "Expected at least 2 columns, anchor and positive. Got 1. "
        "Pass (anchor, positive, negative_1, …, negative_n) columns in this order."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loss.compute_loss_from_embeddings(_columns(1), None)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"margin": -0.1},
            "Expected `margin`, the width of the semi-hard band, to be a number of at least 0. Got -0.1. "
            "Pass a width in units of the score, such as 0.1.",
        ),
        (
            {"max_positive_similarity": math.nan},
            "Expected `max_positive_similarity` to be a finite number, or None to keep near-copies of the positive. "
            "Got nan.",
        ),
        (
            {"mask_mode": "all"},
            "Expected `mask_mode` to be one of ['all_negatives', 'hard_negatives', 'in_batch_negatives']. Got 'all'.",
        ),
        (
            {"definition": "pml"},
            "Expected `definition` to be one of ['half-open', 'facenet']. Got 'pml'. "
            "Use 'half-open' unless you reproduce FaceNet's numbers.",
        ),
        (
            {"definition": "facenet", "similarity_fct": dot_score},
            "`definition='facenet'` measures squared L2 distances of unit vectors, so it needs "
            f"`similarity_fct=cos_sim`. Got {dot_score!r}. Use `definition='half-open'`, which takes any similarity.",
        ),
    ],
)
def test_a_parameter_out_of_range_is_refused(
    static_model: SentenceTransformer, parameters: dict[str, Any], message: str
) -> None:
    """Settings that cannot be meant are errors at construction."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SemiHardMultipleNegativesRankingLoss(static_model, **parameters)


def test_the_model_card_gets_all_parameters(static_model: SentenceTransformer) -> None:
    """The settings of both losses and both papers are offered to the model card."""
    loss = SemiHardMultipleNegativesRankingLoss(static_model, margin=0.2)
    assert loss.get_config_dict() == {
        "scale": 20.0,
        "similarity_fct": "cos_sim",
        "gather_across_devices": False,
        "directions": ("query_to_doc",),
        "partition_mode": "joint",
        "hardness_mode": None,
        "hardness_strength": 0.0,
        "mask_hard": True,
        "margin": 0.2,
        "max_positive_similarity": None,
        "mask_mode": "all_negatives",
        "definition": "half-open",
        "known_positives": False,
    }
    assert "schroff2015facenet" in loss.citation
    assert "oord" in loss.citation
