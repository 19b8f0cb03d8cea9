"""LiveDataset: what is derived from a live view follows refreshes, or holds texts."""

from __future__ import annotations

import copy
import csv
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Value,
    concatenate_datasets,
    interleave_datasets,
    load_from_disk,
)
from torch.utils.data import DataLoader

from st_hardneg.live.dataset import LiveDataset, live_topics, live_views
from st_hardneg.live.rows import LiveRows
from tests.conftest import whole
from tests.live.views import ROWS, dataset_of, ids_of, live_view, refresh, row_of, rows_of

# `datasets` sorts with an option that the newest pyarrow would have elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:Specifying null_placement in SortOptions")

NEGATIVES = ["negative_1", "negative_2", "negative_3"]


def test_a_view_looks_like_any_dataset_of_texts():
    """Columns, types, length, shape and repr are those of a dataset of strings."""
    dataset = dataset_of(live_view(), with_ids=True)
    assert dataset.column_names == ["anchor", "positive", *NEGATIVES, "label"]
    assert {name: dataset.features[name] for name in NEGATIVES} == dict.fromkeys(NEGATIVES, Value("string"))
    assert dataset.features["label"].feature == Value("int64")
    assert (len(dataset), dataset.num_rows, dataset.shape) == (ROWS, ROWS, (ROWS, 6))
    assert "num_rows: 12" in repr(dataset)
    assert repr(dataset.data) == f"LiveRows(12 rows of {dataset.column_names})"
    assert dataset.cache_files == [] and dataset.info.features == dataset.features


# --- what stays live --------------------------------------------------------------------------------------------------

STAYS_LIVE = {
    "itself": lambda view: view,
    "select": lambda view: view.select(range(ROWS)),
    "select some": lambda view: view.select([5, 3, 3]),
    "shuffle": lambda view: view.shuffle(seed=1),
    "shuffle twice": lambda view: view.shuffle(seed=1).shuffle(seed=2),
    "sort": lambda view: view.sort("anchor", reverse=True),
    "filter": lambda view: view.filter(lambda row: row["anchor"] > "anchor 3"),
    "split": lambda view: view.train_test_split(test_size=4, seed=1)["train"],
    "shard": lambda view: view.shard(num_shards=2, index=0),
    "skip and take": lambda view: view.skip(2).take(3),
    "repeat": lambda view: view.repeat(2),
    "flatten_indices": lambda view: view.shuffle(seed=1).flatten_indices(),
    "remove_columns": lambda view: view.remove_columns("positive"),
    "select_columns": lambda view: view.select_columns(NEGATIVES),
    "add_column": lambda view: view.add_column("score", list(range(ROWS))),
    "add_column after shuffle": lambda view: (
        view.shuffle(seed=1).add_column("score", list(range(ROWS))).select([4, 2, 7])
    ),
    "map": lambda view: view.map(lambda row: {"anchor": row["anchor"].upper(), "number": 7}),
    "map in batches": lambda view: view.shuffle(seed=1).map(lambda rows: {"n": rows["anchor"]}, batched=True),
    "map of the row itself": lambda view: view.map(lambda row: {**row, "number": 7}),
    "map twice": lambda view: view.map(lambda row: {"a": 1}).map(lambda row: {"b": row["a"]}),
    "map without a function": lambda view: view.map(),
    "map in two processes": lambda view: view.map(add_number, num_proc=2),
    "map that returns nothing, in two processes": lambda view: view.map(return_nothing, num_proc=2),
    "map and rename": lambda view: view.map(lambda row: {"a": 1}).rename_column("a", "b"),
    "cast to its type": lambda view: view.cast(view.features),
    "cast of an added column": lambda view: (
        view.add_column("n", list(range(ROWS))).cast_column("n", Value("string")).shuffle(seed=1)
    ),
    "class_encode_column": lambda view: view.class_encode_column("anchor"),
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "DatasetDict": lambda view: DatasetDict({"a": view}).shuffle(seed=1)["a"],
    "format": lambda view: view.with_format("numpy").with_format(None),
    "transform": lambda view: view.with_transform(lambda batch: batch),
}


