"""The rows that are handed in: columns by name and by place, ids, labels, given negatives. Nothing is ignored."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from sentence_transformers.util.dataset import resolve_ids

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.corpus.rows import read_rows
from tests.conftest import whole


def mined(pairs, corpus=None, *, model, n=1, **fields) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=n, **fields))
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


# --- which columns are meant ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [["positive", "anchor"], ["anchor", "positive"], ["id", "positive", "anchor"], ["title", "anchor", "positive"]],
)
def test_columns_named_anchor_and_positive_win_over_places(order):
    columns = {"anchor": ["how", "why"], "positive": ["so", "because"], "id": ["1", "2"], "title": ["x", "y"]}
    found = HardNegativeDataset(Dataset.from_dict({name: columns[name] for name in order}))
    assert (found.anchor_column_name, found.positive_column_name) == ("anchor", "positive")


def test_naming_one_of_the_two_leaves_the_other_to_its_name():
    columns = Dataset.from_dict({"positive": ["so", "because"], "anchor": ["how", "why"], "question": ["a", "b"]})
    found = HardNegativeDataset(columns, anchor_column_name="question")
    assert (found.anchor_column_name, found.positive_column_name) == ("question", "positive")
    alone = HardNegativeDataset(columns, anchor_column_name="positive")
    assert (alone.anchor_column_name, alone.positive_column_name) == ("positive", "anchor")
    swapped = HardNegativeDataset(columns, anchor_column_name="positive", positive_column_name="anchor")
    assert (swapped.anchor_column_name, swapped.positive_column_name) == ("positive", "anchor")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"id": ["1", "2"], "query": ["a", "b"], "answer": ["c", "d"]},
            "'id', taken as anchors by its place, looks like ids",
        ),
        (
            {"query": ["a", "b"], "doc_id": ["c", "d"], "answer": ["e", "f"]},
            "'doc_id', taken as positives by its place",
        ),
        ({"number": ["17", "18"], "text": ["a", "b"]}, "'number', taken as anchors by its place, looks like ids"),
    ],
)
def test_a_column_of_ids_is_not_taken_for_texts_by_its_place(columns, said):
    with pytest.raises(ValueError, match=said):
        HardNegativeDataset(Dataset.from_dict(columns))
    texts = [name for name in columns if name not in ("id", "doc_id", "number")]
    if len(texts) == 2:
        found = HardNegativeDataset(
            Dataset.from_dict(columns), anchor_column_name=texts[0], positive_column_name=texts[1]
        )
        assert len(found) == 2


def test_answers_that_are_numbers_are_texts_where_the_column_says_positive():
    """A quiz: `positive` holds "25" and "10", and is named as what it is."""
    assert len(HardNegativeDataset(Dataset.from_dict({"anchor": ["5 squared", "ten"], "positive": ["25", "10"]}))) == 2


def test_what_is_used_and_what_is_not_is_said_in_one_line(caplog):
    """In the log at construction, and in `repr`."""
    rows = {"q": ["a", "b"], "a": ["c", "d"], "negative": ["e", "f"], "note": [1, 2], "weight": [1.0, 2.0]}
    with caplog.at_level("INFO", logger="st_hardneg"):
        found = HardNegativeDataset(Dataset.from_dict(rows), ["c", "x"])
    assert "'q' -> 'a', 2 rows, 2 queries" in repr(found) and "not used: ['negative', 'note']" in repr(found)
    assert "1 of 2 positives found in the corpus" in repr(found)
    assert "anchor 'q', positive 'a', weights 'weight', not used ['negative', 'note']" in caplog.text
    assert "The given negatives in ['negative'] are not used" in caplog.text


def test_what_is_used_of_the_corpus_is_said_too(caplog):
    """Its texts, its ids, and what is not read; a title that is not read is warned of."""
    rows = Dataset.from_dict({"anchor": ["a", "b"], "positive": ["c", "d"]})
    corpus = Dataset.from_dict(
        {"_id": ["1", "2", "3"], "title": ["T", "U", "V"], "text": ["c", "d", "x"], "year": [1, 2, 3]}
    )
    with caplog.at_level("INFO", logger="st_hardneg"):
        found = HardNegativeDataset(rows, corpus)
    assert "not used of the corpus: ['title', 'year']" in repr(found)
    assert "corpus texts 'text', corpus ids '_id', not used of the corpus ['title', 'year'])" in caplog.messages[0]
    assert caplog.messages[1].startswith("Of the corpus, the column 'text' is read, and ['title'] is not.")
    assert len(caplog.messages) == 2
    caplog.clear()
    with caplog.at_level("INFO", logger="st_hardneg"):
        assert "of the corpus" not in repr(HardNegativeDataset(rows, ["c", "d", "x"]))
        HardNegativeDataset(rows)
    assert "corpus texts 'text', corpus ids row numbers)" in caplog.messages[0]
    assert caplog.messages[1].endswith("(anchor 'anchor', positive 'positive')") and len(caplog.messages) == 2


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "labels", "score", "scores"])
@pytest.mark.parametrize("wrong", [0, 0.0, False])
def test_rows_labelled_wrong_are_refused(name, wrong):
    pairs = Dataset.from_dict({"a": ["x", "y"], "b": ["p", "q"], name: [type(wrong)(1), wrong]})
    with pytest.raises(ValueError, match=f"The column '{name}' labels 1 of 2 rows as wrong answers"):
        HardNegativeDataset(pairs)


@pytest.mark.parametrize(
    ("label", "names", "keep"),
    [
        ([0.0, 1.0], None, "row['label'] > 0"),
        (["Entailment", "contradiction"], None, "row['label'] in ['Entailment']"),
        ([0, 1], ["duplicate", "not_duplicate"], "row['label'] in [0]"),
        ([0, 1], ["no", "yes"], "row['label'] in [1]"),
    ],
)
def test_the_advice_keeps_the_right_rows(label, names, keep):
    """The code in the message, run on the rows: numbers, words, and classes whose 0 is right."""
    rows = Dataset.from_dict({"anchor": ["x", "y"], "positive": ["p", "q"], "label": label})
    if names is not None:
        rows = rows.cast_column("label", ClassLabel(names=names))
    with pytest.raises(ValueError, match=re.escape(f"`dataset.filter(lambda row: {keep})`")):
        HardNegativeDataset(rows)
    right = rows.filter(eval(f"lambda row: {keep}"))
    assert len(HardNegativeDataset(right)) == 1


def test_labels_that_are_classes_are_refused_and_ones_are_not():
    pairs = Dataset.from_dict({"a": ["x", "y"], "b": ["p", "q"], "label": [1, 2]})
    with pytest.raises(ValueError, match="holds other values than 0 and 1, such as 2"):
        HardNegativeDataset(pairs)
    right = pairs.remove_columns("label").add_column("label", [1, 1]).add_column("score", [0.3, 0.9])
    assert len(HardNegativeDataset(right)) == 2


def test_rows_labelled_wrong_are_negatives_where_they_are_asked_for(bag_of_words):
    """As a source, `given`: they are no positives, and their texts are the negatives of their anchors."""
    rows = Dataset.from_dict(
        {
            "sentence1": ["w1 w2", "w1 w2", "w5 w6"],
            "sentence2": ["w1 w3", "w1 w4", "w5 w7"],
            "label": [1, 0, 1],
        }
    )
    found = HardNegativeDataset(rows, ["w20", "w21"], sources={"given": 1, "dense": 1})
    assert "1 rows labelled wrong are given negatives" in repr(found) and len(found) == 2
    found.mine(bag_of_words, show_progress_bar=False)
    assert found.provenance()[0]["negative_sources"][0] == "given"
    assert found.to_dataset("n-tuple")[0]["negative_1"] == "w1 w4"


def test_given_negatives_of_columns_are_a_source(bag_of_words):
    rows = Dataset.from_dict(
        {
            "anchor": ["w1 w2", "w5 w6"],
            "positive": ["w1 w3", "w5 w7"],
            "negative_1": ["w30", "w31"],
            "negative_2": ["w32", None],
        }
    )
    found = HardNegativeDataset(rows, ["w20", "w21"], sources={"given": 2, "dense": 1})
    found.mine(bag_of_words, show_progress_bar=False)
    provenance = found.provenance()
    assert provenance[0]["negative_sources"] == ["given", "given", "dense"]
    assert provenance[1]["negative_sources"].count("given") == 1
    assert set(found.corpus.texts.take(found.negative_ids[0][:2])) == {"w30", "w32"}


# --- transforms, columns of one's own ---------------------------------------------------------------------------------


def test_a_transform_is_refused(word_pairs):
    """It would be dropped; as the error says, `map` applies it."""
    transformed = word_pairs.with_transform(
        lambda batch: {name: [f"{name}: {x}" for x in batch[name]] for name in batch}
    )
    with pytest.raises(ValueError, match="has a transform"):
        HardNegativeDataset(transformed)
    with pytest.raises(ValueError, match="`corpus` has a transform"):
        HardNegativeDataset(word_pairs, transformed.rename_column("positive", "text"))
    assert len(HardNegativeDataset(word_pairs.with_format("numpy"))) == 48


def test_rows_of_ids_that_are_resolved_on_the_fly_are_refused_and_work_as_the_error_says(bag_of_words, word_pairs):
    """Sentence Transformers' `resolve_ids` is such a transform."""
    texts = Dataset.from_dict(
        {"id": [f"t{i}" for i in range(96)], "text": [*word_pairs["anchor"], *word_pairs["positive"]]}
    )
    ids = Dataset.from_dict({"q": [f"t{i}" for i in range(48)], "d": [f"t{i}" for i in range(48, 96)]})
    resolve = resolve_ids({"q": texts, "d": texts})
    with pytest.raises(ValueError, match=r"with_format\(None\).map\(transform, batched=True, remove_columns="):
        HardNegativeDataset(ids.with_transform(resolve))
    rows = ids.with_transform(resolve).with_format(None).map(resolve, batched=True, remove_columns=["q", "d"])
    found = mined(rows, model=bag_of_words)
    assert (found.negative_ids == mined(word_pairs, model=bag_of_words).negative_ids).all()


