from __future__ import annotations

import gzip
import json
import math
import os
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig, MiningReport, MissingExtraError
from st_hardneg.command.demo import word_model
from st_hardneg.command.main import main
from st_hardneg.pages.charts import ticks
from tests.browser import browser
from tests.conftest import random_texts
from tests.toys import Model, by_seed

FIGURES = {"scores", "differences", "hardness", "waterfall", "risk", "map", "diversity", "topics", "near-duplicates"}
CURVES = {"training-churn", "training-staleness", "training-risk", "training-difference", "training-hardness"}


@pytest.fixture
def mined(word_pairs, bag_of_words) -> HardNegativeDataset:
    """A dataset with 48 pairs, mined three times by changing models."""
    found = HardNegativeDataset(word_pairs, random_texts(100, seed=5))
    found.mine(bag_of_words, show_progress_bar=False)
    for seed in (1, 2):
        found.mine(Model(by_seed(seed)), show_progress_bar=False)
    return found


def looked_at(path: Path, folder: Path, figures: set[str]) -> None:
    """Open a page at 400 and 1 400 px, light and dark: no error, every figure there, nothing fetched, nothing sticks out.

    With the environment variable SCREENSHOTS, a folder, what was seen is written there.
    """
    colours = set()
    with browser(folder) as page:
        for width in (400, 1400):
            for dark in (False, True):
                page.open(path, width=width, dark=dark)
                assert page.value("document.documentElement.scrollWidth") <= width
                sizes = page.value(
                    "Object.fromEntries([...document.querySelectorAll('figure')].map(one => [one.id, "
                    "Math.min(one.querySelector('svg').clientWidth, one.querySelector('svg').clientHeight)]))"
                )
                assert set(sizes) == figures and min(sizes.values()) > 20
                # An SVG is scaled with its column: its words stay readable.
                scale = page.value(
                    "Math.min(...[...document.querySelectorAll('svg')].map(one => one.clientWidth / 360))"
                )
                assert 11 * scale >= 9.5
                # The doubtful texts stand there in full.
                is_whole = "one => one.scrollHeight <= one.clientHeight + 1"
                assert page.value(f"[...document.querySelectorAll('.case dd')].every({is_whole})")
                colours.add(page.value("getComputedStyle(document.body).backgroundColor"))
                cut = (
                    "[...document.querySelectorAll('svg text')].filter(one => { const a = one.getBoundingClientRect(), "
                )
                cut += "b = one.closest('svg').getBoundingClientRect(); "
                cut += "return a.left < b.left - 1 || a.right > b.right + 1 })"
                assert page.value(f"{cut}.map(one => one.textContent)") == []
                page.value(
                    "right = one => one.getBoundingClientRect().right, left = one => one.getBoundingClientRect().left, "
                    "names = [...document.querySelectorAll('svg .name + .value')]"
                    ".map(one => [one.previousElementSibling, one])"
                )
                assert page.value("names.filter(([a, b]) => right(a) > left(b)).map(([a, b]) => a.textContent)") == []
                assert page.value("names.length") > 10
                if "SCREENSHOTS" in os.environ:
                    name = f"{path.stem}-{width}-{'dark' if dark else 'light'}.png"
                    page.picture(Path(os.environ["SCREENSHOTS"]) / name)
        assert page.value("document.querySelectorAll('#doubtful .case').length") == 10
        assert page.value("document.documentElement.outerHTML.includes('<script')") is False
    assert page.complaints == []
    assert len(colours) == 2
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}


@pytest.mark.training
def test_a_page_in_a_real_browser(mined, tmp_path):
    """Of three minings: with the curves, and names and counts that do not overlap."""
    mined.report.save(tmp_path / "report.html")
    looked_at(tmp_path / "report.html", tmp_path, FIGURES | CURVES)


def claims_and_abstracts(folder: Path) -> Path:
    """Write a small set in the shape of SciFact: long texts with titles, claims with one right answer or more."""
    words = [" ".join(random_texts(30, seed=seed)) for seed in range(60)]
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        for number, text in enumerate(words):
            title = f"Effects of <{text[:40]}> & others: α-synuclein"
            file.write(json.dumps({"_id": f"{number + 4983}", "title": title, "text": text}) + "\n")
    with gzip.open(folder / "queries.jsonl.gz", "wt", encoding="utf-8") as file:
        for number in range(30):
            claim = " ".join(words[number].split()[number : number + 12])
            file.write(json.dumps({"_id": str(number), "text": claim, "metadata": {}}) + "\n")
    judged = [f"{number}\t{number + 4983}\t1\n" for number in range(30)] + ["3\t5020\t1\n", "7\t5021\t1\n"]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


