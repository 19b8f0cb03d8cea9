"""`push_to_hub` of a HardNegativeDataset: plain datasets, and no token anywhere else."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from datasets import DatasetInfo, load_dataset
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, metadata_load, metadata_save

from st_hardneg import HardNegativeDataset, MiningConfig, NotMinedError, publishing
from tests.publish.stand_in import SIZES
from tests.toys import Model, by_seed

TOKEN = "hf_ThisIsASecretThatNobodyMayRead"


@pytest.fixture
def mined(bag_of_words, word_pairs) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    return hard_negatives


def test_plain_datasets_are_pushed(mined, tmp_path):
    """The default configuration can be trained on; ids, scores and sources are in another one."""
    folder = mined.push_to_hub("me/mined", private=True, dry_run=tmp_path / "out")
    main = load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache"))
    beside = load_dataset(folder, "provenance", split="train", cache_dir=str(tmp_path / "cache"))
    assert main.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert main.format["type"] is None and all(feature.dtype == "string" for feature in main.features.values())
    assert beside.column_names == [
        "row",
        "positive_id",
        "positive_score",
        "negative_ids",
        "negative_scores",
        "negative_ranks",
        "negative_sources",
        "negative_steps",
        "negative_slots",
    ]
    assert beside.to_dict() == mined.provenance().to_dict()


def test_what_the_wrapped_dataset_says_of_itself_is_kept(bag_of_words, word_pairs, tmp_path):
    """License, citation, description and name, in copies and in the card."""
    info = DatasetInfo(description="Words.", citation="@misc{w}", license="mit", dataset_name="words")
    for name in ("description", "citation", "license", "dataset_name"):
        setattr(word_pairs.info, name, getattr(info, name))
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    dataset = hard_negatives.to_dataset("triplet")
    assert (dataset.info.license, dataset.info.citation) == ("mit", "@misc{w}")
    assert (dataset.info.description, dataset.info.dataset_name) == ("Words.", "words")
    card = DatasetCard.load(hard_negatives.push_to_hub("me/mined", dry_run=tmp_path / "out") + "/README.md")
    assert card.data.license == "mit" and "@misc{w}" in card.text and "Hard negatives for words" in card.text


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, which YAML takes and the Hub does not."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep)


@pytest.mark.training
def test_the_card_passes_the_checks_of_the_hosts(mined, tmp_path):
    """`huggingface_hub` reads and writes its metadata without a loss; `datasets` finds in them what lies in the folder."""
    mined = HardNegativeDataset(
        mined.to_dataset("triplet").remove_columns("negative"), keep_candidates=5, num_negatives=1
    )
    mined.mine(Model(by_seed(1)), show_progress_bar=False)
    folder = mined.push_to_hub("me/mined", dry_run=tmp_path / "out")
    path = Path(folder) / "README.md"
    card = DatasetCard.load(path, ignore_metadata_errors=False)
    data = metadata_load(path)
    assert yaml.load(card.data.to_yaml(), _EachKeyOnce) == data == card.data.to_dict()
    assert yaml.load(path.read_text(encoding="utf-8").split("---\n")[1], _EachKeyOnce) == data
    assert DatasetCardData(**data, ignore_metadata_errors=False).to_dict() == data
    metadata_save(tmp_path / "copy.md", data)
    assert metadata_load(tmp_path / "copy.md") == data
    assert set(data["size_categories"]) <= set(SIZES) and data["tags"] == sorted(set(data["tags"]))
    configs = MetadataConfigs.from_dataset_card_data(card.data)
    infos = DatasetInfosDict.from_dataset_card_data(card.data)
    assert set(configs) == set(infos) and configs.get_default_config_name() == "default"
    for name, info in infos.items():
        found = load_dataset(folder, name, cache_dir=str(tmp_path / "cache"))
        assert {split: (rows.num_rows, rows.features) for split, rows in found.items()} == {
            split: (one.num_examples, info.features) for split, one in info.splits.items()
        }
        assert info.dataset_size == sum(one.num_bytes for one in info.splits.values())
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", card.text)
    assert linked and all((Path(folder) / one).is_file() for one in linked)


def test_nothing_is_pushed_before_it_is_mined(word_pairs):
    """It says to mine first."""
    with pytest.raises(NotMinedError):
        HardNegativeDataset(word_pairs).push_to_hub("me/x")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config_name": "data"}, "Expected `config_name` to be letters"),
        ({"config_name": "../up"}, "Expected `config_name` to be letters"),
        ({"config_name": "provenance"}, "Expected `config_name` to be letters"),
        ({"split": "train/1"}, "Expected `split` to be words"),
        ({"output_format": "pairs"}, "Invalid output_format"),
    ],
)
def test_names_that_cannot_be(mined, options, words, tmp_path):
    """Nothing is written."""
    with pytest.raises(ValueError, match=words):
        mined.push_to_hub("me/x", dry_run=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_token_goes_to_the_hub_and_nowhere_else(mined, monkeypatch, tmp_path, caplog, capsys):
    """Neither when pushing, nor when it fails, nor into what is saved."""
    targets = []
    monkeypatch.setattr(publishing, "publish", lambda *args: targets.append(args[2]))
    with caplog.at_level(logging.DEBUG):
        mined.push_to_hub("me/x", token=TOKEN)
        monkeypatch.setattr(publishing, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError) as failed:
            mined.push_to_hub("me/x", token=TOKEN)
    assert [target.token for target in targets] == [TOKEN] and TOKEN not in repr(targets)
    mined.save_to_disk(tmp_path / "saved")
    shown = [caplog.text, *capsys.readouterr(), repr(mined), str(failed.value), json.dumps(mined.report.to_dict())]
    assert not any(TOKEN in text for text in [*shown, repr(vars(mined)), repr(vars(mined.live))])
    written = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(TOKEN.encode() in path.read_bytes() for path in written)
