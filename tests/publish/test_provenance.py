"""Where negatives come from, row by row, as it is pushed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from st_hardneg.candidates import COLUMNS, MINED, RANDOM
from st_hardneg.publish.provenance import provenance_dataset
from tests.files.states import make_state


def provenance(state, **changes):
    mining = replace(state.mining, **changes)
    return provenance_dataset(mining, state.pairs.row_query, state.pairs.row_positive, state.corpus)


ALWAYS = [
    "row",
    "positive_id",
    "positive_score",
    "negative_ids",
    "negative_scores",
    "negative_ranks",
    "negative_sources",
    "negative_steps",
    "negative_slots",
]


@pytest.fixture(scope="module")
def state():
    return make_state()


def test_a_row_per_row_in_the_corpus_s_own_ids(state):
    """Rows of one query have the same negatives; a text that the corpus lacks is called after where it came from."""
    found = provenance(state)
    assert found["row"][:] == list(range(5)) and len(found) == 5
    assert found["negative_ids"][0] == found["negative_ids"][2]
    negatives = state.mining.negatives.ids[torch.from_numpy(state.pairs.row_query)]
    assert found["negative_ids"][:] == [state.corpus.external_ids(row.numpy()) for row in negatives]
    assert found["positive_id"][:] == state.corpus.external_ids(state.pairs.row_positive)
    assert found["positive_id"][3] == "positive-9" and found["negative_ids"][1][1] is None


def test_without_ids_numbers_are_row_numbers_of_the_corpus():
    """int64, -1 where a slot is empty."""
    state = make_state(corpus=False)
    found = provenance(state)
    assert found["negative_ids"][:] == state.mining.negatives.ids[torch.from_numpy(state.pairs.row_query)].tolist()
    assert found["positive_id"][:] == state.pairs.row_positive.tolist()
    assert found.features["negative_ids"].feature.dtype == found.features["positive_id"].dtype == "int64"


def test_names_and_not_numbers(state):
    """Of sources and of how a slot was filled; None where it is empty."""
    found = provenance(state)
    assert found["negative_sources"][:2] == [["web", "dense"], ["web", None]]
    assert found["negative_slots"][:2] == [["mined", "mined"], ["mined", None]]
    filled = torch.where(state.mining.negatives.origins == MINED, RANDOM, 0).to(torch.int8)
    changed = provenance(state, negatives=replace(state.mining.negatives, origins=filled))
    assert changed["negative_slots"][1] == ["random", None]


def test_scores_are_named_by_who_gave_them(state):
    """The model's for positives and negatives, the cross encoder's for both, the source's own."""
    found = provenance(state)
    rows, negatives = torch.from_numpy(state.pairs.row_query), state.mining.negatives
    pairs = {
        "positive_score": state.mining.positive_similarities,
        "positive_cross_encoder_score": state.mining.positive_cross_encoder_scores,
        "negative_scores": negatives.similarities[rows],
        "negative_cross_encoder_scores": negatives.cross_encoder_scores[rows],
        "negative_source_scores": negatives.source_scores[rows],
        "negative_ranks": negatives.ranks[rows],
        "negative_steps": negatives.steps[rows],
    }
    for name, values in pairs.items():
        assert repr(found[name][:]) == repr(values.tolist()), name
    assert found["negative_scores"][1][1] == -math.inf and math.isnan(found["negative_cross_encoder_scores"][1][1])


def test_scores_that_nobody_gave_have_no_column(state):
    """Without a cross encoder, and with sources that only rank by the model."""
    nothing = torch.full_like(state.mining.negatives.similarities, torch.nan)
    negatives = replace(state.mining.negatives, cross_encoder_scores=nothing, source_scores=nothing)
    found = provenance(state, negatives=negatives, positive_cross_encoder_scores=None)
    assert found.column_names == ALWAYS
    assert provenance(state).column_names[: len(ALWAYS)] == ALWAYS


def test_every_column_of_negatives_is_published_or_left_out_on_purpose(state):
    """Whoever adds a column finds it in the provenance."""
    from st_hardneg.publish import provenance as module

    scores = state.mining.negatives.cross_encoder_scores
    published = set(provenance(state, negatives=replace(state.mining.negatives, teacher_scores=scores)).column_names)
    for name in COLUMNS:
        named = module._NAMES.get(name, f"negative_{name}")
        assert (named in published) != (name in module._LEFT_OUT)
