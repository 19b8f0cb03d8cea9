"""Candidates, Negatives and Mining: tables with columns, filled, joined, renumbered and looked up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from st_hardneg.candidates import (
    CARRIED_OVER,
    COLUMNS,
    EMPTY,
    MINED,
    Candidates,
    Mining,
    Negatives,
    find_in_row,
    is_repeated,
    joined,
)
from st_hardneg.report import MiningReport


def table(*rows: list[int], **columns: torch.Tensor) -> Negatives:
    """Return negatives of these ids."""
    return Negatives.of(torch.tensor(rows), **columns)


def test_look_ups_in_rows_equal_brute_force():
    """Repeats and look-ups in hundreds of random rows; what is below 0 is never found."""
    rng = np.random.default_rng(0)
    values, others = (torch.from_numpy(rng.integers(-1, 9, (300, width))) for width in (7, 5))
    found, place = find_in_row(values, others)
    repeated = is_repeated(values)
    for row, (mine, theirs) in enumerate(zip(values.tolist(), others.tolist(), strict=True)):
        for column, value in enumerate(mine):
            assert found[row, column] == (value >= 0 and value in theirs)
            if found[row, column]:
                assert place[row, column] == theirs.index(value)
            assert repeated[row, column] == (value >= 0 and value in mine[:column])
    nothing = torch.zeros(3, 0, dtype=torch.int64)
    assert not find_in_row(torch.zeros(3, 2, dtype=torch.int64), nothing)[0].any()
    empty = Negatives.none(2, 3)
    assert empty.ids.tolist() == [[-1] * 3] * 2 and not empty.is_present.any()


def test_every_column_has_a_type_and_a_value_that_stands_for_nothing():
    """An empty table holds it in every column, of the column's type."""
    empty = Negatives.none(2, 3)
    for name, column in COLUMNS.items():
        values = getattr(empty, name)
        assert values.dtype == column.dtype and values.shape == (2, 3)
        missing = values.isnan() if math.isnan(column.missing) else values == column.missing
        assert bool(missing.all())


def test_parts_of_a_table():
    """Places, rows, masks: what is taken keeps its columns, and what is not there stands for nothing."""
    steps = torch.tensor([[1, 2, 3], [4, 5, 6]])
    full = table([10, 11, 12], [13, 14, 15], steps=steps, similarities=steps / 10)
    some = full.at(torch.tensor([[2, -1], [0, 0]]))
    assert some.ids.tolist() == [[12, -1], [13, 13]] and some.steps.tolist() == [[3, -1], [4, 4]]
    assert some.similarities[0, 1] == -math.inf
    assert full.rows(torch.tensor([1])).steps.tolist() == [[4, 5, 6]]
    only = full.only(torch.tensor([[True, False, True], [False] * 3]))
    assert only.ids.tolist() == [[10, -1, 12], [-1] * 3] and only.steps.tolist() == [[1, -1, 3], [-1] * 3]
    copy = full.clone()
    copy.put(torch.tensor([0]), table([7, 8, 9]))
    assert copy.ids.tolist() == [[7, 8, 9], [13, 14, 15]] and copy.steps[0].tolist() == [-1] * 3
    assert full.ids[0].tolist() == [10, 11, 12]
    assert joined([full, copy]).ids.shape == (4, 3) and full.beside(copy).ids.shape == (2, 6)


def test_empty_slots_are_filled_in_order_and_no_id_comes_twice():
    """What is there stays, even if it is there twice; what is left over is dropped."""
    mine = table([3, -1, 3], [-1, -1, -1], [1, 2, 4]).said_to_be(MINED)
    others = table([3, 5, 6, 7], [8, 8, -1, 9], [5, 6, 7, 8]).said_to_be(CARRIED_OVER)
    filled = mine.filled_with(others)
    assert filled.ids.tolist() == [[3, 3, 5], [8, 9, -1], [1, 2, 4]]
    assert filled.origins.tolist() == [
        [MINED, MINED, CARRIED_OVER],
        [CARRIED_OVER, CARRIED_OVER, EMPTY],
        [MINED] * 3,
    ]


def test_only_new_negatives_are_stamped():
    """Those from before keep the step and the similarity of then; an empty slot has neither."""
    now = torch.tensor([[0.5, 0.25, -math.inf]])
    first = torch.tensor([[0.75, -math.inf, -math.inf]])
    stamped = table([4, 5, -1], similarities=now, first_similarities=first, steps=torch.tensor([[3, -1, -1]])).stamped(
        9
    )
    assert stamped.steps.tolist() == [[3, 9, -1]]
    assert stamped.first_similarities.tolist() == [[0.75, 0.25, -math.inf]]


def test_scores_are_the_cross_encoders_where_there_is_one():
    """What negatives were chosen by."""
    scored = table([1, 2], similarities=torch.tensor([[0.5, 0.25]]),
                   cross_encoder_scores=torch.tensor([[math.nan, 7.0]]))  # fmt: skip
    assert scored.scores.tolist() == [[0.5, 7.0]]


def test_candidates_become_negatives_at_their_places():
    """Ids, similarities, ranks, sources and own scores go along; a cross encoder's scores where there is one."""
    scores = torch.tensor([[0.5, 0.25]])
    found = Candidates(
        torch.tensor([0]), torch.tensor([[7, 9]]), scores, scores * 10, torch.tensor([[0, 1]]), torch.tensor([1.0]),
        torch.tensor([1.0]), torch.tensor([[0, 2]], dtype=torch.int8), torch.tensor([[math.nan, 3.0]]),
    )  # fmt: skip
    negatives = found.at(torch.tensor([[1, -1]]))
    assert negatives.ids.tolist() == [[9, -1]] and negatives.sources.tolist() == [[2, -1]]
    assert negatives.source_scores[0, 0] == 3.0 and negatives.ranks.tolist() == [[1, -1]]
    assert bool(negatives.cross_encoder_scores.isnan().all())
    rescored = replace(found, is_rescored=True).where(torch.tensor([[False, True]]))
    assert rescored.ids.tolist() == [[-1, 9]] and rescored.cross_encoder_scores[0, 1] == 2.5
    assert rescored.similarities.tolist() == [[-math.inf, 0.25]]


def test_a_mining_is_renumbered_by_names():
    """Sources that another dataset numbers otherwise keep their names; one that it lacks is put at the end."""
    negatives = table([1, 2, -1], sources=torch.tensor([[0, 1, -1]], dtype=torch.int8))
    mining = Mining(negatives, torch.zeros(1), None, ("es", "dense"), MiningReport())
    again = mining.recoded(("dense", "anchors"))
    assert again.source_names == ("dense", "anchors", "es")
    assert again.negatives.sources.tolist() == [[2, 0, -1]] and again.negatives.sources.dtype == torch.int8
    assert again.negatives.ids is negatives.ids and mining.recoded(("es", "dense")) is mining


@pytest.mark.parametrize("width", [0, 1, 40])
def test_repeats_of_any_width(width):
    """-1 is never a repeat."""
    values = torch.full((2, width), -1)
    assert not bool(is_repeated(values).any())
