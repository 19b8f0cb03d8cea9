"""Pushing to a stand-in of the Hub: one commit with everything in it, or nothing at all; a card that is true."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetInfo, Features, Value, load_dataset
from huggingface_hub import DatasetCard, constants

from st_hardneg import HardNegativeDataset, MiningConfig, PushError
from st_hardneg.publish import hub as room
from st_hardneg.publish.card import Contents, source_of
from st_hardneg.publish.hub import Target, keep_info, publish
from st_hardneg.report import MiningReport
from tests.publish.stand_in import Hub, faults_of_card, running_hub

# What the Hub's client does to the library that it asks with is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

INFO = DatasetInfo(
    description="Questions.",
    citation="@misc{questions}",
    license="cc-by-sa-4.0",
    homepage="https://example.org",
    dataset_name="questions",
)
TOKEN = "hf_ThisIsASecretThatNobodyMayRead"
FIGURE = "<svg xmlns='http://www.w3.org/2000/svg'/>"
PROVENANCE = Dataset.from_dict({"row": [0, 1], "negative_ids": [["x"], ["y"]]})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in of the Hub that this process may ask."""
    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(room, "new_folder", lambda: str(tmp_path / "ready" / "dataset"))
        yield running


def tuples(width: int, text: str = "a") -> Dataset:
    names = ("anchor", "positive", *(f"negative_{i}" for i in range(width)))
    return Dataset.from_dict({name: [text, "b"] for name in names})


def contents(
    main: Dataset,
    beside: Dataset = PROVENANCE,
    *,
    config_name: str = "default",
    split: str = "train",
    source: DatasetInfo = INFO,
    output_format: str = "n-tuple",
) -> Contents:
    name = "provenance" if config_name == "default" else f"{config_name}-provenance"
    report = MiningReport(columns=("anchor", "positive"), model={"kind": "SentenceTransformer", "name": "me/model"})
    parts, recipe = {config_name: main, name: beside}, MiningConfig().to_dict()
    return Contents(
        "me/mined", config_name, split, parts, output_format, source, None, recipe, report, ("guide",), "9.9"
    )


def push(*args: object, **options: object) -> object:
    return publish(contents(*args, **options), FIGURE, Target(TOKEN))


