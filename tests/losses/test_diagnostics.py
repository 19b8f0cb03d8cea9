"""The counts of negatives that were left out: added up, shared out, named, and emptied by who reads them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MatryoshkaLoss
from transformers import TrainerControl

from st_hardneg.losses import (
    SemiHardCachedMultipleNegativesRankingLoss,
    SemiHardMultipleNegativesRankingLoss,
    SemiHardTripletLoss,
    WeightedSumLoss,
)
from st_hardneg.losses.diagnostics import (
    SHARE_NAMES,
    LossDiagnosticsCallback,
    MaskingDiagnostics,
    diagnostics_of,
    pop_diagnostics,
    shares,
    track_diagnostics,
)
from st_hardneg.losses.masking import LeftOut


def left_out(*counts: int, size: int = 8) -> LeftOut:
    """Return masks with so many negatives left out for each reason."""
    return LeftOut(*(torch.arange(size) < count for count in counts))


def test_counts_are_added_up_until_they_are_read() -> None:
    """A share for each reason, of all negatives since the last reading; nothing counted is a share of zero."""
    counter = MaskingDiagnostics()
    assert counter.pop_counts().tolist() == [0] * 6
    counter.add(left_out(1, 2, 3, 4, 5), 8)
    counter.add(left_out(0, 0, 1, 0, 2), 12)
    assert counter.pop_counts().tolist() == [1, 2, 4, 4, 7, 20]
    assert counter.pop() == dict.fromkeys(SHARE_NAMES, 0.0)
    counter.add(left_out(1, 2, 3, 4, 5), 10)
    assert counter.pop() == dict(zip(SHARE_NAMES, [0.1, 0.2, 0.3, 0.4, 0.5], strict=True))
    with torch.no_grad():
        counter.add(left_out(1, 2, 3, 4, 5), 10)
    assert counter.pop_counts().tolist() == [0] * 6


def test_shares_are_of_all_negatives() -> None:
    """In the order of the names; one negative of one is a share of 1, none of none is 0."""
    assert list(shares(torch.tensor([1, 0, 0, 0, 0, 1])).items()) == [
        (name, float(i == 0)) for i, name in enumerate(SHARE_NAMES)
    ]
    assert set(shares(torch.zeros(6, dtype=torch.int64)).values()) == {0.0}


def counted(loss: Any, total: int = 10) -> Any:
    """Return a loss that has left out one, two, … negatives of so many."""
    loss.diagnostics.add(left_out(1, 2, 3, 4, 5), total)
    return loss


def test_counters_are_found_wherever_they_are(
    static_model: SentenceTransformer, build_transformer_model: Callable[[], SentenceTransformer]
) -> None:
    """One has no prefix; several have the names of their datasets and parts; what two modules share counts once."""
    ranking = SemiHardMultipleNegativesRankingLoss(static_model)
    triplet = SemiHardTripletLoss(static_model)
    cached = SemiHardCachedMultipleNegativesRankingLoss(build_transformer_model())
    both = WeightedSumLoss(static_model, {"rank": (1.0, ranking), "space": (0.5, triplet)})
    assert diagnostics_of(CosineSimilarityLoss(static_model)) == {}
    assert diagnostics_of(ranking) == {"": ranking.diagnostics}
    assert diagnostics_of(MatryoshkaLoss(static_model, ranking, [16, 8])) == {"": ranking.diagnostics}
    assert diagnostics_of(cached) == {"": cached.loss.diagnostics}
    assert diagnostics_of(both) == {"rank/": ranking.diagnostics, "space/": triplet.diagnostics}
    assert diagnostics_of({"one": ranking}) == {"": ranking.diagnostics}
    by_dataset = {"one": both, "two": cached, "three": CosineSimilarityLoss(static_model)}
    assert diagnostics_of(by_dataset) == {
        "one/rank/": ranking.diagnostics,
        "one/space/": triplet.diagnostics,
        "two/": cached.diagnostics,
    }


def test_shares_carry_their_prefix_and_are_read_once(static_model: SentenceTransformer) -> None:
    """As the log names them."""
    first = counted(SemiHardMultipleNegativesRankingLoss(static_model))
    second = counted(SemiHardTripletLoss(static_model), 20)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert pop_diagnostics({"a": first, "b": second}) == {
        **{f"a/{name}": share for name, share in zip(SHARE_NAMES, expected, strict=True)},
        **{f"b/{name}": share / 2 for name, share in zip(SHARE_NAMES, expected, strict=True)},
    }
    assert set(pop_diagnostics({"a": first, "b": second}).values()) == {0.0}
    assert pop_diagnostics(CosineSimilarityLoss(static_model)) == {}


class _Trainer:
    """What of a trainer the log of the parts of a loss is kept in."""

    def __init__(self, loss: Any, steps: int = 0) -> None:
        self.loss = loss
        self.model = SimpleNamespace(training=True)
        self.accum_loss_components: dict[str, Any] = {"train": {"steps": torch.tensor(steps)} if steps else {}}
        self.tracked: list[dict[str, Any]] = []

    def track_loss_components(self, values: dict[str, Any]) -> None:
        self.tracked.append(values)


def test_shares_reach_the_next_line_of_the_log(static_model: SentenceTransformer) -> None:
    """Through the trainer's own count where it has none yet, and beside the parts of the loss where it has."""
    trainer = _Trainer(counted(SemiHardMultipleNegativesRankingLoss(static_model)))
    track_diagnostics(trainer)
    (tracked,) = trainer.tracked
    assert {name: round(value.item(), 6) for name, value in tracked.items()} == dict(
        zip(SHARE_NAMES, [0.1, 0.2, 0.3, 0.4, 0.5], strict=True)
    )

    trainer = _Trainer(counted(SemiHardMultipleNegativesRankingLoss(static_model)), steps=4)
    track_diagnostics(trainer)
    components = trainer.accum_loss_components["train"]
    assert {name: round(float(components[name]), 6) for name in SHARE_NAMES} == dict(
        zip(SHARE_NAMES, [0.4, 0.8, 1.2, 1.6, 2.0], strict=True)
    )
    assert trainer.tracked == []
    track_diagnostics(trainer)  # nothing was counted since: the line keeps what it has
    assert round(float(components["masked_easy"]), 6) == 2.0

    silent = _Trainer(CosineSimilarityLoss(static_model), steps=4)
    track_diagnostics(silent)
    assert (silent.tracked, set(silent.accum_loss_components["train"])) == ([], {"steps"})


@pytest.mark.parametrize("moment", ["on_step_end", "on_epoch_end"])
def test_the_callback_reads_where_a_line_is_due(static_model: SentenceTransformer, moment: str) -> None:
    """Not between, so that a line holds all steps since the last; a trainer that is gone is None."""
    trainer = _Trainer(counted(SemiHardMultipleNegativesRankingLoss(static_model)))
    callback = LossDiagnosticsCallback(trainer)
    assert callback.trainer is trainer
    getattr(callback, moment)(None, None, TrainerControl(should_log=False))
    assert trainer.tracked == []
    getattr(callback, moment)(None, None, TrainerControl(should_log=True))
    assert len(trainer.tracked) == 1
    del trainer
    assert callback.trainer is None
