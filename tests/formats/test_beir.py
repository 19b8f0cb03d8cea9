"""Reading labelled sets in BEIR's layout."""

from __future__ import annotations

import gzip
import json
import logging

import pytest
from datasets import Dataset, DatasetDict

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
        (
            [*CORPUS, {**CORPUS[0], "text": "other"}],
            QUERIES,
            QRELS,
            "Expected every id in `corpus` once, got 'd1' twice",
        ),
        (CORPUS, [*QUERIES, {"_id": "1", "text": "x"}], QRELS, "Expected every id in `queries` once, got '1' twice"),
        (CORPUS, [{"_id": "1"}], QRELS, "Expected `queries` to have a column 'text', got ['_id']"),
        ([{"_id": "d1", "title": "x"}], QUERIES, QRELS, "Expected `corpus` to have a column 'text'"),
        ([{"_id": None, "text": "x"}], QUERIES, QRELS, "Expected an id in row 0 of `corpus`, got none"),
        ([{"_id": "d1", "text": "\ud800"}], QUERIES, QRELS, "Expected valid Unicode in `corpus`, got a lone surrogate"),
        (CORPUS, QUERIES, [{**QRELS[0], "score": "NA"}], "Expected numbers as scores in `qrels`, got 'NA' in row 0"),
        (CORPUS, QUERIES, [{**QRELS[0], "query-id": ""}], "got no 'query-id' in row 0"),
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
    (tmp_path / "corpus.jsonl").write_text("\nnot json\n[]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected one JSON object per line in .* got something else in line 2"):
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


@pytest.mark.parametrize("name", ["score", "relevance", "label", "rel", "grade"])
def test_the_grade_may_have_another_name(name):
    """A judgement of 0 under another name is no positive."""
    qrels = [{"query-id": row["query-id"], "corpus-id": row["corpus-id"], name: row["score"]} for row in QRELS]
    assert read_beir(CORPUS, QUERIES, qrels)[0]["score"][:] == [2.0, 1.0]
    assert read_beir(CORPUS, QUERIES, [{"label": 0, **row} for row in QRELS])[0]["score"][:] == [2.0, 1.0]


def test_without_a_grade_it_is_1_and_an_unknown_column_is_refused(tmp_path):
    ids = [{"query-id": row["query-id"], "corpus-id": row["corpus-id"]} for row in QRELS]
    assert read_beir(CORPUS, QUERIES, ids)[0]["score"][:] == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"Expected the grade in `qrels` in a column named 'score'.* 'rating'"):
        read_beir(CORPUS, QUERIES, [{**row, "rating": 0} for row in ids])
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\n1\td1\t0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="got the column '\\(no name\\)'"):
        read_beir(CORPUS, QUERIES, tmp_path / "qrels.tsv")


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_bad_lines_of_judgements_are_left_out(tmp_path, caplog):
    """One warning per kind, with line numbers; a line that lost its score is not taken for a judgement of 1."""
    lines = ["query-id\tcorpus-id\tscore", "1\td1\t2", "\t\t", "2", "", "2\td3", "2\td3\tNA", "2\td3\tnan", "2\td3\t"]
    (tmp_path / "qrels.tsv").write_text("\r\n".join([*lines, "2\td2\t1"]), encoding="utf-8")
    pairs, _ = read_beir(CORPUS, QUERIES, tmp_path / "qrels.tsv")
    assert pairs.to_dict() == read_beir(CORPUS, QUERIES, QRELS)[0].to_dict()
    assert warnings_of(caplog) == [
        "`qrels`: 2 judgements without both ids are left out: line 3, line 4.",
        "`qrels`: 4 judgements whose score is no number are left out: line 6, line 7, line 8 and 1 more.",
    ]


def test_bad_documents_and_queries_are_left_out(tmp_path, caplog):
    """What is left is what the good lines make."""
    lines = [json.dumps(row) for row in CORPUS]
    bad = ['{"_id": "d4", "te', json.dumps({"_id": "d5", "text": "\ud800"}), lines[1], json.dumps({"text": "x"})]
    (tmp_path / "corpus.jsonl").write_text("\n".join([lines[0], *bad, *lines[1:]]), encoding="utf-8")
    queries = [*QUERIES, QUERIES[0], {"_id": "9"}, {"_id": "8", "text": "\udfff"}]
    pairs, corpus = read_beir(tmp_path / "corpus.jsonl", queries, QRELS)
    expected = read_beir(CORPUS, QUERIES, QRELS)
    assert pairs.to_dict() == expected[0].to_dict()
    assert sorted(corpus["text"]) == sorted(expected[1]["text"])
    assert warnings_of(caplog) == [
        "`corpus`: 1 lines that are no JSON object are left out: line 2.",
        "`corpus`: 1 rows with a lone surrogate, which is no valid Unicode, are left out: 'd5'.",
        "`corpus`: 1 rows without an id are left out: line 5.",
        "`corpus`: 1 rows repeat an id with the same text, and count once: 'd2'.",
        "`queries`: 1 rows repeat an id with the same text, and count once: '1'.",
        "`queries`: 1 rows with a lone surrogate, which is no valid Unicode, are left out: '8'.",
        "1 queries without a text are left out, such as '9'.",
    ]


