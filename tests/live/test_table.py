"""The shared-memory table: what a reader sees while a writer writes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from st_hardneg.live.table import NegativeTable, SharedArray, _remove
from tests.conftest import whole


def test_a_write_is_seen_and_counted():
    """Reads show the last write; the generation counts writes."""
    table = NegativeTable(np.zeros((4, 2), dtype=np.int64))
    table.write(np.arange(8).reshape(4, 2))
    assert table.read(np.array([3, 0])).tolist() == [[6, 7], [0, 1]]
    assert (table.generation, table.num_rows, table.width) == (1, 4, 2)


def test_ids_beyond_32_bits():
    """A corpus of more than 2**31 texts is counted in 64 bits."""
    table = NegativeTable(np.full((1, 1), 2**40))
    assert table.read(np.array([0])).tolist() == [[2**40]]


def test_another_shape_is_refused():
    """Rows and width never change."""
    table = NegativeTable(np.zeros((4, 2), dtype=np.int64))
    message = (
        "Expected negatives of shape (4, 2), got (4, 3). Rows and width of a live view never change; make a new "
        "HardNegativeDataset for another width."
    )
    with pytest.raises(ValueError, match=whole(message)):
        table.write(np.zeros((4, 3), dtype=np.int64))
    assert table.generation == 0


def test_a_deep_copy_is_the_same_table_and_a_pickle_reads_alike():
    """Copies of a dataset follow; a pickle carries the contents."""
    table = NegativeTable(np.arange(4).reshape(2, 2))
    assert copy.deepcopy(table) is table
    assert pickle.loads(pickle.dumps(table)).read(np.array([1])).tolist() == [[2, 3]]


def test_the_write_before_the_last_can_be_read():
    """Through several rounds, `previous` gives what was written one round earlier, as int64."""
    table = NegativeTable(np.zeros((3, 2), dtype=np.int64))
    for number in range(1, 6):
        table.write(np.full((3, 2), number))
        now, before = table.read(np.array([0, 2])), table.read(np.array([0, 2]), previous=True)
        assert now.tolist() == [[number] * 2] * 2 and before.tolist() == [[number - 1] * 2] * 2
        assert now.dtype == before.dtype == np.int64
        assert table.generation == number


@pytest.mark.parametrize(
    ("largest", "dtype"), [(2**31 - 2, "int32"), (2**31 - 1, "int32"), (2**31, "int64"), (None, "int32")]
)
def test_ids_take_as_many_bits_as_they_need(largest, dtype):
    """Up to 2**31 texts an id takes four bytes, also in a table of no rows; beyond that it takes eight."""
    ids = np.zeros((0, 2), dtype=np.int64) if largest is None else np.full((1, 2), largest)
    table = NegativeTable(ids)
    assert str(table._ids.dtype) == dtype
    assert table._ids.shape == (2, *ids.shape)
    assert table.read(np.arange(len(ids))).tolist() == ids.tolist()


def test_the_memory_is_shared_and_begins_with_zeros():
    """Both buffers and the counter lie in shared memory."""
    table = NegativeTable(np.ones((2, 2), dtype=np.int64))
    for array in (table._buffers, table._numbers):
        assert array.tensor.is_shared() and array.path is None
    assert table._ids[1].tolist() == [[0, 0], [0, 0]]


def test_stand_ins_take_as_many_bits_as_the_corpus_needs():
    """The stand-in of text x is -x - 2: two ids less fit into four bytes, whatever the first mining has chosen."""
    few = np.zeros((1, 1), dtype=np.int64)
    assert str(NegativeTable(few, num_texts=2**31 - 1)._ids.dtype) == "int32"
    assert str(NegativeTable(few, num_texts=2**31)._ids.dtype) == "int64"
    table = NegativeTable(few, num_texts=2**31)
    table.write(few - 2**31 - 1)
    assert table.read(np.array([0])).tolist() == [[-(2**31) - 1]]


def test_ids_that_do_not_fit_are_refused():
    """A larger id than the table was made for is not cut to its last 32 bits."""
    table = NegativeTable(np.zeros((1, 1), dtype=np.int64))
    message = (
        "Expected ids that fit the table's int32, got one up to 2,147,483,648. Tell NegativeTable the size of the corpus "
        "with `num_texts`."
    )
    with pytest.raises(ValueError, match=whole(message)):
        table.write(np.full((1, 1), 2**31))
    assert table.generation == 0 and table.read(np.array([0])).tolist() == [[0]]


@pytest.fixture
def no_shared_memory(monkeypatch, tmp_path):
    """Shared memory is too small; files for it come into the test's folder."""

    def too_small(self):
        raise OSError("No space left on device")

    monkeypatch.setattr("torch.Tensor.share_memory_", too_small)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_mapped_table_is_the_same_memory_after_pickling(no_shared_memory):
    """A copy that went through a pickle sees later writes, and does not take the files away when it goes."""
    table = NegativeTable(np.arange(6).reshape(3, 2))
    assert sorted(path.name[:11] for path in no_shared_memory.iterdir()) == ["st_hardneg-"] * 2
    copied = pickle.loads(pickle.dumps(table))
    assert copied._buffers.path == table._buffers.path and copied._ids.dtype == table._ids.dtype
    assert copied.read(np.array([2, 0])).tolist() == [[4, 5], [0, 1]]
    table.write(np.full((3, 2), 9))
    assert copied.generation == 1 and copied.read(np.array([1])).tolist() == [[9, 9]]
    again = pickle.loads(pickle.dumps(copied))
    assert again._numbers.path == table._numbers.path
    del copied, again
    assert len(list(no_shared_memory.iterdir())) == 2
    del table
    assert not list(no_shared_memory.iterdir())


