"""Every public method of ``datasets.Dataset`` on a live view: its result holds texts, is live, or it raises our words.

A method that a new release of ``datasets`` brings fails `test_no_method_is_left_out` until it stands in the table.
"""

from __future__ import annotations

import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, Value, load_from_disk
from datasets.table import Table
from huggingface_hub import RepoUrl

from st_hardneg.live.rows import LiveRows
from tests.live.views import ROWS, dataset_of, live_view, refresh

pytestmark = pytest.mark.filterwarnings("ignore:Specifying null_placement in SortOptions")

Call = Callable[[Dataset, Any], Any]


def sql(view: Dataset, folder: Any) -> Any:
    with sqlite3.connect(folder / "rows.db") as connection:
        view.to_sql("rows", connection)
        return connection.execute("select * from rows").fetchall()


def in_memory(write: Callable[[io.BytesIO], Any]) -> io.BytesIO:
    buffer = io.BytesIO()
    write(buffer)
    buffer.seek(0)
    return buffer


def saved(view: Dataset, folder: Any) -> Dataset:
    view.save_to_disk(str(folder / "rows"))
    return load_from_disk(str(folder / "rows"))


def parquet(view: Dataset, folder: Any) -> Dataset:
    view.to_parquet(str(folder / "rows.parquet"))
    return Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder))


def formatted(view: Dataset, _: Any) -> Any:
    with view.formatted_as("numpy"):
        return [dict(row) for row in view]


def in_place(change: Callable[[Dataset], None]) -> Call:
    def call(view: Dataset, _: Any) -> Dataset:
        change(view)
        return view

    return call


