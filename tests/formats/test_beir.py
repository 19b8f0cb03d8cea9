"""Reading labelled sets in BEIR's layout."""

from __future__ import annotations

import gzip
import json

import pytest
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.formats.beir import read_beir

CORPUS = [
    {"_id": "d1", "title": "One", "text": "first text"},
    {"_id": "d2", "title": "", "text": "second text"},
    {"_id": "d3", "text": "third text"},
]
QUERIES = [{"_id": "1", "text": "what is first"}, {"_id": "2", "text": "what is second"}]
QRELS = [
    {"query-id": "1", "corpus-id": "d1", "score": 2},
    {"query-id": "2", "corpus-id": "d2", "score": 1},
    {"query-id": "2", "corpus-id": "d3", "score": 0},
]


def test_tables_become_pairs_and_a_corpus():
    """Title and text are joined, grades kept, judgements of 0 dropped."""
    pairs, corpus = read_beir(CORPUS, Dataset.from_list(QUERIES), QRELS)
    assert corpus["text"][:] == ["One. first text", "second text", "third text"]
    assert pairs.to_list() == [
        {
            "anchor": "what is first",
            "positive": "One. first text",
            "query-id": "1",
            "corpus-id": "d1",
            "score": 2.0,
            "weight": 1.0,
        },
        {
            "anchor": "what is second",
            "positive": "second text",
            "query-id": "2",
            "corpus-id": "d2",
            "score": 1.0,
            "weight": 0.5,
        },
    ]


def test_files_plain_and_compressed(tmp_path):
    """Paths to jsonl and tsv, also gzipped, give the same."""
    lines = "".join(json.dumps(row) + "\n" for row in CORPUS)
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in QUERIES), encoding="utf-8")
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t2\n2\td2\t1\n2\td3\t0\n", encoding="utf-8")
    read = read_beir(tmp_path / "corpus.jsonl.gz", str(tmp_path / "queries.jsonl"), tmp_path / "test.tsv")
    expected = read_beir(CORPUS, QUERIES, QRELS)
    assert [table.to_list() for table in read] == [table.to_list() for table in expected]


def test_a_dataset_is_made_of_it(bag_of_words):
    """`from_beir` wraps the pairs; ids of the set are in the provenance, weights in the labels."""
    hard_negatives = HardNegativeDataset.from_beir(CORPUS, QUERIES, QRELS, MiningConfig(num_negatives=1))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    assert set(hard_negatives.provenance()["positive_id"]) == {"d1", "d2"}
    assert [label[3] for label in hard_negatives.as_dataset(with_ids=True)["label"]] == [1_000_000, 500_000]
    # Judged as not relevant is not known to be right: d3 may be a negative of query 2, d1 never of query 1.
    assert hard_negatives.as_dataset().column_names == ["anchor", "positive", "negative_1"]


@pytest.mark.parametrize(
    ("corpus", "queries", "qrels", "message"),
    [
        ([{"_id": "d1"}], QUERIES, QRELS, "Expected `corpus` to have a column 'text', got ['_id']"),
        ([*CORPUS, CORPUS[0]], QUERIES, QRELS, "Expected every id in `corpus` once, got 'd1' twice"),
        (CORPUS, [{"_id": "9", "text": "x"}], QRELS, "Expected judgements in `qrels` that name ids of both tables"),
        (CORPUS, QUERIES, QRELS[2:], "Expected judgements with a score above 0 in `qrels`, got none"),
        (CORPUS, [{"text": "x"}], QRELS, "Expected `queries` to have a column '_id'"),
        (CORPUS, QUERIES, [{"query-id": "1"}], "Expected `qrels` to have a column 'corpus-id'"),
    ],
)
def test_bad_tables(corpus, queries, qrels, message):
    """What does not fit together is named."""
    with pytest.raises(ValueError) as caught:
        read_beir(corpus, queries, qrels)
    assert message in str(caught.value)


def test_bad_kinds_and_lines(tmp_path):
    """A number is no table, and a broken line is named by its number."""
    with pytest.raises(TypeError, match="Expected `corpus` to be a path, a list of dictionaries or a Dataset, got int"):
        read_beir(3, QUERIES, QRELS)
    with pytest.raises(TypeError, match="Expected `queries` to hold dictionaries, got str"):
        read_beir(CORPUS, ["x"], QRELS)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "x"}\nnot json\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"got something else in line 2"):
        read_beir(tmp_path / "corpus.jsonl", QUERIES, QRELS)


