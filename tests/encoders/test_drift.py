"""How vectors have moved: against scikit-learn's ridge regression, and where nothing can be told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from st_hardneg.encoders import drift as module
from st_hardneg.encoders.drift import Drift


def vectors(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_the_map_is_scikit_learn_s(monkeypatch):
    """Looked at in parts and moved in blocks; what is not named stays."""
    ridge = pytest.importorskip("sklearn.linear_model").Ridge
    monkeypatch.setattr(module, "_BLOCK", 7)
    old, new, others = vectors(60, 8, 0), vectors(60, 8, 1), vectors(30, 8, 2)
    drift, moved = Drift(8), others.clone()
    drift.add(old[:25], new[:25])
    drift.add(old[25:], new[25:])
    drift.apply(moved, torch.arange(5, 30))
    penalty = 1e-3 * float((old.double() ** 2).sum(dim=0).mean())
    fitted = ridge(alpha=penalty, fit_intercept=False).fit(old.double().numpy(), (new - old).double().numpy())
    assert torch.equal(moved[:5], others[:5])
    np.testing.assert_allclose(moved[5:], others[5:].numpy() + fitted.predict(others[5:].numpy()), atol=1e-4)


def test_what_has_moved_alike_is_found():
    """A turn and a stretch of all vectors, told from a tenth of them."""
    turn = torch.linalg.qr(vectors(16, 16, 3)).Q * 1.3
    old = vectors(2_000, 16, 4)
    kept, drift = old.clone(), Drift(16)
    drift.add(old[:200], old[:200] @ turn)
    drift.apply(kept, torch.arange(200, 2_000))
    assert torch.nn.functional.cosine_similarity(kept[200:], old[200:] @ turn).min() > 0.999


@pytest.mark.parametrize("case", ["too few", "no numbers", "nothing but zeros", "none"])
def test_what_cannot_be_told_leaves_vectors_as_they_are(case):
    """Fewer texts than dimensions, or new vectors that are none."""
    old, new, kept, drift = vectors(40, 16, 5), vectors(40, 16, 6), vectors(10, 16, 7), Drift(16)
    before = kept.clone()
    if case == "too few":
        old, new = old[:15], new[:15]
    elif case == "no numbers":
        new[3, 2] = torch.nan
    elif case == "nothing but zeros":
        old = torch.zeros(40, 16)
    else:
        old, new = old[:0], new[:0]
    drift.add(old, new)
    drift.apply(kept, torch.arange(10))
    assert torch.equal(kept, before)


def test_half_precision_stays_half():
    """Vectors keep their type."""
    old = vectors(100, 8, 8)
    kept, drift = old.bfloat16(), Drift(8)
    drift.add(old[:50].bfloat16(), (2 * old[:50]).bfloat16())
    drift.apply(kept, torch.arange(50, 100))
    assert kept.dtype == torch.bfloat16 and torch.allclose(kept[50:].float(), 2 * old[50:], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("is_unit", [True, False])
def test_unit_vectors_stay_unit_vectors(is_unit):
    """A dot product compares moved ones with others as before; of other models lengths move along."""
    normalize = torch.nn.functional.normalize
    old, turn = normalize(vectors(500, 8, 9), dim=1), vectors(8, 8, 10)
    new = normalize(old @ turn, dim=1) if is_unit else 3 * old
    kept, drift = old.clone(), Drift(8)
    drift.add(old[:100], new[:100])
    drift.apply(kept, torch.arange(100, 500))
    lengths = torch.linalg.vector_norm(kept[100:], dim=1)
    assert torch.allclose(
        lengths, torch.full_like(lengths, 1.0 if is_unit else 3.0), atol=0.05 if not is_unit else 1e-5
    )
