"""The highest scores so far against one sort of everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from st_hardneg.search.highest import GROUP, Highest


def added(scores: torch.Tensor, k: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is found of scores of shape ``(num_queries, num_texts)`` that come in blocks of texts."""
    highest = Highest(k)
    for first in range(0, scores.shape[1], block):
        highest.add(scores[:, first : first + block].T, first)
    ids, values = highest.found()
    return ids.numpy(), values.numpy()


@pytest.mark.parametrize("block", [1, GROUP - 1, GROUP, 100, 640, 5_003])
@pytest.mark.parametrize("k", [1, 7, 150])
@pytest.mark.parametrize("order", ["any", "rising", "falling"])
def test_it_finds_what_a_sort_finds(block, k, order):
    """In blocks of any size, whether later ones hold the highest, none of them, or some."""
    scores = torch.randn(11, 5_003, generator=torch.Generator().manual_seed(block + k))
    if order != "any":
        scores = scores.sort(dim=1, descending=order == "falling").values
    ids, values = added(scores, k, block)
    wanted = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    assert (ids == wanted).all()
    assert (values == np.take_along_axis(scores.numpy(), wanted, 1)).all()


@pytest.mark.parametrize("block", [64, 1_000])
def test_equal_scores_are_all_as_good(block):
    """Each text stands once, and no lower score stands for one of the highest."""
    scores = torch.randint(0, 4, (9, 4_000), generator=torch.Generator().manual_seed(0)).float()
    scores[0] = 1.0
    scores[1] = -torch.inf
    ids, values = added(scores, 20, block)
    assert (np.take_along_axis(scores.numpy(), ids, 1) == values).all()
    assert (values == -np.sort(-scores.numpy(), axis=1)[:, :20]).all()
    assert all(len(set(row)) == 20 for row in ids.tolist())


@pytest.mark.parametrize("place", [0, 17, 3_998])
def test_what_is_no_number_comes_out(place):
    """So that it is reported; it hides no number of another query."""
    scores = torch.randn(5, 4_000, generator=torch.Generator().manual_seed(1))
    scores[2, place] = torch.nan
    ids, values = added(scores, 10, 999)
    assert np.isnan(values[2]).sum() == 1 and ids[2][np.isnan(values[2])] == [place]
    others = [0, 1, 3, 4]
    assert (ids[others] == np.argsort(-scores[others].numpy(), axis=1, kind="stable")[:, :10]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    """Scores come out in single precision."""
    scores = torch.randn(6, 2_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    ids, values = added(scores, 5, 700)
    assert values.dtype == np.float32
    assert (values == scores.sort(dim=1, descending=True).values[:, :5].float().numpy()).all()
    assert (np.take_along_axis(scores.float().numpy(), ids, 1) == values).all()


def test_memory_may_lie_in_any_way():
    """Rows of a wider table, and columns."""
    wide = torch.randn(3_000, 40, generator=torch.Generator().manual_seed(3))
    highest = Highest(8)
    highest.add(wide[:2_000, 5:25], 0)
    highest.add(wide.T.contiguous().T[2_000:, 5:25], 2_000)
    ids, values = highest.found()
    expected = wide[:, 5:25].T.topk(8, dim=1)
    assert torch.equal(ids, expected.indices) and torch.equal(values, expected.values)
