"""Files of other tools, written and read back: every text as it was, ids, rows, scores and weights beside it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError, NotMinedError
from st_hardneg.exporting import write_csv
from st_hardneg.formats import flag_embedding, ids, tevatron
from st_hardneg.formats.records import Record, Text, write_lines

NASTY = [
    'a "quoted" text\nof two lines\r\nand a tab\t.',
    "emoji 👩‍👩‍👧‍👦 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u2028 line separator \u0085 next line",
    "مرحبا بالعالم \u202eright to left\u202c שלום",
    "x" * 100_000,
    " leading and trailing ",
    "comma, semicolon; 'quote' \\ backslash {\"json\": [1]}",
    "nul \x00 and bell \x07",
    "e\u0301 decomposed and \u00e9 composed",
]
TEXTS = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip()),
)
SCORES = st.floats(-1, 1, allow_nan=False, width=32)
# What rows and texts say besides: names that files have themselves, None, lists, texts of all kinds.
FURTHER = st.fixed_dictionaries(
    {"year": st.none() | st.integers(-(2**60), 2**60), "text_": TEXTS, "tags": st.lists(TEXTS)}
)


@st.composite
def records(draw) -> list[Record]:
    found, number = [], 0
    for query in range(draw(st.integers(1, 4))):
        positives = []
        for _ in range(draw(st.integers(1, 3))):
            text, score, weight = draw(TEXTS), draw(SCORES), draw(st.floats(0, 1, width=32))
            further = {"columns": draw(FURTHER), "metadata": draw(FURTHER)}
            positives.append(Text(text, f"d{number}", score, number, weight, **further))
            number += 1
        count = draw(st.integers(1, 3))
        negatives = [
            Text(draw(TEXTS), f"n{query}-{place}", draw(SCORES), metadata=draw(FURTHER)) for place in range(count)
        ]
        found.append(Record(draw(TEXTS), f"q{query}", positives, negatives))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=records())
@pytest.mark.parametrize("room", [flag_embedding, tevatron])
def test_lines_come_back_as_they_were(room, found, tmp_path):
    """Of FlagEmbedding and Tevatron, whatever stands in the texts."""
    path = str(tmp_path / "lines.jsonl")
    write_lines(path, map(room.line_of, found))
    assert list(room.read_records(path)) == found
    assert len((tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()) == len(found)
    hosts = [
        row["query"] for row in load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "c"))
    ]
    assert hosts == [one.query for one in found]


@settings(max_examples=40, deadline=None)
@given(found=records())
def test_ids_come_back_as_they_were(found):
    """Of rows of ids with their texts beside them."""
    tables = ids.tables_of(found)
    order = ("train", "queries", "documents", "metadata")
    assert list(ids.records_by_id(*(tables[name] for name in order))) == found


@pytest.fixture
def mined(bag_of_words) -> HardNegativeDataset:
    """Nasty texts with grades, some queries with several right answers."""
    anchors = [f"w{place} w{place + 1} {text}" for place, text in enumerate(NASTY)] * 2
    positives = [f"{text} w{place} w{place + 1}" for place, text in enumerate(NASTY)]
    positives += [f"another w{place} w{place + 1} {text}" for place, text in enumerate(NASTY)]
    weights = [1.0 if place % 3 else 0.5 for place in range(len(anchors))]
    pairs = Dataset.from_dict({"anchor": anchors, "positive": positives, "weight": weights})
    corpus = {f"doc {place}": f"{text} w{place + 40} {place}" for place, text in enumerate(NASTY * 3)}
    dataset = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=3))
    dataset.mine(bag_of_words, show_progress_bar=False)
    return dataset


def negatives_of(dataset: HardNegativeDataset) -> list[list[str]]:
    return [dataset.corpus.texts.take(row[row >= 0]) for row in dataset.negative_ids]


def given_of(dataset: HardNegativeDataset) -> list[list[str]]:
    names = [
        name
        for name in dataset._wrapped.rows.dataset.column_names
        if name.startswith("negative_") and name[-1].isdigit()
    ]
    return [[row[name] for name in names if row[name] is not None] for row in dataset._wrapped.rows.dataset]


@pytest.mark.parametrize(
    ("layout", "read"),
    [
        ("flag-embedding", HardNegativeDataset.from_flag_embedding),
        ("tevatron", HardNegativeDataset.from_tevatron),
        ("ids", HardNegativeDataset.from_ids),
    ],
)
def test_a_dataset_comes_back(mined, layout, read, tmp_path, bag_of_words):
    """Rows in their order, negatives, weights, ids and scores; and it can be mined again."""
    path = mined.export(tmp_path / "out", layout)
    found = read(path)
    assert list(found.known_pairs()) == list(mined.known_pairs())
    assert given_of(found) == negatives_of(mined)
    rows = found._wrapped.rows.dataset
    assert rows["weight"][:] == mined._wrapped.rows.dataset["weight"][:]
    np.testing.assert_array_equal(
        np.array(rows["positive_score"][:], np.float32), mined.live.mining.positive_similarities.numpy()
    )
    expected = [[one for one in row if np.isfinite(one)] for row in mined.negative_scores.tolist()]
    assert rows["negative_scores"][:] == expected
    ours = set(found.corpus.given["_id"][:])
    assert ours == {one for row in mined.provenance() for one in [row["positive_id"], *row["negative_ids"]] if one}
    with_given = read(path, MiningConfig(num_negatives=3, sources={"given": 3}))
    with_given.mine(bag_of_words, show_progress_bar=False)
    assert [sorted(row) for row in negatives_of(with_given)] == [sorted(row) for row in negatives_of(mined)]


def test_beir_comes_back(mined, tmp_path):
    """Pairs in their order, weights, negatives and every text as it was."""
    path = mined.export(tmp_path / "out", "beir")
    found = HardNegativeDataset.from_beir(path)
    assert list(found.known_pairs()) == list(mined.known_pairs())
    assert given_of(found) == negatives_of(mined)
    rows = found._wrapped.rows.dataset
    assert rows["weight"][:] == mined._wrapped.rows.dataset["weight"][:]
    expected = [[one for one in row if np.isfinite(one)] for row in mined.negative_scores.tolist()]
    assert rows["negative_scores"][:] == expected
    negatives = tmp_path / "out" / "negatives.tsv"
    assert len(negatives.read_text().splitlines()) == 1 + 3 * mined.num_queries
    negatives.write_text(negatives.read_text() + "0\tno such id\t1\n")
    with pytest.raises(ValueError, match=f"in line {2 + 3 * mined.num_queries} of "):
        HardNegativeDataset.from_beir(path)


READERS = {
    "flag-embedding": HardNegativeDataset.from_flag_embedding,
    "tevatron": HardNegativeDataset.from_tevatron,
    "ids": HardNegativeDataset.from_ids,
    "beir": HardNegativeDataset.from_beir,
}


@st.composite
def labelled(draw) -> tuple[Dataset, Dataset]:
    """Rows and a corpus that say more than texts: ids of queries, grades, evidence, notes; equal rows under two ids."""
    count = draw(st.integers(2, 6))
    words = [f"w{place} w{place + 1}" for place in range(count)]
    row = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1), TEXTS, st.sampled_from([1, 2, 3]))
    rows = draw(st.lists(row, min_size=1, max_size=6))
    pairs = {
        "question": [f"{words[query]} {NASTY[query % 7]}" for query, _, _, _ in rows],
        "answer": [f"{words[answer]} answer {NASTY[answer % 5]}" for _, answer, _, _ in rows],
        "query_id": [f"q{query}-{place}" for place, (query, _, _, _) in enumerate(rows)],
        "score": [grade for _, _, _, grade in rows],
        "weight": [grade / 3 for _, _, _, grade in rows],
        "evidence": [draw(st.sampled_from(["whole", "partly", None])) for _ in rows],
        "note": [{"by": note, "sentences": [1] * grade} for _, _, note, grade in rows],
    }
    if not draw(st.booleans()):
        del pairs["query_id"]
    texts = [f"{word} answer {NASTY[place % 5]}" for place, word in enumerate(words)]
    texts += [f"{text} {place}" for place, text in enumerate(NASTY)]
    corpus = {
        "_id": [f"d {place}" for place in range(len(texts))],
        "text": texts,
        "year": [draw(st.none() | st.integers(0, 3000)) for _ in texts],
        "title": [draw(TEXTS) if draw(st.booleans()) else None for _ in texts],
    }
    return Dataset.from_dict(pairs), Dataset.from_dict(corpus)


@pytest.mark.training
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=labelled())
def test_what_rows_and_corpus_say_comes_back(tables, bag_of_words, tmp_path_factory):
    """Every row in its order, also one that is there twice, with grade, evidence and notes; and each text's columns."""
    pairs, corpus = tables
    dataset = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=2, shortfall="random"))
    dataset.mine(bag_of_words, show_progress_bar=False)
    for layout, read in READERS.items():
        found = read(dataset.export(tmp_path_factory.mktemp("out") / "out", layout))
        assert list(found.known_pairs()) == list(dataset.known_pairs()), layout
        assert given_of(found) == negatives_of(dataset), layout
        rows = found._wrapped.rows.dataset
        for name in ("score", "weight", "evidence", "note", *({"query_id"} & set(pairs.column_names))):
            assert rows[name][:] == pairs[name][:], (layout, name)
        known = {row["_id"]: row for row in corpus}
        for row in found.corpus.given:
            assert {name: row[name] or None for name in known[row["_id"]]} == {
                name: value or None for name, value in known[row["_id"]].items()
            }, layout


