from __future__ import annotations

import csv
import json

import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.reviewing import ProposalRule
from tests.browser import browser
from tests.conftest import random_texts
from tests.toys import Model, by_seed


@pytest.fixture
def mined(word_pairs, bag_of_words) -> HardNegativeDataset:
    found = HardNegativeDataset(word_pairs, random_texts(100, seed=5))
    found.mine(bag_of_words, show_progress_bar=False)
    return found


def by_label(items: list[dict], *labels: str) -> list[dict]:
    return [{**item, "label": label} for item, label in zip(items, labels, strict=False)]


@pytest.mark.training
def test_twenty_labels_by_keyboard(mined, bag_of_words, tmp_path):
    """Given in a real browser, saved by a key, applied, and respected by the next mining."""
    items = mined.to_review(tmp_path / "review.html", 20)
    assert len(items) == 20
    given = [("p", "positive"), ("x", "exclude"), ("n", "negative"), ("n", "negative")] * 5
    with browser(tmp_path) as page:
        page.downloads_to(tmp_path)
        for width, dark in ((400, True), (1400, False)):
            page.open(tmp_path / "review.html", width=width, dark=dark)
            assert page.value("document.documentElement.scrollWidth") <= width
        page.press("x")  # a slip of the finger
        page.press("ArrowLeft")
        page.press("u")
        assert page.value("items.filter(one => one.label).length") == 0
        for key, _ in given:
            page.press(key)
        assert page.value("document.getElementById('done').value") == 20
        page.press("s")
        page.wait_for("unsaved === 0")
        path = tmp_path / "labels.jsonl"
        for _ in range(200):
            if path.exists() and path.stat().st_size:
                break
            page.wait_for("new Promise(done => setTimeout(() => done(true), 20))")
    assert page.complaints == [] and {url.partition(":")[0] for url in page.requests} <= {"file", "data", "blob"}
    saved = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [one["label"] for one in saved] == [label for _, label in given]

    reviewed = mined.with_labels(path)
    assert len(reviewed) == len(mined) + 5
    reviewed.mine(bag_of_words, show_progress_bar=False)
    queries = {one["row"]: int(reviewed._wrapped.pairs.row_query[one["row"]]) for one in saved}
    for one in saved:
        negatives = reviewed.live.mining.negatives.ids[queries[one["row"]]].tolist()
        if one["label"] != "negative":
            assert one["corpus_id"] not in negatives
    still = {(one["row"], one["corpus_id"]) for one in reviewed.suspects(1000)}
    assert not still & {(one["row"], one["corpus_id"]) for one in saved}


def test_a_certain_negative_is_let_through(protractor):
    """A rule that holds it off as doubtful does so no longer, and the other labels do what they say."""
    pairs = Dataset.from_dict({"anchor": ["0°", "180°"], "positive": ["30°", "170°"], "weight": [2.0, 1.0]})
    texts = ["note 31°", "note 29°", "note 32°", "note 90°", "note 100°"]
    found = HardNegativeDataset(pairs, texts, MiningConfig(num_negatives=2, max_positive_similarity=0.9))
    found.mine(protractor, show_progress_bar=False)
    items = {one["suspect"]: one for one in found.suspects(10) if one["anchor"] == "0°"}
    assert {"note 31°", "note 29°"} <= set(items)

    def label(text: str, label: str) -> dict:
        one = items[text]
        return {"row": one["row"], "corpus_id": one["corpus_id"], "anchor": "0°", "text": text, "label": label}

    reviewed = found.with_labels([label("note 31°", "negative"), label("note 29°", "positive")])
    reviewed.mine(protractor, show_progress_bar=False)
    rows = reviewed.to_dataset("n-tuple", keep_columns=False)
    assert [row["positive"] for row in rows if row["anchor"] == "0°"] == ["30°", "note 29°"]
    negatives = [rows[0]["negative_1"], rows[0]["negative_2"]]
    assert "note 31°" in negatives and "note 29°" not in negatives and "note 32°" not in negatives
    added = reviewed._wrapped.rows.dataset[2]
    assert added == {"anchor": "0°", "positive": "note 29°", "weight": 2.0, "label_source": "person"}
    assert reviewed.known_positives.is_positive(torch.tensor([0]), torch.tensor([1])).tolist() == [[True]]


