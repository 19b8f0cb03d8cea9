"""The shared-memory table: what a reader sees while a writer writes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import numpy as np
import pytest

from st_hardneg.table import NegativeTable


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
    with pytest.raises(ValueError, match=r"Expected negatives of shape \(4, 2\), got \(4, 3\)"):
        table.write(np.zeros((4, 3), dtype=np.int64))


def test_a_deep_copy_is_the_same_table_and_a_pickle_reads_alike():
    """Copies of a dataset follow; a pickle carries the contents."""
    table = NegativeTable(np.arange(4).reshape(2, 2))
    assert copy.deepcopy(table) is table
    assert pickle.loads(pickle.dumps(table)).read(np.array([1])).tolist() == [[2, 3]]


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


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_mapped_file_stands_in_where_shared_memory_is_too_small(monkeypatch, caplog, tmp_path, method):
    """Workers see writes through the file, however they are started; the file goes with the table."""
    import gc

    import torch
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