def test_columns_of_the_users_are_not_replaced(bag_of_words, word_pairs):
    found = mined(word_pairs.add_column("scores", ["mine"] * 48), model=bag_of_words)
    assert found.to_dataset("n-tuple", keep_columns=True)["scores"][:] == ["mine"] * 48
    with pytest.raises(ValueError, match=r"columns \['scores'\] of its own"):
        found.to_dataset("n-tuple", output_scores=True, keep_columns=True)


# --- pairs that are no pairs ------------------------------------------------------------------------------------------


def test_rows_whose_positive_is_the_anchor_are_counted(bag_of_words, caplog):
    """(x, x): kept, as SimCSE wants them, and said."""
    pairs = Dataset.from_dict({"anchor": ["w1 w2", "w3 w4", "w5"], "positive": ["W1  w2", "w3 w4", "w6"]})
    found = mined(pairs, ["w7 w8"], model=bag_of_words)
    assert "The positive of 2 of 3 rows is the anchor itself" in caplog.text
    assert not {"w1 w2", "W1  w2"} & set(found.to_dataset().select([0])["negative"])
    caplog.clear()
    HardNegativeDataset(pairs.select([2]), ["w7 w8"])
    assert "the anchor itself" not in caplog.text


@pytest.mark.parametrize("name", ["score", "similarity", "similarity_score", "rating"])
def test_how_similar_two_sentences_are_is_no_label(name):
    """STS: a similarity of .04 makes no right answer."""
    rows = Dataset.from_dict({"sentence1": ["a b", "c d"], "sentence2": ["e f", "g h"], name: [0.96, 0.04]})
    with pytest.raises(ValueError, match=f"The column '{name}' holds fractions, such as 0.96"):
        HardNegativeDataset(rows)
    HardNegativeDataset(rows.remove_columns(name))


