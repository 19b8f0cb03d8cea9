"""The corpus that is handed in: its titles, its ids, its types, and the positives that it holds or lacks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig, Texts, Written
from st_hardneg.corpus.given import given_corpus, rows_where
from st_hardneg.formats.beir import read_beir
from tests.conftest import random_texts, whole


def mined(pairs, corpus=None, *, model, n=1, **fields) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=n, **fields))
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


def test_a_positive_with_its_title_is_found_in_a_corpus_with_titles(bag_of_words):
    """The corpus has `title` and `text`, the positives were made from both."""
    corpus = Dataset.from_dict({"title": ["w1", "w2", "w3"], "text": ["w11 w12", "w21 w22", "w31 w32"]})
    pairs = Dataset.from_dict({"anchor": ["w1 w11", "w2 w21"], "positive": ["w1 w11 w12", "w2. w21 w22"]})
    found = mined(pairs, corpus, model=bag_of_words)
    assert "2 of 2 positives found in the corpus" in repr(found)
    assert not {"w11 w12"} & set(found.to_dataset().select([0])["negative"][:])
    assert not {"w21 w22"} & set(found.to_dataset().select([1])["negative"][:])


@pytest.mark.parametrize("separator", [" | ", " [SEP] ", "[SEP]", "\n", "", "; ", ", ", ": "])
def test_titles_are_joined_to_texts_in_many_ways(bag_of_words, separator):
    corpus = Dataset.from_dict({"title": ["On W1", "On w2", "w3"], "text": ["w11 w12", "w21 w22", "w31 w32"]})
    joined = [f"{title}{separator}{text}" for title, text in zip(corpus["title"][:], corpus["text"][:], strict=True)]
    pairs = Dataset.from_dict({"anchor": ["w1 w11", "w2 w21", "w3"], "positive": joined})
    assert "3 of 3 positives found in the corpus" in repr(HardNegativeDataset(pairs, corpus, num_negatives=1))


def test_some_positives_that_the_corpus_lacks_are_worth_a_word(caplog):
    pairs = Dataset.from_dict({"anchor": [f"a {i}" for i in range(20)], "positive": [f"b {i}" for i in range(20)]})
    HardNegativeDataset(pairs, [f"b {i}" for i in range(19)])
    assert "1 of 20 positives are not in the corpus" in caplog.text


@pytest.mark.parametrize("separator", [" ", ". ", ": ", " - ", "\n", " | ", " — ", "\n\n"])
def test_the_body_of_a_text_that_begins_with_its_title_is_that_text(bag_of_words, separator):
    """The corpus has the title in its texts already, and the positives, or the queries, are bodies."""
    bodies = ["w11 w12", '"w21" w22', "w31 w32"]
    titles = ["w1", "w2", "w3"]
    texts = [f"{title}{separator}{body}" for title, body in zip(titles, bodies, strict=True)]
    corpus = Dataset.from_dict({"title": titles, "text": texts})
    pairs = Dataset.from_dict({"anchor": ["w41", "w42", "w43"], "positive": bodies})
    assert "3 of 3 positives found in the corpus" in repr(HardNegativeDataset(pairs, corpus))


def test_a_title_that_is_the_beginning_of_a_longer_word_is_not_taken_off(bag_of_words):
    corpus = Dataset.from_dict({"title": ["w1"], "text": ["w11 w12"]})
    pairs = Dataset.from_dict({"anchor": ["w5", "w6"], "positive": ["1 w12", "w12"]})
    assert "0 of 2 positives found in the corpus" in repr(HardNegativeDataset(pairs, corpus))


def test_a_query_that_is_a_document_is_never_mined_for_itself(bag_of_words):
    """ArguAna and Quora: queries are documents of the corpus, under the same id; there, the title stands in front."""
    bodies = {f"d{number}": text for number, text in enumerate(random_texts(20, seed=5))}
    corpus = {name: {"title": f"w{number}", "text": body} for number, (name, body) in enumerate(bodies.items())}
    names = list(bodies)
    qrels = {name: {names[place ^ 1]: 1} for place, name in enumerate(names)}  # each argument and its counter-argument
    for separator in (". ", " ", " | "):
        found = HardNegativeDataset.from_beir(
            corpus, bodies, qrels, MiningConfig(num_negatives=4), title_separator=separator
        )
        found.mine(bag_of_words, show_progress_bar=False)
        for row in found.to_dataset():
            assert not row["negative"].endswith(row["anchor"])
    pairs, documents = read_beir(corpus, bodies, qrels)
    assert pairs["anchor"][0] == bodies["d0"] and documents["text"][0] == f"w0. {bodies['d0']}"


def test_positives_that_the_corpus_lacks_are_said(bag_of_words, word_pairs, caplog):
    """In `repr`, in a warning and in the report."""
    hard_negatives = HardNegativeDataset(word_pairs, [word_pairs["positive"][0], "w1 w2 w3", "w5 w6"])
    assert "1 of 48 positives found in the corpus" in repr(hard_negatives)
    assert "47 of 48 positives are not in the corpus" in caplog.text
    report = hard_negatives.mine(bag_of_words, show_progress_bar=False)
    assert (report.num_positives_in_corpus, report.num_positives) == (1, 48)
    assert "1 of 48 positives found in the corpus" in str(report)


def test_string_views_and_texts_by_id(bag_of_words, word_pairs):
    """Polars and DuckDB hand over `string_view`; a corpus may come as `{id: text}`."""
    table = pa.table({name: pa.array(word_pairs[name][:], pa.string_view()) for name in word_pairs.column_names})
    corpus = {f"d{number}": text for number, text in enumerate(random_texts(30, seed=8))}
    found = mined(Dataset(table), corpus, model=bag_of_words)
    expected = mined(word_pairs, list(corpus.values()), model=bag_of_words)
    assert (found.negative_ids == expected.negative_ids).all()
    assert all(name.startswith(("d", "positive-")) for row in found.provenance()["negative_ids"] for name in row)


@pytest.mark.parametrize("corpus", ["one text", b"bytes", {"d1": ["a", "list"]}, [["a list"]], 5])
def test_a_text_where_a_list_is_expected_is_refused(word_pairs, corpus):
    """Letter by letter, a text would pass for a list of texts."""
    with pytest.raises(TypeError, match="Expected `corpus` to"):
        HardNegativeDataset(word_pairs, corpus)
    with pytest.raises(TypeError, match=r"Expected `sources\['more'\]` to"):
        HardNegativeDataset(word_pairs, sources={"dense": 2, "more": Texts(corpus, 1)})


def test_a_writer_that_returns_a_text_for_each_positive_is_refused(word_pairs):
    with pytest.raises(TypeError, match="a list of texts for each positive, got str for positive 0"):
        HardNegativeDataset(word_pairs, sources={"dense": 2, "synthetic": Written(lambda texts: list(texts), 1)})


def test_lists_of_positives_are_refused():
    """FlagEmbedding's rows hold `pos` and `neg` as lists; one text each is expected."""
    rows = {"query": ["a", "b"], "pos": [["c"], ["d"]], "neg": [["e"], ["f"]]}
    with pytest.raises(TypeError, match=r"Expected the column 'pos' to hold text \(strings\), got List"):
        HardNegativeDataset(Dataset.from_dict(rows))
    given = {"anchor": ["a", "b"], "positive": ["c", "d"], "negative": [["e"], ["f"]]}
    with pytest.raises(TypeError, match="Expected the given negatives in 'negative' to be texts"):
        HardNegativeDataset(Dataset.from_dict(given), sources={"dense": 1, "given": 1})


