"""What goes wrong while mining, and what is left in order."""

from __future__ import annotations

import logging

import pytest
import torch

from st_hardneg.search import ExactSearcher
from tests.training.runs import make_model, make_negatives


def fail_above(model, batch_size: int) -> list[int]:
    """Let the model run out of memory with more texts at once than this; return the sizes that were tried."""
    tried: list[int] = []
    infer = model._inference

    def limited(inputs, **options):
        tried.append(options["batch_size"])
        if options["batch_size"] > batch_size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return infer(inputs, **options)

    model._inference = limited
    return tried


def test_out_of_memory_is_met_with_smaller_batches(caplog):
    """The batch size is halved until it fits; the result is the same."""
    expected = make_negatives(make_model()).negative_ids
    model = make_model()
    tried = fail_above(model, 8)
    with caplog.at_level(logging.WARNING):
        found = make_negatives(model).negative_ids
    assert (found == expected).all() and tried[:3] == [32, 16, 8]
    assert "going on with 8" in caplog.text


def test_an_interrupt_in_the_middle_of_a_refresh_leaves_everything_as_it_was(monkeypatch):
    """Ctrl-C while searching: negatives, report and live view are those of before, and mining works again."""
    model = make_model()
    hard_negatives = make_negatives(model)
    view = hard_negatives.as_dataset()
    before, report, rows = hard_negatives.negative_ids, hard_negatives.report, view[:]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ExactSearcher, "search", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hard_negatives.mine(make_model(1), show_progress_bar=False)
    assert (hard_negatives.negative_ids == before).all() and hard_negatives.report is report and view[:] == rows
    hard_negatives.mine(make_model(1), show_progress_bar=False)
    assert (hard_negatives.negative_ids != before).any()