RETURNS_ROWS: dict[str, list[Call]] = {
    "__getitem__": [
        lambda view, _: view[3],
        lambda view, _: view[-1],
        lambda view, _: view[2:5],
        lambda view, _: view[::3],
        lambda view, _: view[[5, 1, 1]],
        lambda view, _: view["negative_1"],
        lambda view, _: view["anchor"][:],
    ],
    "__getitems__": [lambda view, _: view.__getitems__([5, 1, 1])],
    "__iter__": [lambda view, _: list(view)],
    "iter": [lambda view, _: list(view.iter(5)), lambda view, _: list(view.iter(5, drop_last_batch=True))],
    "add_column": [lambda view, _: view.add_column("new", ["new 1"] * ROWS)],
    "add_item": [lambda view, _: view.add_item({name: "new 1" for name in view.column_names})],
    "batch": [lambda view, _: view.batch(5)],
    "cast": [lambda view, _: view.cast(view.features), lambda view, _: view.cast(large(view))],
    "cast_column": [lambda view, _: view.cast_column("anchor", Value("large_string"))],
    "class_encode_column": [lambda view, _: names_of(view.class_encode_column("anchor"))],
    "data": [
        lambda view, _: view.data.table,
        lambda view, _: view.data.to_pandas(),
        lambda view, _: view.data.to_pydict(),
        lambda view, _: view.data.column("negative_1").to_pylist(),
        lambda view, _: view.data["negative_1"].to_pylist(),
        lambda view, _: [batch.to_pylist() for batch in view.data.to_batches()],
    ],
    "filter": [lambda view, _: view.filter(lambda row: row["anchor"] > "anchor 3")],
    "flatten": [lambda view, _: view.flatten(), lambda view, _: view.add_column("s", structs()).flatten()],
    "flatten_indices": [lambda view, _: view.flatten_indices()],
    "formatted_as": [formatted],
    "map": [
        lambda view, _: view.map(),
        lambda view, _: view.map(lambda row: {"new": "new 1"}),
        lambda view, _: view.map(lambda row: {name: row[name].lower() for name in row}),
        lambda view, _: view.map(lambda row: {"new": row["anchor"]}, remove_columns=["anchor", "negative_2"]),
        lambda view, _: view.map(lambda anchor, i: {"new": f"new {i}"}, input_columns="anchor", with_indices=True),
        lambda view, _: (
            view.with_format("arrow").map(lambda table: table, batched=True, batch_size=5).with_format(None)
        ),
        lambda view, _: view.with_format("pandas").map(lambda rows: rows, batched=True).with_format(None),
    ],
    "remove_columns": [lambda view, _: view.remove_columns(["anchor"])],
    "rename_column": [lambda view, _: view.add_column("a", ["new 1"] * ROWS).rename_column("a", "b")],
    "rename_columns": [lambda view, _: view.add_column("a", ["new 1"] * ROWS).rename_columns({"a": "b"})],
    "repeat": [lambda view, _: view.repeat(2)],
    "reset_format": [in_place(lambda view: (view.set_format("torch"), view.reset_format()))],
    "save_to_disk": [saved],
    "select": [lambda view, _: view.select([5, 1]), lambda view, _: view.select(range(3, 6))],
    "select_columns": [lambda view, _: view.select_columns(["negative_2"])],
    "set_format": [
        in_place(lambda view: view.set_format("torch")),
        in_place(lambda view: view.set_format("numpy")),
        in_place(lambda view: view.set_format(None, columns=["negative_1", "anchor"], output_all_columns=True)),
    ],
    "set_transform": [in_place(lambda view: view.set_transform(lambda batch: {"new": batch["negative_1"]}))],
    "shard": [lambda view, _: view.shard(3, 1), lambda view, _: view.shard(3, 1, contiguous=False)],
    "shuffle": [lambda view, _: view.shuffle(seed=1)],
    "skip": [lambda view, _: view.skip(3)],
    "sort": [lambda view, _: view.sort("negative_2"), lambda view, _: view.sort(["anchor", "positive"], reverse=True)],
    "take": [lambda view, _: view.take(3)],
    "to_csv": [lambda view, _: in_memory(view.to_csv).read().decode().replace("\n", ",").strip(",").split(",")[5:]],
    "to_dict": [lambda view, _: view.to_dict(), lambda view, _: view.to_dict(batched=True, batch_size=5)],
    "to_iterable_dataset": [
        lambda view, _: list(view.to_iterable_dataset()),
        lambda view, _: list(view.to_iterable_dataset(num_shards=2).shuffle(seed=1)),
        lambda view, _: list(view.to_iterable_dataset().with_format("torch")),
    ],
    "to_json": [lambda view, _: [json.loads(line) for line in in_memory(view.to_json).read().splitlines()]],
    "to_list": [lambda view, _: view.to_list()],
    "to_pandas": [lambda view, _: view.to_pandas(), lambda view, _: list(view.to_pandas(batched=True, batch_size=5))],
    "to_parquet": [parquet],
    "to_sql": [lambda view, folder: [row[1:] for row in sql(view, folder)]],
    "train_test_split": [lambda view, _: view.train_test_split(test_size=4, seed=1)],
    "unique": [lambda view, _: view.unique("negative_1")],
    "with_format": [
        lambda view, _, kind=kind: view.with_format(kind) for kind in ("torch", "numpy", "pandas", "arrow", None)
    ],
    "with_transform": [lambda view, _: view.with_transform(lambda batch: {"new": batch["anchor"]})],
}
"""What a method is called with; its result must hold texts only."""

NEEDS_AN_EXTRA = {
    "to_polars": ("polars", lambda view, _: view.to_polars().to_dicts()),
    "to_tf_dataset": ("tensorflow", lambda view, _: list(view.to_tf_dataset(columns=["anchor"]).as_numpy_iterator())),
}