def test_grades_of_whole_numbers_are_grades():
    rows = Dataset.from_dict({"anchor": ["a b", "c d"], "positive": ["e f", "g h"], "score": [3.0, 1.0]})
    assert len(HardNegativeDataset(rows)) == 2


def labelled(classes: list[str], labels: list[int]) -> Dataset:
    columns = {"anchor": ["a b", "c d"], "positive": ["e f", "g h"], "label": labels}
    return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=classes))


@pytest.mark.parametrize(
    ("classes", "labels", "right"),
    [
        (["entailment", "not_entailment"], [0, 1], "e f"),  # QNLI: 0 is right
        (["not_equivalent", "equivalent"], [0, 1], "g h"),  # MRPC
        (["Duplicate", "Non-duplicate"], [0, 1], "e f"),
        (["0", "1"], [1, 0], "e f"),
    ],
)
def test_the_name_of_a_class_says_what_is_right(classes, labels, right):
    rows = labelled(classes, labels)
    with pytest.raises(ValueError, match="labels 1 of 2 rows as wrong answers"):
        HardNegativeDataset(rows)
    found = HardNegativeDataset(rows, num_negatives=2, sources={"dense": 1, "given": 1})
    assert next(iter(found.known_pairs()))[1] == right and len(found) == 1


def test_a_class_of_which_nobody_knows_what_it_means_is_refused():
    with pytest.raises(ValueError, match="not known whether they mean a right answer, such as 'neutral'"):
        HardNegativeDataset(labelled(["entailment", "neutral", "contradiction"], [0, 1]))
    # A class that no row has does no harm.
    assert len(HardNegativeDataset(labelled(["entailment", "neutral", "contradiction"], [0, 0]))) == 2