def test_the_corpus_of_another_dataset_is_taken_as_it_was(bag_of_words, word_pairs):
    """Its ids and columns come along."""
    corpus = Dataset.from_dict({"_id": [f"x{i}" for i in range(30)], "text": random_texts(30, seed=8)})
    first = mined(word_pairs.select(range(24)), corpus, model=bag_of_words)
    second = mined(word_pairs.select(range(24, 48)), first.corpus, model=bag_of_words)
    expected = mined(word_pairs.select(range(24, 48)), corpus, model=bag_of_words)
    assert second.provenance().to_dict() == expected.provenance().to_dict()


ROWS = Dataset.from_dict({"year": [2019, 2020, 2021], "text": ["w1", "w2", "w3"]})


def test_a_predicate_sees_each_row_and_selects_those_for_which_it_is_true():
    """In ascending order; a NumPy truth value is one, too."""
    assert rows_where(ROWS, lambda row: row["year"] != 2020 and row["text"] > "w", "metadata_filter").tolist() == [0, 2]
    assert rows_where(ROWS, lambda row: np.bool_(row["year"] > 2020), "metadata_filter").tolist() == [2]
    seen: list[dict] = []
    rows_where(ROWS.with_format("numpy"), lambda row: not seen.append(row), "metadata_filter")
    assert seen == ROWS.to_list()
    given = np.array([0, 2])
    assert rows_where(ROWS, given, "metadata_filter") is given