def test_equal_texts_under_two_ids_are_two_judgements(bag_of_words, tmp_path):
    """A claim that stands twice under ids of its own keeps both; a row that is there twice gets an id for its copy."""
    queries = [{"_id": name, "text": text} for name, text in (("85", "w1 w2"), ("86", "w1 w2"), ("90", "w3"))]
    corpus = [{"_id": f"d{place}", "title": "", "text": f"w{place} w{place + 1} text"} for place in range(12)]
    judged = [("85", "d1", 1), ("86", "d1", 1), ("86", "d2", 2), ("85", "d2", 1), ("90", "d3", 1)]
    qrels = [dict(zip(("query-id", "corpus-id", "score"), row, strict=True)) for row in judged]
    dataset = HardNegativeDataset.from_beir(corpus, queries, qrels, MiningConfig(num_negatives=2))
    dataset.mine(bag_of_words, show_progress_bar=False)
    folder = dataset.export(tmp_path / "out", "beir")
    lines = (tmp_path / "out" / "qrels" / "train.tsv").read_text().splitlines()[1:]
    assert [tuple(line.split("\t")[:2]) for line in lines] == [row[:2] for row in judged]
    found = HardNegativeDataset.from_beir(folder)._wrapped.rows.dataset
    assert found.select_columns(["query-id", "corpus-id", "score", "weight"]).to_dict() == {
        name: dataset._wrapped.rows.dataset[name][:] for name in ("query-id", "corpus-id", "score", "weight")
    }
    plain = Dataset.from_dict({"anchor": ["w1", "w1", "w2", "w1"], "positive": ["w1 a", "w1 a", "w2 b", "w1 a"]})
    dataset = HardNegativeDataset(plain, [f"w{place} c" for place in range(9)], MiningConfig(num_negatives=2))
    dataset.mine(bag_of_words, show_progress_bar=False)
    found = HardNegativeDataset.from_beir(dataset.export(tmp_path / "plain", "beir"))
    assert list(found.known_pairs()) == list(dataset.known_pairs())
    assert len(set(found._wrapped.rows.dataset["query-id"][:])) == 4


