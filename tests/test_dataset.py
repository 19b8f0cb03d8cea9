"""HardNegativeDataset: views that follow, copies that do not, columns, disk and Hub, bad input."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError, NotMinedError
from st_hardneg.files.tables import read_table, write_table
from st_hardneg.search import ExactSearcher
from tests.conftest import WORDS, random_texts, whole, word_model


def other_model(seed: int):
    return word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def mined(bag_of_words, word_pairs) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    return hard_negatives


# --- live views -------------------------------------------------------------------------------------------------------


def negatives_in(dataset: Dataset) -> list[list[str]]:
    return [[row[f"negative_{slot}"] for slot in (1, 2, 3)] for row in dataset]


def test_a_view_has_the_texts_of_its_rows(mined, word_pairs):
    """Anchor and positive under their own names, then the negatives by rank."""
    view = mined.as_dataset()
    assert view.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert list(view[0]) == view.column_names
    assert view["anchor"][:] == word_pairs["anchor"][:] and view["positive"][:] == word_pairs["positive"][:]
    expected = [mined.corpus.texts.take(row) for row in mined.negative_ids]
    assert negatives_in(view) == expected


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: view,
        lambda view: view.select(range(48)),
        lambda view: view.shuffle(seed=1),
        lambda view: view.filter(lambda row: True),
        lambda view: view.train_test_split(test_size=8, shuffle=False)["train"],
        lambda view: view.remove_columns(["positive"]),
        lambda view: view.select_columns(["negative_1", "negative_2", "negative_3"]),
        copy.copy,
        copy.deepcopy,
        lambda view: DatasetDict({"a": view})["a"],
        lambda view: view.shard(num_shards=2, index=0),
    ],
)
def test_whatever_is_derived_from_a_view_follows_a_refresh(mined, derive):
    """Rows can be selected, shuffled, split, filtered and copied, and columns dropped: all of it stays live."""
    derived = derive(mined.as_dataset())
    before = negatives_in(derived)
    mined.mine(other_model(1), show_progress_bar=False)
    after = negatives_in(derived)
    everything = {tuple(mined.corpus.texts.take(row)) for row in mined.negative_ids}
    assert before != after
    assert {tuple(row) for row in after} <= everything


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: view,
        lambda view: view.remove_columns(["negative_2"]),
        lambda view: view.filter(lambda row: len(row["anchor"]) % 2 == 0),
        lambda view: view.select(range(5, 40)).shuffle(seed=1),
        lambda view: view.map(lambda row: {"anchor": row["anchor"].upper()}),
        lambda view: view.map(lambda row: {"number": 7}),
        lambda view: view.with_format(view.format["type"], columns=["anchor"], **view._format_kwargs),
    ],
)
@pytest.mark.parametrize("with_ids", [False, True])
def test_a_batch_is_what_its_rows_are(mined, derive, with_ids):
    """The quick way to fetch a batch gives what row by row gives, whatever was done to the view."""
    derived = derive(mined.as_dataset(with_ids=with_ids))
    keys = [3, 0, len(derived) - 1, 3]
    assert derived.__getitems__(keys) == [derived[key] for key in keys]


def test_a_view_s_fingerprint_changes_with_a_refresh_and_map_is_not_stale(mined):
    """`map` after a refresh computes anew, and sees the new negatives."""
    view = mined.as_dataset()
    part = view.select(range(10))
    before, fingerprint = view.map(lambda row: {"x": row["negative_1"]})["x"][:], view._fingerprint
    part_before = part.map(lambda row: {"x": row["negative_1"]})["x"][:]
    mined.mine(other_model(1), show_progress_bar=False)
    assert view._fingerprint != fingerprint
    assert view.map(lambda row: {"x": row["negative_1"]})["x"][:] == view["negative_1"][:] != before
    assert part.map(lambda row: {"x": row["negative_1"]})["x"][:] == part["negative_1"][:] != part_before


def test_map_is_not_stale_with_a_dataset_on_disk(bag_of_words, word_pairs, tmp_path):
    """A memory-mapped dataset has cache files; its live view does not find them."""
    word_pairs.save_to_disk(str(tmp_path / "pairs"))
    hard_negatives = HardNegativeDataset(load_from_disk(str(tmp_path / "pairs")), config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    view = hard_negatives.as_dataset()

    def take_first(row):
        return {"x": row["negative_1"]}

    before = view.map(take_first)["x"][:]
    hard_negatives.mine(other_model(1), show_progress_bar=False)
    assert view.map(take_first)["x"][:] == view["negative_1"][:] != before


def test_rows_and_width_stay_while_negatives_change(mined):
    """A refresh with a model that finds fewer negatives leaves every row of a view complete."""
    view = mined.as_dataset()
    rows = len(view)
    for seed in range(3):
        mined.mine(other_model(seed), show_progress_bar=False)
        assert len(view) == rows
        assert all(text for row in negatives_in(view) for text in row)


def test_with_ids_adds_labels_of_integers(mined, word_pairs):
    """The label is row, query, positive, weight in millionths, negatives; as int64."""
    view = mined.as_dataset(with_ids=True)
    batch = view[3:5]
    labels = torch.tensor(batch["label"])
    assert labels.dtype == torch.int64 and labels.shape == (2, 7)
    assert labels[:, 0].tolist() == [3, 4] and labels[:, 3].tolist() == [1_000_000] * 2
    assert labels[:, 4:].tolist() == mined.negative_ids[3:5].tolist()
    assert mined.corpus.texts.take(labels[:, 2].numpy()) == word_pairs["positive"][3:5]
    known = mined.known_positives.is_positive(labels[:, 1], labels[:, 2])
    assert known.tolist() == [[True, False], [False, True]]


def test_weights_come_from_the_column_of_that_name(bag_of_words, word_pairs):
    """A weight of 0.7 is 700 000 millionths."""
    weighted = word_pairs.add_column("weight", [0.7] * 48)
    hard_negatives = HardNegativeDataset(weighted, config=MiningConfig(num_negatives=1))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    view = hard_negatives.as_dataset(with_ids=True)
    assert view.column_names == ["anchor", "positive", "negative_1", "label"]
    assert view[0]["label"][3] == 700_000


def test_a_renamed_column_is_an_error_that_says_what_to_do(mined):
    """Trainer and mining find it by its name."""
    with pytest.raises(ValueError, match=r"Rename columns before the dataset is wrapped, or rename those of a copy"):
        mined.as_dataset().rename_column("anchor", "query")


def test_columns_that_map_adds_or_replaces_stay_as_they_are(mined):
    """What `map` computes is a snapshot; the other columns stay live."""
    view = mined.as_dataset().map(lambda row: {"anchor": row["anchor"].upper(), "number": 7})
    assert view[0]["anchor"] == mined.as_dataset()[0]["anchor"].upper() and view[0]["number"] == 7
    mined.mine(other_model(1), show_progress_bar=False)
    assert view["negative_1"][:] == mined.as_dataset()["negative_1"][:]


def test_a_pickled_view_reads_without_its_owner(mined):
    """What travels to a worker is the texts and the table, not the dataset that mines."""
    view = mined.as_dataset()
    other = pickle.loads(pickle.dumps(view))
    assert other.data.view.owner is None and view.data.view.owner is mined
    assert other[:] == view[:]


# --- what a refresh does with slots that it cannot fill ---------------------------------------------------------------


def angled(angles: dict[str, float]):
    """Return a model in which each word points at an angle."""
    radians = [math.radians(angle) for angle in angles.values()]
    return word_model(list(angles), torch.tensor([[math.cos(a), math.sin(a)] for a in radians]))


def test_a_slot_that_cannot_be_filled_keeps_an_old_negative_that_still_passes():
    """The old negative is outside of today's window, but inside today's margin: it stays, and is counted."""
    pairs = Dataset.from_dict({"anchor": ["q"], "positive": ["p"]})
    config = MiningConfig(num_negatives=2, range_max=2, absolute_margin=0.1)
    hard_negatives = HardNegativeDataset(pairs, ["a", "b", "c", "d"], config)
    hard_negatives.mine(angled({"q": 0, "p": 10, "a": 60, "b": 70, "c": 80, "d": 90}), show_progress_bar=False)
    assert hard_negatives.corpus.texts.take(hard_negatives.negative_ids[0]) == ["a", "b"]
    # Now c and d crowd the window, too close to the positive to be trusted.
    hard_negatives.mine(angled({"q": 0, "p": 10, "a": 60, "b": 70, "c": 5, "d": 6}), show_progress_bar=False)
    assert sorted(hard_negatives.corpus.texts.take(hard_negatives.negative_ids[0])) == ["a", "b"]
    assert hard_negatives.report.num_carried_over > 0 and hard_negatives.report.num_missing == 0


def test_an_old_negative_that_fails_today_s_filters_is_a_last_resort_for_views_only():
    """Without a view the slot is empty; with one it keeps the old text, and the report says so."""
    pairs = Dataset.from_dict({"anchor": ["q", "r"], "positive": ["p", "s"]})
    config = MiningConfig(num_negatives=1, absolute_margin=0.1)
    first = angled({"q": 0, "p": 10, "a": 60, "r": 200, "s": 210, "b": 270})
    second = angled({"q": 0, "p": 70, "a": 60, "r": 40, "s": 45, "b": 61})
    for with_view in (False, True):
        hard_negatives = HardNegativeDataset(pairs, ["a", "b"], config)
        hard_negatives.mine(first, show_progress_bar=False)
        before = hard_negatives.negative_ids
        if with_view:
            hard_negatives.as_dataset()
        hard_negatives.mine(second, show_progress_bar=False)
        if with_view:
            assert hard_negatives.negative_ids[0] == before[0]
            assert (hard_negatives.report.num_last_resort, hard_negatives.report.num_missing) == (1, 0)
        else:
            assert hard_negatives.negative_ids[0] == -1
            assert (hard_negatives.report.num_last_resort, hard_negatives.report.num_missing) == (0, 1)


def test_a_failed_mining_changes_nothing(mined):
    """An error in the middle leaves negatives, report and views as they were."""
    view = mined.as_dataset()
    before, report, rows = mined.negative_ids, mined.report, negatives_in(view)
    broken = other_model(1)
    with torch.no_grad():
        broken[0].embedding.weight[5] = math.nan
    with pytest.raises(MiningError, match=r"Expected finite embeddings, got NaN or infinity for .* such as '"):
        mined.mine(broken, show_progress_bar=False)
    assert (mined.negative_ids == before).all() and mined.report is report and negatives_in(view) == rows


# --- frozen copies ----------------------------------------------------------------------------------------------------


def test_a_copy_does_not_follow(mined):
    """`to_dataset` is what the negatives were when it was called."""
    frozen = mined.to_dataset("n-tuple")
    before = frozen.to_dict()
    mined.mine(other_model(1), show_progress_bar=False)
    assert frozen.to_dict() == before


def test_copies_keep_the_order_of_rows_and_other_columns_on_request(bag_of_words, word_pairs):
    """Other columns come along when asked for, aligned, and never otherwise."""
    shuffled = word_pairs.add_column("number", list(range(48))).shuffle(seed=2)
    hard_negatives = HardNegativeDataset(shuffled, config=MiningConfig(num_negatives=2))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    plain = hard_negatives.to_dataset("n-tuple")
    assert plain.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    assert plain["anchor"][:] == shuffled["anchor"][:]
    kept = hard_negatives.to_dataset("triplet", keep_columns=True)
    number_of = dict(zip(word_pairs["anchor"], range(48), strict=True))
    assert kept["number"][:] == [number_of[anchor] for anchor in kept["anchor"]]
    assert len(kept) == 96


def test_formats_and_features(mined):
    """The four formats have the columns and types that Sentence Transformers gives them."""
    texts, integer, number = "string", "int64", "float64"
    assert {k: v.dtype for k, v in mined.to_dataset("triplet").features.items()} == dict.fromkeys(
        ("anchor", "positive", "negative"), texts
    )
    pair = mined.to_dataset("labeled-pair")
    assert {k: v.dtype for k, v in pair.features.items()} == {"anchor": texts, "positive": texts, "label": integer}
    assert sum(pair["label"]) == 48 and len(pair) == 48 * 4
    listed = mined.to_dataset("labeled-list", output_scores=True)
    assert listed.features["positive"].feature.dtype == texts and listed.features["scores"].feature.dtype == number
    with pytest.raises(ValueError, match="Invalid output_format: pairs"):
        mined.to_dataset("pairs")


# --- disk and Hub -----------------------------------------------------------------------------------------------------


def test_a_saved_dataset_is_the_same_when_loaded(mined, tmp_path):
    """Negatives, scores, report, rows of the view and the number of refreshes come back."""
    mined.mine(other_model(1), show_progress_bar=False)
    view = mined.as_dataset()
    path = tmp_path / "saved"
    mined.save_to_disk(path)
    mined.save_to_disk(path)  # over an earlier save
    loaded = HardNegativeDataset.load_from_disk(path)
    assert (loaded.negative_ids == mined.negative_ids).all()
    assert (loaded.negative_scores == mined.negative_scores).all()
    assert loaded.report == mined.report and str(loaded.report) == str(mined.report)
    assert loaded.as_dataset()[:] == view[:]
    assert loaded.provenance().to_dict() == mined.provenance().to_dict()
    for hard_negatives in (loaded, mined):
        hard_negatives.mine(other_model(2), show_progress_bar=False)
    assert (loaded.negative_ids == mined.negative_ids).all() and loaded.report.refresh == 2
    assert sorted(os.listdir(tmp_path)) == ["saved"]


def test_a_corpus_with_metadata_survives_saving(bag_of_words, word_pairs, tmp_path):
    """The given corpus is kept with all of its columns, and its ids are in the provenance."""
    corpus = Dataset.from_dict(
        {"_id": [f"x{i}" for i in range(30)], "text": random_texts(30, seed=8), "year": [1] * 30}
    )
    hard_negatives = HardNegativeDataset(word_pairs, corpus, MiningConfig(num_negatives=2))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    hard_negatives.save_to_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    assert loaded.corpus.given.column_names == ["_id", "text", "year"]
    ids = loaded.provenance()["negative_ids"][0]
    assert ids == loaded.corpus.external_ids(loaded.negative_ids[0])


def test_an_unmined_dataset_can_be_saved(word_pairs, tmp_path):
    """Nothing mined is nothing lost."""
    HardNegativeDataset(word_pairs).save_to_disk(tmp_path / "saved")
    with pytest.raises(NotMinedError):
        _ = HardNegativeDataset.load_from_disk(tmp_path / "saved").report


def test_a_recipe_with_code_asks_for_it_again(bag_of_words, word_pairs, tmp_path):
    """Extra filters are not in the files; loading names those that are missing."""

    def no_first(candidates, corpus):
        return candidates.corpus_ids != 0

    hard_negatives = HardNegativeDataset(word_pairs, extra_filters=no_first)
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    hard_negatives.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"mined with extra_filters\['no_first'\], which files cannot hold"):
        HardNegativeDataset.load_from_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved", extra_filters=no_first)
    assert (loaded.negative_ids == hard_negatives.negative_ids).all()


@pytest.mark.parametrize("damage", ["json", "field", "ids", "texts", "version"])
def test_damaged_files_are_refused(mined, tmp_path, damage):
    """Whatever was changed in the files, loading says that and what, and does not crash."""
    path = tmp_path / "saved"
    mined.save_to_disk(path)
    state = path / "st_hardneg.json"
    if damage == "json":
        state.write_text("{", encoding="utf-8")
    elif damage in ("field", "version"):
        content = json.loads(state.read_text(encoding="utf-8"))
        content.update({"config": {"num_negatives": -1}} if damage == "field" else {"format": 99})
        state.write_text(json.dumps(content), encoding="utf-8")
    elif damage == "ids":
        negatives = read_table(str(path), "negatives")
        place = negatives.column_names.index("ids")
        beyond = pa.array([[10_000] * 3] * len(negatives), negatives.schema.field("ids").type)
        write_table(str(path), "negatives", negatives.set_column(place, "ids", beyond))
    else:
        pairs = load_from_disk(str(path / "pairs")).map(lambda row: {"positive": row["positive"] + "!"})
        pairs.save_to_disk(str(tmp_path / "broken"))
        os.rename(path / "pairs", tmp_path / "old")
        os.rename(tmp_path / "broken", path / "pairs")
    with pytest.raises(ValueError, match=r"damaged one|of format 1"):
        HardNegativeDataset.load_from_disk(path)


def test_saving_over_something_else_is_refused(mined, tmp_path):
    """A folder with other content is not touched."""
    (tmp_path / "precious.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(FileExistsError, match="a folder with other content"):
        mined.save_to_disk(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"written by `HardNegativeDataset.save_to_disk`"):
        HardNegativeDataset.load_from_disk(tmp_path)


def test_pushing_pushes_plain_datasets(mined, monkeypatch):
    """The default configuration can be trained on; ids, scores and sources are in another one."""
    pushed: list[tuple[Dataset, tuple, dict]] = []
    monkeypatch.setattr(Dataset, "push_to_hub", lambda self, *args, **options: pushed.append((self, args, options)))
    mined.push_to_hub("me/mined", private=True, token="hf_secret")
    (main, main_args, options), (beside, beside_args, _) = pushed
    assert main_args == ("me/mined", "default") and beside_args == ("me/mined", "provenance")
    assert options["split"] == "train" and options["private"] is True and options["token"] == "hf_secret"
    assert main.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert main.format["type"] is None and all(feature.dtype == "string" for feature in main.features.values())
    assert beside.column_names == [
        "row",
        "positive_id",
        "positive_score",
        "negative_ids",
        "negative_scores",
        "negative_ranks",
        "negative_sources",
        "negative_steps",
        "negative_slots",
    ]
    assert "hf_secret" not in str(mined.report.to_dict())


# --- bad input --------------------------------------------------------------------------------------------------------

PAIRS = {"query": ["a", "b"], "answer": ["c", "d"]}


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        (
            PAIRS,
            {"anchor_column_name": "qurey"},
            ValueError,
            "`anchor_column_name='qurey'` is not a column of the dataset. Columns are ['query', 'answer']. "
            "Did you mean 'query'?",
        ),
        (
            {"query": [1, 2], "answer": ["c", "d"]},
            {},
            TypeError,
            "Expected the column 'query' to hold text (strings), got Value('int64'). Name a text column, or turn this "
            "one into text with `dataset.map`.",
        ),
        (
            {"query": ["a", "b", "c"], "answer": ["c", None, "  "]},
            {},
            ValueError,
            "Expected a text in every row of the column 'answer', got None or an empty text in 2 rows: 1, 2. Remove "
            "them, for example with `dataset.filter(lambda row: row['answer'] and row['answer'].strip())`.",
        ),
        ({"query": [], "answer": []}, {}, ValueError, "Expected a dataset with at least one row, got an empty one."),
        (
            {"query": ["a"]},
            {},
            ValueError,
            "Expected at least two columns, anchor and positive, got ['query']. Add the column of positives.",
        ),
        (
            PAIRS,
            {"corpus": []},
            ValueError,
            "Expected a corpus with at least one text, got an empty one. Pass `corpus=None` to mine among the "
            "positives.",
        ),
        (
            PAIRS,
            {"corpus": ["x", 3]},
            TypeError,
            "Expected `corpus` to be a list of texts, got int at position 1. Pass strings only.",
        ),
        (
            PAIRS,
            {"corpus": "x"},
            TypeError,
            "Expected `corpus` to be a list of texts, `{id: text}`, a `datasets.Dataset` or None, got the single text 'x'. "
            "Put it into a list: `[text]`.",
        ),
        (
            {**PAIRS, "weight": [1.0, -1.0]},
            {},
            ValueError,
            "Expected weights from 0 to a million in the column 'weight', got -1.0 in row 1. Correct it.",
        ),
        (
            PAIRS,
            {"searcher": ExactSearcher(), "use_faiss": True},
            ValueError,
            "Expected either a `searcher` or `use_faiss=True`, got both. Leave one of them out.",
        ),
    ],
)
def test_bad_input_is_refused_with_the_whole_story(columns, options, error, message):
    """What was expected, what was given, what to do."""
    schema = pa.schema([(name, pa.string()) for name in columns]) if not next(iter(columns.values())) else None
    dataset = Dataset(pa.table(columns, schema=schema)) if schema else Dataset.from_dict(columns)
    with pytest.raises(error, match=whole(message)):
        HardNegativeDataset(dataset, **options)


def test_other_kinds_of_datasets_are_refused(word_pairs, bag_of_words):
    """A DatasetDict, a stream, a list, and something that is no model: each says what to do instead."""
    with pytest.raises(TypeError, match="Wrap each split by itself"):
        HardNegativeDataset(DatasetDict({"train": word_pairs}))
    with pytest.raises(TypeError, match="mine in a stream with `HardNegativeMiner`"):
        HardNegativeDataset(word_pairs.to_iterable_dataset())
    with pytest.raises(TypeError, match="got list"):
        HardNegativeDataset([1])
    with pytest.raises(TypeError, match=r"Expected a SentenceTransformer model, or an object with .*, got int"):
        HardNegativeDataset(word_pairs).mine(3)


def test_reading_before_mining_is_an_error(word_pairs):
    """Every way to read says to mine first."""
    hard_negatives = HardNegativeDataset(word_pairs)
    with pytest.raises(
        NotMinedError,
        match=whole("This dataset has no negatives yet. Call `.mine(model)` before `.as_dataset()`."),
    ):
        hard_negatives.as_dataset()
    for read in (
        lambda: hard_negatives.to_dataset(),
        lambda: hard_negatives.negative_ids,
        lambda: hard_negatives.negative_scores,
        lambda: hard_negatives.report,
        lambda: hard_negatives.push_to_hub("me/x"),
    ):
        with pytest.raises(NotMinedError):
            read()


def test_a_missing_extra_is_named(word_pairs, monkeypatch):
    """Without FAISS, asking for it says what to install, before anything is computed."""
    from st_hardneg import MissingExtraError, errors

    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "st-hardneg\[faiss\]"'):
        HardNegativeDataset(word_pairs, use_faiss=True)


def test_a_searcher_that_breaks_its_promise_is_refused(bag_of_words, word_pairs):
    """Shapes, ids and scores of a searcher are checked where they come in."""

    class Broken:
        def __init__(self, ids, scores):
            self.ids, self.scores = ids, scores

        def index(self, corpus_embeddings, similarity_fn_name):
            pass

        def search(self, query_embeddings, k):
            return self.ids.expand(len(query_embeddings), -1), self.scores.expand(len(query_embeddings), -1)

    for ids, scores, message in (
        (torch.zeros(1, 2).long(), torch.zeros(1, 2), "of shape"),
        (torch.full((1, 5), 999), torch.zeros(1, 5), "ids in"),
        (torch.zeros(1, 5).long(), torch.full((1, 5), math.nan), "NaN"),
    ):
        hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(), searcher=Broken(ids, scores))
        with pytest.raises(ValueError, match=message):
            hard_negatives.mine(bag_of_words, show_progress_bar=False)


def test_negative_ids_are_copies(mined):
    """Changing what was handed out changes nothing inside."""
    ids = mined.negative_ids
    ids[:] = -5
    assert (mined.negative_ids != -5).all() and mined.negative_ids.dtype == np.int64


# --- found by people who tried to break it ----------------------------------------------------------------------------


def test_an_extra_filter_cannot_take_the_place_of_a_rule(bag_of_words, word_pairs):
    """A filter named like a rule would switch it off; two filters of one name are both kept."""

    def positive(candidates, corpus):
        return candidates.corpus_ids >= 0

    with pytest.raises(ValueError, match="that no rule of this package has, got 'positive'"):
        HardNegativeDataset(word_pairs, extra_filters=positive)
    same = [lambda c, _: c.corpus_ids % 2 == 0, lambda c, _: c.corpus_ids % 3 == 0]
    both = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=1), extra_filters=same)
    removed = both.mine(bag_of_words, show_progress_bar=False).removed
    assert list(removed)[-2:] == ["<lambda>", "<lambda>#2"]
    assert {number % 6 for number in both.negative_ids.flatten().tolist() if number >= 0} == {0}
    with pytest.raises(TypeError, match="Expected `extra_filters` to be a function, a list"):
        HardNegativeDataset(word_pairs, extra_filters=5)


def test_columns_of_one_s_own_beside_a_view_stay_what_they_are(mined):
    """Numbers that happen to equal row numbers, and a label of one's own, are neither resolved nor refused."""
    view = mined.as_dataset().add_column("label", [1] * 48).add_column("score", list(range(48)))
    assert [view[7][name] for name in ("label", "score")] == [1, 7]
    assert view.__getitems__([3, 3]) == [view[3]] * 2
    assert mined.as_dataset().map(lambda row, i: {"idx": i}, with_indices=True)[0]["idx"] == 0


