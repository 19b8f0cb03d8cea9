"""Cross encoders on two ranks: each scores its share of the pairs, and both read and end with the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from st_hardneg.training.timing import first_step_seen
from tests import tiny_models
from tests.training import ranks_cross_script
from tests.training.runs import HOST_WARNINGS
from tests.training.test_cross_encoder import TEXTS, make_args
from tests.training.test_ranks import run as run_ranks

pytestmark = [pytest.mark.training, *HOST_WARNINGS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What each of two ranks has seen with each loss, and one process."""
    folder = tmp_path_factory.mktemp("cross")
    tiny_models.cross_encoder(folder / "model")
    done = run_ranks(folder, 2, script="ranks_cross_script.py")
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((folder / f"cross{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    alone = {name: json.loads(json.dumps(ranks_cross_script.train(folder, name))) for name in ranks_cross_script.LOSSES}
    results = {name: [*(rank[name] for rank in ranks), alone[name]] for name in alone}
    return {**results, "refused": [rank["refused"] for rank in ranks]}


def as_pairs(scored) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in scored]


@pytest.mark.parametrize("name", ranks_cross_script.LOSSES)
def test_each_rank_scores_its_share(trained, name):
    """No pair is scored twice, both score as many, and together those that one process scores."""
    first, second, alone = (result["scored"] for result in trained[name])
    for step in ("3", "6"):
        ours, theirs = as_pairs(first[step]), as_pairs(second[step])
        assert len(set(ours) | set(theirs)) == len(ours) + len(theirs) > 400
        assert abs(len(ours) - len(theirs)) <= 1
    # Before the second refresh, weights of another batch size differ in the last digits; the first finds the candidates.
    assert {*as_pairs(first["3"]), *as_pairs(second["3"])} == set(as_pairs(alone["3"]))


@pytest.mark.parametrize("name", ranks_cross_script.LOSSES)
def test_two_ranks_are_alike(trained, name):
    """The same negatives after every refresh, with the scores of the model of both, and the same weights at the end."""
    first, second, alone = trained[name]
    assert first["steps"] == second["steps"] == alone["steps"] == [3, 6]
    assert first["states"] == second["states"]
    assert first["states"]["0"] == alone["states"]["0"] != first["states"]["3"] != first["states"]["6"]
    assert first["weights"] == second["weights"] and first["is_training"] and second["is_training"]
    for rank in (first, second):
        for given, expected in rank["scores"].values():
            np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize("name", ranks_cross_script.LOSSES)
def test_refreshes_reach_the_loss_of_both_ranks_at_the_stated_step(trained, name, tmp_path):
    """Every negative at a loss is one of those in force for that step, and both ranks together read a batch's rows."""
    first, second, alone = trained[name]
    args = make_args(tmp_path)
    for rank in (first, second):
        states = {int(step): dict(zip(TEXTS[:40], rows, strict=True)) for step, rows in rank["states"].items()}
        assert len(rank["negatives"]) == 7 and sum(map(len, rank["negatives"])) > 10
        for step, pairs in enumerate(rank["negatives"], start=1):
            of = max(at for at in states if at == 0 or first_step_seen(at, args) <= step)
            assert all(text in states[of][anchor] for anchor, text in pairs), step
    for ours, theirs, whole in zip(first["rows"][:4], second["rows"][:4], alone["rows"][:4], strict=True):
        assert sorted([*ours, *theirs]) == sorted(whole)


def test_a_training_that_would_fail_in_its_first_step_is_refused(trained):
    """The trainers' default lets torch look for unused parameters, which fails for any cross encoder, on every rank."""
    for message in trained["refused"]:
        assert message.startswith(
            "Expected `ddp_find_unused_parameters=False` for a CrossEncoder on several ranks, got None"
        )