@pytest.mark.parametrize(
    ("given", "predicate", "error", "message"),
    [
        (ROWS, "year", TypeError,
         "Expected `w` to be a function of a corpus row (a dictionary) that returns True or False, got str. Pass "
         "`lambda row: row['year'] >= 2020`, for example."),
        (None, lambda row: True, ValueError,
         "Expected a `corpus` with columns for `w` to look at, got none. Pass a `datasets.Dataset` as `corpus`."),
        (ROWS, lambda row: row["date"], ValueError,
         "Expected `w` to return True or False for every row of the corpus, got KeyError: 'date' for row 0. Columns are "
         "['year', 'text']; pass the corpus as a Dataset with the columns that it looks at."),
        (ROWS, lambda row: row["year"], TypeError,
         "Expected `w` to return True or False, got 2019 for row 0 of the corpus. Compare a column with a value, for "
         "example."),
        (ROWS, lambda row: False, ValueError,
         "Expected `w` to be true for some of the 3 rows of the corpus, got none: it removes everything. Columns are "
         "['year', 'text']."),
        *((rows, values, ValueError,
           f"Expected `w` to be a function of a corpus row, or ascending row numbers below {0 if rows is None else 3} as "
           f"an int64 array, got {values.dtype} of shape {values.shape}. Pass a function.")
          for rows, values in [(ROWS, np.array([0, 3])), (ROWS, np.array([1, 1])), (ROWS, np.array([2, 0])),
                               (ROWS, np.array([-1, 0])), (ROWS, np.array([0.0])), (ROWS, np.array([[0]])),
                               (ROWS, np.array([], dtype=np.int64)), (ROWS, np.array([0], dtype=np.int32)),
                               (None, np.array([0]))]),
    ],
)  # fmt: skip
def test_what_is_no_predicate_is_refused(given, predicate, error, message):
    with pytest.raises(error, match=whole(message)):
        rows_where(given, predicate, "w")