READS_NO_ROWS = {
    *("builder_name", "cache_files", "citation", "cleanup_cache_files", "column_names", "config_name", "dataset_size"),
    *("description", "download_checksums", "download_size", "features", "format", "homepage", "info", "license"),
    *("num_columns", "num_rows", "shape", "size_in_bytes", "split", "supervised_keys", "version", "__len__"),
    # indexes of vectors, which a column of texts cannot have
    *("add_elasticsearch_index", "add_faiss_index", "add_faiss_index_from_external_arrays", "drop_index", "get_index"),
    *("get_nearest_examples", "get_nearest_examples_batch", "is_index_initialized", "list_indexes"),
    *("load_elasticsearch_index", "load_faiss_index", "save_faiss_index", "search", "search_batch"),
    # makes a dataset of something else
    *("from_buffer", "from_csv", "from_dict", "from_file", "from_generator", "from_json", "from_list", "from_pandas"),
    *("from_parquet", "from_polars", "from_spark", "from_sql", "from_text", "load_from_disk"),
    # tested by name below
    *("align_labels_with_mapping", "push_to_hub"),
}


def large(view: Dataset) -> Any:
    features = view.features.copy()
    features["negative_2"] = Value("large_string")
    return features


def structs() -> list[dict[str, str]]:
    return [{"a": "new 1", "b": "new 2"}] * ROWS


def names_of(dataset: Dataset) -> Any:
    kind = dataset.features["anchor"]
    assert isinstance(kind, ClassLabel)
    return [{**row, "anchor": kind.int2str(row["anchor"])} for row in dataset]


def values_in(found: Any) -> Iterator[Any]:
    """Yield every single value in whatever a method returns."""
    if isinstance(found, (Dataset, IterableDataset)):
        found = list(found)
    if isinstance(found, DatasetDict):
        found = list(found.values())
    for method in ("to_pylist", "to_dict", "tolist"):
        if hasattr(found, method) and not isinstance(found, str):
            found = getattr(found, method)()
            break
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, str) or not hasattr(found, "__iter__"):
        yield found
    else:
        for part in found:
            yield from values_in(part)


CALLS = [
    pytest.param(call, id=f"{name}-{number}")
    for name, calls in RETURNS_ROWS.items()
    for number, call in enumerate(calls)
]
TEXT = re.compile(r"(anchor|positive|text|new) \d+")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("derive", [lambda view: view, lambda view: view.shuffle(seed=2)], ids=["view", "shuffled"])
def test_the_result_holds_texts_of_now(call, derive, tmp_path):
    """Whatever the method is, its result holds the texts of the last refresh and nothing else."""
    view = live_view()
    dataset = derive(dataset_of(view))
    refresh(view)
    values = list(values_in(call(dataset, tmp_path)))
    assert values and all(isinstance(value, str) and TEXT.fullmatch(value) for value in values)


def public_methods() -> set[str]:
    return {name for name in dir(Dataset) if not name.startswith("_")} | {
        "__iter__",
        "__getitem__",
        "__getitems__",
        "__len__",
    }


def test_no_method_is_left_out():
    """A method that a release of `datasets` adds or drops is noticed here."""
    assert public_methods() == {*RETURNS_ROWS, *NEEDS_AN_EXTRA, *READS_NO_ROWS}


@pytest.mark.parametrize("name", NEEDS_AN_EXTRA)
def test_methods_that_need_another_package(name, tmp_path):
    """Where the package is installed, the result holds texts; else the host says that it is missing."""
    package, call = NEEDS_AN_EXTRA[name]
    pytest.importorskip(package)
    values = list(values_in(call(dataset_of(live_view()), tmp_path)))
    assert values and all(TEXT.fullmatch(getattr(value, "decode", lambda value=value: value)()) for value in values)


def test_what_reads_no_rows_shows_no_row_numbers():
    """Properties say what they say for a dataset of texts."""
    dataset = dataset_of(live_view())
    for name in ("description", "info", "features", "format", "shape", "split", "cache_files", "column_names"):
        assert not re.search(r"\d{4,}", repr(getattr(dataset, name)))
    assert dataset.cleanup_cache_files() == 0 and dataset.list_indexes() == []