def add_number(row: dict) -> dict:
    return {"number": 7}


def return_nothing(row: dict) -> None:
    return None


def texts_of(refresh: int) -> set[tuple[str, ...]]:
    return {tuple(row[name] for name in NEGATIVES) for row in rows_of(refresh)}


@pytest.mark.parametrize(
    "derive",
    [
        pytest.param(derive, id=name, marks=[pytest.mark.training] if "two processes" in name else [])
        for name, derive in STAYS_LIVE.items()
    ],
)
@pytest.mark.parametrize("with_ids", [False, True])
def test_whatever_is_derived_from_a_view_follows_a_refresh(derive, with_ids):
    """Rows can be chosen, columns dropped and added, rows mapped: negatives are those of now, in rows of one mining."""
    view = live_view()
    derived = derive(dataset_of(view, with_ids=with_ids))
    assert isinstance(derived, LiveDataset) and [found for _, found in live_views(derived)] == [view]
    anchors = derived["anchor"][:] if "anchor" in derived.column_names else None
    for number in (0, 1, 2):
        if number:
            refresh(view, number)
        assert {tuple(row[name] for name in NEGATIVES) for row in derived} <= texts_of(number)
        keys = [2, 0, len(derived) - 1, 2]
        assert derived.__getitems__(keys) == [derived[key] for key in keys]
        assert derived[keys] == {name: [derived[key][name] for key in keys] for name in derived[0]}
        if with_ids and "label" in derived.column_names:
            row = derived[1]
            assert [f"text {number}" for number in row["label"][4:]] == [row[name] for name in NEGATIVES]
    assert anchors is None or derived["anchor"][:] == anchors


def test_columns_stand_by_their_rows():
    """What was added or computed before rows are chosen goes with its row."""
    dataset = dataset_of(live_view()).add_column("score", [0.5 * row for row in range(ROWS)])
    dataset = (
        dataset.shuffle(seed=3)
        .map(lambda row: {"own": f"of {row['anchor']}"})
        .select(range(3, 9))
        .add_column("place", np.arange(6))
    )
    dataset = dataset.sort("place", reverse=True).filter(lambda row: row["place"] != 2)
    for row in [*dataset, *dataset.__getitems__(list(range(5)))]:
        number = int(row["anchor"].split()[1])
        assert row["own"] == f"of anchor {number}" and row["score"] == 0.5 * number
        assert row["positive"] == f"positive {number}"
    assert dataset["place"][:] == [5, 4, 3, 1, 0]
    assert dataset.column_names == ["anchor", "positive", *NEGATIVES, "score", "own", "place"]


def test_columns_of_one_s_own_stay_what_they_are():
    """A label of one's own is not taken for the view's, and numbers are nothing but numbers."""
    dataset = dataset_of(live_view()).add_column("label", [1] * ROWS)
    assert dataset[7]["label"] == 1 and dataset.__getitems__([7]) == [{**row_of(7), "label": 1}]
    labelled = dataset.map(lambda row: {"label": row["label"] + 1}).cast_column("label", ClassLabel(names=list("abc")))
    assert labelled[7] == {**row_of(7), "label": 2} and labelled.features["label"].names == ["a", "b", "c"]
    named = dataset_of(live_view(), with_ids=True).map(lambda row, i: {"label": i}, with_indices=True)
    assert named[3] == {**row_of(3), "label": 3}


def test_what_map_computes_is_a_snapshot():
    """An anchor that was rewritten stays so; a negative that was rewritten no longer follows, the others do."""
    view = live_view()
    dataset = dataset_of(view).map(lambda row: {"anchor": row["anchor"].upper(), "negative_1": row["negative_1"] + "!"})
    refresh(view)
    expected = {**row_of(3, 1), "anchor": "ANCHOR 3", "negative_1": row_of(3)["negative_1"] + "!"}
    assert dataset[3] == expected and dataset.__getitems__([3]) == [expected]