def test_a_title_alone_is_a_text(caplog):
    _, corpus = read_beir([*CORPUS, {"_id": "d4", "title": "Four"}, {"_id": "d5"}], QUERIES, QRELS)
    assert corpus["text"][3:] == ["Four"]
    assert warnings_of(caplog) == [
        "`corpus`: 1 documents have no 'text'; their title alone is taken: 'd4'.",
        "1 documents without title and text are left out, such as 'd5'.",
    ]


@pytest.mark.parametrize("values", [(1, "x"), ("\ud800", "x"), (2**70, 1), ([1], ["x"]), ({"a": 1}, 3)])
def test_a_column_of_several_types_is_left_out(values, caplog):
    rows = [{**row, "year": value, "page": 3} for row, value in zip(CORPUS, (*values, None), strict=True)]
    _, corpus = read_beir(rows, QUERIES, QRELS)
    assert set(corpus.column_names) == {"_id", "title", "text", "page"} and len(corpus) == 3
    assert "1 columns of `corpus` are left out" in caplog.text and "'year'" in caplog.text


@pytest.mark.parametrize("name", ["qrels.csv", "qrels.txt", "qrels", "qrels.csv.gz"])
def test_another_suffix_of_the_judgements_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"Expected `qrels` as a `.tsv` file .* got '.*qrels"):
        read_beir(CORPUS, QUERIES, tmp_path / name)


@pytest.mark.parametrize("line", ["1\td1\t1", "1 0 d1 1", "x\td1", "1\tx"])
def test_judgements_without_a_header_are_refused(line, tmp_path):
    """Also where no number, but an id of the tables tells; other names of columns are no such case."""
    (tmp_path / "qrels.tsv").write_text(f"{line}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no header line: expected query-id, corpus-id, score"):
        read_beir(CORPUS, QUERIES, tmp_path / "qrels.tsv")
    (tmp_path / "qrels.tsv").write_text("qid\tpid\trel\n1\td1\t1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected `qrels` to have a column 'query-id', got \['qid', 'pid', 'rel'\]"):
        read_beir(CORPUS, QUERIES, tmp_path / "qrels.tsv")


def test_damaged_files_are_called_damaged(tmp_path):
    """Cut short, bytes changed, or no gzip at all; another encoding is called that."""
    whole = gzip.compress("".join(json.dumps({"_id": f"d{i}", "text": f"{i**9}"}) + "\n" for i in range(500)).encode())
    path = tmp_path / "corpus.jsonl.gz"
    for damaged in (whole[: len(whole) // 2], whole[:200] + b"\xff" * 50 + whole[250:], b"plain"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Expected a whole gzip file in .* got a damaged one"):
            read_beir(path, QUERIES, QRELS)
    (tmp_path / "corpus.jsonl").write_bytes('{"_id": "d1", "text": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"Expected UTF-8 in .* got another encoding"):
        read_beir(tmp_path / "corpus.jsonl", QUERIES, QRELS)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_several_splits_one_is_to_be_passed(place):
    tables = [Dataset.from_list(table) for table in (CORPUS, QUERIES, QRELS)]
    tables[place] = DatasetDict({"train": tables[place]})
    name = ("corpus", "queries", "qrels")[place]
    with pytest.raises(TypeError, match=rf"Expected `{name}` to be one table, got a DatasetDict .*: pass one split"):
        read_beir(*tables)


def test_dropped_judgements_are_counted(caplog):
    with caplog.at_level(logging.INFO, logger="st_hardneg"):
        read_beir(CORPUS, QUERIES, QRELS)
    assert "1 judgements with a score of 0 or less are dropped" in caplog.text
    assert not warnings_of(caplog)


def test_a_folder_is_read_by_its_layout(tmp_path):
    """Plain files or compressed ones, whichever split is asked for."""
    (tmp_path / "qrels").mkdir()
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in CORPUS)
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUERIES))
    for split, kept in (("train", QRELS[:1]), ("test", QRELS[1:])):
        lines = ["\t".join(str(value) for value in row.values()) for row in kept]
        (tmp_path / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    found = HardNegativeDataset.from_beir(tmp_path, num_negatives=1)
    assert list(found.known_pairs()) == [("what is first", "One. first text")]
    found = HardNegativeDataset.from_beir(str(tmp_path), split="test", title_separator=" ")
    assert list(found.known_pairs()) == [("what is second", "second text")]
    assert found.corpus.texts.take([0]) == ["One first text"]
    with pytest.raises(
        FileNotFoundError, match=r"Expected `qrels/dev.tsv` in .*, got \['test.tsv', 'train.tsv'\] there"
    ):
        HardNegativeDataset.from_beir(tmp_path, split="dev")
    with pytest.raises(TypeError, match="Expected a folder alone, or three tables, got a folder and tables"):
        HardNegativeDataset.from_beir(tmp_path, QUERIES)
    with pytest.raises(TypeError, match=r"got no `queries`, and '/nowhere' is no folder"):
        HardNegativeDataset.from_beir("/nowhere")
    with pytest.raises(TypeError, match=r"got no `qrels`\. Pass `from_beir\(corpus, queries, qrels\)`"):
        HardNegativeDataset.from_beir(CORPUS, QUERIES)
