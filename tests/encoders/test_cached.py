"""Vectors on disk: a second dataset, in another process or not, encodes nothing that is there already."""

from __future__ import annotations

import pytest

from st_hardneg import HardNegativeDataset, MiningConfig


def test_a_cache_folder_spares_the_encoding(bag_of_words, word_pairs, tmp_path, monkeypatch):
    """The same model and texts are read; other weights are encoded anew, and training keeps nothing on disk."""
    config = MiningConfig(num_negatives=2)
    first = HardNegativeDataset(word_pairs, config=config, cache_folder=tmp_path / "vectors")
    first.mine(bag_of_words, show_progress_bar=False)
    files = sorted(file.name for file in (tmp_path / "vectors").iterdir())
    assert len(files) == 2
    again = HardNegativeDataset(word_pairs, config=config, cache_folder=tmp_path / "vectors")
    seen: list[str] = []
    real = bag_of_words.encode_document

    def heard(texts, **options):
        seen.extend(texts)
        return real(texts, **options)

    monkeypatch.setattr(bag_of_words, "encode_document", heard)
    again.mine(bag_of_words, show_progress_bar=False)
    assert not set(word_pairs["positive"]) & set(seen)  # only the probes that tell one model from another
    assert (again.negative_ids == first.negative_ids).all()
    bag_of_words[0].embedding.weight.data.neg_()
    again.compute_mining(bag_of_words, step=5, show_progress_bar=False)
    assert sorted(file.name for file in (tmp_path / "vectors").iterdir()) == files
    again.mine(bag_of_words, show_progress_bar=False)
    assert len(list((tmp_path / "vectors").iterdir())) == 4


def test_a_folder_that_is_none_is_refused(word_pairs):
    """A number is no path."""
    with pytest.raises(TypeError):
        HardNegativeDataset(word_pairs, cache_folder=3)