def test_columns_that_no_file_can_hold_are_named(bag_of_words, word_pairs, tmp_path, caplog):
    """In one warning; the rest is written."""
    rows = word_pairs.add_column("raw", [b"\x00"] * len(word_pairs)).add_column("year", [2020] * len(word_pairs))
    dataset = HardNegativeDataset(rows, config=MiningConfig(num_negatives=1))
    dataset.mine(bag_of_words, show_progress_bar=False)
    found = HardNegativeDataset.from_flag_embedding(dataset.export(tmp_path / "out.jsonl"))
    assert "The columns ['raw'] of the rows are not written" in caplog.text
    columns = found._wrapped.rows.dataset.column_names
    assert "year" in columns and "raw" not in columns


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("layout", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
def test_the_formats_of_sentence_transformers_come_back(mined, layout, ending, tmp_path):
    """As `load_dataset` reads them; lists do not fit into CSV."""
    if (layout, ending) == ("labeled-list", "csv"):
        return
    path = mined.export(tmp_path / f"out.{ending}", layout)
    kind = {"jsonl": "json"}.get(ending, ending)
    found = load_dataset(kind, data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    expected = mined.to_dataset(layout)
    assert found.to_dict() == expected.to_dict()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS | st.sampled_from(["a\rb", "\r", "NA", "null", '"', "\ufeffx", "1", "\x00"]), min_size=1))
