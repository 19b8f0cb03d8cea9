"""HardNegativeDataset on disk: what is saved is what is loaded, and goes on as the saved one would have."""

from __future__ import annotations

import errno
import json
import os
import time

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk

from st_hardneg import HardNegativeDataset, MiningConfig, NotMinedError
from st_hardneg.files.tables import read_table, write_table
from tests.conftest import WORDS, random_texts, word_model


def other_model(seed: int):
    return word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def mined(bag_of_words, word_pairs) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    return hard_negatives


def test_a_saved_dataset_is_the_same_when_loaded(mined, tmp_path):
    """Negatives, scores, report, rows of the view and the number of refreshes come back."""
    mined.mine(other_model(1), show_progress_bar=False)
    view = mined.as_dataset()
    path = tmp_path / "saved"
    mined.save_to_disk(path)
    mined.save_to_disk(path)  # over an earlier save
    loaded = HardNegativeDataset.load_from_disk(path)
    assert (loaded.negative_ids == mined.negative_ids).all()
    assert (loaded.negative_scores == mined.negative_scores).all()
    assert loaded.report == mined.report and str(loaded.report) == str(mined.report)
    assert loaded.config == mined.config and repr(loaded) == repr(mined)
    assert loaded.as_dataset()[:] == view[:]
    assert loaded.data_fingerprint == mined.data_fingerprint
    assert loaded.provenance().to_dict() == mined.provenance().to_dict()
    for hard_negatives in (loaded, mined):
        hard_negatives.mine(other_model(2), show_progress_bar=False)
    assert (loaded.negative_ids == mined.negative_ids).all() and loaded.report.refresh == 2
    assert sorted(os.listdir(tmp_path)) == ["saved"]


def test_what_was_loaded_is_saved_over_itself(mined, tmp_path):
    """Its texts are mapped from the very files that are replaced."""
    mined.save_to_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    loaded.mine(other_model(1), show_progress_bar=False)
    loaded.save_to_disk(tmp_path / "saved")
    again = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    assert (again.negative_ids == loaded.negative_ids).all() and again.report == loaded.report
    assert list(again.known_pairs()) == list(loaded.known_pairs()) == list(mined.known_pairs())


def test_a_corpus_with_metadata_survives_saving(bag_of_words, word_pairs, tmp_path):
    """The given corpus is kept with all of its columns, and its ids are in the provenance."""
    corpus = Dataset.from_dict(
        {"_id": [f"x{i}" for i in range(30)], "text": random_texts(30, seed=8), "year": [1] * 30}
    )
    hard_negatives = HardNegativeDataset(word_pairs, corpus, MiningConfig(num_negatives=2))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    hard_negatives.save_to_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    assert loaded.corpus.given.column_names == ["_id", "text", "year"]
    ids = loaded.provenance()["negative_ids"][0]
    assert ids == loaded.corpus.external_ids(loaded.negative_ids[0])


EVIL = ["../../evil", "/evil", "..", ".", "C:\\evil", "a/b", "nul\0", "x" * 5000, ""]


def test_an_id_of_a_corpus_never_becomes_a_path(bag_of_words, word_pairs, tmp_path):
    """Ids are kept as they are, in Arrow, and nothing is written beside the save."""
    corpus = Dataset.from_dict({"_id": EVIL, "text": random_texts(len(EVIL), seed=8)})
    hard_negatives = HardNegativeDataset(word_pairs, corpus, MiningConfig(num_negatives=3))
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    folder = tmp_path / "one" / "saved"
    hard_negatives.save_to_disk(folder)
    loaded = HardNegativeDataset.load_from_disk(folder)
    named = {name for row in loaded.provenance()["negative_ids"] for name in row}
    assert named & set(EVIL) and loaded.corpus.id_column == "_id"
    assert sorted(os.listdir(tmp_path)) == ["one"] and sorted(os.listdir(tmp_path / "one")) == ["saved"]
    tables = {"negatives.arrow", "numbering.arrow", "rows.arrow", "st_hardneg.json"}
    assert set(os.listdir(folder)) == {"added", "corpus", "pairs", *tables}


def test_tables_of_a_save_are_read_by_others(mined, tmp_path):
    """Plain Arrow: names, not numbers, with nothing but `datasets`."""
    mined.save_to_disk(tmp_path / "saved")
    negatives = Dataset.from_file(str(tmp_path / "saved" / "negatives.arrow"))
    assert len(negatives) == mined.num_queries and negatives["sources"][0] == ["dense"] * 3
    assert negatives["ids"][:] == mined.live.mining.negatives.ids.tolist()
    assert load_from_disk(str(tmp_path / "saved" / "added"))["block"][0] == "positive"


def test_an_unmined_dataset_can_be_saved(word_pairs, tmp_path):
    """Nothing mined is nothing lost."""
    HardNegativeDataset(word_pairs).save_to_disk(tmp_path / "saved")
    with pytest.raises(NotMinedError):
        _ = HardNegativeDataset.load_from_disk(tmp_path / "saved").report


