"""Pushing: two plain configurations, and a card that is true after every push."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetInfo, Features, SplitInfo, Value, arrow_dataset, load_dataset
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import DatasetCard

from st_hardneg.publish import hub
from st_hardneg.publish.hub import keep_info, push_mined, source_of

INFO = DatasetInfo(
    description="Questions.",
    citation="@misc{questions}",
    license="cc-by-sa-4.0",
    homepage="https://example.org",
    dataset_name="questions",
)


class Repository:
    """A repository in a folder. The card is written by the host's own code, as when it pushes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.pushes, self.written = folder, [], 0
        monkeypatch.setattr(
            Dataset, "push_to_hub", lambda dataset, *args, **options: self.push(dataset, *args, **options)
        )
        monkeypatch.setattr(hub, "read_card", lambda *_, **place: self.card())
        monkeypatch.setattr(hub, "write_card", lambda _, card, **place: self.write(card))

    def push(self, dataset: Dataset, repo_id: str, config_name: str = "default", *, split: str = "train", **options):
        self.pushes.append((repo_id, config_name, {"split": split, **options}))
        data_dir = "data" if config_name == "default" else config_name
        before = sum(os.path.getsize(path) for path in glob.glob(str(self.folder / data_dir / f"{split}-*")))
        path = self.folder / data_dir / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = dataset.to_parquet(str(path))
        card, _ = arrow_dataset._get_updated_dataset_card(
            fs=DirFileSystem(path=str(self.folder), fs=LocalFileSystem()),
            config_name=config_name,
            splits_info=[SplitInfo(split, num_bytes=size, num_examples=len(dataset))],
            features=dataset.features,
            data_dir=data_dir,
            set_default=None,
            uploaded_sizes=[size],
            deleted_sizes=[before],
            remove_other_splits=False,
        )
        (self.folder / "README.md").write_text(str(card), encoding="utf-8")
        return f"pushed {config_name}"

    def card(self) -> DatasetCard | None:
        path = self.folder / "README.md"
        return DatasetCard.load(path) if path.exists() else None

    def write(self, card: DatasetCard) -> None:
        self.written += 1
        (self.folder / "README.md").write_text(str(card), encoding="utf-8")

    def load(self, config_name: str, cache: Path, split: str = "train") -> Dataset:
        return load_dataset(str(self.folder), config_name, split=split, cache_dir=str(cache))


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Repository:
    (tmp_path / "repository").mkdir()
    return Repository(tmp_path / "repository", monkeypatch)


def tuples(width: int) -> Dataset:
    return Dataset.from_dict(
        {name: ["a", "b"] for name in ("anchor", "positive", *(f"negative_{i}" for i in range(width)))}
    )


PROVENANCE = Dataset.from_dict({"row": [0, 1], "negative_ids": [["x"], ["y"]]})


def test_two_configurations_are_pushed(repository, tmp_path):
    """The default one can be trained on; both are read back without this package."""
    done = push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=INFO, split="train", private=True, token="t")
    assert done == "pushed default"
    assert [(repo, name) for repo, name, _ in repository.pushes] == [
        ("me/mined", "default"),
        ("me/mined", "provenance"),
    ]
    assert all(options == {"split": "train", "private": True, "token": "t"} for _, _, options in repository.pushes)
    assert repository.load("default", tmp_path / "cache").to_dict() == tuples(2).to_dict()
    assert repository.load("provenance", tmp_path / "cache").to_dict() == PROVENANCE.to_dict()


def test_another_configuration_has_its_own_provenance(repository):
    """Named after it."""
    push_mined(tuples(1), PROVENANCE, "me/mined", "hard", source=DatasetInfo())
    assert [name for _, name, _ in repository.pushes] == ["hard", "hard-provenance"]


def test_the_card_says_where_the_rows_come_from(repository):
    """License, citation and description are those of the wrapped dataset."""
    push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=INFO)
    card = repository.card()
    assert card.data.license == "cc-by-sa-4.0" and card.data.source_datasets == ["questions"]
    for text in ("Hard negatives for questions.", "Questions.", "@misc{questions}", "https://example.org"):
        assert text in card.text
    assert [one["config_name"] for one in card.data.dataset_info] == ["default", "provenance"]


def test_a_license_that_is_a_text_stands_in_the_body(repository):
    """The Hub takes names only."""
    push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=DatasetInfo(license="You may\nread this."))
    card = repository.card()
    assert card.data.license is None and "## License\n\nYou may\nread this." in card.text


