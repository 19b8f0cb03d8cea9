"""Reading a concatenation of datasets in batches."""

from __future__ import annotations

from functools import partial

from datasets import Dataset
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from st_hardneg.live.batches import BatchReader, read_in_batches
from st_hardneg.live.dataset import live_views
from tests.live.views import ROWS, dataset_of, live_view, refresh, row_of, rows_of


def test_a_batch_is_read_from_each_part_at_once(monkeypatch):
    """Rows come in the order that was asked for; each part is asked once, in its own numbers."""
    view = live_view()
    plain = Dataset.from_list(rows_of(5))
    joined = ConcatDataset([dataset_of(view), plain])
    read_in_batches(joined)
    calls = []
    original = Dataset.__getitems__
    monkeypatch.setattr(Dataset, "__getitems__", lambda self, keys: calls.append(keys) or original(self, keys))
    assert joined.__getitems__([ROWS + 2, 3, ROWS, 0]) == [row_of(2, 5), row_of(3), row_of(0, 5), row_of(0)]
    assert calls == [[2, 0]]
    loader = DataLoader(joined, batch_size=5, collate_fn=list)
    assert [row for batch in loader for row in batch] == [*rows_of(), *rows_of(5)]


def test_other_datasets_are_left_alone():
    """Only a concatenation gets the attribute."""
    import torch

    dataset = TensorDataset(torch.zeros(3))
    read_in_batches(dataset)
    read_in_batches(None)
    assert not hasattr(dataset, "__getitems__")


def test_batches_that_a_view_is_not_in_count_for_it():
    """After a resume the first batches are as before the refresh, whichever dataset of a DatasetDict they are from."""
    first, second, third = live_view(), live_view(), live_view()
    reader = BatchReader([dataset_of(first), dataset_of(second), Dataset.from_list(rows_of()), dataset_of(third)])
    for view in (first, second, third):
        refresh(view)
        view.serve_previous(3)
    assert reader([ROWS + 1]) == [row_of(1)]
    assert reader([ROWS + 1]) == [row_of(1)]
    assert reader([2, ROWS + 1]) == [row_of(2), row_of(1)]
    assert reader([2, ROWS + 1]) == [row_of(2, 1), row_of(1, 1)]
    assert reader([3 * ROWS + 4]) == [row_of(4, 1)]


def name_rows(batch, dataset_name=None, transform=None):
    batch = batch if transform is None else transform(batch)
    return {**batch, "dataset_name": [dataset_name] * len(batch["anchor"])}


def upper(batch):
    return {**batch, "anchor": [text.upper() for text in batch["anchor"]]}


def test_the_name_that_a_trainer_gave_is_found():
    """The trainer's transform keeps the name of a member of a DatasetDict, around a transform of the user's."""
    view = live_view()
    named = dataset_of(view).with_transform(partial(name_rows, dataset_name="a"))
    twice = dataset_of(view).with_transform(partial(name_rows, dataset_name="b", transform=upper))
    assert list(live_views(ConcatDataset([named, twice, dataset_of(view)]))) == [("a", view), ("b", view), (None, view)]
    refresh(view)
    assert named.__getitems__([3]) == [{**row_of(3, 1), "dataset_name": "a"}]
    assert twice[3] == {**row_of(3, 1), "anchor": "ANCHOR 3", "dataset_name": "b"}
