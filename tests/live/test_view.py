"""LiveView: texts, labels, stand-ins, schedules, and the batches of an interrupted run."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from datasets.fingerprint import Hasher

from st_hardneg.corpus.texts import TextColumn
from st_hardneg.live.table import NegativeTable
from tests.conftest import whole
from tests.live.views import MILLION, ROWS, dataset_of, ids_of, live_view, refresh, row_of, rows_of


def test_rows_are_texts_and_labels_are_ids():
    """Anchor, positive, negatives by rank; labels are row, query, positive, weight in millionths, negatives."""
    view = live_view()
    found = view.resolve(np.array([3, 0]), [*view.column_names, "label"])
    assert list(found) == ["anchor", "positive", "negative_1", "negative_2", "negative_3", "label"]
    assert [{name: found[name][i] for name in view.column_names} for i in range(2)] == [row_of(3), row_of(0)]
    assert found["label"] == [[3, 1003, 2003, MILLION, *ids_of(0)[3]], [0, 1000, 2000, MILLION, *ids_of(0)[0]]]
    assert all(type(number) is int for number in found["label"][0])


def test_a_stand_in_is_a_text_without_an_id():
    """What stands in for a negative (-x - 2) is read as text x; its id in the label is -1, so that losses mask it."""
    view = live_view()
    ids = ids_of(1)
    ids[2] = [5, -5 - 2, -0 - 2]
    ids[3] = [0, 1, -9 - 2]
    view.table.write(ids)
    found = view.resolve(np.array([3]), [*view.column_names, "label"])
    assert [found[name][0] for name in view.negative_names] == ["text 0", "text 1", "text 9"]
    assert found["label"][0][4:] == [0, 1, -1]
    found = view.resolve(np.array([2, 1]), [*view.column_names, "label"])
    assert [found[name][0] for name in view.negative_names] == ["text 5", "text 5", "text 0"]
    assert found["label"][0] == [2, 1002, 2002, MILLION, 5, -1, -1]
    assert {name: found[name][1] for name in view.column_names} == row_of(1, 1)
    assert found["label"][1][4:] == ids[1].tolist()


def test_an_empty_slot_is_never_read_as_a_text():
    """-1 would be the last text of the corpus; the row is named instead."""
    view = live_view()
    ids = ids_of(1)
    ids[1] = [0, 0, 0]
    ids[4, 1] = -1
    view.table.write(ids)
    message = (
        "Expected a negative in every slot of the rows of a live view, got an empty one in row 4. Make the view anew with "
        "`as_dataset()`."
    )
    with pytest.raises(ValueError, match=whole(message)):
        view.resolve(np.array([1, 4]), ["negative_1"])
    found = view.resolve(np.array([1, 5]), ["negative_1"])["negative_1"]
    assert found == ["text 0", row_of(5, 1)["negative_1"]]


def test_a_schedule_shows_fewer_negatives():
    """Those that are not shown yet are neither texts nor in labels, unless nothing else is asked for."""
    view = live_view()
    dataset = dataset_of(view, with_ids=True)
    view.table.num_shown = 2
    row = row_of(3)
    del row["negative_3"]
    expected = {**row, "label": [3, 1003, 2003, MILLION, *ids_of(0)[3][:2]]}
    assert dataset[3] == expected and dataset.__getitems__([3, 3]) == [expected] * 2
    assert list(dataset)[3] == expected and next(dataset.iter(2))["label"][0][4:] == ids_of(0)[0][:2].tolist()
    assert dataset["negative_3"][3] == dataset.select_columns("negative_3")[3]["negative_3"] == "text 77"
    view.table.num_shown = 3
    assert dataset[3]["negative_3"] == "text 77" and len(dataset[3]["label"]) == 7


@pytest.mark.filterwarnings("ignore:Specifying null_placement in SortOptions")
def test_exports_hold_what_a_schedule_does_not_show_yet(tmp_path):
    """A file has all negatives, also in the middle of a training that shows fewer."""
    from datasets import Dataset, load_from_disk

    view = live_view()
    dataset = dataset_of(view).shuffle(seed=1).sort("anchor")
    everything = dataset.to_list()
    view.table.num_shown = 1
    assert dataset.to_list() == everything and dataset.to_dict()["negative_3"][0] == everything[0]["negative_3"]
    dataset.to_parquet(str(tmp_path / "rows.parquet"))
    dataset.save_to_disk(str(tmp_path / "rows"))
    assert Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path)).to_list() == everything
    assert load_from_disk(str(tmp_path / "rows")).to_list() == everything
    assert dataset.map(lambda row: {"third": row["negative_3"]})["third"][:] == [
        row["negative_3"] for row in everything
    ]
    assert list(dataset[0]) == ["anchor", "positive", "negative_1"]


def test_all_negatives_of_a_batch_are_of_one_mining(monkeypatch):
    """A refresh in the middle of a read is seen by all slots or by none."""
    view = live_view()
    read = type(view.table).read

    def read_and_refresh(table, rows, **options):
        found = read(table, rows, **options)
        refresh(view)
        return found

    monkeypatch.setattr(type(view.table), "read", read_and_refresh)
    assert dataset_of(view).__getitems__([0, 1]) == rows_of()[:2]


def test_batches_of_before_the_refresh_are_served_after_a_resume():
    """The interrupted run had fetched two batches ahead; the resumed one reads them as they were."""
    view = live_view()
    dataset = dataset_of(view)
    refresh(view)
    view.serve_previous(2)
    batches = [dataset.__getitems__([0, 1]) for _ in range(3)]
    assert batches == [rows_of()[:2], rows_of()[:2], rows_of(1)[:2]]
    view.serve_previous(2)
    view.serve_previous(0)
    assert dataset.__getitems__([0, 1]) == rows_of(1)[:2]


def test_scores_stand_beside_the_negatives_of_the_same_mining():
    """Before and after a refresh, and in the batches that an interrupted run had fetched before it."""
    view = live_view()

    def scores_of(number):
        return np.column_stack([np.full(ROWS, -1.0), ids_of(number)]).astype(np.float32)

    view.table.add_scores(scores_of(0))
    found = view.resolve(np.array([3, 0]), ["negative_1", "scores"])
    assert found["scores"] == scores_of(0)[[3, 0]].tolist()
    view.table.write(ids_of(1), scores_of(1))
    view.serve_previous(1)
    found = [view.resolve(np.array([2]), ["negative_2", "scores"]) for _ in range(2)]
    assert [one["scores"] for one in found] == [scores_of(0)[[2]].tolist(), scores_of(1)[[2]].tolist()]
    assert [one["negative_2"] for one in found] == [[row_of(2, number)["negative_2"]] for number in range(2)]
    with pytest.raises(ValueError, match="Expected scores beside the negatives"):
        view.table.write(ids_of(2))
    assert (
        view.table.generation == 1 and view.resolve(np.array([0]), ["scores"])["scores"] == scores_of(1)[[0]].tolist()
    )
    view.table.num_shown = 2
    assert view.resolve(np.array([0]), ["scores"])["scores"] == scores_of(1)[[0], :3].tolist()


def test_texts_alone_are_no_batch():
    """A sampler that reads anchors takes no batch away from those that are owed."""
    view = live_view()
    dataset = dataset_of(view)
    refresh(view)
    view.serve_previous(1)
    assert dataset.select_columns(["anchor", "positive"])[0] == {"anchor": "anchor 0", "positive": "positive 0"}
    assert dataset.__getitems__([0]) == [row_of(0)] and dataset.__getitems__([0]) == [row_of(0, 1)]


def test_a_pickled_view_reads_without_its_owner_and_a_deep_copy_is_the_same():
    """What travels to a worker is texts and the table, not the dataset that mines."""
    view = live_view()
    view.owner = owner = object()
    other = pickle.loads(pickle.dumps(view))
    assert other.owner is None and view.owner is owner and copy.deepcopy(view) is view
    rows = np.arange(ROWS)
    assert other.resolve(rows, ["anchor", "negative_2"]) == view.resolve(rows, ["anchor", "negative_2"])


def test_what_identifies_a_view_changes_with_a_refresh_and_costs_nothing(monkeypatch):
    """`datasets` pickles what it identifies: here neither texts nor table, which are 0.2 s for a million rows."""
    view = live_view()

    def read(_):
        raise AssertionError("texts or ids were read")

    monkeypatch.setattr(TextColumn, "__getstate__", read)
    monkeypatch.setattr(NegativeTable, "__getstate__", read)
    before = Hasher.hash(view)
    assert Hasher.hash(view) == before != Hasher.hash(live_view())
    fingerprint = view.fingerprint()
    refresh(view)
    assert Hasher.hash(view) != before and view.fingerprint() != fingerprint
    assert len(view.fingerprint()) == 32
