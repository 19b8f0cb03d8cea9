"""LiveRows: the table of a live view does what an Arrow table of the same texts does."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from datasets.table import InMemoryTable

from st_hardneg.live.rows import Beside, LiveRows
from tests.live.views import ROWS, live_view, refresh, rows_of

EXTRA = pa.table({"number": list(range(ROWS)), "place": [{"page": i, "line": -i} for i in range(ROWS)]})


def live_rows(rows=None) -> LiveRows:
    """Return the table of a view with two more columns, in the middle and at the end."""
    view = live_view()
    names = ["anchor", "number", *view.column_names[1:], "place"]
    return LiveRows(view, names, np.arange(ROWS), beside=Beside(InMemoryTable(EXTRA), rows), metadata={b"a": b"b"})


def plain(live: LiveRows) -> pa.Table:
    """Return the same as an Arrow table, made from the rows that a view is known to hold."""
    found = pa.Table.from_pylist(rows_of())
    for name in EXTRA.column_names:
        found = found.append_column(name, EXTRA.column(name))
    return found.select(live.column_names).replace_schema_metadata({b"a": b"b"})


def test_all_rows_and_columns():
    """A copy is the plain table, with its metadata."""
    live = live_rows()
    assert live.copied() == plain(live) and live.copied().schema.metadata == {b"a": b"b"}
    assert (live.num_rows, live.num_columns, live.shape) == (ROWS, 7, (ROWS, 7))


@pytest.mark.parametrize("arguments", [(), (0,), (3,), (0, 4), (5, 2), (9, 100), (ROWS, 3), (2, 0)])
def test_slices(arguments):
    """By offset and length, as Arrow's; `fast_slice` gives the texts at once."""
    live = live_rows()
    expected = plain(live).slice(*arguments)
    assert live.slice(*arguments).copied() == expected
    assert live.fast_slice(*arguments).to_pylist() == expected.to_pylist()


def test_what_no_table_gives():
    """The words are those of `datasets`, which knows them."""
    live = live_rows()
    with pytest.raises(IndexError, match=r"^Offset must be non-negative$"):
        live.fast_slice(-1)
    with pytest.raises(ValueError, match=r"^Indices must be non-empty$"):
        live.fast_gather([])
    with pytest.raises(KeyError, match='Field "other" does not exist in schema'):
        live.select(["other"])


@pytest.mark.parametrize("order", [None, np.arange(ROWS)])
def test_rows_in_any_order_with_what_stands_beside_them(order):
    """Rows, gathered once or twice, keep their own columns; so do the dictionaries of a dataloader."""
    live = live_rows(order)
    twice = live.gather(np.array([7, 3, 5, 3])).gather(np.array([2, 0, 1]))
    expected = plain(live).take([5, 7, 3]).to_pylist()
    assert twice.copied().to_pylist() == expected
    assert twice.fetch(np.arange(3)) == expected and list(twice.fetch(np.array([1]))[0]) == live.column_names
    assert twice.fast_gather([1]).to_pylist() == expected[1:2]


@pytest.mark.parametrize("order", [None, [2, 0, 1]])
def test_columns_that_stand_beside_are_followed_by_others(order):
    """All of them, in the order of the rows."""
    beside = Beside(InMemoryTable(EXTRA.slice(0, 3)), None if order is None else np.array(order))
    added = pa.table({"more": ["x", "y", "z"]})
    assert beside.followed_by(added) == EXTRA.take(order or [0, 1, 2]).append_column("more", added.column("more"))


def test_other_metadata_names_and_types():
    """Of what is not the view's; a live column keeps its name and type."""
    live = live_rows()
    assert live.replace_schema_metadata({b"c": b"d"}).schema.metadata == {b"c": b"d"}
    assert live.replace_schema_metadata().schema.metadata is None
    names = [{"number": "n", "place": "where"}.get(name, name) for name in live.column_names]
    renamed = live.rename_columns(names)
    assert renamed.copied() == plain(live).rename_columns(names)
    with pytest.raises(ValueError, match="shorter"):
        live.rename_columns(names[:-1])
    with pytest.raises(ValueError, match="'anchor' of a live view cannot be renamed to 'a'"):
        live.rename_columns(["a", *names[1:]])
    schema = live.schema.set(1, pa.field("number", pa.int32()))
    assert live.cast(schema).copied() == plain(live).cast(schema)
    with pytest.raises(TypeError, match="'anchor' of a live view is read as string"):
        live.cast(live.schema.set(0, pa.field("anchor", pa.large_string())))


def test_parts_of_a_struct_become_columns():
    """As Arrow flattens them."""
    assert live_rows().flatten().copied() == plain(live_rows()).flatten()


def test_what_is_derived_follows_a_refresh():
    """Rows and columns that were chosen before it show the negatives after it."""
    live = live_rows()
    chosen = live.gather(np.array([4, 1])).select(["negative_2", "number"])
    before = chosen.copied().to_pylist()
    refresh(live.view)
    after = chosen.copied().to_pylist()
    assert after == [{"negative_2": rows_of(1)[row]["negative_2"], "number": row} for row in (4, 1)] != before
