"""What is left out, with which reason, and whether the ids belong to the right answers."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    ContrastiveLoss,
    CosineSimilarityLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    TripletLoss,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.losses import (
    SemiHardCachedMultipleNegativesRankingLoss,
    SemiHardContrastiveLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
)
from st_hardneg.losses.labels import RowLabels
from st_hardneg.losses.masking import NegativeFilter, losses_with_known_positives, ready_for, rounding_tolerance

TUPLE_LOSSES = [SemiHardMultipleNegativesRankingLoss, SemiHardTripletLoss, SemiHardContrastiveLoss]


def test_every_negative_has_one_reason() -> None:
    """The first reason that applies counts: unfilled, known, near, hard, easy."""
    positive = torch.tensor([[0.5]])
    reasons = {  # score, unfilled, known, near: why it is left out
        (0.9, 1, 1, 1): "unfilled",
        (0.1, 1, 0, 0): "unfilled",
        (0.9, 0, 1, 1): "known_positive",
        (0.4, 0, 1, 0): "known_positive",
        (0.9, 0, 0, 1): "near_positive",
        (0.4, 0, 0, 1): "near_positive",
        (0.1, 0, 0, 1): "near_positive",
        (0.9, 0, 0, 0): "hard",
        (0.5, 0, 0, 0): "hard",
        (0.1, 0, 0, 0): "easy",
        (0.4, 0, 0, 0): None,
    }
    scores, unfilled, known, near = (torch.tensor([list(column)]) for column in zip(*reasons, strict=True))
    left_out = NegativeFilter(mask_hard=True, margin=0.2).leave_out(
        positive, scores, unfilled=unfilled.bool(), known_positive=known.bool(), near_positive=near.bool()
    )
    names = ("unfilled", "known_positive", "near_positive", "hard", "easy")
    for place, reason in enumerate(reasons.values()):
        assert [name for name in names if getattr(left_out, name)[0, place]] == ([reason] if reason else [])
        assert left_out.union[0, place].item() == (reason is not None)


def test_scores_decide_only_where_they_may() -> None:
    """Negatives that are not judged are left out as unfilled or known, never because of a score."""
    scores = torch.tensor([[0.9, 0.9, 0.1, 0.9, 0.9]])
    yes = torch.ones_like(scores, dtype=torch.bool)
    judged = torch.tensor([[True, False, False, False, False]])
    left_out = NegativeFilter(mask_hard=True, margin=0.2).leave_out(
        torch.tensor([[0.5]]),
        scores,
        unfilled=torch.tensor([[False, False, False, True, False]]),
        known_positive=torch.tensor([[False, False, False, False, True]]),
        near_positive=~yes,
        judged=judged,
    )
    assert left_out.union.tolist() == [[True, False, False, True, True]]


def test_a_near_tie_is_a_tie() -> None:
    """A negative closer below the positive than the tolerance is hard; beyond a score of 1 the tolerance is relative."""
    positives = torch.tensor([[0.5], [4.0], [-4.0]])
    below = torch.tensor([[0.05, 0.15, 0.25, 0.5]])
    hard = NegativeFilter(mask_hard=True, margin=None).leave_out(positives, positives - below, tolerance=0.1).hard
    assert hard.tolist() == [[True, False, False, False], [True, True, True, False], [True, True, True, False]]


def test_the_tolerance_is_that_of_matrix_products() -> None:
    """It is a few units in the last place, and none where rounding hides the differences."""
    expected = {torch.float32: 16 * 2**-23, torch.float64: 16 * 2**-52, torch.float16: 0.0, torch.bfloat16: 0.0}
    assert {dtype: rounding_tolerance(dtype) for dtype in expected} == expected


def _label(rows: list[list[int]]) -> Tensor:
    return torch.tensor([[row, query, positive, 10**6, *others] for row, (query, positive, *others) in enumerate(rows)])


# Queries 0 and 1; texts 0 to 3, of which 0 and 3 are equal.
KNOWN = KnownPositives.from_lists([[0], [1]], identities=[0, 1, 2, 0])
WRONG_DATASET = (
    "The label holds ids of another dataset than the one whose `known_positives` this loss was given, which has 4 "
    "texts: {}. Give every dataset a loss of its own, each with the `known_positives` of its dataset, as "
    "`loss={{'a': loss_a, 'b': loss_b}}` with the names of the datasets. Data for evaluation need no ids."
)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([[0, 0, 2], [0, 1, 2]], "its text 1 is not a right answer to its query 0"),
        ([[0, 0, 2], [2, 2, 3]], "its text 2 is not a right answer to its query 2"),
        ([[5, 0, 2], [0, 0, 3]], "its text 0 is not a right answer to its query 5"),
        ([[-1, 0, 2], [0, 0, 3]], "its text 0 is not a right answer to its query -1"),
        ([[0, -1, 2], [0, 0, 3]], "its text -1 is not a right answer to its query 0"),
        ([[0, 0, 3], [1, 4, 2]], "it has no text 4"),
        ([[0, 0, 4], [1, 1, 2]], "it has no text 4"),
        ([[0, 0, 3], [1, 4, 9]], "it has no text 9"),
    ],
)
@pytest.mark.parametrize("build", TUPLE_LOSSES)
@pytest.mark.parametrize("grad", [True, False])
def test_ids_of_another_dataset_are_refused(
    static_model: SentenceTransformer, build: Any, grad: bool, rows: list[list[int]], what: str
) -> None:
    """Ids out of range, and rows whose positive is not right for their query, are errors that say what to do."""
    loss = build(static_model, known_positives=KNOWN)
    columns = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=f"^{re.escape(WRONG_DATASET.format(what))}$"):
        loss.compute_loss_from_embeddings(columns, _label(rows))


@pytest.mark.parametrize("rows", [[[0, 0, 2], [1, 1, 3]], [[0, 3, -1], [1, 1, -1]], [[1, 1, 1], [0, 0, 0]]])
@pytest.mark.parametrize("build", TUPLE_LOSSES)
def test_ids_of_the_right_dataset_pass(static_model: SentenceTransformer, build: Any, rows: list[list[int]]) -> None:
    """Copies of a positive, unfilled slots and negatives that are right answers are no reason to refuse."""
    loss = build(static_model, known_positives=KNOWN)
    columns = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
    assert torch.isfinite(loss.compute_loss_from_embeddings(columns, _label(rows)))


def test_right_answers_of_nothing_are_refused() -> None:
    """A numbering without a single right answer has none for any row."""
    labels = RowLabels.parse(_label([[0, 0, 1]]), 1, 1)
    for known in (KnownPositives.from_lists([], []), KnownPositives.from_lists([[]], [0, 1])):
        with pytest.raises(ValueError, match="ids of another dataset"):
            ready_for(known, labels, torch.device("cpu"))


def test_right_answers_go_where_the_batch_is() -> None:
    """They are copied once; without ids to look up, nothing is refused in evaluation."""
    with torch.no_grad():
        moved = ready_for(KNOWN, RowLabels(), torch.device("meta"))
        assert moved is not None
        assert {moved.keys.device.type, moved.identities.device.type} == {"meta"}
        assert ready_for(moved, RowLabels(), torch.device("meta")) is moved
        assert ready_for(None, RowLabels(), torch.device("meta")) is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SemiHardMultipleNegativesRankingLoss, MultipleNegativesRankingLoss),
        (SemiHardCachedMultipleNegativesRankingLoss, CachedMultipleNegativesRankingLoss),
        (SemiHardTripletLoss, TripletLoss),
        (SemiHardContrastiveLoss, ContrastiveLoss),
    ],
)
def test_parameters_are_those_of_sentence_transformers(ours: Any, theirs: Any) -> None:
    """Every parameter of the loss of that name is here, in its place and with its default; ours are keywords."""
    parameters = list(inspect.signature(ours.__init__).parameters.values())
    shared = list(inspect.signature(theirs.__init__).parameters.values())
    assert [(p.name, p.default) for p in parameters[: len(shared)]] == [(p.name, p.default) for p in shared]
    assert {p.kind for p in parameters[len(shared) :]} == {inspect.Parameter.KEYWORD_ONLY}
    defaults = {p.name: p.default for p in parameters[len(shared) :]}
    assert (defaults["mask_hard"], defaults["definition"], defaults["known_positives"]) == (True, "half-open", None)


@pytest.mark.parametrize("build", [*TUPLE_LOSSES, SemiHardCachedMultipleNegativesRankingLoss])
def test_an_unknown_definition_is_refused(build_transformer_model: Any, build: Any) -> None:
    """Every loss checks its definition of hardness when it is built."""
    with pytest.raises(ValueError, match="Expected `definition` to be one of"):
        build(build_transformer_model(), definition="pml")


class _ReadsOfTheDevice(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")
        self.count += func.overloadpacket.__name__ in names
        return func(*args, **(kwargs or {}))


def test_the_check_waits_for_the_device_once() -> None:
    """One number is read from the device in each step, whatever the batch size."""
    labels = RowLabels.parse(_label([[0, 0, 2], [1, 1, 3]]), 2, 1)
    with _ReadsOfTheDevice() as reads:
        assert ready_for(KNOWN, labels, torch.device("cpu")) is KNOWN
    assert reads.count == 1


@pytest.mark.parametrize("build", TUPLE_LOSSES)
def test_a_step_waits_for_the_device_twice(static_model: SentenceTransformer, build: Any) -> None:
    """The checks of weights and ids are all that the host waits for before the backward pass."""
    loss = build(static_model, known_positives=KNOWN)
    columns = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
    label = _label([[0, 0, -1], [1, 1, 3]])
    loss.compute_loss_from_embeddings(columns, label)
    with _ReadsOfTheDevice() as reads:
        loss.compute_loss_from_embeddings(columns, label)
    assert reads.count == 2


@pytest.mark.parametrize("build", [SemiHardMultipleNegativesRankingLoss, SemiHardCachedMultipleNegativesRankingLoss])
def test_the_recommended_loss_masks_by_identity_only(build_transformer_model: Any, build: Any) -> None:
    """It has the dataset's right answers, looks at no score, and takes changes."""
    model = build_transformer_model()
    hard_negatives = SimpleNamespace(known_positives=KNOWN)
    loss = build.recommended(model, hard_negatives)
    assert type(loss) is build
    assert loss.model is model
    assert loss.known_positives is KNOWN
    plain = build(model, mask_hard=False, known_positives=KNOWN)
    assert loss.get_config_dict() == plain.get_config_dict()
    assert (loss.mask_hard, loss.margin, loss.max_positive_similarity) == (False, None, None)
    changed = build.recommended(model, hard_negatives, scale=50.0, mask_hard=True, margin=0.3)
    assert (changed.scale, changed.mask_hard, changed.margin) == (50.0, True, 0.3)
    assert changed.known_positives is KNOWN
    features = [model.preprocess(["w1", "w2"]) for _ in range(3)]
    with pytest.raises(ValueError, match=r"^Expected a label with ids, .*`HardNegativeDataset.as_dataset\(with_ids"):
        loss(features, None)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, "NoneType"),
        (KNOWN, "KnownPositives"),
        (Dataset.from_dict({"anchor": ["a"]}), "Dataset"),
        (SimpleNamespace(known_positives=None), "SimpleNamespace"),
    ],
)
@pytest.mark.parametrize("build", [SemiHardMultipleNegativesRankingLoss, SemiHardCachedMultipleNegativesRankingLoss])
def test_the_recommended_loss_needs_the_dataset(
    static_model: SentenceTransformer, build: Any, given: Any, name: str
) -> None:
    """Anything but what has known positives is an error that says what to pass."""
    message = (
        "Expected `hard_negatives` to be the HardNegativeDataset that the loss will train on. "
        f"Got {name}. Pass the object on which you call `as_dataset(with_ids=True)`, and build one loss for each such "
        "dataset."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        build.recommended(static_model, given)


@pytest.mark.parametrize("build", TUPLE_LOSSES)
def test_known_positives_are_what_the_dataset_returns(static_model: SentenceTransformer, build: Any) -> None:
    """Other objects are refused at construction."""
    message = (
        "Expected `known_positives` to be a KnownPositives or None. Got dict. Pass `hard_negatives.known_positives`."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        build(static_model, known_positives={})


def test_losses_with_known_positives_are_found(build_transformer_model: Any) -> None:
    """Alone, by dataset, as a part, in a wrapper and behind a cache, each where it holds the right answers itself."""
    model = build_transformer_model()
    ranking = SemiHardMultipleNegativesRankingLoss(model, known_positives=KNOWN)
    triplet = SemiHardTripletLoss(model, known_positives=KNOWN)
    cached = SemiHardCachedMultipleNegativesRankingLoss(model, known_positives=KNOWN)
    without = SemiHardContrastiveLoss(model)

    def found(loss: nn.Module | dict[str, nn.Module]) -> list[tuple[str, nn.Module]]:
        return list(losses_with_known_positives(loss))

    assert found(ranking) == [("", ranking)]
    assert found(cached) == [("", cached.loss)]
    assert found(without) == found(CosineSimilarityLoss(model)) == found({"a": without}) == []
    parts = WeightedSumLoss(model, [(1.0, ranking), (1.0, without), (0.5, triplet)])
    assert found(MatryoshkaLoss(model, parts, [16])) == [("", ranking), ("", triplet)]
    assert found({"a": ranking, "b": cached, "c": without, "d": ranking}) == [
        ("a", ranking),
        ("b", cached.loss),
        ("d", ranking),
    ]
