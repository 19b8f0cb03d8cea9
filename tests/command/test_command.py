from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.command import demo
from st_hardneg.command.main import main
from st_hardneg.command.mine import estimate
from st_hardneg.command.parser import make_parser
from tests.command.runs import ROWS, error_of, mine, write_csv


def test_from_a_csv_to_everything(place, capsys):
    """mine, report, review, apply, mine again, export, push: each command's words work as they are printed."""
    assert mine("--num-negatives", "2", "--output", "mined") == 0
    said = capsys.readouterr().out
    assert "saved to mined; the report is mined.html" in said and "Hard negatives: first mining" in said
    assert HardNegativeDataset.load_from_disk("mined").config.num_negatives == 2

    assert main(["report", "mined", "--output", "page.html"]) == 0
    assert os.path.getsize("page.html") == os.path.getsize("mined.html")

    assert main(["review", "export", "mined", "--output", "labels.csv", "--number", "4"]) == 0
    with open("labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, label in zip(rows, ("positive", "exclude", "negative", ""), strict=True):
        row["label"] = label
    write_csv("labels.csv", [tuple(rows[0]), *(tuple(row.values()) for row in rows)])
    assert main(["review", "apply", "mined", "labels.csv", "--output", "mined"]) == 0
    assert "1 further right answers; saved to mined" in capsys.readouterr().out
    assert main(["mine", "mined", "--model", "model", "--output", "mined"]) == 0
    assert len(HardNegativeDataset.load_from_disk("mined")) == len(ROWS) + 1

    for name, count in (("t.jsonl", 2 * len(ROWS)), ("t.csv", 2 * len(ROWS)), ("t.parquet", 2 * len(ROWS))):
        assert main(["export", "mined", name]) == 0
        kind = {"jsonl": "json"}.get(name[2:], name[2:])
        assert len(load_dataset(kind, data_files=name, split="train", cache_dir="cache")) >= count
    assert main(["export", "mined", "tuples", "--format", "n-tuple", "--scores"]) == 0
    assert main(["export", "mined", "tuples", "--format", "labeled-list"]) == 0
    assert load_from_disk("tuples").column_names == ["anchor", "positive", "labels"]

    for name, path in (("flag-embedding", "f.jsonl"), ("tevatron", "v.jsonl"), ("ids", "ids"), ("beir", "beir")):
        assert main(["export", "mined", path, "--format", name]) == 0 and os.path.exists(path)

    assert main(["push", "mined", "me/mine", "--dry-run", "published", "--format", "triplet"]) == 0
    assert "nothing was pushed" in capsys.readouterr().out and os.path.isfile("published/README.md")


def test_every_field_is_a_flag_and_a_line(place, capsys):
    """The help names all of them with what MiningConfig says; flags win over the file; the result is the recipe."""
    text = make_parser(["mine"])._subparsers._group_actions[0].choices["mine"].format_help()
    for part in fields(MiningConfig):
        assert f"--{part.name.replace('_', '-')} VALUE" in text
    recipe = MiningConfig.recommended(num_negatives=4, sampling_strategy="simans", seed=7, shortfall="drop")
    with open("recipe.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump({**recipe.to_dict(), "model": "model", "output": "from-file"}, file)
    assert main(["mine", "pairs.csv", "--config", "recipe.yaml", "--seed", "8"]) == 0
    found = HardNegativeDataset.load_from_disk("from-file").config
    assert found == MiningConfig.from_dict({**recipe.to_dict(), "seed": 8})
    assert mine("--sampling-strategy", "{name: softmax, temperature: 0.5}", "--sources", "{dense: 1, random: 1}") == 0
    found = HardNegativeDataset.load_from_disk("hard-negatives").config
    assert found.num_negatives == 2 and found.sampling_strategy.temperature == 0.5


def test_what_can_be_mined(place, capsys):
    """JSON, JSON lines, Parquet, compressed files, saved datasets, BEIR folders, and a corpus beside them."""
    dataset = Dataset.from_dict({"anchor": [a for a, _ in ROWS], "positive": [p for _, p in ROWS]})
    dataset.to_parquet("pairs.parquet")
    dataset.save_to_disk("saved")
    DatasetDict({"train": dataset.select(range(8)), "dev": dataset}).save_to_disk("splits")
    with gzip.open("pairs.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in dataset)
    with open("pairs.json", "w", encoding="utf-8") as file:
        json.dump(list(dataset), file)
    os.makedirs("beir/qrels")
    for name, texts in (("corpus", dataset["positive"]), ("queries", dataset["anchor"])):
        with open(f"beir/{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"_id": f"{n}", "text": text}) + "\n" for n, text in enumerate(texts))
    write_csv("beir/qrels/train.csv", [])
    with open("beir/qrels/train.tsv", "w") as file:
        file.writelines(["query-id\tcorpus-id\tscore\n", *(f"{n}\t{n}\t1\n" for n in range(len(ROWS)))])
    for source in ("pairs.parquet", "saved", "pairs.jsonl.gz", "pairs.json", "beir"):
        assert mine("--output", "out", source=source) == 0
        assert len(HardNegativeDataset.load_from_disk("out")) == len(ROWS)
    assert mine("--output", "out", "--split", "dev", source="splits") == 0
    with open("corpus.txt", "w", encoding="utf-8") as file:
        file.write("note 7°\n\nnote 99°\n")
    assert mine("--output", "out", "--corpus", "corpus.txt") == 0
    assert HardNegativeDataset.load_from_disk("out").corpus.num_given == 2


def test_a_dry_run_writes_nothing(place, capsys):
    """It says what was understood, shows the waterfall of a sample, and estimates."""
    before = sorted(os.listdir())
    assert mine("--dry-run") == 0
    said = capsys.readouterr().out
    assert "understood: anchor 'anchor', positive 'positive'" in said and "only this rule" in said
    assert "all of it, 17 queries and 17 texts" in said and sorted(os.listdir()) == before


def test_the_estimate_grows_with_what_is_encoded_and_compared(place):
    """By hand: ten times the texts take ten times the encoding, and hundred times the comparisons."""
    assert mine() == 0
    report = HardNegativeDataset.load_from_disk("hard-negatives").report
    from dataclasses import replace

    report = replace(report, num_queries=10, num_corpus=90, seconds={"encoding": 2.0, "search": 1.0, "rest": 3.0})
    said = estimate(report, 100, 900, 256)
    assert "about 20 s to encode" in said and "at most 130 s" in said and "1 MB of vectors" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"anchor,positive\na,b\nc\n", "a.csv, line 3: expected 2 fields, as in the first line"),
        ("a.csv", b'anchor,positive\na,b\n"c,d\n', "a.csv, line 3: this is no CSV"),
        (
            "a.csv",
            "anchor,positive\na,b\ncafé,d\n".encode("latin-1"),
            "a.csv, line 3: expected UTF-8, got the byte 0xe9",
        ),
        ("a.csv", b"anchor,anchor\na,b\n", "line 1: the column 'anchor' is there twice"),
        ("a.csv", b"anchor,positive\n", "a.csv holds no rows"),
        ("a.jsonl", b'{"anchor": "a", "positive": "b"}\n{"anchor": \n', "a.jsonl, line 2: this is no JSON"),
        ("a.jsonl", b'{"anchor": "a", "positive": "b"}\n{"anchor": "a"}\n', "line 2: expected the keys"),
        ("a.jsonl", b'{"anchor": "a", "positive": 3}\n{"anchor": "a", "positive": "b"}\n', "values of several kinds"),
        ("a.json", b'["a"]', "entry 0: expected an object"),
        ("a.json", b'[{"anchor": "a"', "a.json: this is no JSON"),
        ("a.parquet", b"PAR0", "a.parquet is no Parquet file"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "no whole gzip file"),
        ("a.xlsx", b"", "Expected a file that ends in one of"),
    ],
)
def test_files_with_mistakes(place, capsys, name, content, said):
    """The message names the line; nothing is written; the exit code is not 0."""
    (place / name).write_bytes(content)
    assert said in error_of(capsys, "mine", name, "--model", "model")
    assert not os.path.exists("hard-negatives") and not os.path.exists("hard-negatives.html")


def test_mistakes_of_the_command_line(place, capsys):
    """Unknown columns, fields, files, models and splits are named, with what would do."""
    words = ("mine", "pairs.csv", "--model", "model")
    assert "Did you mean 'anchor'?" in error_of(capsys, *words, "--anchor-column-name", "anchr")
    assert "num_negatives" in error_of(capsys, *words, "--num-negatives", "many")
    assert "to be at least 1" in error_of(capsys, *words, "--num-negatives", "0")
    assert "Name one with `--model`" in error_of(capsys, "mine", "pairs.csv")
    assert "The model 'no-such-model' cannot be loaded" in error_of(
        capsys, "mine", "pairs.csv", "--model", "no-such-model"
    )
    assert "There is no file or folder 'nothing.csv'" in error_of(capsys, "mine", "nothing.csv", "--model", "model")
    assert "There is no corpus 'c.txt'" in error_of(capsys, *words, "--corpus", "c.txt")
    assert "as a dataset of the Hub it cannot be loaded" in error_of(capsys, "mine", "me/none", "--model", "model")
    assert "to be a saved dataset" in error_of(capsys, "mine", "model", "--model", "model")
    assert "is a file, which has no use for --split" in error_of(capsys, *words, "--split", "dev")
    assert main([*words, "--num-negatives", "2", "--output", "mined"]) == 0
    capsys.readouterr()
    again = ("mine", "mined", "--model", "model", "--output", "mined")
    assert "which has no use for --corpus, --anchor-column-name" in error_of(
        capsys, *again, "--corpus", "pairs.csv", "--anchor-column-name", "anchor"
    )
    assert "`--scores` and `--keep-columns` are for" in error_of(
        capsys, "export", "mined", "out.jsonl", "--format", "provenance", "--scores"
    )
    assert "Name one with `--cross-encoder`" in error_of(
        capsys, "review", "export", "mined", "--max-shared-words", "0.5"
    )
    for content, said in (
        ("num_negative: 3\n", "Did you mean 'num_negatives'?"),
        ("- 3\n", "to hold lines such as"),
        ("a: [\n", "this is no YAML"),
        ("modle: x\n", "Did you mean 'model'?"),
    ):
        (place / "recipe.yaml").write_text(content)
        assert said in error_of(capsys, *words, "--config", "recipe.yaml")
    assert "Cannot read 'none.yaml'" in error_of(capsys, *words, "--config", "none.yaml")
    for words in (["mine", "a", "--no-such-flag", "3"], ["no-such-command"], ["review"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["mine", "pairs.csv", "--modle", "x"])
    assert "unrecognized arguments: --modle x. Did you mean --model?" in capsys.readouterr().err
    assert main([]) == 2


def test_mistakes_about_folders(place, capsys):
    """Folders that hold something else, are not there, or cannot be written are refused before anything is computed."""
    os.mkdir("other")
    (place / "other" / "mine.txt").write_text("keep")
    words = ("mine", "pairs.csv", "--model", "model", "--output")
    assert "holds something else" in error_of(capsys, *words, "other")
    assert (place / "other" / "mine.txt").read_text() == "keep"
    assert "Cannot write to" in error_of(capsys, *words, "pairs.csv/below")
    assert "There is no folder 'nothing'" in error_of(capsys, "report", "nothing")
    assert "Expected 'other' to be a folder written by" in error_of(capsys, "report", "other")
    assert mine() == 0
    assert "`--format` to be one of" in error_of(capsys, "export", "hard-negatives", "x.csv", "--format", "tuple")
    assert "cannot hold the lists" in error_of(capsys, "export", "hard-negatives", "x.csv", "--format", "labeled-list")
    assert "holds something else" in error_of(capsys, "export", "hard-negatives", "other")
    assert "at least 1" in error_of(capsys, "review", "export", "hard-negatives", "--number", "0")
    assert "There is no file 'l.csv'" in error_of(capsys, "review", "apply", "hard-negatives", "l.csv", "--output", "o")


def test_ctrl_c_leaves_what_was_there(place, capsys, monkeypatch):
    """An interrupt has an exit code of its own, no traceback, and the old negatives stay."""
    assert mine("--output", "mined") == 0

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HardNegativeDataset, "mine", interrupted)
    assert mine("--output", "mined") == 130
    assert "Traceback" not in capsys.readouterr().err
    assert len(HardNegativeDataset.load_from_disk("mined")) == len(ROWS)


def test_verbose_shows_where_an_error_comes_from(place):
    """Then it is raised as it is."""
    with pytest.raises(ValueError, match="`num_negatives`"):
        mine("--verbose", "--num-negatives", "0")


@pytest.mark.training
def test_the_demo(tmp_path, capsys, monkeypatch):
    """It needs no network and no arguments, and leaves a report, a page to label, and the negatives."""
    monkeypatch.setattr(demo, "_PAIRS", 150)
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    assert "held-out summaries whose own text is the nearest" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "demo")) == ["hard-negatives", "report.html", "review.html"]
    assert 'id="training-staleness"' in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(tmp_path / "demo" / "hard-negatives")]) == 0


@pytest.mark.training
def test_help_costs_no_torch():
    """The first words come at once, as a module and as a script."""
    code = "import sys; from st_hardneg.command.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'datasets', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "mine hard negatives" in done.stdout and done.stdout.strip().endswith("[]")
    done = subprocess.run([sys.executable, "-m", "st_hardneg", "mine"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "usage: st-hardneg mine" in done.stderr