def test_a_map_that_changes_the_number_of_rows_gives_texts():
    """There is no row for it to follow."""
    view = live_view()
    doubled = dataset_of(view).map(lambda rows: {name: rows[name] * 2 for name in rows}, batched=True)
    grouped = dataset_of(view).batch(4)
    refresh(view)
    assert not isinstance(doubled, LiveDataset) and not list(live_views(doubled))
    assert doubled.to_list() == rows_of() * 2
    assert grouped["negative_1"][0] == [row["negative_1"] for row in rows_of()[:4]]


def test_map_is_never_stale(tmp_path):
    """A view has another fingerprint after a refresh, and so has a concatenation with a dataset on disk."""
    Dataset.from_list(rows_of()).save_to_disk(str(tmp_path / "rows"))
    on_disk = load_from_disk(str(tmp_path / "rows"))
    view = live_view()
    dataset = dataset_of(view)
    part = dataset.select(range(4))

    def take_first(row):
        return {"x": row["negative_1"]}

    for number in (0, 1):
        if number:
            refresh(view)
        expected = [row["negative_1"] for row in rows_of(number)]
        assert dataset.map(take_first)["x"][:] == expected and part.map(take_first)["x"][:] == expected[:4]
        both = concatenate_datasets([dataset, on_disk])
        assert both.cache_files and both.map(take_first)["x"][:] == expected + [row["negative_1"] for row in rows_of()]


def test_fingerprints_tell_views_and_refreshes_apart():
    """The same operation on the same view has one fingerprint until the next refresh."""
    view = live_view()
    dataset = dataset_of(view)
    assert dataset._fingerprint == dataset_of(view)._fingerprint != dataset_of(live_view())._fingerprint
    before = dataset._fingerprint, dataset.select([1])._fingerprint
    assert before == (dataset._fingerprint, dataset.select([1])._fingerprint) and before[0] != before[1]
    refresh(view)
    assert dataset._fingerprint != before[0] and dataset.select([1])._fingerprint != before[1]
    assert all(re.fullmatch("[0-9a-f]{16}", fingerprint) for fingerprint in before)


# --- what leaves its home (F04, F05) ----------------------------------------------------------------------------------


def test_a_joined_view_holds_texts_and_says_that_it_stays_behind(caplog):
    """Two views, a view and a dataset, in either order: texts of now; a warning that they do not follow."""
    view, other = live_view(), live_view(name="other ")
    plain = Dataset.from_list(rows_of(5))
    for joined, last in (
        (concatenate_datasets([dataset_of(view), dataset_of(other)]), "other anchor 11"),
        (concatenate_datasets([dataset_of(view).shuffle(seed=1).sort("anchor"), plain]), "anchor 11"),
        (concatenate_datasets([plain, dataset_of(view)]), "anchor 11"),
        (interleave_datasets([dataset_of(view), dataset_of(other)]), "other anchor 11"),
    ):
        assert len(joined) == 2 * ROWS and joined[2 * ROWS - 1]["anchor"] == last
        assert all(kind == Value("string") for kind in joined.features.values())
        assert not list(live_views(joined))
        text = re.compile(r"(other )?(anchor|positive|text) \d+")
        assert all(text.fullmatch(value) for row in joined for value in row.values())
    warning = (
        "The texts of 12 rows of a live view were copied, as a concatenation needs them. The copy does not follow "
        "refreshes; to train on several datasets give the trainer a DatasetDict of live views."
    )
    assert caplog.messages and set(caplog.messages) == {warning}


def test_columns_joined_to_a_view_are_beside_its_texts():
    """`concatenate_datasets(axis=1)` copies the texts, too."""
    joined = concatenate_datasets([dataset_of(live_view()), Dataset.from_dict({"n": list(range(ROWS))})], axis=1)
    assert joined[3] == {**row_of(3), "n": 3}