def test_labels_are_aligned_beside_a_view():
    """A class label of one's own can be mapped; the texts stay live."""
    view = live_view()
    dataset = dataset_of(view).add_column("label", [0, 1] * (ROWS // 2), feature=ClassLabel(names=["no", "yes"]))
    aligned = dataset.align_labels_with_mapping({"no": 1, "yes": 0}, "label")
    refresh(view)
    assert aligned["label"][:4] == [1, 0, 1, 0]
    assert aligned["negative_1"][:] == dataset["negative_1"][:]


def test_a_push_holds_texts(monkeypatch):
    """What would be uploaded are Parquet files of texts."""
    pushed: list[Any] = []

    def upload(self, *_: Any, additions: list[Any], **__: Any) -> Any:
        with additions[0].as_file() as file:
            pushed.extend(pq.read_table(io.BytesIO(file.read())).to_pylist())
        raise InterruptedError("nothing is sent")

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda *_, **__: RepoUrl("https://huggingface.co/datasets/me/x")
    )
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(id="me/x"))
    monkeypatch.setattr("huggingface_hub.HfApi.preupload_lfs_files", upload)
    view = live_view()
    view.table.num_shown = 1
    with pytest.raises(InterruptedError, match="nothing is sent"):
        dataset_of(view).shuffle(seed=1).push_to_hub("me/x", token="none")
    assert len(pushed) == ROWS and len(pushed[0]) == 5
    assert all(TEXT.fullmatch(value) for value in values_in(pushed))


@pytest.mark.parametrize(
    "name", ["slice", "select", "drop", "rename_columns", "replace_schema_metadata", "combine_chunks"]
)
def test_what_is_derived_from_the_table_is_live(name):
    """The table's own methods give live tables."""
    table = dataset_of(live_view()).data
    arguments = {
        "slice": (3, 4),
        "select": (["anchor", 2],),
        "drop": (["anchor"],),
        "rename_columns": (table.column_names,),
    }
    derived = getattr(table, name)(*arguments.get(name, ()))
    assert isinstance(derived, LiveRows)
    assert all(TEXT.fullmatch(value) for value in values_in(derived.table))
    assert derived.table.schema == derived.schema and derived.table.num_rows == len(derived)


def test_the_table_knows_every_way_of_reading_that_its_base_has():
    """What `LiveRows` takes over from the host goes through a copy of the texts, or is not there."""
    inherited = {name for name in dir(Table) if not name.startswith("_")} - {*vars(LiveRows)}
    through_a_copy = {
        "columns",
        "equals",
        "itercolumns",
        "to_batches",
        "to_pandas",
        "to_pydict",
        "to_pylist",
        "to_string",
    }
    not_there = {"add_column", "append_column", "filter", "remove_column", "set_column"}
    assert inherited == {*through_a_copy, *not_there, "validate"}
    table = dataset_of(live_view()).data
    for name in through_a_copy - {"to_string", "equals"}:
        found = getattr(table, name)
        assert all(TEXT.fullmatch(value) for value in values_in(found() if callable(found) else found))
    assert "anchor 3" in table.to_string(preview_cols=1) and table.equals(table.table)


def test_what_the_table_has_not_is_an_error_and_no_number():
    """Methods of an Arrow table that would put columns into a copy are not there; wrong names and places are errors."""
    table = dataset_of(live_view()).data
    for wrong in (
        lambda: table.append_column("a", pa.array(range(ROWS))),
        lambda: table.filter(pa.array([True] * ROWS)),
        lambda: table.select(["missing"]),
        lambda: table.fast_slice(-1, 2),
        lambda: table.fast_gather([]),
        lambda: table.column(9),
    ):
        with pytest.raises((NotImplementedError, KeyError, IndexError, ValueError)):
            wrong()
    assert len(table.fast_slice(ROWS + 5, 2)) == 0 and len(table.fast_slice(10)) == 2
    assert table == table and table == dataset_of(live_view()).data and table != 5
    assert np.isclose(table.nbytes, table.table.nbytes, rtol=0.2)
