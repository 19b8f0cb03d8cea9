"""Columns of texts: read by row number from whatever memory they lie in, joined, and checked."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from st_hardneg.corpus.texts import SomeTexts, TextColumn, blank_rows, check_text_column, dataset_of
from tests.conftest import whole


def column_in_pieces(pieces: list[list[str]], order: list[int] | None = None) -> TextColumn:
    """Return a column whose texts lie in several pieces of memory, perhaps in another order than there."""
    dataset = concatenate_datasets([Dataset.from_dict({"text": piece, "other": piece}) for piece in pieces])
    return TextColumn(dataset if order is None else dataset.select(order), "text")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_texts_by_row_number(data):
    """One by one, some, all, from a row on and in lists: always those of the dataset, in the order that is asked for."""
    pieces = data.draw(st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=6), min_size=1, max_size=4))
    texts = [text for piece in pieces for text in piece]
    order = data.draw(st.none() | st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=12))
    column = column_in_pieces(pieces, order)
    texts = texts if order is None else [texts[row] for row in order]
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=30))
    numbers = np.array(rows, dtype=np.int64)
    assert column.take(rows) == column.take(numbers) == [texts[row] for row in rows]
    assert column.array(numbers).to_pylist() == [texts[row] for row in rows]
    assert len(column) == len(texts) and column.type in (pa.string(), pa.large_string())
    start, size = data.draw(st.integers(0, len(texts))), data.draw(st.integers(1, 5))
    assert [text for part in column.after(start) for text in part.to_pylist()] == texts[start:]
    assert {part.type for part in column.after(start)} <= {column.type}
    assert list(column.batches(size)) == [texts[first : first + size] for first in range(0, len(texts), size)]
    assert [text for part in column.arrays() for text in part.to_pylist()] == texts
    some = column.some(numbers)
    assert len(some) == len(rows) and list(some) == [texts[row] for row in rows]
    assert some[1:3] == [texts[row] for row in rows][1:3] and [some[place] for place in range(len(rows))] == list(some)
    one_piece = column.in_one_piece()
    assert one_piece.name == "text" and list(one_piece.batches(100)) == [texts] and len(list(one_piece.arrays())) == 1
    back = pickle.loads(pickle.dumps(column))
    assert back.take(rows) == column.take(rows) and back.name == "text"


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
def test_joined_columns(kind):
    """Of other names, types and pieces; nothing before stays what it was; other columns are left behind."""
    made = TextColumn(
        dataset_of(pa.table({"body": pa.array(["a", "b"]).cast(getattr(pa, kind)()), "x": [1, 2]})), "body"
    )
    joined = made.followed_by(TextColumn.of(["c"])).followed_by(column_in_pieces([["d"], ["e"]], [1, 0]))
    assert joined.take(range(5)) == ["a", "b", "c", "e", "d"] and joined.name == "body" and len(made) == 2
    empty = TextColumn.of([])
    assert empty.followed_by(made) is made and len(empty) == 0
    assert TextColumn.of_arrays([]).take([]) == [] and TextColumn.of_arrays([pa.array(["a"])]).take([0, 0]) == [
        "a",
        "a",
    ]


def test_a_piece_of_memory_is_not_copied():
    """What lies in one piece is taken as it is; what is chosen or in several is put together."""
    texts = pa.array([f"text {number}" for number in range(1_000)], pa.large_string())
    column = TextColumn(dataset_of(pa.table({"text": texts, "other": texts})), "text")
    address = texts.buffers()[2].address
    assert next(iter(column.in_one_piece().arrays())).buffers()[2].address == address
    chosen = TextColumn(dataset_of(pa.table({"text": texts})).select([3, 1]), "text").in_one_piece()
    assert chosen.take([0, 1]) == ["text 3", "text 1"]


def test_long_columns_are_read_in_parts():
    """Ten thousand at once: a whole corpus never stands in memory as Python's strings."""
    texts = [str(number) for number in range(25_000)]
    column, shuffled = (
        TextColumn.of(texts),
        TextColumn(Dataset.from_dict({"text": texts}).select(range(24_999, -1, -1)), "text"),
    )
    assert (
        [len(part) for part in column.arrays()] == [len(part) for part in shuffled.arrays()] == [10_000, 10_000, 5_000]
    )
    assert [len(part) for part in column.batches()] == [10_000, 10_000, 5_000]
    assert [text for part in shuffled.arrays() for text in part.to_pylist()] == texts[::-1]
    asked = []

    class Watched(TextColumn):
        def take(self, rows):
            asked.append(len(rows))
            return super().take(rows)

    watched = Watched(column._dataset, "text")
    assert list(SomeTexts(watched, np.arange(25_000))) == texts and asked == [10_000, 10_000, 5_000]


BLANK = ["", " ", "\t\n", "\u00a0", "\u2003 ", None]


def test_blank_texts():
    """None, empty, or nothing but whitespace of any kind; what begins with whitespace and goes on is a text."""
    texts = pa.array(["a", " b", "", "c ", "\u2003", "\u2003d", None])
    assert blank_rows(texts) == [2, 4, 6] and blank_rows(texts, only_none=True) == [6]
    assert blank_rows(pa.array(BLANK)) == list(range(6)) and blank_rows(pa.array(["a"])) == []
    assert blank_rows(pa.array(["a", ""]), only_none=True) == []


def test_the_check_of_a_column():
    """Rows are named, ten of them; a column that is missing is named with the one that is meant."""
    rows = Dataset.from_dict({"anchor": ["a", "b", " "], "anchors": ["a", None, ""], "n": [1, 2, 3]})
    check_text_column(rows.select([0, 1]), "anchor", "anchor_column_name")
    advice = "Remove them, for example with `dataset.filter(lambda row: row['{0}'] and row['{0}'].strip())`."
    message = "Expected a text in every row of the column {0!r}, got None or an empty text in {1}: {2}. " + advice
    for name, count, shown, options in [
        ("anchor", "1 row", "2", {}),
        ("anchors", "2 rows", "1, 2", {}),
        ("anchors", "1 row", "1", {"allow_empty": True}),
    ]:
        with pytest.raises(ValueError, match=whole(message.format(name, count, shown))):
            check_text_column(rows, name, "anchor_column_name", **options)
    check_text_column(rows, "anchor", "anchor_column_name", allow_empty=True)
    for number, end in [(10, ""), (11, ", …")]:
        many = Dataset.from_dict({"anchor": ["x"] * 12_000 + [""] * number})
        shown = ", ".join(str(row) for row in range(12_000, 12_010)) + end
        with pytest.raises(ValueError, match=whole(message.format("anchor", f"{number} rows", shown))):
            check_text_column(many, "anchor", "anchor_column_name")
    thousands = Dataset.from_dict({"anchor": [""] * 1_234})
    with pytest.raises(ValueError, match="in 1,234 rows: 0, 1, 2"):
        check_text_column(thousands, "anchor", "anchor_column_name")
    missing = "`corpus_column=%r` is not a column of the dataset. Columns are ['anchor', 'anchors', 'n']."
    with pytest.raises(ValueError, match=whole(missing % "anchr" + " Did you mean 'anchor'?")):
        check_text_column(rows, "anchr", "corpus_column")
    with pytest.raises(ValueError, match=whole(missing % "zzz")):
        check_text_column(rows, "zzz", "corpus_column")
    wrong = (
        "Expected the column 'n' to hold text (strings), got Value('int64'). Name a text column, or turn this one into "
        "text with `dataset.map`."
    )
    with pytest.raises(TypeError, match=whole(wrong)):
        check_text_column(rows, "n", "anchor_column_name")
