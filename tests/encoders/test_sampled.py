"""Products of some rows of two matrices: against plain products."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SimilarityFunction

from st_hardneg.encoders.sampled import sampled_products
from st_hardneg.encoders.vectors import Vectors


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


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_texts_are_compared_as_the_models_function_does(similarity, dtype):
    """Of any length, also none; those that are not searched stand in another matrix."""
    noise = torch.Generator().manual_seed(1)
    matrix = torch.randn(12, 7, generator=noise) * torch.rand(12, 1, generator=noise) * 9
    matrix[3] = 0.0
    matrix = matrix.to(dtype)
    pairwise = SimilarityFunction.to_similarity_pairwise_fn(similarity)
    vectors = Vectors(matrix[:2], matrix[:9], matrix[9:], torch.arange(12), pairwise, similarity)
    ours = torch.tensor([0, 11, 3, 5])
    for highest in (9, 12):  # without those that are not searched, and with them
        ids = torch.randint(-1, highest, (4, 6), generator=noise)
        is_gathered = dtype is torch.bfloat16 or int(ids.max()) >= 9
        assert vectors.worth_a_product(ids) == (200 if is_gathered else 12)
        found = vectors.similarity_among_texts(ours, ids)
        for row, one in enumerate(ours.tolist()):
            for place, other in enumerate(ids[row].tolist()):
                expected = -torch.inf if other < 0 else float(pairwise(matrix[[one]], matrix[[other]]))
                tolerance = 0.05 if dtype is torch.bfloat16 else 1e-5
                assert float(found[row, place]) == pytest.approx(expected, abs=tolerance, rel=tolerance)