def test_a_cast_column_holds_texts(mined, word_pairs):
    """Row numbers never pass for texts: a cast column is a snapshot of them, or refused."""
    from datasets import Value

    cast = mined.as_dataset().cast_column("anchor", Value("large_string"))
    assert cast["anchor"][:] == word_pairs["anchor"][:]
    with pytest.raises(pa.ArrowInvalid, match="Failed to parse string: 'w"):
        mined.as_dataset().cast_column("anchor", Value("int64"))


@pytest.mark.parametrize("name", ["negative", "negative_1", "label", "scores"])
def test_names_that_the_output_needs_are_refused(name):
    """A column that would be overwritten is refused before anything is mined."""
    with pytest.raises(ValueError, match=f"Expected another name than '{name}' for the column of positives"):
        HardNegativeDataset(Dataset.from_dict({"anchor": ["a"], name: ["b"]}))


def test_copies_and_pickles_have_views_of_their_own(mined):
    """Mining a copy changes nothing for the original, and the other way round."""
    view = mined.as_dataset()
    for copied in (copy.deepcopy(mined), pickle.loads(pickle.dumps(mined))):
        before = view[:]
        copied.mine(other_model(3), show_progress_bar=False)
        assert view[:] == before and (copied.negative_ids != mined.negative_ids).any()
        assert copied.as_dataset()[:] != before


