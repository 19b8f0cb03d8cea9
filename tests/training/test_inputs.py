"""Losses and live views that do not fit are refused, with the view that would."""

from __future__ import annotations

import pytest
from sentence_transformers.cross_encoder import losses as of_pairs
from sentence_transformers.sentence_transformer import losses

from st_hardneg.training import inputs
from tests.training.runs import make_model, make_negatives


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            losses.ContrastiveLoss,
            {},
            r"layout 'labeled-pair', got .*'n-tuple'.*as_dataset\('labeled-pair'",
        ),
        (
            losses.MultipleNegativesRankingLoss,
            {"output_format": "labeled-list"},
            r"layout 'n-tuple', got .*'labeled-list'",
        ),
        (losses.MarginMSELoss, {}, r"learns from a teacher's scores.*as_dataset\(with_scores=True\)"),
        (losses.TripletLoss, {}, r"takes one negative, got a live view of 2.*`num_negatives=1`.*SemiHardTripletLoss"),
        (losses.MarginMSELoss, {"with_scores": True}, None),
        (losses.MultipleNegativesRankingLoss, {"with_ids": True}, None),
    ],
)
def test_a_loss_that_cannot_read_the_view_is_refused(kind, options, message):
    """Before the first step, in words; what fits passes."""
    model = make_model()
    found = make_negatives(model)
    view, loss = found.as_dataset(**options), kind(model)
    if message is None:
        inputs.check_inputs(loss, view)
        return
    for given, data in ((loss, view), ({"a": loss}, {"a": view})):
        with pytest.raises(ValueError, match=message):
            inputs.check_inputs(given, data)


def test_every_name_is_a_loss():
    """A loss that has another name in a later release would not be checked."""
    from sentence_transformers.multi_vector_encoder import losses as of_tokens
    from sentence_transformers.sparse_encoder import losses as sparse

    for name in inputs.LAYOUTS:
        assert any(hasattr(module, name) for module in (of_pairs, losses, sparse, of_tokens)), name
    assert set(inputs.WITH_SCORES) | set(inputs.ONE_NEGATIVE) <= set(inputs.LAYOUTS)
