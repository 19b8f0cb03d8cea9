"""Labelled views: pairs and lists, their labels or scores, and what is read where a text only stands in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from st_hardneg.live.labeled import LABELED, LabeledView
from tests.live.views import ROWS, WIDTH, ids_of, live_view

STANDS_IN = 2
ROW_QUERY = np.array([0, 1, 2, 2, 3, 2, 4, 5, 6, 7, 8, 8])
"""Rows 2, 3 and 5 are of one query, and so are the last two."""


def scores_of(refresh: int) -> np.ndarray:
    """Return scores that say which they are: 100 a refresh, the row, and a tenth for each slot; the positive first."""
    return (100 * refresh + np.arange(ROWS)[:, None] + np.arange(WIDTH + 1) / 10).astype(np.float32)


def written(refresh: int) -> np.ndarray:
    """Return the ids of a refresh, in which some texts only stand in."""
    ids = ids_of(refresh)
    for row, slot in [(1, 0), (4, 1), (6, 0), (6, 2), (7, 0), (7, 1), (7, 2)]:
        ids[row, slot] = -ids[row, slot] - STANDS_IN
    return ids


def labeled_view(output_format: str, *, scored: bool = False) -> LabeledView:
    """Return a labelled view of the toy view, in which three rows are of one query."""
    view = live_view()
    view.row_query = ROW_QUERY
    view.table.add_scores(scores_of(0))
    view.table.write(written(1), scores_of(1))
    return LABELED[output_format].beside(view, with_scores=scored)


def texts_read(row: int, refresh: int = 1, shown: int = WIDTH) -> list[tuple[str, float]]:
    """Return the negatives of a row that no one has to mask, and their scores: written anew, slot by slot."""
    texts, ids = [], written(refresh)[row][:shown]
    for slot, number in enumerate(ids):
        if number >= 0 or (ids < 0).all():
            text = number if number >= 0 else -number - STANDS_IN
            texts.append((f"text {text}", float(scores_of(refresh)[row, 1 + slot])))
    return texts


def pair_read(row: int, slot: int, refresh: int = 1, shown: int = WIDTH) -> tuple[str, float]:
    """Return what a pair shows: its own slot's text, or, where that stands in, the good ones of the row in turn."""
    good = texts_read(row, refresh, shown)
    ids = written(refresh)[row]
    if slot < shown and (ids[slot] >= 0 or (ids[:shown] < 0).all()):
        text = ids[slot] if ids[slot] >= 0 else -ids[slot] - STANDS_IN
        return f"text {text}", float(scores_of(refresh)[row, 1 + slot])
    return good[slot % len(good)]


def test_names_and_types():
    """The second column has the positive's name; labels are whole numbers, scores are not; a schedule hides nothing."""
    pairs, lists = labeled_view("labeled-pair"), labeled_view("labeled-list")
    assert pairs.column_names == ["anchor", "positive", "label"] and lists.column_names == [
        "anchor",
        "positive",
        "labels",
    ]
    assert pairs.refreshed_names == lists.refreshed_names == ["positive"]
    assert pairs.shown(("positive", "label")) == ["positive", "label"]
    assert [pairs.type_of(name) for name in pairs.column_names] == [pa.string(), pa.string(), pa.int64()]
    strings = pa.list_(pa.string())
    assert [lists.type_of(name) for name in lists.column_names] == [pa.string(), strings, pa.list_(pa.int64())]
    pairs, lists = labeled_view("labeled-pair", scored=True), labeled_view("labeled-list", scored=True)
    assert pairs.column_names[2:] == ["score"] and lists.column_names[2:] == ["scores"]
    assert pairs.type_of("score") == pa.float64() and lists.type_of("scores") == pa.list_(pa.float64())


def test_each_view_has_its_own_fingerprint():
    """Or a cache of one would serve another."""
    view = live_view()
    views = [LABELED[name].beside(view, with_scores=scored) for name in LABELED for scored in (False, True)]
    assert len({one.fingerprint() for one in [view, *views]}) == 5
    assert all(isinstance(one.token, str) and len(one.token) == 32 for one in views)