WANTED = "Expected `corpus` to be a list of texts, `{id: text}`, a `datasets.Dataset` or None, got "
SURROGATE = "b\ud800"


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        *((f"texts{ending}", TypeError,
           f"{WANTED}the single text 'texts{ending}'. Read the file first, with `datasets.load_dataset`, or "
           "`HardNegativeDataset.from_beir`.")
          for ending in (".jsonl", ".json", ".csv", ".parquet", ".txt", ".gz")),
        ("a text", TypeError, f"{WANTED}the single text 'a text'. Put it into a list: `[text]`."),
        (3, TypeError, f"{WANTED}int. Turn it into one of these, for example with `list(...)`."),
        (b"text", TypeError, f"{WANTED}bytes. Turn it into one of these, for example with `list(...)`."),
        (SimpleNamespace(encode_query=1), TypeError,
         "Expected texts as `corpus`, got SimpleNamespace. Pass it to `.mine(model)`."),
        (MiningConfig(), TypeError, "Expected texts as `corpus`, got MiningConfig. Pass it to `config=...`."),
        (["a", 1], TypeError,
         "Expected `corpus` to be a list of texts, got int at position 1. Pass strings only."),
        (["a", SURROGATE], ValueError,
         "Expected `corpus` to hold valid Unicode, got a lone surrogate at position 1. Clean it, for example with "
         "`text.encode('utf-8', 'replace').decode()`."),
        ([], ValueError,
         "Expected a corpus with at least one text, got an empty one. Pass `corpus=None` to mine among the positives."),
        ({"train": ROWS}, TypeError, "Expected one corpus, got several by name. Pass one split: `corpus['train']`."),
        ({"a text": 3}, TypeError, "`corpus` maps texts to ids. Turn it round: ids are keys, texts are values."),
        ({"d1": "text", "d2": {"title": "x"}}, TypeError,
         "Expected `corpus` to map ids to texts, got dict for the id 'd2'. Join title and text into one string; "
         "`HardNegativeDataset.from_beir` reads documents with titles."),
        ({"d1": SURROGATE}, ValueError,
         "Expected `corpus` to hold valid Unicode, got a lone surrogate for the id 'd1'. Clean it."),
        ({1: "a", "1": "b"}, ValueError,
         "`corpus` has two ids that are the same as strings. Give each text an id of its own."),
        (Dataset.from_dict({"a": ["x"], "b": ["y"]}), ValueError,
         "Expected the corpus to have a column 'text' or 'answer', or one text column only, got ['a', 'b']. Rename the "
         "column that holds the texts to 'text'."),
        (ROWS.with_transform(lambda batch: batch), ValueError,
         "`corpus` has a transform (`with_transform` or `set_transform`), and mining would read the texts without it. "
         "Apply it once, with `with_format(None).map(transform, batched=True)`, or take it off with `with_format(None)`."),
    ],
)  # fmt: skip
def test_what_is_no_corpus_is_refused(corpus, error, message):
    """The whole message is compared."""
    with pytest.raises(error, match=whole(message)):
        given_corpus(corpus, "answer")


@pytest.mark.parametrize(
    ("columns", "text_column", "id_column"),
    [
        ({"body": ["x"]}, "body", None),
        ({"id": ["7"], "body": ["x"], "year": [1]}, "body", "id"),
        ({"title": ["t"], "text": ["x"]}, "text", None),
        ({"title": ["t"], "answer": ["x"], "docid": ["7"]}, "answer", "docid"),
        *(({"text": ["x"], name: ["7"]}, "text", name) for name in ("ID", "docno", "pid", "passage_id")),
        ({"_id": ["7"], "id": ["8"], "text": ["x"], "answer": ["y"]}, "text", "_id"),
    ],
)
def test_the_column_of_texts_is_made_out(columns, text_column, id_column):
    """By name, or because there is no other; columns of ids are none."""
    found = given_corpus(Dataset.from_dict(columns), "answer")
    assert (found.text_column, found.id_column) == (text_column, id_column)
    titles = [("t", "x")] if "title" in columns else []
    assert list(found.titles_and_texts()) == titles


def test_a_title_that_is_the_text_is_no_title():
    """Nor is a column of numbers of that name."""
    assert list(given_corpus(Dataset.from_dict({"title": ["t"]}), "answer").titles_and_texts()) == []
    numbers = Dataset.from_dict({"title": [1], "text": ["x"]})
    assert list(given_corpus(numbers, "answer").titles_and_texts()) == []
    spaced = Dataset.from_dict({"title": [" t ", None], "text": ["x", "y"]})
    assert list(given_corpus(spaced, "answer").titles_and_texts()) == [("t", "x"), ("", "y")]
