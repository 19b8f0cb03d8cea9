"""Bad input on the command line: a clear message, exit code 1, and what was there before is as it was."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from st_hardneg import HardNegativeDataset
from st_hardneg.command.main import main
from tests.command.runs import ROWS, error_of, mine, write_csv


@pytest.fixture
def mined(place, capsys) -> Path:
    """The place, with a mined dataset, its page and a file of labels."""
    assert mine("--num-negatives", "2", "--output", "mined") == 0
    assert main(["review", "export", "mined", "--output", "labels.jsonl", "--number", "4"]) == 0
    first, *others = Path("labels.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.dumps({**json.loads(first), "label": "exclude"}), *others]
    Path("labels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    capsys.readouterr()
    return place


def state(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, with its content."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def write_beir(corpus: list[dict], queries: list[dict], qrels: list[tuple]) -> None:
    os.makedirs("beir/qrels", exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        with open(f"beir/{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    with open("beir/qrels/train.tsv", "w", encoding="utf-8") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in [("query-id", "corpus-id", "score"), *qrels])


def labelled_set() -> tuple[list[dict], list[dict], list[tuple]]:
    corpus = [{"_id": f"d{place}", "title": "", "text": text} for place, (_, text) in enumerate(ROWS)]
    queries = [{"_id": f"q{place}", "text": text} for place, (text, _) in enumerate(ROWS)]
    return corpus, queries, [(f"q{place}", f"d{place}", 1) for place in range(len(ROWS))]


def test_columns_that_are_not_there(mined, capsys):
    """Of rows, named by a flag or by a line of a recipe."""
    before = state(mined)
    words = ("mine", "pairs.csv", "--model", "model", "--output", "mined")
    assert "Did you mean 'positive'?" in error_of(capsys, *words, "--positive-column-name", "postive")
    assert state(mined) == before
    (mined / "recipe.yaml").write_text("anchor_column_name: question\n")
    assert "question" in error_of(capsys, *words, "--config", "recipe.yaml")
    assert {name: content for name, content in state(mined).items() if name != "recipe.yaml"} == before


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_mixed_encodings(mined, capsys, encoding):
    """The first line that is in another encoding is named: of rows, of a corpus, of labels."""
    before = state(mined)
    good, bad = b"anchor,positive\na,b\n", "«café»,d\n".encode(encoding)
    (mined / "mixed.csv").write_bytes(good + bad)
    words = ("--model", "model", "--output", "mined")
    assert "mixed.csv, line 3: expected UTF-8" in error_of(capsys, "mine", "mixed.csv", *words)
    (mined / "mixed.txt").write_bytes(b"a text\n" + bad)
    assert "mixed.txt, line 2: expected UTF-8" in error_of(capsys, "mine", "pairs.csv", *words, "--corpus", "mixed.txt")
    (mined / "mixed.jsonl").write_bytes((mined / "labels.jsonl").read_bytes() + bad)
    said = error_of(capsys, "review", "apply", "mined", "mixed.jsonl", "--output", "mined")
    assert "line 5: expected UTF-8" in said
    assert {name: content for name, content in state(mined).items() if not name.startswith("mixed")} == before


def test_ids_that_are_there_twice(mined, capsys):
    """With different texts, in a labelled set and in a corpus; nobody could say which one is meant."""
    before = state(mined)
    corpus, queries, qrels = labelled_set()
    words = ("--model", "model", "--output", "mined")
    for tables, name in (
        (([*corpus, {"_id": "d3", "text": "note 77°"}], queries, qrels), "'d3'"),
        ((corpus, [*queries, {"_id": "q2", "text": "77°"}], qrels), "'q2'"),
    ):
        write_beir(*tables)
        assert f"got {name} twice, with different texts" in error_of(capsys, "mine", "beir", *words)
    with open("corpus.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": number // 2, "text": f"note {number}°"}) + "\n" for number in range(6))
    said = error_of(capsys, "mine", "pairs.csv", *words, "--corpus", "corpus.jsonl")
    assert "Expected every id in the column 'id' of `corpus` once, got '0' twice, with different texts" in said
    assert {name: content for name, content in state(mined).items() if name in before} == before


def test_judgements_that_name_missing_ids(mined, capsys, caplog):
    """All of them: an error. Some: they are left out, and it says so."""
    before = state(mined)
    corpus, queries, qrels = labelled_set()
    write_beir(corpus, queries, [(f"x{place}", document, score) for place, (_, document, score) in enumerate(qrels)])
    words = ("mine", "beir", "--model", "model", "--output", "mined")
    assert "the first names the query id 'x0'" in error_of(capsys, *words)
    assert {name: content for name, content in state(mined).items() if name in before} == before
    write_beir(corpus, queries, [*qrels, ("q1", "d99", 1)])
    assert mine("--output", "mined", source="beir") == 0
    assert "1 judgements are left out" in caplog.text and "the corpus id 'd99'" in caplog.text
    assert len(HardNegativeDataset.load_from_disk("mined")) == len(ROWS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "postive"}, "line 2: expected `label` to be one of"),
        ({"row": "first"}, "line 2: expected a whole number as `row`, got 'first'"),
        ({"corpus_id": 10**6}, "line 2: there is no row"),
        ({"text": "another"}, "line 2: the text is not the one of row"),
        (None, "line 2: this is no JSON"),
    ],
)
def test_labels_that_were_edited_by_hand(mined, capsys, change, said):
    """The line of the mistake is named; the dataset is as it was, also if it is the one to be written to."""
    rows = [json.loads(line) | {"label": "exclude"} for line in (mined / "labels.jsonl").read_text().splitlines()]
    lines = [json.dumps(row if number != 1 else {**row, **(change or {})}) for number, row in enumerate(rows)]
    lines[1] = lines[1] if change else lines[1][:-1]
    (mined / "labels.jsonl").write_text("\n".join(lines) + "\n")
    before = state(mined)
    assert said in error_of(capsys, "review", "apply", "mined", "labels.jsonl", "--output", "mined")
    assert state(mined) == before


WRITES = [
    ("mine", "pairs.csv", "--model", "model", "--output"),
    ("report", "mined", "--output"),
    ("review", "export", "mined", "--output"),
    ("review", "apply", "mined", "labels.jsonl", "--output"),
    ("export", "mined", "--format", "flag-embedding"),
    ("export", "mined", "--format", "beir"),
    ("export", "mined", "--format", "ids"),
    ("export", "mined", "--format", "n-tuple"),
    ("push", "mined", "me/mined", "--dry-run"),
]


@pytest.mark.parametrize("words", WRITES, ids=lambda words: " ".join(words[:4]))
def test_places_that_cannot_be_written_to(mined, capsys, words):
    """Below a file, and where nobody may write, root included."""
    before = state(mined)
    for place in ("pairs.csv/below", "/proc/below"):
        path = f"{place}.html" if words[0] in ("report", "review") and "apply" not in words else place
        said = error_of(capsys, *words, path)
        assert "Cannot write" in said and path in said
    assert state(mined) == before


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: the system refuses the write that would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "words",
    [
        ("mine", "pairs.csv", "--model", "model", "--output", "mined"),
        ("report", "mined", "--output", "mined.html"),
        ("review", "export", "mined", "--output", "labels.jsonl"),
        ("export", "mined", "out.jsonl", "--format", "flag-embedding"),
        ("export", "mined", "out.parquet", "--format", "n-tuple"),
        ("export", "mined", "beir", "--format", "beir"),
        ("push", "mined", "me/mined", "--dry-run", "published"),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_writes_that_break_off(mined, capsys, words):
    """A file that cannot be finished takes the place of none, and nothing half written stays."""
    before = state(mined)
    with full_disk(150):
        said = error_of(capsys, *words)
    assert "Cannot write" in said and "File too large" in said
    assert state(mined) == before
    assert len(HardNegativeDataset.load_from_disk("mined")) == len(ROWS)


def test_no_network(mined, capsys, monkeypatch):
    """Of a push that cannot be made, everything lies ready in a folder that is named; nothing else has changed."""
    before = state(mined)
    said = error_of(capsys, "push", "mined", "me/mined")
    assert "The repository is as it was" in said or "nothing was pushed" in said.casefold()
    assert "as a dataset of the Hub it cannot be loaded" in error_of(capsys, "mine", "me/none", "--model", "model")
    assert "which takes a network once" in error_of(capsys, "mine", "pairs.csv", "--model", "me/no-such-model")
    assert state(mined) == before


def test_pairs_without_a_second_column(place, capsys):
    """What is missing is said, and nothing is written."""
    write_csv("pairs.csv", [("anchor",), *((anchor,) for anchor, _ in ROWS)])
    before = state(place)
    assert "Expected at least two columns" in error_of(capsys, "mine", "pairs.csv", "--model", "model")
    assert state(place) == before


@pytest.mark.parametrize(
    ("header", "mark"), [("anchor;positive", "';'"), ("anchor\tpositive", r"'\t'"), ("anchor|positive", "'|'")]
)
def test_columns_that_are_separated_otherwise(place, capsys, header, mark):
    """A spreadsheet in another language writes semicolons."""
    Path("other.csv").write_text(f"{header}\nw1{header[6]}w2\n", encoding="utf-8")
    said = error_of(capsys, "mine", "other.csv", "--model", "model", "--output", "mined")
    assert "line 1: expected columns that are separated by ','" in said and f"with {mark} in it" in said


def test_grades_in_a_file_are_read(place, capsys):
    """Every column of a CSV file is text; a row of relevance 0 is no right answer all the same."""
    rows = "".join(f"{anchor},{positive},{number % 3}\n" for number, (anchor, positive) in enumerate(ROWS))
    Path("graded.csv").write_text("anchor,positive,relevance\n" + rows, encoding="utf-8")
    said = error_of(capsys, "mine", "graded.csv", "--model", "model", "--output", "mined")
    assert "The column 'relevance' labels" in said
