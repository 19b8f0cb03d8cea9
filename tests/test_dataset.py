"""HardNegativeDataset: views that follow, copies that do not, columns, disk and Hub, bad input."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError, NotMinedError
from st_hardneg.search import ExactSearcher
from tests.conftest import WORDS, whole, word_model


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
            "Expected `corpus` to be a list of texts, `{id: text}`, a `datasets.Dataset` or None, got the single "
            "text 'x'. Put it into a list: `[text]`.",
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
    ):
        with pytest.raises(NotMinedError):
            read()


def test_rows_are_read_from_views(mined):
    """Not from the wrapper, which is no sequence."""
    for read in (lambda: mined[0], lambda: mined["anchor"], lambda: list(mined), lambda: next(iter(mined))):
        with pytest.raises(TypeError, match=r"has no rows to be read by itself. Read `hard_negatives.as_dataset\(\)`"):
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
        (
            {"extra_filters": {"mine": lambda candidates: None}},
            TypeError,
            r"Expected the extra filter 'mine' to take the arguments \(candidates, corpus\), got `\(candidates\)`",
        ),
        ({"corpus": ["a", "b\ud800"]}, ValueError, "got a lone surrogate at position 1"),
    ],
)
def test_more_bad_input(word_pairs, options, error, message):
    """Each is named when the dataset is made."""
    with pytest.raises(error, match=message):
        HardNegativeDataset(word_pairs, **options)
