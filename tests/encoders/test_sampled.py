"""Products of some rows of two matrices: against plain products."""

from __future__ import annotations

import pytest
import torch

from st_hardneg.encoders.sampled import sampled_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("queries", "wanted"), [(7, 30), (3, 90), (1, 1), (5, 0), (0, 4)])
def test_products_of_some_rows_equal_those_of_all(dtype, queries, wanted):
    """In any order, and with the same text twice in a row."""
    noise = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 19, generator=noise, dtype=dtype) for n in (queries, 40))
    columns = torch.randint(40, (queries, wanted), generator=noise)
    found = sampled_products(left, right, columns)
    torch.testing.assert_close(found, (left @ right.T).gather(1, columns))


def test_the_layout_which_is_a_beta_in_torch_warns_nobody():
    """Warnings are errors here."""
    found = sampled_products(torch.eye(3), torch.eye(3), torch.tensor([[0, 2], [1, 1], [2, 0]]))
    assert found.tolist() == [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]