def test_csv_is_exact(texts, tmp_path, caplog):
    """As the standard library and pandas read it; what pandas takes for a missing value is said."""
    caplog.clear()
    path = str(tmp_path / "texts.csv")
    rows = Dataset.from_dict({"anchor": texts, "label": [number % 2 for number in range(len(texts))]})
    write_csv(rows, path)
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file, strict=True))
    assert [row["anchor"] for row in found] == texts and [int(row["label"]) for row in found] == rows["label"][:]
    assert pd.read_csv(path, keep_default_na=False, dtype={"anchor": str})["anchor"].tolist() == texts
    is_missing = pd.read_csv(path, dtype={"anchor": str})["anchor"].isna().any()
    assert ("read from CSV as a missing value" in caplog.text) == is_missing


def test_candidates_of_others_are_chosen_from(tmp_path):
    """Lists with scores are a pool: a margin picks from them without a model; what was not measured is refused."""
    train = Dataset.from_dict(
        {
            "query_id": ["q1", "q2"],
            "document_ids": ["['a', 'b', 'c']", "['c', 'a', 'd']"],
            "scores": ["[0.9, 0.5, 0.88]", "[0.8, 0.7, 0.1]"],
        }
    )
    queries = Dataset.from_dict({"query_id": ["q1", "q2"], "query": ["one", "two"]})
    documents = {name: f"text {name}" for name in "abcd"}
    found = HardNegativeDataset.from_ids(train, queries, documents)
    rows = found.candidates()
    assert rows["document_ids"][:] == [["a", "c", "b"], ["c", "a", "d"]] and rows["num_positives"][:] == [1, 1]
    chosen = found.choose(MiningConfig(num_negatives=1, relative_margin=0.05))
    assert negatives_of(chosen) == [["text b"], ["text a"]]
    assert chosen.negative_scores.tolist() == [[0.5], [pytest.approx(0.7)]]
    with pytest.raises(ValueError, match="which was not measured"):
        found.choose()
    with pytest.raises(NotMinedError):
        HardNegativeDataset.from_ids(train.remove_columns("scores"), queries, documents).candidates()