def files_of(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    return hub.files["me/mined"][branch]


def card_of(hub: Hub) -> DatasetCard:
    return DatasetCard(files_of(hub)["README.md"].decode())


def loaded(hub: Hub, folder: Path, config_name: str = "default", split: str = "train") -> Dataset:
    for name, content in files_of(hub).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return load_dataset(str(folder), config_name, split=split, cache_dir=str(folder / ".cache"))


def test_one_commit_holds_everything(hub, tmp_path):
    """Data, provenance, recipe, report, figure and card; both configurations are read back without this package."""
    push(tuples(2))
    (commit,) = hub.commits
    assert commit["added"] == [
        "README.md",
        "data/train-00000-of-00001.parquet",
        "provenance/train-00000-of-00001.parquet",
        "recipe.yaml",
        "report.json",
        "scores.svg",
    ]
    assert not (tmp_path / "ready").exists()  # nothing is left on this machine
    assert loaded(hub, tmp_path / "a").to_dict() == tuples(2).to_dict()
    assert loaded(hub, tmp_path / "b", "provenance").to_dict() == PROVENANCE.to_dict()
    assert hub.tokens == {f"Bearer {TOKEN}"} or hub.tokens == {f"Bearer {TOKEN}", None}
    assert not any(TOKEN.encode() in content for content in files_of(hub).values())


def test_another_configuration_stands_beside(hub, tmp_path):
    """With files and a section of the card of its own."""
    push(tuples(1))
    push(tuples(3, "other"), config_name="hard")
    assert len(hub.commits) == 2 and hub.commits[1]["deleted"] == []
    assert {"hard/recipe.yaml", "hard/scores.svg", "hard-provenance/train-00000-of-00001.parquet"} <= set(files_of(hub))
    card = card_of(hub)
    assert card.text.count("# Hard negatives for questions") == 2 and "](hard/scores.svg)" in card.text
    assert 'load_dataset("me/mined", "hard", split="train")' in card.text
    assert loaded(hub, tmp_path / "a").to_dict() == tuples(1).to_dict()
    assert loaded(hub, tmp_path / "b", "hard").to_dict() == tuples(3, "other").to_dict()


def test_a_second_push_takes_the_place_of_the_first(hub, tmp_path):
    """Shards that are no longer part of it go in the same commit; columns in the card are those that are pushed."""
    push(tuples(2))
    files_of(hub)["data/train-00001-of-00002.parquet"] = b"of an earlier push in two shards"
    numbers = Dataset.from_dict({"anchor": [1], "positive": [2]})
    push(numbers)
    assert hub.commits[1]["deleted"] == ["data/train-00001-of-00002.parquet"]
    assert loaded(hub, tmp_path / "a").features == Features({"anchor": Value("int64"), "positive": Value("int64")})
    assert card_of(hub).text.count("# Hard negatives for") == 1


def test_one_more_split(hub, tmp_path):
    """Beside another one with the same columns; with others it is refused before anything is pushed."""
    push(tuples(2))
    push(tuples(2, "test"), split="test")
    for split, text in (("train", "a"), ("test", "test")):
        assert loaded(hub, tmp_path / split, split=split).to_dict() == tuples(2, text).to_dict()
    with pytest.raises(ValueError, match=r"'default' of 'me/mined' has the splits \['train'\] with other columns"):
        push(tuples(3), split="test")
    with pytest.raises(ValueError, match=r"'provenance' of 'me/mined' has the splits \['train'\] with other columns"):
        push(tuples(2), PROVENANCE.add_column("x", [1, 2]), split="test")
    assert len(hub.commits) == 2


def test_what_others_have_written_into_the_card_stays(hub):
    """Their text around ours, their license, their tags, and configurations that are not ours."""
    push(tuples(1))
    theirs = card_of(hub)
    theirs.data["license"], theirs.data["tags"] = "mit", ["mine"]
    theirs.data["configs"] = [*theirs.data["configs"], {"config_name": "theirs", "data_files": "theirs.csv"}]
    text = f"---\n{theirs.data.to_yaml()}\n---\n# My words\n{theirs.text}\nAnd my last ones.\n"
    files_of(hub)["README.md"] = text.encode()
    push(tuples(2))
    card = card_of(hub)
    assert card.text.strip().startswith("# My words") and card.text.strip().endswith("And my last ones.")
    assert card.text.count("# Hard negatives for questions") == 1 and "`negative_1`" in card.text
    assert card.data.license == "mit" and card.data.tags == [
        "mine",
        "hard-negatives",
        "sentence-transformers",
        "st_hardneg",
    ]
    assert sorted(one["config_name"] for one in card.data["configs"]) == ["default", "provenance", "theirs"]


def test_a_card_without_our_section_is_continued(hub):
    """Its words stand first."""
    hub.files["me/mined"] = {"main": {"README.md": b"# Theirs\n\nWords.\n"}}
    push(tuples(1))
    assert card_of(hub).text.strip().startswith("# Theirs\n\nWords.\n\n<!-- st_hardneg: begin default -->")


def test_data_of_others_is_not_hidden(hub):
    """A card that names configurations would make `load_dataset` blind for files that it does not name."""
    hub.files["me/mined"] = {"main": {"train.csv": b"a,b\n1,2\n"}}
    with pytest.raises(ValueError, match=r"holds data that its card says nothing of, such as 'train.csv'"):
        push(tuples(1))
    assert not hub.commits


@pytest.mark.parametrize("output_format", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
def test_the_card_is_what_the_hub_takes(hub, output_format):
    """Metadata by the Hub's schema, by `huggingface_hub`'s own check, and everything in words."""
    push(tuples(2), output_format=output_format)
    card = card_of(hub)
    card.validate()
    assert faults_of_card(str(card)) == [] and ("POST", "/api/validate-yaml") in hub.asked
    data = card.data.to_dict()
    assert data["license"] == "cc-by-sa-4.0" and data["source_datasets"] == ["questions"]
    assert "hard-negatives" in data["tags"] and data["size_categories"] == ["n<1K"]
    assert [one["config_name"] for one in data["dataset_info"]] == ["default", "provenance"]
    for text in (
        "# Hard negatives for questions",
        "Questions.",
        "https://example.org",
        "| model | me/model |",
        "| helped by | `guide` |",
        "](scores.svg)",
        "num_negatives: 3",
        "retrieved",
        'load_dataset("me/mined", split="train")',
        "That of the source: cc-by-sa-4.0.",
        "@misc{questions}",
    ):
        assert text in card.text


def test_the_check_can_fail(hub):
    """A card that the Hub would not take does not pass the stand-in either."""
    bad = DatasetCard("---\ntags: hard\nconfigs:\n- config_name: a\nsize_categories:\n- many\n---\n")
    with pytest.raises(ValueError, match="tags is no list"):
        bad.validate()
    assert len(faults_of_card(str(bad))) == 3


def test_a_license_that_is_a_text_stands_in_the_body(hub):
    """The Hub takes names only."""
    push(tuples(2), source=DatasetInfo(license="You may\nread this."))
    card = card_of(hub)
    assert card.data.license == "other" and "You may\nread this." in card.text
    push(tuples(2), config_name="none", source=DatasetInfo())
    assert "The source states no license" in card_of(hub).text


def test_license_and_citation_are_read_from_the_repository_of_the_source(hub):
    """`datasets` does not keep what a card says."""
    card = (
        "---\nlicense: odc-by\nlanguage: en\n---\n# Pairs\n\n## Citation\n\n```bibtex\n@misc{pairs}\n```\n\n## More\n"
    )
    hub.files["me/pairs"] = {"main": {"README.md": card.encode()}}
    push(tuples(2), source=DatasetInfo(download_checksums={"hf://datasets/me/pairs@1a2b/train.parquet": {}}))
    found = card_of(hub)
    assert found.data.license == "odc-by" and found.data.language == ["en"]
    assert found.data.source_datasets == ["me/pairs"] and "@misc{pairs}" in found.text and "## More" not in found.text


def test_an_own_branch(hub):
    """The main one stays as it is."""
    publish(contents(tuples(2)), FIGURE, Target(TOKEN, revision="v2", commit_message="Mined anew"))
    assert "README.md" in files_of(hub, "v2") and "README.md" not in files_of(hub)
    assert hub.commits[0]["message"] == "Mined anew"


FAILURES: list[tuple[str, Callable[[Hub], object], str]] = [
    (
        "a token that may not write",
        lambda hub: hub.answers.update({"/preupload/": 403}),
        "Log in with `hf auth login`",
    ),
    ("a fault of the Hub", lambda hub: hub.answers.update({"/commit/": 500}), "the Hub answered 500"),
    ("large files not taken", lambda hub: hub.answers.update({"/lfs/": 400}), "the Hub answered 400"),
    ("somebody was faster", lambda hub: hub.answers.update({"/commit/": 412}), "somebody has changed the repository"),
]


@pytest.mark.parametrize(("break_it", "words"), [one[1:] for one in FAILURES], ids=[one[0] for one in FAILURES])
def test_a_failed_push_loses_nothing(hub, tmp_path, monkeypatch, break_it, words):
    """The repository is as it was, everything is ready in a folder, the error says what to do, and a second try works."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    push(tuples(1))
    before = dict(files_of(hub))
    break_it(hub)
    with pytest.raises(PushError, match=re.escape(words)) as failed:
        push(tuples(2))
    ready = tmp_path / "ready" / "dataset"
    assert f"`hf upload me/mined {ready} --repo-type dataset`" in str(failed.value) and TOKEN not in str(failed.value)
    assert files_of(hub) == before and len(hub.commits) == 1
    assert load_dataset(str(ready), split="train", cache_dir=str(tmp_path / "c")).column_names == tuples(2).column_names
    hub.answers.clear()
    push(tuples(2))
    assert len(hub.commits) == 2 and loaded(hub, tmp_path / "a").to_dict() == tuples(2).to_dict()


def test_no_network(tmp_path, monkeypatch):
    """It says so, names the folder, and the folder is whole."""
    monkeypatch.setattr(room, "new_folder", lambda: str(tmp_path / "ready" / "dataset"))
    with pytest.raises(PushError, match="the Hub may not be asked"):
        push(tuples(2))
    assert DatasetCard.load(tmp_path / "ready" / "dataset" / "README.md").data.license == "cc-by-sa-4.0"


def test_no_name_of_a_repository(hub):
    """It says what one looks like."""
    with pytest.raises(PushError, match="that is no name of a repository"):
        publish(
            Contents("a/b/c", "default", "train", {"default": tuples(1)}, "n-tuple", INFO, None, {}, MiningReport()),
            FIGURE,
            Target(),
        )


def test_a_folder_is_written_and_nothing_is_asked(tmp_path, bag_of_words, word_pairs):
    """`dry_run=True` names a new folder, else the folder that is given; another's folder is left alone."""
    hard_negatives = HardNegativeDataset(word_pairs, num_negatives=3)
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    given = tmp_path / "mined"
    assert hard_negatives.push_to_hub("me/mined", dry_run=given) == str(given)
    assert hard_negatives.push_to_hub("me/mined", dry_run=given) == str(given)  # what it wrote itself, it replaces
    folder = Path(hard_negatives.push_to_hub("me/mined", dry_run=True))
    for one in (given, folder):
        found = load_dataset(str(one), split="train", cache_dir=str(tmp_path / "cache"))
        assert found.to_dict() == hard_negatives.to_dataset("n-tuple").to_dict()
    card = DatasetCard.load(folder / "README.md")
    assert faults_of_card(str(card)) == [] and hard_negatives.report.model["weights"] in card.text
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("theirs")
    with pytest.raises(FileExistsError, match="holds something else"):
        hard_negatives.push_to_hub("me/mined", dry_run=tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["file"]


def test_large_configurations_go_in_shards(tmp_path, monkeypatch):
    """In order, and read back whole."""
    monkeypatch.setattr("st_hardneg.publish.folder._SHARD_BYTES", 100)
    main = Dataset.from_dict({"anchor": [f"text {i}" for i in range(40)]})
    publish(contents(main), FIGURE, Target(), tmp_path / "out")
    assert len(list((tmp_path / "out" / "data").iterdir())) > 2
    found = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.to_dict() == main.to_dict()


def test_where_a_dataset_was_loaded_from():
    """A repository's id if its files say so, else its name."""
    for url, expected in (
        ("hf://datasets/me/pairs@1a2b/data/train.parquet", "me/pairs"),
        ("hf://datasets/squad@1a2b/train.parquet", "squad"),
        ("https://example.org/pairs.csv", "named"),
    ):
        assert source_of(DatasetInfo(dataset_name="named", download_checksums={url: {}})) == expected
    assert source_of(DatasetInfo()) is None


def test_a_copy_keeps_what_its_source_says_of_itself():
    """And its own columns."""
    made = keep_info(tuples(1), Dataset.from_dict({"a": [1]}, info=INFO))
    assert made.info.description == "Questions." and made.info.license == "cc-by-sa-4.0"
    assert made.info.dataset_name == "questions" and list(made.info.features) == ["anchor", "positive", "negative_0"]