def test_real_scifact(data_dir, bag_of_words):
    """On the real set no training positive leaks into the negatives, also where two queries have the same text."""
    hard_negatives = HardNegativeDataset.from_beir(
        f"{data_dir}/scifact/corpus.jsonl.gz",
        f"{data_dir}/scifact/queries.jsonl.gz",
        f"{data_dir}/scifact/qrels/train.tsv",
        MiningConfig(num_negatives=5),
    )
    assert len(hard_negatives) == 919
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    judged: dict[str, set[str]] = {}
    for anchor, positive in hard_negatives.known_pairs():
        judged.setdefault(anchor, set()).add(positive)
    assert len(judged) == 807  # of 809 query ids, two pairs share a text
    for anchor, ids in zip((a for a, _ in hard_negatives.known_pairs()), hard_negatives.negative_ids, strict=True):
        assert not judged[anchor] & set(hard_negatives.corpus.texts.take(ids))


@pytest.mark.parametrize(
    ("corpus", "queries", "extra"),
    [
        (CORPUS, QUERIES, {"query-id": "1", "corpus-id": "nope", "score": 1}),
        (CORPUS, QUERIES, {"query-id": "nope", "corpus-id": "d1", "score": 1}),
        ([*CORPUS, {"_id": "e", "text": ""}], QUERIES, {"query-id": "1", "corpus-id": "e", "score": 1}),
        (CORPUS, [*QUERIES, {"_id": "e", "text": " "}], {"query-id": "e", "corpus-id": "d1", "score": 1}),
    ],
    ids=["unknown document", "unknown query", "empty document", "empty query"],
)
def test_a_judgement_of_what_is_not_there_is_left_out(corpus, queries, extra, caplog):
    """ArguAna, NFCorpus and FiQA have such lines; one of them does not stop everything."""
    pairs, _ = read_beir(corpus, queries, [*QRELS, extra])
    expected, _ = read_beir(CORPUS, QUERIES, QRELS)
    assert pairs.to_dict() == expected.to_dict()
    assert "1 judgements are left out" in caplog.text


def test_the_dictionaries_of_beirs_loader_are_read():
    """`GenericDataLoader` returns documents, queries and judgements by id."""
    corpus = {row["_id"]: {"title": row.get("title", ""), "text": row["text"]} for row in CORPUS}
    qrels: dict[str, dict[str, int]] = {}
    for row in QRELS:
        qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = row["score"]
    pairs, documents = read_beir(corpus, {row["_id"]: row["text"] for row in QUERIES}, qrels)
    expected, _ = read_beir(CORPUS, QUERIES, QRELS)
    assert pairs.to_dict() == expected.to_dict()
    assert documents["_id"][:] == [row["_id"] for row in CORPUS]
    with pytest.raises(TypeError, match="Expected `queries` to map ids to texts or documents, got int"):
        read_beir(corpus, {"1": 3}, qrels)


def test_judgements_that_repeat_or_contradict_each_other_count_once(caplog):
    """As a row each, they would weigh double; of two grades the higher one counts, for a right answer is no negative."""
    again = [
        {"query-id": "1", "corpus-id": "d1", "score": 2},
        {"query-id": "2", "corpus-id": "d2", "score": 0},
        {"query-id": "2", "corpus-id": "d3", "score": 1},
    ]
    for qrels in ([*QRELS, *again], [*again, *QRELS]):
        caplog.clear()
        pairs, _ = read_beir(CORPUS, QUERIES, qrels)
        rows = {(row["query-id"], row["corpus-id"]): row["score"] for row in pairs}
        assert len(pairs) == 3 and rows == {("1", "d1"): 2.0, ("2", "d2"): 1.0, ("2", "d3"): 1.0}
        assert "3 judgements repeat a pair of ids that is judged already" in caplog.text
        assert "2 pairs of ids have grades that contradict each other" in caplog.text


@pytest.mark.parametrize("kind", [float, lambda number: f"{number}.0", int, str])
def test_ids_that_have_become_floats_are_found(kind):
    """Pandas reads a column of whole numbers as floats where one is missing."""
    corpus = [{"_id": str(number), "text": f"text {number}"} for number in (1, 2)]
    queries = [{"_id": 7, "text": "what"}]
    pairs, _ = read_beir(corpus, queries, [{"query-id": kind(7), "corpus-id": kind(2), "score": 1}])
    assert pairs[0]["positive"] == "text 2" and pairs[0]["query-id"] == "7"
    as_floats = [{**row, "_id": float(row["_id"])} for row in corpus]
    assert read_beir(as_floats, queries, [{"query-id": "7", "corpus-id": "2", "score": 1}])[1]["_id"][:] == ["1", "2"]


def test_a_missing_id_is_left_out_with_a_warning(caplog):
    pairs, _ = read_beir(CORPUS, QUERIES, [*QRELS, {"query-id": float("nan"), "corpus-id": "d1", "score": 1}])
    assert len(pairs) == 2 and "such as the query id 'nan'" in caplog.text