def test_operations_that_read_the_table_read_texts(tmp_path):
    """Sort, unique, to_dict, to_list, to_pandas and files hold texts, also after rows were chosen."""
    anchors = ["b", "a", "c"]
    view = live_view(rows=3)
    view.anchors = view.anchors.of(anchors)
    dataset = dataset_of(view)
    assert dataset.sort("anchor")["anchor"][:] == ["a", "b", "c"]
    assert dataset.unique("anchor") == dataset.to_dict()["anchor"] == anchors
    assert dataset.to_list()[0] == {**row_of(0), "anchor": "b"}
    assert dataset.select([2, 0]).to_pandas()["anchor"].tolist() == ["c", "b"]
    path = tmp_path / "rows.csv"
    dataset.shuffle(seed=1).to_csv(str(path))
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["anchor"] for row in rows) == ["a", "b", "c"]
    assert {row["positive"] for row in rows} == {"positive 0", "positive 1", "positive 2"}


def test_sorting_goes_by_several_columns_as_they_are_now():
    """Equal first columns are ordered by the next; negatives by their texts at that moment."""
    view = live_view()
    dataset = dataset_of(view).add_column("odd", [row % 2 for row in range(ROWS)])
    rows = dataset.sort(["odd", "anchor"], reverse=[True, False])
    assert rows["anchor"][:] == sorted(f"anchor {row}" for row in range(1, ROWS, 2)) + sorted(
        f"anchor {row}" for row in range(0, ROWS, 2)
    )
    refresh(view)
    first = dataset.sort("negative_2")[0]["negative_2"]
    assert first == min(row["negative_2"] for row in rows_of(1))
    with pytest.raises(ValueError, match="Column 'missing' not found in the dataset"):
        dataset.sort("missing")


FORMATS = ["torch", "numpy", "pandas", "arrow", None]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_shows_texts(kind):
    """Tensors are made of labels only; texts stay texts, in rows, batches, columns and loops."""
    view = live_view()
    dataset = dataset_of(view, with_ids=True).shuffle(seed=1).with_format(kind)
    refresh(view)

    def is_text(value) -> bool:
        values = (
            value.to_pylist() if hasattr(value, "to_pylist") else list(np.atleast_1d(np.asarray(value, dtype=object)))
        )
        return bool(values) and all(isinstance(text, str) and " " in text for text in values)

    for found in (dataset[2], dataset[:3], dataset[[1, 0]], next(iter(dataset)), next(dataset.iter(2))):
        assert all(is_text(found[name]) for name in ["anchor", "positive", *NEGATIVES])
    assert is_text(dataset["negative_1"][:])
    if kind == "torch":
        assert dataset[0]["label"].dtype == torch.int64
    assert dataset.with_format(kind, columns=["anchor"])[0]["anchor"] is not None


def test_formats_of_some_columns():
    """Columns that a format leaves out are left out of batches, too."""
    dataset = dataset_of(live_view()).with_format(None, columns=["negative_1"])
    assert dataset.__getitems__([1, 0]) == [{"negative_1": row_of(row)["negative_1"]} for row in (1, 0)]
    added = dataset.add_column("n", list(range(ROWS)))
    assert added[1] == {"negative_1": row_of(1)["negative_1"], "n": 1}


def test_a_renamed_column_is_refused():
    """Trainer and mining would no longer agree about which column is which."""
    message = (
        "The column 'anchor' of a live view cannot be renamed to 'query': trainer and mining find it by its name. Rename "
        "columns before the dataset is wrapped, or rename those of a copy, `hard_negatives.to_dataset()`."
    )
    dataset = dataset_of(live_view())
    for rename in (
        lambda: dataset.rename_column("anchor", "query"),
        lambda: dataset.rename_columns({"anchor": "query", "positive": "answer"}),
        lambda: DatasetDict({"a": dataset}).rename_column("anchor", "query"),
    ):
        with pytest.raises(ValueError, match=whole(message)):
            rename()