def test_an_exclusion_is_masked_and_survives_files(mined, bag_of_words, tmp_path):
    """It is no negative of its anchor any more, no right answer either, and losses mask it; also after a save."""
    item = next(iter(mined.suspects(1)))
    label = {"row": item["row"], "corpus_id": item["corpus_id"], "anchor": item["anchor"], "text": item["suspect"]}
    reviewed = mined.with_labels([{**label, "label": "exclude"}])
    reviewed.save_to_disk(tmp_path / "reviewed")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "reviewed")
    for one in (reviewed, loaded):
        query = torch.tensor([int(one._wrapped.pairs.row_query[item["row"]])])
        corpus_id = torch.tensor([item["corpus_id"]])
        assert len(one) == len(mined)
        assert one.known_positives.is_positive(query, corpus_id).item()
        one.mine(bag_of_words, show_progress_bar=False)
        assert item["corpus_id"] not in one.live.mining.negatives.ids[query].tolist()[0]
    assert mined.known_positives.is_positive(query, corpus_id).item() is False


def test_three_rounds(word_pairs, tmp_path):
    """Doubtful samples -> labels -> training set, three times: every round asks for something else."""
    found = HardNegativeDataset(word_pairs, random_texts(100, seed=5))
    asked: set[tuple[int, int]] = set()
    for seed in range(3):
        found.mine(Model(by_seed(seed)), show_progress_bar=False)
        items = found.to_review(tmp_path / f"{seed}.csv", 6)
        pairs = {(one["row"], one["corpus_id"]) for one in items}
        assert len(pairs) == 6 and not pairs & asked
        asked |= pairs
        path = tmp_path / f"{seed}.csv"
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row, label in zip(rows, ["positive", "exclude", "negative", "", "positive", "negative"], strict=True):
            row["label"] = label
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        asked -= {(int(rows[3]["row"]), int(rows[3]["corpus_id"]))}
        found = found.with_labels(path)
    assert len(found) == len(word_pairs) + 6
    assert len(found._wrapped.pairs.certain.keys) == 6
    found.mine(Model(by_seed(3)), show_progress_bar=False)
    assert len(found.as_dataset(with_ids=True)) == len(found)


class ByLength:
    """Scores a pair by the text's length."""

    num_labels = 1

    def predict(self, pairs, **options):
        import numpy as np

        return np.asarray([len(text) for _, text in pairs], dtype=np.float32)


def test_a_rule_proposes_and_never_applies_by_itself(mined, tmp_path):
    """Proposals are marked, do nothing until they are accepted, and the rows that they make say so."""
    rule = ProposalRule(ByLength(), lowest_percentile=50.0)
    items = mined.to_review(tmp_path / "review.jsonl", 30, rule=rule)
    proposed = [one for one in items if one["proposal"]]
    assert 0 < len(proposed) < 30 and all("cross encoder scores it" in one["reason"] for one in proposed)
    with pytest.raises(ValueError, match="none of them labelled"):
        mined.with_labels(tmp_path / "review.jsonl")
    reviewed = mined.with_labels(tmp_path / "review.jsonl", accept_proposals=True)
    assert len(reviewed) == len(mined) + len(proposed)
    assert reviewed._wrapped.rows.dataset["label_source"][len(mined) :] == ["rule"] * len(proposed)
    copies = ProposalRule(ByLength(), lowest_percentile=0.0, max_shared_words=0.0)
    fewer = mined.to_review(tmp_path / "copies.jsonl", 30, rule=copies)
    assert sum(bool(one["proposal"]) for one in fewer) < 30


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "postive"}, "line 2: expected `label` to be one of .* got 'postive'. Did you mean 'positive'?"),
        ({"row": "first"}, "line 2: expected a whole number as `row`, got 'first'"),
        ({"corpus_id": 10**6}, "line 2: there is no row 0 or corpus id 1000000|line 2: there is no row"),
        ({"text": "another"}, "line 2: the text is not the one of row"),
        ({"anchor": "another"}, "line 2: the anchor is not the one of row"),
    ],
)
def test_a_file_that_was_edited_by_hand(mined, tmp_path, change, said):
    """The line of the mistake is named, and nothing has changed."""
    items = by_label(mined.to_review(tmp_path / "labels.jsonl", 2), "positive", "exclude")
    items[1].update(change)
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in items))
    with pytest.raises(ValueError, match=said):
        mined.with_labels(tmp_path / "labels.jsonl")
    assert len(mined) == 48