def test_a_mining_of_another_dataset_is_refused(mined, bag_of_words, word_pairs):
    """Its shape gives it away."""
    other = HardNegativeDataset(word_pairs.select(range(20)), config=MiningConfig(num_negatives=3))
    with pytest.raises(MiningError, match=r"Expected negatives of shape \(48, 3\), got \(20, 3\)"):
        mined.live.apply(other.compute_mining(bag_of_words, show_progress_bar=False))


@pytest.mark.parametrize("failing_calls", [(1,), (2,), (2, 3)])
def test_a_save_that_fails_half_way_leaves_the_earlier_one(mined, tmp_path, monkeypatch, failing_calls):
    """Also if the very last renaming fails; and where it cannot even be put back, it is kept beside."""
    mined.save_to_disk(tmp_path / "saved")
    real, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) in failing_calls:
            raise OSError("simulated")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="simulated"):
            mined.save_to_disk(tmp_path / "saved")
    (left,) = os.listdir(tmp_path)
    assert left.startswith("saved.st_hardneg-retired-") if 3 in failing_calls else left == "saved"
    HardNegativeDataset.load_from_disk(tmp_path / left / "save" if 3 in failing_calls else tmp_path / left)


def test_other_columns_keep_their_types(bag_of_words, word_pairs):
    """`keep_columns` brings features along, not only values."""
    from datasets import ClassLabel

    typed = word_pairs.add_column("kind", [0, 1] * 24).cast_column("kind", ClassLabel(names=["a", "b"]))
    hard_negatives = HardNegativeDataset(typed, config=MiningConfig(num_negatives=1))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    assert isinstance(hard_negatives.to_dataset(keep_columns=True).features["kind"], ClassLabel)