def test_a_cast_column_is_a_snapshot_of_its_texts():
    """Another type of text is a copy; the other columns follow."""
    view = live_view()
    dataset = dataset_of(view).cast_column("negative_1", Value("large_string"))
    refresh(view)
    assert dataset.features["negative_1"] == Value("large_string")
    assert dataset[3] == {**row_of(3, 1), "negative_1": row_of(3)["negative_1"]}


def test_a_type_that_texts_cannot_have_is_refused():
    """`Image` would read texts as paths."""
    from datasets import Audio

    message = (
        "The column 'anchor' of a live view is read as string and cannot be cast to struct<bytes: binary, path: string>. "
        "Cast columns of a copy, `hard_negatives.to_dataset()`."
    )
    with pytest.raises(TypeError, match=whole(message)):
        dataset_of(live_view()).cast_column("anchor", Audio())


def test_a_view_without_rows():
    """Nothing to read is no error, whatever is derived from it."""
    empty = dataset_of(live_view()).add_column("n", list(range(ROWS))).select([])
    assert len(empty) == 0 and empty.to_list() == [] and list(empty) == []
    assert empty.filter(lambda row: True).to_dict() == {name: [] for name in empty.column_names}
    assert empty.shuffle(seed=1).column_names == empty.column_names
    assert dataset_of(live_view()).filter(lambda row: False).to_list() == []


# --- workers ----------------------------------------------------------------------------------------------------------


def as_they_are(rows: list[dict]) -> list[dict]:
    return rows


@pytest.mark.training
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (1, "spawn")])
@pytest.mark.parametrize("derive", [lambda view: view, lambda view: view.shuffle(seed=1).map(add_number)])
def test_workers_follow_refreshes(workers, method, derive):
    """However workers are started, an epoch after a refresh has its negatives only."""
    view = live_view()
    loader = DataLoader(
        derive(dataset_of(view)),
        batch_size=5,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=workers > 0,
        collate_fn=as_they_are,
    )
    for number in (0, 1, 2):
        if number:
            refresh(view, number)
        rows = [row for batch in loader for row in batch]
        assert len(rows) == ROWS
        assert {tuple(row[name] for name in NEGATIVES) for row in rows} == texts_of(number)


def test_a_pickled_dataset_reads_the_same():
    """The copy has its own table unless torch's own pickling shares it."""
    dataset = dataset_of(live_view(), with_ids=True).shuffle(seed=1).map(add_number)
    copied = pickle.loads(pickle.dumps(dataset))
    assert isinstance(copied, LiveDataset) and copied[:] == dataset[:]


# --- finding views ----------------------------------------------------------------------------------------------------


def test_views_are_found_where_negatives_are_read():
    """A dataset of anchors alone, or of negatives that were rewritten, does not follow anything."""
    view = live_view()
    dataset = dataset_of(view)
    assert [found for _, found in live_views(dataset)] == [view]
    assert [found for _, found in live_views(torch.utils.data.ConcatDataset([dataset, dataset]))] == [view, view]
    for part in (
        dataset.select_columns(["anchor", "positive"]),
        dataset.map(lambda row: {name: row[name] + "!" for name in NEGATIVES}),
        Dataset.from_list(rows_of()),
        None,
    ):
        assert not list(live_views(part))


def test_topics_go_with_their_rows():
    """Each row has its anchor's topic, also after rows were chosen; None without topics."""
    view = live_view()
    dataset = dataset_of(view)
    assert live_topics(dataset) is None and live_topics(Dataset.from_list(rows_of())) is None
    view.topics = np.arange(ROWS, dtype=np.int32) % 5
    derived = dataset.shuffle(seed=1).select(range(7))
    assert live_topics(dataset).tolist() == (np.arange(ROWS) % 5).tolist()
    assert live_topics(derived).tolist() == [int(anchor.split()[1]) % 5 for anchor in derived["anchor"]]
    over_plain = Dataset(
        dataset.data, indices_table=Dataset.from_dict({"i": [4, 1]}).cast_column("i", Value("uint64")).data
    )
    assert live_topics(over_plain).tolist() == [4, 1]