def test_labels_in_words():
    rows = Dataset.from_dict({"anchor": ["a b", "c d"], "positive": ["e f", "g h"], "label": ["entailment"] * 2})
    assert len(HardNegativeDataset(rows)) == 2


def test_answers_before_questions_are_pointed_out(caplog):
    rows = Dataset.from_dict({"answer": ["a b", "c d"], "query": ["e f", "g h"]})
    HardNegativeDataset(rows)
    assert "pass `anchor_column_name='query'`" in caplog.text
    caplog.clear()
    HardNegativeDataset(rows, anchor_column_name="query", positive_column_name="answer")
    HardNegativeDataset(rows.rename_columns({"answer": "question", "query": "answer"}))
    assert "the other way round" not in caplog.text


PAIRS = {"question": ["ask a", "ask b"], "answer": ["say a", "say b"]}


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({"label": ["1", "perhaps"]}, {}, ValueError,
         "The column 'label' holds other labels than 0 and 1, such as 'perhaps', so it does not say which rows are right "
         "answers. Filter the rows, then remove the column with `dataset.remove_columns('label')`."),
        ({"label": [1, 2]}, {}, ValueError,
         "The column 'label' holds other values than 0 and 1, such as 2, so it does not say which rows are right answers. "
         "Filter the rows, then remove the column with `dataset.remove_columns('label')`."),
        ({"score": [1.0, 0.25]}, {}, ValueError,
         "The column 'score' holds fractions, such as 0.25: how similar two texts are, not which rows are right answers. "
         "Keep the rows that are similar enough, and remove the column: `dataset.filter(lambda row: row['score'] >= "
         "...).remove_columns('score')`."),
        ({"label": [0, 0]}, {}, ValueError,
         "The column 'label' labels all rows as wrong answers. Pass rows of right ones."),
        ({"label": [1, None]}, {}, ValueError,
         "The column 'label' has rows without a label (None, or below 0), so it does not say whether these are right "
         "answers. Filter them: `dataset.filter(lambda row: row['label'] in (0, 1))`, for example."),
        ({}, {"sources": {"given": 3}}, ValueError,
         "The source 'given' needs negatives in the dataset: columns 'negative' or 'negative_1', 'negative_2' …, or rows "
         "with label 0. Columns are ['question', 'answer']."),
        ({"negative": [1, 2]}, {"sources": {"given": 3}}, TypeError,
         "Expected the given negatives in 'negative' to be texts, got Value('int64')."),
        ({"weight": [1.0, -0.5]}, {}, ValueError,
         "Expected weights from 0 to a million in the column 'weight', got -0.5 in row 1. Correct it."),
        ({"weight": [1.0, 1e-9]}, {}, ValueError,
         "Expected weights of at least a millionth in the column 'weight', got 1e-09 in row 1, which would count as 0. "
         "Scale the weights, for example to a mean of 1."),
        ({"weight": ["a", "b"]}, {}, TypeError,
         "Expected the column 'weight' to hold numbers, got something else. Rename it if it is not the rows' weight."),
        ({}, {"positive_column_name": "question", "anchor_column_name": "question"}, ValueError,
         "Expected different columns for anchor and positive, got 'question' for both."),
        ({"texts": [["a"], ["b"]]}, {"positive_column_name": "texts"}, TypeError,
         "Expected the column 'texts' to hold text (strings), got List(Value('string')). Name a text column, or turn this "
         "one into text with `dataset.map`."),
    ],
)  # fmt: skip
def test_rows_that_do_not_say_what_is_right_are_refused(columns, options, error, message):
    """The whole message is compared."""
    with pytest.raises(error, match=whole(message)):
        HardNegativeDataset(Dataset.from_dict({**PAIRS, **columns}), **options)