def test_every_positive_and_each_negative_of_a_query_once():
    """A query's negatives stand after its last row; the pairs are counted by row and slot, and know their row."""
    pairs, width = labeled_view("labeled-pair"), WIDTH + 1
    last = {2: 5, 8: 11}
    expected = []
    for row in range(ROWS):
        expected.append(row * width)
        if last.get(int(ROW_QUERY[row]), row) == row:
            expected += [row * width + slot for slot in range(1, width)]
    places = pairs.places(np.arange(ROWS))
    assert places.tolist() == expected and len(places) == ROWS + 9 * WIDTH
    assert pairs.row_of(places).tolist() == [place // width for place in expected]
    # Where rows are left out, the last one that is left counts.
    assert pairs.places(np.array([2, 3, 6])).tolist() == [2 * width, 3 * width, 13, 14, 15, 6 * width, 25, 26, 27]


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("shown", [WIDTH, 2])
def test_pairs(scored, shown):
    """Anchor, text and label of every pair; of what only stands in, another negative of the row is shown in turn."""
    pairs = labeled_view("labeled-pair", scored=scored)
    pairs.table.num_shown = shown
    places = pairs.places(np.arange(ROWS))[::-1]
    found = pairs.resolve(places, pairs.column_names)
    for at, place in enumerate(places.tolist()):
        row, slot = divmod(place, WIDTH + 1)
        text, score = (
            (f"positive {row}", float(scores_of(1)[row, 0])) if not slot else pair_read(row, slot - 1, 1, shown)
        )
        assert found["anchor"][at] == f"anchor {row}" and found["positive"][at] == text
        assert found[pairs.label_name][at] == pytest.approx(score if scored else int(slot == 0))
        assert type(found[pairs.label_name][at]) is (float if scored else int)
    every = pairs.resolve(places, ["positive"], all_slots=True)["positive"]
    expected = [divmod(place, WIDTH + 1) for place in places.tolist()]
    assert every == [f"positive {row}" if not slot else pair_read(row, slot - 1)[0] for row, slot in expected]


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("shown", [WIDTH, 2])
def test_lists(scored, shown):
    """The positive, then the negatives without what stands in, unless there is nothing else; labels are as long."""
    lists = labeled_view("labeled-list", scored=scored)
    lists.table.num_shown = shown
    rows = np.arange(ROWS)[::-1]
    found = lists.resolve(rows, lists.column_names)
    for at, row in enumerate(rows.tolist()):
        negatives = texts_read(row, 1, shown)
        assert found["anchor"][at] == f"anchor {row}"
        assert found["positive"][at] == [f"positive {row}", *(text for text, _ in negatives)]
        scores = [float(scores_of(1)[row, 0]), *(score for _, score in negatives)]
        labels = found[lists.label_name][at]
        assert list(labels) == pytest.approx(scores if scored else [1, *[0] * len(negatives)])
        assert {type(label) for label in found["labels"][at]} == {int} if not scored else len(labels) == len(scores)
    every = lists.resolve(rows, ["positive"], all_slots=True)["positive"]
    assert every == [[f"positive {row}", *(text for text, _ in texts_read(row))] for row in rows.tolist()]
    assert lists.resolve(rows, ["labels" if not scored else "scores"]).keys() == {lists.label_name}


@pytest.mark.parametrize("output_format", LABELED)
def test_batches_of_an_interrupted_run_show_the_negatives_of_before(output_format):
    """After a checkpoint, so many batches are read from before the last refresh, texts and scores; views count alone."""
    view = labeled_view(output_format, scored=True)
    view.table.write(written(2), scores_of(2))
    view.serve_previous(1)
    beside = LABELED[output_format].beside(view, with_scores=True)
    place = np.array([3]) if output_format == "labeled-list" else np.array([3 * (WIDTH + 1) + 1])

    def read(one: LabeledView) -> tuple[str, float]:
        _, (text,), (score,) = one.resolve(place, one.column_names).values()
        return (text[1], score[1]) if output_format == "labeled-list" else (text, score)

    before, after = (pair_read(3, 0, refresh) for refresh in (1, 2))
    assert read(beside) == pytest.approx(after)
    assert read(view) == pytest.approx(before)
    assert read(view) == pytest.approx(after)