def test_a_recipe_with_code_asks_for_it_again(bag_of_words, word_pairs, tmp_path):
    """Extra filters are not in the files; loading names those that are missing."""

    def no_first(candidates, corpus):
        return candidates.corpus_ids != 0

    hard_negatives = HardNegativeDataset(word_pairs, extra_filters=no_first)
    hard_negatives.mine(bag_of_words, show_progress_bar=False)
    hard_negatives.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"mined with extra_filters\['no_first'\], which files cannot hold"):
        HardNegativeDataset.load_from_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved", extra_filters=no_first)
    assert (loaded.negative_ids == hard_negatives.negative_ids).all()


def test_a_guide_is_asked_for_again(bag_of_words, word_pairs, tmp_path):
    """Files hold no model; with it, the loaded dataset mines as the saved one."""
    guide = other_model(5)
    found = HardNegativeDataset(word_pairs, guide=guide)
    found.mine(bag_of_words, show_progress_bar=False)
    found.save_to_disk(tmp_path / "saved")
    message = r"The saved recipe was mined with guide, which files cannot hold. Pass it to `load_from_disk` again."
    with pytest.raises(ValueError, match=message):
        HardNegativeDataset.load_from_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved", guide=guide)
    for hard_negatives in (found, loaded):
        hard_negatives.mine(bag_of_words, show_progress_bar=False)
    assert (loaded.negative_ids == found.negative_ids).all()


def test_a_pattern_of_a_stranger_is_not_run(bag_of_words, word_pairs, tmp_path):
    """It is named; with a recipe of one's own the save is loaded."""
    found = HardNegativeDataset(word_pairs, config=MiningConfig(num_negatives=3, exclude_pattern="^(a+)+$"))
    found.mine(bag_of_words, show_progress_bar=False)
    found.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="which may take for ever on some texts"):
        HardNegativeDataset.load_from_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved", config=MiningConfig(num_negatives=3))
    assert loaded.config.exclude_pattern is None and (loaded.negative_ids == found.negative_ids).all()


@pytest.mark.parametrize("damage", ["json", "field", "ids", "texts", "version", "options"])
def test_damaged_files_are_refused(mined, tmp_path, damage):
    """Whatever was changed in the files, loading says that and what, and does not crash."""
    path = tmp_path / "saved"
    mined.save_to_disk(path)
    state = path / "st_hardneg.json"
    content = json.loads(state.read_text(encoding="utf-8"))
    if damage == "json":
        state.write_text("{", encoding="utf-8")
    elif damage in ("field", "version", "options"):
        changes = {"field": {"config": {"num_negatives": -1}}, "options": {"options": {"num_topics": "many"}}}
        content.update(changes.get(damage, {"format": 99}))
        state.write_text(json.dumps(content), encoding="utf-8")
    elif damage == "ids":
        table = read_table(str(path), "negatives")
        write_table(str(path), "negatives", table.take(list(reversed(range(table.num_rows)))))
    else:
        pairs = load_from_disk(str(path / "pairs")).map(lambda row: {"positive": row["positive"] + "!"})
        pairs.save_to_disk(str(tmp_path / "broken"))
        os.rename(path / "pairs", tmp_path / "old")
        os.rename(tmp_path / "broken", path / "pairs")
    with pytest.raises(ValueError, match=r"damaged one|of format 1"):
        HardNegativeDataset.load_from_disk(path)


def test_a_full_disk_while_saving_leaves_the_earlier_save(mined, tmp_path, monkeypatch):
    """The earlier save is read as before, and nothing half-written is left beside it."""
    mined.save_to_disk(tmp_path / "saved")
    before = mined.negative_ids
    mined.mine(other_model(1), show_progress_bar=False)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("json.dump", "os.fsync", "datasets.Dataset.save_to_disk"):
        with monkeypatch.context() as patched:
            patched.setattr(place, full)
            with pytest.raises(OSError, match="No space left"):
                mined.save_to_disk(tmp_path / "saved")
        assert [path.name for path in tmp_path.iterdir()] == ["saved"]
        assert (HardNegativeDataset.load_from_disk(tmp_path / "saved").negative_ids == before).all()


def test_a_save_that_was_killed_between_two_renames_is_loaded(mined, tmp_path):
    """It lies under another name, and gets its own back."""
    mined.save_to_disk(tmp_path / "saved")
    retired = tmp_path / "saved.st_hardneg-retired-x"
    retired.mkdir()
    os.replace(tmp_path / "saved", retired / "save")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    assert (loaded.negative_ids == mined.negative_ids).all()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.slow
def test_half_a_million_pairs_are_loaded_in_well_under_a_second(tmp_path):
    """No text is numbered again."""
    from dataclasses import replace

    from st_hardneg.candidates import Mining, Negatives
    from st_hardneg.report import MiningReport

    count = 500_000
    pairs = Dataset.from_dict(
        {"anchor": [f"question {i}" for i in range(count)], "positive": [f"answer {i} " * 40 for i in range(count)]}
    )
    found = HardNegativeDataset(pairs, num_negatives=3)
    ids = (torch.arange(count)[:, None] + torch.tensor([1, 2, 3])) % count
    blank = Negatives.of(ids, similarities=torch.rand(count, 3))
    negatives = replace(blank, sources=torch.zeros_like(blank.sources), origins=torch.ones_like(blank.origins))
    found.live.apply(Mining(negatives, torch.rand(count), None, ("dense",), MiningReport()))
    found.save_to_disk(tmp_path / "saved")
    started = time.perf_counter()
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} s")
    assert seconds < 1.5 and np.array_equal(loaded.negative_ids, found.negative_ids)