def test_a_second_push_with_other_columns_is_read_back(repository, tmp_path):
    """`datasets` keeps the columns of the first push in the card (huggingface/datasets#8608), and fails to load."""
    push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=INFO)
    other = PROVENANCE.add_column("negative_source_scores", [[1.0], [2.0]])
    push_mined(tuples(5), other, "me/mined", "default", source=INFO)
    assert repository.load("default", tmp_path / "cache").column_names == tuples(5).column_names
    assert repository.load("provenance", tmp_path / "cache").to_dict() == other.to_dict()
    # Text for numbers: only the types differ.
    numbers = Dataset.from_dict({"anchor": [1], "positive": [2]})
    push_mined(numbers, other, "me/mined", "default", source=INFO)
    found = repository.load("default", tmp_path / "cache")
    assert found.features == Features({"anchor": Value("int64"), "positive": Value("int64")})


def test_the_host_still_needs_this(repository):
    """If `datasets` one day writes the columns that it pushes, the correction can go."""
    repository.push(tuples(2), "me/mined")
    repository.push(tuples(3), "me/mined")
    assert len(repository.card().data.dataset_info["features"]) == 4


def test_one_more_split(repository, tmp_path):
    """Beside another one with the same columns; with others it is refused before anything is pushed."""
    push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=INFO)
    push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=INFO, split="test")
    for split in ("train", "test"):
        assert repository.load("default", tmp_path / "cache", split).to_dict() == tuples(2).to_dict()
    count = len(repository.pushes)
    with pytest.raises(ValueError, match=r"'default' of 'me/mined' has the splits \['train'\] with other columns"):
        push_mined(tuples(3), PROVENANCE, "me/mined", "default", source=INFO, split="test")
    with pytest.raises(ValueError, match=r"'provenance' of 'me/mined' has the splits \['train'\] with other columns"):
        changed = PROVENANCE.add_column("x", [1, 2])
        push_mined(tuples(2), changed, "me/mined", "default", source=INFO, split="test")
    assert len(repository.pushes) == count


def test_what_others_have_written_into_the_card_stays(repository):
    """Their text, their license, and configurations that are not ours."""
    (repository.folder / "README.md").write_text(
        "---\nlicense: mit\ntags:\n- mine\n---\n# My words\n", encoding="utf-8"
    )
    repository.push(tuples(1), "me/mined", "theirs")
    push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=INFO)
    card = repository.card()
    assert card.text.strip() == "# My words" and card.data.license == "mit" and card.data.tags == ["mine"]
    assert [one["config_name"] for one in card.data.dataset_info] == ["default", "provenance", "theirs"]


def test_a_card_that_is_true_is_not_written_again(repository):
    """A second push of the same makes no third commit."""
    push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=INFO)
    written = repository.written
    push_mined(tuples(2), PROVENANCE, "me/mined", "default", source=INFO)
    assert repository.written == written == 1


def test_the_card_is_read_and_written_where_it_was_pushed(monkeypatch, tmp_path):
    """With the token and on the branch; a repository without a card has none."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nWords\n", encoding="utf-8")
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(token)

        def hf_hub_download(self, repo_id, name, **options):
            calls.append((repo_id, name, options))
            if repo_id == "me/none":
                raise hub.EntryNotFoundError("no card")
            return str(tmp_path / "README.md")

        def upload_file(self, **options):
            calls.append(options)

    monkeypatch.setattr(hub, "HfApi", Api)
    card = hub.read_card("me/mined", token="t", revision="b")
    assert card.text.strip() == "Words" and hub.read_card("me/none", token=None, revision=None) is None
    hub.write_card("me/mined", card, token="t", revision="b")
    assert calls[:2] == ["t", ("me/mined", "README.md", {"repo_type": "dataset", "revision": "b"})]
    assert (calls[-1]["repo_id"], calls[-1]["revision"], calls[-1]["path_in_repo"]) == ("me/mined", "b", "README.md")
    assert calls[-1]["path_or_fileobj"] == str(card).encode()


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
    source = Dataset.from_dict({"a": [1]}, info=INFO)
    made = keep_info(tuples(1), source)
    assert json.dumps(made.info.description) == '"Questions."' and made.info.license == "cc-by-sa-4.0"
    assert made.info.dataset_name == "questions" and list(made.info.features) == ["anchor", "positive", "negative_0"]
