"""Losses and live views that do not fit are refused, with the view that would."""

from __future__ import annotations

import pytest
from sentence_transformers.cross_encoder import losses as of_pairs
from sentence_transformers.sentence_transformer import losses

from st_hardneg import losses as ours
from st_hardneg.losses import SemiHardContrastiveLoss, SemiHardMultipleNegativesRankingLoss, SemiHardTripletLoss
from st_hardneg.training import inputs
from tests import tiny_models
from tests.training.runs import make_model, make_negatives


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A model for the losses."""
    return tiny_models.dense(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def found():
    """Mined rows."""
    return make_negatives(make_model())


def matryoshka(kind):
    return lambda model: losses.MatryoshkaLoss(model, kind(model), [16, 8])


def adaptive(kind):
    return lambda model: losses.AdaptiveLayerLoss(model, kind(model))


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
        (losses.GISTEmbedLoss, {}, r"GISTEmbedLoss takes one negative.*CachedGISTEmbedLoss"),
        (losses.MSELoss, {}, r"MSELoss learns from a teacher's vectors of each text, and has no use for the negatives"),
        (
            losses.MegaBatchMarginLoss,
            {},
            r"takes its negatives from the batch, and has no use .* a ranking loss such as",
        ),
        (losses.SoftmaxLoss, {}, r"layout 'labeled-pair', got a live view of 'n-tuple'"),
        (losses.GlobalOrthogonalRegularizationLoss, {"output_format": "labeled-list"}, r"layout 'n-tuple', got"),
        (
            SemiHardTripletLoss,
            {"output_format": "labeled-pair"},
            r"SemiHardTripletLoss reads rows of the layout 'n-tuple'",
        ),
        (SemiHardMultipleNegativesRankingLoss, {"output_format": "labeled-pair"}, r"'n-tuple', got .*'labeled-pair'"),
        (matryoshka(losses.TripletLoss), {}, r"TripletLoss inside MatryoshkaLoss takes one negative, got .* of 2"),
        (
            matryoshka(losses.CoSENTLoss),
            {},
            r"CoSENTLoss inside MatryoshkaLoss reads rows of the layout 'labeled-pair'",
        ),
        (
            adaptive(matryoshka(losses.MarginMSELoss)),
            {},
            r"MarginMSELoss inside AdaptiveLayerLoss learns from a teacher's",
        ),
        (adaptive(matryoshka(losses.MarginMSELoss)), {"with_scores": True}, None),
        (matryoshka(SemiHardTripletLoss), {}, None),
        (SemiHardContrastiveLoss, {"output_format": "labeled-pair"}, None),
        (losses.MarginMSELoss, {"with_scores": True}, None),
        (losses.MultipleNegativesRankingLoss, {"with_ids": True}, None),
    ],
)
def test_a_loss_that_cannot_read_the_view_is_refused(kind, options, message, transformer, found):
    """Before the first step, in words; what fits passes."""
    more = {losses.SoftmaxLoss: (16, 2), losses.GISTEmbedLoss: (transformer,)}.get(kind, ())
    view, loss = found.as_dataset(**options), kind(transformer, *more)
    if message is None:
        inputs.check_inputs(loss, view)
        return
    for given, data in ((loss, view), ({"a": loss}, {"a": view})):
        with pytest.raises(ValueError, match=message):
            inputs.check_inputs(given, data)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_losses_of_the_other_kinds_are_looked_into(tmp_path, found):
    """The loss inside SpladeLoss and CSRLoss, and losses of cross encoders that have the names of others."""
    from sentence_transformers.sparse_encoder import losses as sparse

    splade, csr = tiny_models.splade(tmp_path / "splade"), tiny_models.autoencoded(tmp_path / "csr")
    inner = sparse.SparseMarginMSELoss(splade)
    with pytest.raises(ValueError, match=r"SparseMarginMSELoss inside SpladeLoss learns from a teacher's scores"):
        inputs.check_inputs(sparse.SpladeLoss(splade, inner, 1e-5, 1e-5), found.as_dataset())
    with pytest.raises(ValueError, match=r"SparseTripletLoss inside CSRLoss takes one negative"):
        inputs.check_inputs(sparse.CSRLoss(csr, sparse.SparseTripletLoss(csr)), found.as_dataset())
    inputs.check_inputs(sparse.CSRLoss(csr), found.as_dataset())
    reranker = tiny_models.cross_encoder(tmp_path / "reranker")
    inputs.check_inputs(of_pairs.MSELoss(reranker), found.as_dataset("labeled-pair"))
    with pytest.raises(ValueError, match=r"MSELoss reads rows of the layout 'labeled-pair', got .*'labeled-list'"):
        inputs.check_inputs(of_pairs.MSELoss(reranker), found.as_dataset("labeled-list"))


def test_scores_that_a_loss_does_not_read_are_told_of(caplog, transformer, found):
    """A teacher gives them at each refresh, for nothing."""
    view = found.as_dataset(with_scores=True)
    with caplog.at_level("WARNING"):
        inputs.check_inputs(losses.MultipleNegativesRankingLoss(transformer), view)
    assert [record.message for record in caplog.records] == [
        "MultipleNegativesRankingLoss does not read the scores of the live view, which a teacher gives at every refresh. "
        "Leave `with_scores` out."
    ]


def test_every_name_is_a_loss():
    """A loss that has another name in a later release would not be checked."""
    from sentence_transformers.multi_vector_encoder import losses as of_tokens
    from sentence_transformers.sparse_encoder import losses as sparse

    for name in {**inputs.LAYOUTS, **inputs.OF_CROSS_ENCODERS, **inputs.UNUSED}:
        assert any(hasattr(module, name) for module in (of_pairs, losses, sparse, of_tokens, ours)), name
    assert not set(inputs.LAYOUTS) & set(inputs.UNUSED)
    assert set(inputs.WITH_SCORES) | set(inputs.ONE_NEGATIVE) <= set(inputs.LAYOUTS)
