"""Easy, semi-hard, hard: against literals, loops and an independent implementation."""

from __future__ import annotations

import ast
import inspect
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from st_hardneg import hardness
from st_hardneg.hardness import hardness_shares, is_easy, is_hard, is_semi_hard

ANGLES = [20, 35, 45, 60, 90, 120]
NEGATIVE_COSINES = torch.tensor([math.cos(math.radians(angle)) for angle in ANGLES], dtype=torch.float64)
POSITIVE_COSINE = torch.tensor(math.cos(math.radians(40)), dtype=torch.float64)
NEGATIVE_L2 = (2 - 2 * NEGATIVE_COSINES).sqrt()
POSITIVE_L2 = (2 - 2 * POSITIVE_COSINE).sqrt()


def _chosen(mask: torch.Tensor) -> list[int]:
    return [angle for angle, is_chosen in zip(ANGLES, mask.tolist(), strict=True) if is_chosen]


@pytest.mark.parametrize(
    ("positive", "negatives", "margin", "hard", "semi_hard", "easy"),
    [
        (POSITIVE_COSINE, NEGATIVE_COSINES, 0.2, [20, 35], [45], [60, 90, 120]),
        (POSITIVE_COSINE, NEGATIVE_COSINES, 0.3, [20, 35], [45, 60], [90, 120]),
        (POSITIVE_COSINE, NEGATIVE_COSINES, 0.05, [20, 35], [], [45, 60, 90, 120]),
        (-POSITIVE_L2, -NEGATIVE_L2, 0.2, [20, 35], [45], [60, 90, 120]),
        (-POSITIVE_L2, -NEGATIVE_L2, 0.3, [20, 35], [45], [60, 90, 120]),
        (-POSITIVE_L2, -NEGATIVE_L2, 0.05, [20, 35], [], [45, 60, 90, 120]),
    ],
)
def test_points_on_a_circle_fall_into_the_bands_of_the_triplet_miner(
    positive: torch.Tensor, negatives: torch.Tensor, margin: float, hard: list, semi_hard: list, easy: list
) -> None:
    """Six angles are easy, semi-hard or hard exactly as published for cosine and L2."""
    assert _chosen(is_hard(positive, negatives)) == hard
    assert _chosen(is_semi_hard(positive, negatives, margin)) == semi_hard
    assert _chosen(is_easy(positive, negatives, margin)) == easy


@pytest.mark.parametrize(("margin", "semi_hard"), [(0.2, [45]), (0.1, [])])
def test_facenet_measures_in_squared_l2(margin: float, semi_hard: list[int]) -> None:
    """The open band of squared L2 holds 45 degrees at a margin of 0.2 and nothing at 0.1."""
    assert _chosen(is_semi_hard(POSITIVE_COSINE, NEGATIVE_COSINES, margin, "facenet")) == semi_hard


def test_edges_belong_to_one_band() -> None:
    """A tie with the positive is hard, and the outer edge is semi-hard only in the half-open band."""
    positive, negatives = torch.tensor(-1.0), -torch.tensor([1.0, 1.25, 1.375, 1.5, 1.75])
    assert is_hard(positive, negatives).tolist() == [True, False, False, False, False]
    assert is_semi_hard(positive, negatives, 0.5).tolist() == [False, True, True, True, False]
    assert is_easy(positive, negatives, 0.5).tolist() == [False, False, False, False, True]
    assert is_semi_hard(positive, negatives, 1.0, "facenet").tolist() == [False, True, True, False, False]
    assert is_easy(positive, negatives, 1.0, "facenet").tolist() == [False, False, False, True, True]


def test_a_tie_stays_hard_where_facenets_band_is_empty() -> None:
    """At a margin of 0 the outer edge is the positive itself: a tie is hard, and what is below it is easy."""
    positive, negatives = torch.tensor(0.5), torch.tensor([0.75, 0.5, 0.25])
    assert is_easy(positive, negatives, 0.0, "facenet").tolist() == [False, False, True]
    assert is_semi_hard(positive, negatives, 0.0, "facenet").tolist() == [False, False, False]


SCORES = st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(-1, 1, width=16)