@pytest.mark.training
def test_the_page_of_a_labelled_set(tmp_path):
    """Of `st-hardneg mine` on a folder in BEIR's layout: SciFact, if the environment variable SCIFACT names its folder."""
    folder = os.environ.get("SCIFACT") or claims_and_abstracts(tmp_path / "set")
    texts = HardNegativeDataset.from_beir(str(folder)).corpus.texts
    word_model(texts.take(np.arange(len(texts)))).save_pretrained(str(tmp_path / "model"))
    words = ["mine", str(folder), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "mined")]
    assert main(words) == 0
    looked_at(tmp_path / "mined.html", tmp_path, FIGURES)


def test_histograms_are_those_of_numpy(mined):
    """The counts of scores are NumPy's, of every score there is."""
    drawn = mined.report.figures["histograms"]
    negatives = mined.live.mining.negatives
    scores = negatives.scores[negatives.is_present].numpy()
    counts, edges = np.histogram(scores, bins=40, range=(drawn["negative"]["low"], drawn["negative"]["high"]))
    assert drawn["negative"]["counts"] == counts.tolist() and sum(counts) == len(scores)
    assert (edges[0], edges[-1]) == (drawn["positive"]["low"], drawn["positive"]["high"])


def test_the_map_is_a_principal_component_analysis(mined):
    """Anchors, positives and negatives lie where scikit-learn puts them, but for the signs."""
    from sklearn.decomposition import PCA

    drawn = mined.report.figures["map"]
    model, mining, corpus = Model(by_seed(2)), mined.live.mining, mined.corpus
    pairs = list(mined.known_pairs())
    negatives = corpus.texts.take(mining.negatives.ids[:, 0].numpy())
    texts = [*(anchor for anchor, _ in pairs), *(positive for _, positive in pairs), *negatives]
    vectors = torch.nn.functional.normalize(torch.as_tensor(model.encode_document(texts)).float(), dim=1).numpy()
    pca = PCA(n_components=2).fit(vectors)
    points = np.asarray([point[:2] for name in ("anchors", "positives", "negatives") for point in drawn[name]])
    assert np.allclose(np.abs(points), np.abs(pca.transform(vectors)), atol=2e-3)
    assert math.isclose(drawn["explained"], pca.explained_variance_ratio_.sum(), abs_tol=1e-4)


def test_a_report_with_figures_is_plain_json(mined):
    """What is drawn survives the way to a file and back, and so does the page."""
    report = mined.report
    back = MiningReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert back.to_dict() == report.to_dict()
    assert [one["refresh"] for one in back.history] == [0, 1]
    assert set(report.metrics()) >= {"mining/risk", "mining/outdated", "mining/churn"}


def test_a_saved_dataset_keeps_its_figures(mined, tmp_path):
    """The page of what was loaded is the page of what was saved."""
    mined.save_to_disk(tmp_path / "mined")
    mined.report.save(tmp_path / "one.html")
    HardNegativeDataset.load_from_disk(tmp_path / "mined").report.save(tmp_path / "other.html")
    assert (tmp_path / "one.html").read_text() == (tmp_path / "other.html").read_text()


def test_texts_are_shown_as_texts(protractor, tmp_path):
    """Tags, quotes and right-to-left words of the texts are escaped, and lone surrogates do no harm."""
    nasty = "<script>alert(1)</script> \"&' שלום 🎉\n\nmore 30°"
    pairs = Dataset.from_dict({"anchor": ["0°", "90°"], "positive": ["10°", "80°"]})
    found = HardNegativeDataset(pairs, [nasty, "note 40°", "note 70°"], MiningConfig(num_negatives=2))
    found.mine(protractor, show_progress_bar=False)
    found.report.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text and "שלום 🎉" in text


def test_doubtful_texts_say_whether_they_are_in_use(protractor):
    """Without a rule that compares with right answers, the closest negatives in use are shown."""
    pairs = Dataset.from_dict({"anchor": ["0°", "90°"], "positive": ["10°", "80°"]})
    texts = ["note 11°", "note 40°", "note 79°"]
    plain = HardNegativeDataset(pairs, texts, MiningConfig(num_negatives=1)).mine(protractor, show_progress_bar=False)
    assert [(one["text"], one["in_use"]) for one in plain.figures["doubtful"]] == [
        ("note 11°", True),
        ("note 79°", True),
    ]
    assert plain.risk == 0.0 or plain.risk == 1.0