def test_a_weight_of_0_is_a_weight():
    """In whole millionths, as int64."""
    rows = read_rows(Dataset.from_dict({**PAIRS, "weight": [0.0, 2.5]}), None, None, use_given=False)
    assert rows.weights.tolist() == [0, 2_500_000] and rows.weights.dtype == np.int64
    plain = read_rows(Dataset.from_dict(PAIRS), None, None, use_given=False)
    assert plain.weights.tolist() == [1_000_000] * 2 and plain.weights.dtype == np.int64


def test_a_dataset_of_one_column_lacks_the_other():
    message = "Expected at least two columns, anchor and positive, got ['question']. Add the column of positives."
    with pytest.raises(ValueError, match=whole(message)):
        HardNegativeDataset(Dataset.from_dict({"question": ["a"]}))


def wrapped(columns) -> HardNegativeDataset:
    return HardNegativeDataset(Dataset.from_dict(columns))


# --- labels under other names and in other forms ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["Label", "LABEL", "isDuplicate", "Is_Duplicate", "is_positive", "relevant", "match", "relevance_label"]
)
def test_labels_are_read_however_they_are_called(name):
    """In whatever case, with underscores or without: rows labelled 0 are no right answers."""
    with pytest.raises(ValueError, match=f"'{name}' labels 1 of 3 rows as wrong answers"):
        wrapped({"a": ["a", "b", "c"], "b": ["d", "e", "f"], name: [1, 0, 1]})
    assert f"labels '{name}'" in str(wrapped({"a": ["a", "b"], "b": ["d", "e"], name: [1, 1]})._wrapped.rows)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("relevance", ["2", "0", "1"], "labels 1 of 3 rows as wrong"),
        ("relevance", ["2.0", "0.0", "1"], "labels 1 of 3 rows as wrong"),
        ("score", ["0.9", "0.05", "1"], "holds fractions, such as 0.9"),
        ("score", ["1", "", "1"], "has rows without a label"),
        ("label", ["1", "2", "1"], "holds other values than 0 and 1, such as 2"),
        ("label", [Decimal("1"), Decimal("0"), Decimal("1")], "labels 1 of 3 rows as wrong"),
        ("label", [[1], [0], [1]], "holds list<.*> in place of labels"),
        ("is_duplicate", ["yes", "maybe", "no"], "holds other labels than 0 and 1, such as 'maybe'"),
    ],
)
def test_labels_are_read_however_they_are_written(name, values, message):
    """As the text of a CSV file, as decimals, or not at all: then it is said."""
    with pytest.raises(ValueError, match=message):
        wrapped({"a": ["a", "b", "c"], "b": ["d", "e", "f"], name: values})


def test_columns_that_only_sound_like_labels_are_texts():
    """A long text, or words in a column of grades, say nothing of right and wrong."""
    rows = {
        "a": ["a", "b"],
        "b": ["c", "d"],
        "match": ["a text that is longer than any label", "x"],
        "score": ["hi", "lo"],
    }
    assert wrapped(rows)._wrapped.rows.unused == ("match", "score")


def test_two_columns_of_labels_have_to_agree():
    """Or one of them would be ignored; grades beside labels are scores of something."""
    rows = {"a": ["a", "b"], "b": ["c", "d"], "label": [1, 1], "is_duplicate": [1, 0]}
    with pytest.raises(ValueError, match="'is_duplicate' labels 1 of 2 rows as wrong"):
        wrapped(rows)
    config = MiningConfig(num_negatives=2, sources={"dense": 1, "given": 1})
    with pytest.raises(ValueError, match="'label' and 'is_duplicate' do not agree"):
        HardNegativeDataset(Dataset.from_dict(rows), config=config)
    assert len(wrapped({**rows, "is_duplicate": [1, 1], "score": [0.3, 0.9]})) == 2
