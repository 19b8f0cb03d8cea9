"""`push_to_hub` of a HardNegativeDataset: plain datasets, and no token anywhere else."""

from __future__ import annotations

import json
import logging

import pytest
from datasets import Dataset, DatasetInfo

from st_hardneg import HardNegativeDataset, MiningConfig, NotMinedError
from st_hardneg.publish import hub

TOKEN = "hf_ThisIsASecretThatNobodyMayRead"


@pytest.fixture
def mined(bag_of_words, word_pairs) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    return hard_negatives


@pytest.fixture
def pushed(monkeypatch) -> list[tuple[Dataset, tuple, dict]]:
    """What is pushed, in place of pushing it."""
    calls: list[tuple[Dataset, tuple, dict]] = []
    monkeypatch.setattr(Dataset, "push_to_hub", lambda self, *args, **options: calls.append((self, args, options)))
    return calls


def test_plain_datasets_are_pushed(mined, pushed):
    """The default configuration can be trained on; ids, scores and sources are in another one."""
    mined.push_to_hub("me/mined", private=True, token="hf_secret")
    (main, main_args, options), (beside, beside_args, _) = pushed
    assert main_args == ("me/mined", "default") and beside_args == ("me/mined", "provenance")
    assert options["split"] == "train" and options["private"] is True and options["token"] == "hf_secret"
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


def test_what_the_wrapped_dataset_says_of_itself_is_kept(bag_of_words, word_pairs, pushed, monkeypatch):
    """License, citation, description and name, in copies and in the card."""
    info = DatasetInfo(description="Words.", citation="@misc{w}", license="mit", dataset_name="words")
    for name in ("description", "citation", "license", "dataset_name"):
        setattr(word_pairs.info, name, getattr(info, name))
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    written = []
    monkeypatch.setattr(hub, "read_card", lambda *_, **__: hub.DatasetCard("---\n{}\n---\n"))
    monkeypatch.setattr(hub, "write_card", lambda _, card, **__: written.append(card))
    hard_negatives.push_to_hub("me/mined")
    for dataset in (pushed[0][0], hard_negatives.to_dataset("triplet")):
        assert (dataset.info.license, dataset.info.citation) == ("mit", "@misc{w}")
        assert (dataset.info.description, dataset.info.dataset_name) == ("Words.", "words")
    (card,) = written
    assert card.data.license == "mit" and "@misc{w}" in card.text and "Hard negatives for words." in card.text


def test_nothing_is_pushed_before_it_is_mined(word_pairs, pushed):
    """It says to mine first."""
    with pytest.raises(NotMinedError):
        HardNegativeDataset(word_pairs).push_to_hub("me/x")
    assert not pushed


def test_a_token_goes_to_datasets_and_nowhere_else(mined, pushed, monkeypatch, tmp_path, caplog, capsys):
    """Neither when pushing, nor when it fails, nor into what is saved."""
    with caplog.at_level(logging.DEBUG):
        mined.push_to_hub("me/x", token=TOKEN)
        monkeypatch.setattr(Dataset, "push_to_hub", lambda self, *_, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError) as failed:
            mined.push_to_hub("me/x", token=TOKEN)
    assert [options["token"] for _, _, options in pushed] == [TOKEN, TOKEN]
    mined.save_to_disk(tmp_path / "saved")
    shown = [caplog.text, *capsys.readouterr(), repr(mined), str(failed.value), json.dumps(mined.report.to_dict())]
    assert not any(TOKEN in text for text in [*shown, repr(vars(mined)), repr(vars(mined.live))])
    written = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(TOKEN.encode() in path.read_bytes() for path in written)