def test_a_plain_dataset_over_live_rows_reads_them():
    """Whatever a later `datasets` makes of the table, its rows are texts of now."""
    view = live_view()
    indices = Dataset.from_dict({"indices": [4, 1]}).cast_column("indices", Value("uint64")).data
    dataset = Dataset(dataset_of(view).data, indices_table=indices)
    assert isinstance(dataset.data, LiveRows)
    refresh(view)
    assert dataset[:] == {name: [row_of(4, 1)[name], row_of(1, 1)[name]] for name in row_of(0)}
    assert dataset.__getitems__([1]) == [row_of(1, 1)] and dataset["negative_1"][0] == row_of(4, 1)["negative_1"]
    assert dataset.with_format("arrow")["negative_1"].to_pylist()[0] == row_of(4, 1)["negative_1"]
    assert ids_of(1)[4][0] != ids_of(0)[4][0]


def test_what_is_mapped_shows_as_many_negatives_as_before():
    """A schedule that shows two of three goes on to do so; the third is there, and comes with the schedule."""
    view = live_view()
    view.table.num_shown = 2
    mapped = dataset_of(view).map(lambda row: {"length": len(row["negative_3"])})
    assert list(mapped.__getitems__([4])[0]) == ["anchor", "positive", "negative_1", "negative_2", "length"]
    refresh(view)
    view.table.num_shown = 3
    assert mapped.__getitems__([4]) == [{**row_of(4, 1), "length": len(row_of(4)["negative_3"])}]


def test_a_view_is_found_under_the_name_that_a_trainer_gave_its_dataset():
    """Trainers wrap what transforms a member of a DatasetDict, and that may wrap another."""
    view = live_view()

    def transform(batch, **_):
        return batch

    named = dataset_of(view).with_transform(partial(transform, transform=partial(transform, dataset_name="quiz")))
    assert [(name, found is view) for name, found in live_views(named)] == [("quiz", True)]
    named = dataset_of(view).with_transform(partial(transform, dataset_name="claims", transform=transform))
    assert [name for name, _ in live_views(named)] == ["claims"]
    assert [name for name, _ in live_views(dataset_of(view).with_transform(transform))] == [None]


@pytest.mark.parametrize("times", [1, 3])
def test_repeated_rows_follow_a_refresh(times):
    """Once or more often."""
    view = live_view()
    repeated = dataset_of(view).repeat(times)
    refresh(view)
    assert repeated.to_list() == rows_of(1) * times


def test_repeated_without_end_or_not_at_all_is_as_datasets_has_it():
    """None and 0 are no numbers of times that rows could be chosen by."""
    plain = Dataset.from_list(rows_of())
    for times in (0, None):
        try:
            expected = len(plain.repeat(times))
        except Exception as error:
            with pytest.raises(type(error)):
                dataset_of(live_view()).repeat(times)
        else:
            assert len(dataset_of(live_view()).repeat(times)) == expected


@pytest.mark.parametrize("order", [(True,), (False,), ([True],)])
def test_sorting_takes_its_options_by_place(order):
    """The second argument of `sort` is which way round."""
    found = dataset_of(live_view()).sort("negative_1", *order).to_list()
    assert found == Dataset.from_list(rows_of()).sort("negative_1", *order).to_list()


def test_a_column_that_is_there_is_refused_as_datasets_refuses_it():
    """With its words, also where more arguments are given."""
    with pytest.raises(ValueError, match="anchor"):
        dataset_of(live_view()).add_column("anchor", ["x"] * ROWS)
    with pytest.raises(ValueError, match="anchor"):
        dataset_of(live_view()).add_column("anchor", ["x"] * ROWS, feature=Value("string"))


def test_what_is_no_dataset_has_no_topics():
    """Samplers ask anything that a trainer may be given."""
    assert live_topics([{"anchor": "a"}]) is None