def test_risk_counts_what_lies_closer_to_a_right_answer_than_its_anchor(protractor):
    """By hand: one negative of two lies beside the positive, the other one far off."""
    pairs = Dataset.from_dict({"anchor": ["0°"], "positive": ["40°"]})
    texts = ["note 41°", "note 200°"]
    found = HardNegativeDataset(pairs, texts, MiningConfig(num_negatives=2))
    report = found.mine(protractor, show_progress_bar=False)
    assert report.risk == 0.5
    assert report.figures["risk"]["reasons"] == {
        "scores at least as high as a right answer": 0.0,
        "closer to a right answer than its anchor is": 0.5,
    }


def test_staleness_is_what_the_old_negatives_have_lost(protractor):
    """By hand: the second mining's negative is closer to the anchor than the first one's, by today's model."""
    pairs = Dataset.from_dict({"anchor": ["0°"], "positive": ["10°"]})
    found = HardNegativeDataset(pairs, ["note 60°", "note 90°"], MiningConfig(num_negatives=1))
    turned = Model(lambda text: protractor.encode([text.replace("60°", "170°")])[0])
    found.mine(turned, show_progress_bar=False)
    report = found.mine(protractor, show_progress_bar=False)
    assert report.outdated == pytest.approx(math.cos(math.radians(60)) - math.cos(math.radians(90)), abs=1e-5)


def test_matplotlib_figures(mined, monkeypatch):
    """Every figure of the page is one of matplotlib's; without it, the extra is named."""
    pytest.importorskip("matplotlib")
    drawn = mined.report.plot()
    assert set(drawn) == FIGURES | CURVES
    assert all(len(figure.axes) == 1 for figure in drawn.values())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("st_hardneg.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match='pip install "st-hardneg\\[plots\\]"'):
        mined.report.plot()


def test_other_projections(mined, monkeypatch, tmp_path):
    """UMAP is an extra, which is named; anything else is refused, and no file is left."""
    monkeypatch.setattr("st_hardneg.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match='pip install "st-hardneg\\[umap\\]"'):
        mined.report.save(tmp_path / "report.html", projection="umap")
    with pytest.raises(ValueError, match="Expected `projection` to be one of"):
        mined.report.save(tmp_path / "report.html", projection="tsne")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.training
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_map_by_umap(mined, tmp_path):
    """Where UMAP is installed: as many points as by PCA, elsewhere, and the same ones every time."""
    pytest.importorskip("umap")
    places = []
    for number, projection in enumerate(("pca", "umap", "umap")):
        mined.report.save(tmp_path / f"{number}.html", projection=projection)
        places.append(re.findall(r'<circle class="point[^>]*>', (tmp_path / f"{number}.html").read_text("utf-8")))
    assert len(places[0]) == len(places[1]) > 100
    assert places[0] != places[1] == places[2]
    if "SCREENSHOTS" in os.environ:
        looked_at(tmp_path / "1.html", tmp_path, FIGURES | CURVES)


def test_a_page_that_cannot_be_written_leaves_the_old_one(mined, tmp_path, monkeypatch):
    """The error is ours, names the file, and what was there stays."""
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(OSError, match=r"Cannot write .*it is a folder"):
        mined.report.save(tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        mined.report.save(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


def test_a_page_is_as_readable_as_other_files(mined, tmp_path):
    """A new file has the rights that the user's mask gives."""
    mined.report.save(tmp_path / "new" / "report.html")
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE(os.stat(one).st_mode) for one in (tmp_path / "new" / "report.html", tmp_path / "plain")}
    assert len(modes) == 1


def test_the_short_form(mined):
    """Notebooks show the figures that matter most."""
    html = mined.report._repr_html_()
    assert "Hard negatives: refresh 2" in html and "slots filled" in html and "<script" not in html


def test_a_report_without_figures_still_has_a_page(tmp_path):
    """What was written without figures says so."""
    MiningReport(num_rows=3).save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "made without figures" in text and 'id="waterfall"' in text


def test_ticks_are_round_numbers():
    """They cover the range and are 1, 2 or 5 apart."""
    assert ticks(-0.07, 0.19) == [-0.05, 0.0, 0.05, 0.1, 0.15]
    assert ticks(0, 7) == [0.0, 2.0, 4.0, 6.0]
    assert ticks(3, 3) == [3.0]
