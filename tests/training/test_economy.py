"""What refreshes save, and what says whether one is worth it."""

from __future__ import annotations

import logging

import pytest
import torch

from st_hardneg import MiningCallback
from st_hardneg.encoders import Encodings, encoder_for
from st_hardneg.live.probe import gap_growth
from st_hardneg.training.economy import Economy
from tests.training.runs import HOST_WARNINGS, make_model, make_negatives, train

pytestmark = HOST_WARNINGS


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"corpus_refresh_fraction": 0.0}, ValueError, "Expected `corpus_refresh_fraction` to be a share above 0"),
        ({"corpus_refresh_fraction": True}, ValueError, "Expected `corpus_refresh_fraction` to be a share above 0"),
        ({"corpus_refresh_fraction": 1.5}, ValueError, "Expected `corpus_refresh_fraction` to be a share above 0"),
        ({"refresh_scope": "corpus"}, ValueError, r"Expected `refresh_scope` to be one of \['all', 'queries'\]"),
        ({"refresh_scope": "queries", "corpus_refresh_fraction": 0.5}, ValueError, "Leave one of them out"),
        ({"refresh_when": 0}, ValueError, "Expected `refresh_when` to be a number above 0"),
        ({"refresh_when": float("nan")}, ValueError, "Expected `refresh_when` to be a number above 0"),
        ({"half_precision": "bf16"}, TypeError, "Expected `half_precision` to be True, False or None"),
    ],
)
def test_bad_arguments(arguments, error, message):
    """Refused when the callback is made."""
    with pytest.raises(error, match=message):
        MiningCallback(**arguments)


def test_a_frozen_retriever_has_nothing_to_save():
    """Its vectors are made once, so that shares and probes would do nothing."""
    model, retriever = make_model(), make_model()
    for economy, name in (
        (Economy(0.5), "corpus_refresh_fraction"),
        (Economy(refresh_scope="queries"), "refresh_scope"),
        (Economy(refresh_when=0.1), "refresh_when"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`.*a `retriever` is not trained"):
            economy.check(model, retriever)
        economy.check(model, None)
        economy.check(model, model)
    Economy().check(model, retriever)


def growth_of(hard_negatives, model, size=256):
    encoder = encoder_for(model, Encodings.from_config(hard_negatives.config))
    return hard_negatives.live.probed(lambda *parts: gap_growth(encoder, *parts, size))


def test_the_probe_is_the_growth_of_the_gap():
    """0 for a model that has not moved; else the difference of the report's two means, here of all queries."""
    model = make_model()
    hard_negatives = make_negatives(model)
    assert growth_of(hard_negatives, model) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        model[0].embedding.weight.add_(torch.randn(8, generator=torch.Generator().manual_seed(1)))
    pairs, corpus = hard_negatives._wrapped.pairs, hard_negatives.corpus
    anchors = model.encode(pairs.anchors.take(pairs.first_row), convert_to_tensor=True)
    mining = hard_negatives.live.mining
    expected = []
    for query, ids in enumerate(mining.negatives.ids.tolist()):
        row = pairs.first_row[query]
        texts = corpus.texts.take([pairs.row_positive[row], *ids])
        positive, *negatives = model.similarity(anchors[query], model.encode(texts, convert_to_tensor=True))[0].tolist()
        then = float(mining.positive_similarities[row])
        expected += [
            (positive - now) - (then - before)
            for now, before in zip(negatives, mining.negatives.similarities[query].tolist(), strict=True)
        ]
    assert growth_of(hard_negatives, model) == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert growth_of(hard_negatives, model, size=10) != 0.0


@pytest.mark.training
@pytest.mark.parametrize(("threshold", "refreshes"), [(1e-6, [3, 6, 9]), (50.0, [])])
def test_a_refresh_that_is_not_worth_it_is_left_out(tmp_path, threshold, refreshes):
    """The probe is logged at every step at which a refresh is due."""
    model = make_model()
    hard_negatives = make_negatives(model)
    callback = MiningCallback(hard_negatives, mining_steps=3, refresh_when=threshold)
    log = train(tmp_path, [callback], hard_negatives.as_dataset(), model, learning_rate=0.5)
    assert [entry["step"] for entry in log if "mining/gap_growth" in entry] == [3, 6, 9]
    done = [report.step for report in callback.reports]
    assert done == refreshes or (refreshes and done and set(done) <= set(refreshes))


@pytest.mark.training
def test_a_training_with_a_share_of_the_corpus(tmp_path, caplog):
    """The log has the age of the vectors; queries and positives are new."""
    model = make_model()
    hard_negatives = make_negatives(model)
    callback = MiningCallback(hard_negatives, mining_steps=3, corpus_refresh_fraction=0.5)
    with caplog.at_level(logging.WARNING):
        log = train(tmp_path, [callback], hard_negatives.as_dataset(), model)
    ages = [entry["mining/vector_age"] for entry in log if "mining/vector_age" in entry]
    assert len(ages) == 3 and all(0 < age < 6 for age in ages)
    whole = hard_negatives.report.num_queries + len(hard_negatives.corpus)
    assert all(report.num_encoded < 0.8 * whole for report in callback.reports)