def test_incomplete_rows_are_counted_and_left_out(protractor):
    """A row that lacks negatives is not in the view, and is in labelled outputs with what there is."""
    pairs = Dataset.from_dict({"anchor": ["q 0°", "r 180°"], "positive": ["p 10°", "s 60°"]})
    config = MiningConfig(num_negatives=3, absolute_margin=0.0, range_max=10)
    hard_negatives = HardNegativeDataset(pairs, ["a 20°", "b 100°"], config)
    hard_negatives.mine(protractor, show_progress_bar=False)
    # From 180°, the positive at 60° scores -0.5: b at 100° scores more, and p and a are left.
    assert hard_negatives.report.num_incomplete_rows == 1
    assert hard_negatives.as_dataset()["anchor"][:] == ["q 0°"]
    assert len(hard_negatives.to_dataset("n-tuple")) == 1 and len(hard_negatives.to_dataset("triplet")) == 5
    hard_negatives.mine(protractor, show_progress_bar=False)
    assert hard_negatives.as_dataset()["anchor"][:] == ["q 0°"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"searcher": object()}, TypeError, "Expected `searcher` to have the methods `index` and `search`"),
        ({"cross_encoder": "x"}, TypeError, "Expected `cross_encoder` to be a CrossEncoder, got str"),
        ({"anchor_column_name": 3}, TypeError, "Expected `anchor_column_name` to be a string, got int"),
        ({"config": {"num_negatives": 2}}, TypeError, "Expected `config` to be a MiningConfig, got dict"),
        ({"corpus": ["a", "b\ud800"]}, ValueError, "got a lone surrogate at position 1"),
    ],
)
def test_more_bad_input(word_pairs, options, error, message):
    """Each is named when the dataset is made."""
    with pytest.raises(error, match=message):
        HardNegativeDataset(word_pairs, **options)