def test_the_warning_names_size_reason_and_folder(no_shared_memory, caplog):
    """Four megabytes that do not fit: the message says so, once for each array, and what to do."""
    array = SharedArray((2**20,), torch.int32)
    assert array.tensor.shape == (2**20,) and not array.tensor.any()
    assert caplog.messages == [
        "Shared memory does not suffice for 4.0 MB of negatives (No space left on device); they are in a mapped file in "
        f"{str(no_shared_memory)!r}. Enlarge /dev/shm (`--shm-size` in Docker)."
    ]


def test_an_empty_array_can_be_mapped(no_shared_memory):
    """A file of no bytes cannot be mapped; an array of no rows still has its shape."""
    assert SharedArray((2, 0, 3), torch.int64).tensor.shape == (2, 0, 3)


def test_a_file_is_removed_by_its_owner_only(tmp_path):
    """A forked worker leaves the file to its parent; a file that is gone already is no error."""
    path = tmp_path / "file"
    path.touch()
    _remove(str(path), os.getpid() + 1)
    assert path.exists()
    _remove(str(path), os.getpid())
    assert not path.exists()
    _remove(str(path), os.getpid())


def test_a_file_that_cannot_be_removed_yet_is_no_error(tmp_path, monkeypatch):
    """Windows refuses to remove a file that is still mapped."""

    def refuse(path):
        raise PermissionError(13, "The process cannot access the file because it is being used by another process")

    monkeypatch.setattr(os, "remove", refuse)
    _remove(str(tmp_path / "file"), os.getpid())


def read_until(table: NegativeTable, stop, torn, reads) -> None:
    rows = np.arange(2000)
    while not stop.is_set():
        found = table.read(rows)
        torn.value += int(found.min() != found.max())
        reads.value += 1


def test_no_read_is_ever_torn():
    """While one process writes 2 000 rounds, readers in others see rows of one round only, and later ones in the end."""
    table = NegativeTable(np.zeros((2000, 3), dtype=np.int64))
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    counts = [(context.Value("i", 0), context.Value("i", 0)) for _ in range(2)]
    readers = [context.Process(target=read_until, args=(table, stop, torn, reads)) for torn, reads in counts]
    for reader in readers:
        reader.start()
    for number in range(1, 2001):
        table.write(np.full((2000, 3), number))
    while min(reads.value for _, reads in counts) < 20:
        pass
    stop.set()
    for reader in readers:
        reader.join(10)
        assert reader.exitcode == 0
    assert [torn.value for torn, _ in counts] == [0, 0]


class FirstSlot:
    """A dataset that reads the table in a worker."""

    def __init__(self, table: NegativeTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> int:
        return int(self.table.read(np.array([row % 4]))[0, 0])


@pytest.mark.training
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_mapped_file_stands_in_where_shared_memory_is_too_small(monkeypatch, caplog, tmp_path, method):
    """Workers see writes through the file, however they are started; the file goes with the table."""
    import gc

    from torch.utils.data import DataLoader

    def too_small(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "share_memory_", too_small)
        patched.setattr("tempfile.tempdir", str(tmp_path))
        table = NegativeTable(np.zeros((4, 2), dtype=np.int64))
    assert "Enlarge /dev/shm" in caplog.text and len(list(tmp_path.iterdir())) == 2
    loader = DataLoader(
        FirstSlot(table), num_workers=1, persistent_workers=True, multiprocessing_context=method, batch_size=4
    )
    for number in (0, 7):
        table.write(np.full((4, 2), number))
        assert [batch.tolist() for batch in loader] == [[number] * 4] * 3
    del loader, table
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_scores_are_read_with_the_negatives_of_their_mining():
    """Positive's score first; `previous` reads both of before the last write; a pickled table reads the same memory."""
    table = NegativeTable(np.zeros((3, 2), dtype=np.int64))
    assert not table.has_scores
    before = np.arange(9, dtype=np.float32).reshape(3, 3)
    table.add_scores(before)
    assert table.has_scores
    ids, scores = table.read_scored(np.array([2, 0]))
    assert ids.tolist() == [[0, 0], [0, 0]] and scores.tolist() == [[6.0, 7.0, 8.0], [0.0, 1.0, 2.0]]
    table.write(np.arange(6).reshape(3, 2), before + 100)
    for reader in (table, pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):
        ids, scores = reader.read_scored(np.array([1]))
        assert ids.tolist() == [[2, 3]] and ids.dtype == np.int64
        assert scores.tolist() == [[103.0, 104.0, 105.0]] and scores.dtype == np.float32
        ids, scores = reader.read_scored(np.array([1]), previous=True)
        assert ids.tolist() == [[0, 0]] and scores.tolist() == [[3.0, 4.0, 5.0]]
    table.num_shown = 1
    assert table.num_shown == 1 and table.generation == 1