BAD = [
    ("flag_embedding", b'{"query": "q", "pos": ["p"]}\n{"query": "q", "pos": [', "line 2"),
    ("flag_embedding", b'{"query": "q", "pos": ["p"]}\n\n["q"]', "line 3"),
    ("flag_embedding", b'{"query": "q"}', "Expected right answers as 'pos' in line 1"),
    ("flag_embedding", b'{"query": 3, "pos": ["p"]}', "Expected a text as 'query' in line 1"),
    ("flag_embedding", b'{"query": "q", "pos": ["p", null]}', "Expected texts in 'pos' of line 1"),
    ("flag_embedding", b'{"query": "q", "pos": ["p"], "pos_scores": [1, 2]}', "Expected a list of 1 as 'pos_scores'"),
    ("flag_embedding", '{"query": "é", "pos": ["p"]}'.encode("latin-1"), "Expected UTF-8 in .* in line 1"),
    ("flag_embedding", b"", "Expected queries with a right answer"),
    ("flag_embedding", b'{"query": "q", "pos": ["a", "b"], "pos_id": ["1", "1"]}', "Expected one text per id"),
    (
        "flag_embedding",
        b'{"query": "q", "pos": ["p"], "pos_columns": ["["]}',
        "Expected a JSON object as text in line 1",
    ),
    ("tevatron", b'{"query": "q", "positive_passages": ["p"]}', "Expected objects in 'positive_passages' of line 1"),
    ("tevatron", b'{"query": "q", "pos": []}', "Expected 'positive_passages' in line 1"),
]


@pytest.mark.parametrize(("kind", "content", "words"), BAD)
def test_bad_lines_are_named(kind, content, words, tmp_path):
    """With the number of the line, and what to do."""
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        getattr(HardNegativeDataset, f"from_{kind}")(tmp_path / "bad.jsonl")
    with pytest.raises(FileNotFoundError, match="Check the path"):
        getattr(HardNegativeDataset, f"from_{kind}")(tmp_path / "none.jsonl")


def test_bad_tables_of_ids():
    """Each with what is wrong with it."""
    good = {"query_id": ["q"], "document_ids": [["a", "b"]], "scores": [[1.0, 0.5]]}
    for changes, words in (
        ({"document_ids": [["a", "z"]]}, "Expected a text in `documents` for the id 'z'"),
        ({"scores": [[1.0]]}, "Expected as many scores as documents"),
        ({"query_id": ["x"]}, "Expected a text in `queries` for the id 'x'"),
        ({"document_ids": ["no list"]}, "Expected a list in row 0"),
        ({"num_positives": [5]}, "and a right answer among them"),
    ):
        with pytest.raises(ValueError, match=words):
            HardNegativeDataset.from_ids(
                Dataset.from_dict({**good, **changes}), {"q": "query"}, {"a": "one", "b": "two"}
            )
    with pytest.raises(ValueError, match="Expected columns `query_id` and `document_ids`"):
        HardNegativeDataset.from_ids(Dataset.from_dict({"a": ["x"]}), {}, {})
    with pytest.raises(TypeError, match="Expected `queries` as a dictionary"):
        HardNegativeDataset.from_ids(Dataset.from_dict(good), [], {})
    twice = Dataset.from_dict({"document_id": ["a", "a"], "document": ["one", "two"]})
    with pytest.raises(ValueError, match="Expected one text per id in `documents`"):
        HardNegativeDataset.from_ids(Dataset.from_dict(good), {"q": "query"}, twice)


def test_what_cannot_be_written(mined, tmp_path, monkeypatch):
    """The old file stays, and nothing lies about."""
    with pytest.raises(ValueError, match="Expected `layout` to be one of"):
        mined.export(tmp_path / "out", "trec")
    with pytest.raises(ValueError, match="Expected a file that ends in"):
        mined.export(tmp_path / "out.xml", "triplet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs").write_text("theirs")
    with pytest.raises(FileExistsError, match="to be a new or empty folder"):
        mined.export(tmp_path / "full", "ids")
    path = mined.export(tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mined.export(path)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["full", "out.jsonl"]


def test_nothing_is_exported_before_it_is_mined(word_pairs, tmp_path):
    """It says to mine first."""
    with pytest.raises((NotMinedError, MiningError), match=r"Call `\.mine"):
        HardNegativeDataset(word_pairs).export(tmp_path / "out")