def test_files_that_are_no_labels(mined, tmp_path):
    """Contradictions, broken lines, other encodings and files that are not there: each is said with its line."""
    item = mined.to_review(tmp_path / "labels.csv", 1)[0]
    twice = by_label([item, item], "positive", "negative")
    with pytest.raises(ValueError, match="label 1: labelled 'negative', and 'positive' in label 0"):
        mined.with_labels(twice)
    (tmp_path / "labels.jsonl").write_text(json.dumps({**item, "label": "exclude"}) + "\n{broken\n")
    with pytest.raises(ValueError, match="line 2: this is no JSON"):
        mined.with_labels(tmp_path / "labels.jsonl")
    (tmp_path / "labels.csv").write_text("row,corpus_id,anchor,text,label\n1,2,3\n")
    with pytest.raises(ValueError, match="line 2: expected 5 fields, as in the first line, got 3"):
        mined.with_labels(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"row,corpus_id,anchor,text,label\n1,2,caf\xe9,a,positive\n")
    with pytest.raises(ValueError, match="line 2: expected UTF-8"):
        mined.with_labels(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("row,anchor,text,label\n1,2,3,positive\n")
    with pytest.raises(ValueError, match="line 2: there is no `corpus_id`"):
        mined.with_labels(tmp_path / "labels.csv")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        mined.with_labels(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match=r"ends in .csv or .jsonl"):
        mined.with_labels(tmp_path / "labels.txt")
    with pytest.raises(ValueError, match="Expected a file that ends in one of"):
        mined.to_review(tmp_path / "review.txt")


def test_a_right_answer_cannot_be_called_wrong(mined):
    """A label that contradicts the rows says so."""
    anchor, positive = next(mined.known_pairs())
    corpus_id = int(mined._wrapped.pairs.row_positive[0])
    label = {"row": 0, "corpus_id": corpus_id, "anchor": anchor, "text": positive, "label": "negative"}
    with pytest.raises(ValueError, match="is a right answer of the rows already"):
        mined.with_labels([label])


def test_texts_of_all_kinds_go_into_the_page(protractor, tmp_path):
    """Tags that would end the script, quotes, newlines and right-to-left words come back as they were."""
    nasty = "</script><b>&\"' \u2028 שלום 🎉\n\nnote 31°"
    pairs = Dataset.from_dict({"anchor": ["0°"], "positive": ["30°"]})
    found = HardNegativeDataset(pairs, [nasty, "note 90°"], num_negatives=1)
    found.mine(protractor, show_progress_bar=False)
    for name in ("review.html", "review.csv", "review.jsonl"):
        found.to_review(tmp_path / name, 5)
    assert "</script><b>" not in (tmp_path / "review.html").read_text(encoding="utf-8")
    items = [json.loads(line) for line in (tmp_path / "review.jsonl").read_text(encoding="utf-8").split("\n") if line]
    with open(tmp_path / "review.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert nasty in [one["text"] for one in items] and [row["text"] for row in rows] == [one["text"] for one in items]