@given(
    positives=st.lists(SCORES, min_size=1, max_size=4),
    negatives=st.lists(SCORES, min_size=1, max_size=6),
    margin=st.sampled_from([0.0, 0.1, 0.25, 0.5, 2.0, math.inf]),
    definition=st.sampled_from(["half-open", "facenet"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_every_negative_is_in_exactly_one_band(
    positives: list[float], negatives: list[float], margin: float, definition: Any, dtype: torch.dtype
) -> None:
    """On any shape, dtype and margin the three masks partition the negatives, as a plain loop says."""
    p, n = torch.tensor(positives, dtype=dtype)[:, None], torch.tensor(negatives, dtype=dtype)[None, :]
    hard, easy = is_hard(p, n), is_easy(p, n, margin, definition)
    semi_hard = is_semi_hard(p, n, margin, definition)
    assert (hard.int() + semi_hard.int() + easy.int() == 1).all()
    edge = torch.tensor(margin, dtype=dtype).item()
    for row, column in ((row, column) for row in range(p.shape[0]) for column in range(n.shape[1])):
        gap = (p[row, 0] - n[0, column]).item()
        inside = gap <= edge if definition == "half-open" else (p.new_tensor(2) * gap).item() < edge
        assert semi_hard[row, column].item() == (gap > 0 and inside)
        assert hard[row, column].item() == (gap <= 0)


@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_semi_hard_equals_the_miner_of_pytorch_metric_learning(margin: float) -> None:
    """On random vectors the semi-hard triplets are those of an independent implementation."""
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(24, 4, generator=generator, dtype=torch.float64))
    classes = torch.randint(0, 5, (24,), generator=generator)
    miner = miners.TripletMarginMiner(margin, "semihard", distance=distances.CosineSimilarity())
    theirs = set(zip(*(part.tolist() for part in miner(vectors, classes)), strict=True))
    scores = vectors @ vectors.T
    band = is_semi_hard(scores[:, :, None], scores[:, None, :], margin)
    same = classes[:, None] == classes
    triplets = band & (same & ~torch.eye(24, dtype=torch.bool))[:, :, None] & ~same[:, None, :]
    assert theirs == {tuple(triplet) for triplet in triplets.nonzero().tolist()}
    assert theirs


def test_shares_leave_missing_negatives_out() -> None:
    """NaN stands for no negative, and nothing to count gives shares of zero."""
    missing = float("nan")
    scores = torch.tensor([[0.75, 0.5, missing], [0.5, missing, missing]])
    assert hardness_shares(torch.tensor([[0.75], [0.625]]), scores, 0.25) == pytest.approx(
        {"easy": 0.0, "semi_hard": 2 / 3, "hard": 1 / 3}
    )
    assert hardness_shares(torch.tensor(0.5), torch.tensor([missing]), 0.25) == {
        "easy": 0.0,
        "semi_hard": 0.0,
        "hard": 0.0,
    }


def test_shares_follow_the_definition() -> None:
    """A gap of a quarter is semi-hard in the half-open band of that width, and easy on squared L2 distances."""
    positive, negatives = torch.tensor(0.5), torch.tensor([0.25])
    assert hardness_shares(positive, negatives, 0.25) == {"easy": 0.0, "semi_hard": 1.0, "hard": 0.0}
    assert hardness_shares(positive, negatives, 0.25, "facenet") == {"easy": 1.0, "semi_hard": 0.0, "hard": 0.0}


@pytest.mark.parametrize("margin", [-0.1, float("nan"), "0.1", True])
def test_a_margin_that_is_no_width_is_refused(margin: Any) -> None:
    """A negative margin, NaN and what is no number are errors."""
    message = (
        f"Expected `margin`, the width of the semi-hard band, to be a number of at least 0. Got {margin!r}. "
        "Pass a width in units of the score, such as 0.1."
    )
    for band in (is_semi_hard, is_easy, hardness_shares):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            band(torch.tensor(0.5), torch.tensor(0.25), margin)


def test_an_unknown_definition_is_refused() -> None:
    """A definition must be one of those offered."""
    message = (
        "Expected `definition` to be one of ['half-open', 'facenet']. Got 'facent'. "
        "Use 'half-open' unless you reproduce FaceNet's numbers."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        is_semi_hard(torch.tensor(0.5), torch.tensor(0.25), 0.1, "facent")  # type: ignore[arg-type]


def test_the_definition_needs_torch_only() -> None:
    """The module imports torch and the standard library, so that everything may import it."""
    tree = ast.parse(inspect.getsource(hardness))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"__future__", "math", "typing", "torch"}
