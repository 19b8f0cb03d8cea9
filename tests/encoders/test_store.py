"""Vectors on disk, found by text: never encoded again, and searched there where they do not fit into memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.encoders import store
from st_hardneg.encoders.cached import CachedEncoder, on_disk
from st_hardneg.encoders.store import Store, StoredRows, digests_of
from tests.conftest import WORDS, random_texts, word_model


@pytest.fixture
def model():
    return word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def small_files(monkeypatch):
    """Seven texts a file, so that a few dozen texts take several."""
    for place in ("store", "cached"):
        monkeypatch.setattr(f"st_hardneg.encoders.{place}.SHARD", 7)


class Counted:
    """An encoder that notes what it encodes, and may stop."""

    similarity, score_function = "cosine", None
    pairwise = staticmethod(lambda left, right: (left * right).sum(dim=1))

    def __init__(self, stops_after: int | None = None) -> None:
        self.seen: list[str] = []
        self.stops_after = stops_after

    def queries(self, texts, *, show_progress_bar=False):
        for text in texts:
            if self.stops_after is not None and len(self.seen) >= self.stops_after:
                raise KeyboardInterrupt
            self.seen.append(text)
        return torch.tensor([[float(len(text)), float(sum(map(ord, text)))] for text in texts])

    def corpus(self, texts, *, show_progress_bar=False):
        for start in range(0, len(texts), 3):
            yield self.queries(texts[start : start + 3])

    def fingerprint(self, probes=()):
        return "counted"


def encoded(encoder, folder, texts) -> torch.Tensor:
    return torch.cat(list(CachedEncoder(encoder, str(folder), "key", lambda *_: None).corpus(texts)))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("moment", range(0, 50, 5))
def test_an_encoding_that_is_stopped_goes_on_where_it_was(tmp_path, moment):
    """Only the texts of the file in the making are encoded again, and the vectors are the same."""
    texts = random_texts(50, seed=0)
    first, second = Counted(stops_after=moment), Counted()
    with pytest.raises(KeyboardInterrupt):
        encoded(first, tmp_path, texts)
    found = encoded(second, tmp_path, texts)
    assert torch.equal(found, Counted().queries(texts))
    assert len(second.seen) == 50 - moment // 7 * 7
    assert encoded(Counted(stops_after=0), tmp_path, texts).equal(found)


@pytest.mark.usefixtures("small_files")
def test_texts_are_found_whatever_they_stand_beside(tmp_path):
    """Another order, repeats and other texts between: only what is new is encoded, once."""
    texts = random_texts(40, seed=1)
    encoded(Counted(), tmp_path, texts)
    mixed = [texts[31], "new", *texts[::-1], "new", texts[0]]
    again = Counted()
    assert torch.equal(encoded(again, tmp_path, mixed), Counted().queries(mixed))
    assert again.seen == ["new"]


def test_a_file_without_its_texts_is_not_there(tmp_path):
    """A run that was killed between the two files leaves vectors that nothing finds, and they are written again."""
    encoder = Counted()
    vectors = encoded(encoder, tmp_path, ["a", "b"])
    (folder,) = tmp_path.iterdir()
    for file in folder.glob("*.texts.npy"):
        file.unlink()
    (folder / "left.npy.1.partial").write_bytes(b"half")
    again = Counted()
    assert torch.equal(encoded(again, tmp_path, ["a", "b"]), vectors) and again.seen == ["a", "b"]


def test_two_runs_that_write_the_same_texts_at_once(tmp_path, monkeypatch):
    """One is done, and has cleaned up, while the other is about to give its file a name: both go on, and read the same."""
    digests, vectors = digests_of(["a", "b"]), np.array([[1.0], [2.0]], dtype=np.float32)
    ours, rename, others = Store(str(tmp_path)), os.replace, []

    def overtaken(*paths):
        monkeypatch.setattr(os, "replace", rename)
        others.append(theirs := Store(str(tmp_path)))
        with monkeypatch.context() as other_process:
            other_process.setattr(os, "getpid", lambda: 1)
            theirs.add(digests, vectors)
        assert not os.path.exists(paths[0])
        rename(*paths)

    monkeypatch.setattr(os, "replace", overtaken)
    ours.add(digests, vectors)
    for one in (ours, *others, Store(str(tmp_path))):
        assert one.read(one.find(digests)).tolist() == vectors.tolist()
    assert len(list(tmp_path.iterdir())) == 2  # the vectors and their texts, nothing half-written

    def lost(*paths):
        os.remove(paths[0])
        rename(*paths)

    monkeypatch.setattr(os, "replace", lost)
    with pytest.raises(FileNotFoundError):  # nobody else has written it
        ours.add(digests_of(["c"]), vectors[:1])


def test_digests_that_share_a_half(tmp_path):
    """Two texts whose digests begin alike are told apart."""
    digests = np.array([[1, 2], [1, 3], [4, 2]], dtype="<u8").view("V16").ravel()
    kept = Store(str(tmp_path))
    kept.add(digests[:2], np.array([[1.0], [2.0]], dtype=np.float32))
    kept.add(digests[2:], np.array([[3.0]], dtype=np.float32))
    wanted = np.array([[1, 3], [1, 4], [4, 2], [1, 2], [9, 9]], dtype="<u8").view("V16").ravel()
    for one in (kept, Store(str(tmp_path))):
        places = one.find(wanted)
        assert (places >= 0).tolist() == [True, False, True, True, False]
        assert one.read(places[[0, 2, 3]]).ravel().tolist() == [2.0, 3.0, 1.0]


@pytest.mark.usefixtures("small_files")
def test_stored_rows_are_rows(tmp_path, monkeypatch):
    """Single vectors, slices and blocks are those of the matrix, with few files open."""
    monkeypatch.setattr(store, "_OPEN", 2)
    texts = random_texts(40, seed=2)
    matrix = Counted().queries(texts)
    rows = CachedEncoder(Counted(), str(tmp_path), "key", lambda *_: None).rows(texts)
    assert isinstance(rows, StoredRows) and tuple(rows.shape) == matrix.shape and len(rows) == 40
    places = torch.tensor([39, 0, 0, 17, 8])
    assert torch.equal(rows[places], matrix[places])
    assert torch.equal(rows[3:6], matrix[3:6]) and tuple(rows[:0].shape) == (0, 2)
    assert torch.equal(torch.cat(list(rows[5:30].split(100))), matrix[5:30])
    for size in (1, 5, 7, 20, 100):
        blocks = list(rows.split(size))
        assert torch.equal(torch.cat(blocks), matrix) and max(map(len, blocks)) <= max(size, 7)
    assert len(digests_of(texts)) == 40


RECIPES = {
    "plain": MiningConfig(num_negatives=3),
    "drawn": MiningConfig(num_negatives=3, range_min=1, range_max=20, sampling_strategy="random", relative_margin=0.05),
    "recommended": MiningConfig.recommended(num_negatives=3),
}


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("use_faiss", [False, True])
def test_what_does_not_fit_is_mined_on_disk(model, word_pairs, tmp_path, recipe, use_faiss, monkeypatch):
    """The same negatives and scores as in memory, also in a training, which leaves nothing on disk."""
    monkeypatch.setattr("st_hardneg.search.sharded._SHARD", 20)
    corpus = random_texts(120, seed=3)
    options = {"config": RECIPES[recipe], "use_faiss": use_faiss, "query_chunk_size": 10}
    expected = HardNegativeDataset(word_pairs, corpus, **options)
    expected.mine(model, show_progress_bar=False)
    found = HardNegativeDataset(word_pairs, corpus, max_memory=1e-6, cache_folder=tmp_path, **options)
    for step in (None, 5):
        mining = found.compute_mining(model, step=step, show_progress_bar=False)
        theirs = expected.live.mining.negatives
        assert torch.equal(mining.negatives.ids, theirs.ids)
        assert torch.allclose(mining.negatives.similarities, theirs.similarities, atol=1e-6)
    del mining
    assert sorted(path.name.split("_")[0] for path in tmp_path.iterdir()) == ["corpus", "query"]


def test_what_does_not_fit_is_refused_before_long_work(model, word_pairs):
    """The error says what it takes, and which setting goes without; the negatives of before stay."""
    found = HardNegativeDataset(word_pairs, max_memory=1e-6, num_negatives=1)
    with pytest.raises(MiningError, match=r"take .* GB\. `max_memory=1e-06` allows less\..* Pass `cache_folder`"):
        found.mine(model, show_progress_bar=False)
    with pytest.raises(TypeError, match="number of GB"):
        HardNegativeDataset(word_pairs, max_memory="8 GB")
    with pytest.raises(ValueError, match="above 0 GB"):
        HardNegativeDataset(word_pairs, max_memory=0)


@pytest.mark.usefixtures("small_files")
def test_an_index_that_would_hold_everything_is_refused(model, word_pairs, tmp_path, monkeypatch):
    """After the first texts, not after all of them."""
    from st_hardneg.search import FaissSearcher

    seen: list[str] = []
    real = type(model).encode_document
    monkeypatch.setattr(
        type(model), "encode_document", lambda self, texts, **how: seen.extend(texts) or real(self, texts, **how)
    )
    found = HardNegativeDataset(
        word_pairs, max_memory=1e-6, cache_folder=tmp_path, searcher=FaissSearcher("HNSW32"), num_negatives=1
    )
    with pytest.raises(ValueError, match="would hold all of them"):
        found.mine(model, show_progress_bar=False)
    assert 0 < len(set(seen)) < len(found.corpus.searched)


@pytest.mark.usefixtures("small_files")
def test_a_guide_that_does_not_fit_is_read_from_disk(model, word_pairs, tmp_path):
    """The guide's vectors are kept where the others are, and veto the same."""
    guide = word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(1)))
    corpus, options = random_texts(120, seed=3), {"num_negatives": 2, "guide": guide}
    expected = HardNegativeDataset(word_pairs, corpus, **options)
    found = HardNegativeDataset(word_pairs, corpus, max_memory=1e-6, cache_folder=tmp_path, **options)
    for one in (expected, found):
        one.mine(model, show_progress_bar=False)
    assert (found.negative_ids == expected.negative_ids).all()
    assert found.report.to_dict()["removed"] == expected.report.to_dict()["removed"]


@pytest.mark.skipif(os.name == "nt", reason="there are no such locks")
def test_vectors_of_a_mining_that_was_killed_are_removed(tmp_path):
    """By the next mining on disk; those of one that goes on stay, and so do those of an earlier version."""
    texts = [f"text {i}" for i in range(5)]
    program = (
        "import os, sys; from st_hardneg.encoders.cached import on_disk; from tests.encoders.test_store import Counted\n"
        f"rows = on_disk(Counted(), {texts!r}, {str(tmp_path)!r}); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 9
    (left,) = tmp_path.glob("for_now_*")
    (tmp_path / "for_now_unlocked").mkdir()
    first = on_disk(Counted(), texts, str(tmp_path))
    assert not left.exists() and len(list(tmp_path.glob("for_now_*"))) == 2
    second = on_disk(Counted(), texts, str(tmp_path))
    assert len(list(tmp_path.glob("for_now_*"))) == 3
    assert torch.equal(first[torch.arange(5)], second[torch.arange(5)])
    del first, second
    assert [path.name for path in tmp_path.iterdir()] == ["for_now_unlocked"]
    with pytest.raises(KeyboardInterrupt):
        on_disk(Counted(stops_after=2), texts, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["for_now_unlocked"]


def test_a_frozen_model_encodes_nothing_at_the_second_refresh(model, word_pairs, monkeypatch):
    """Not even what tells it from other models; another weight or plain attribute encodes everything anew."""
    found, encoded = HardNegativeDataset(word_pairs, num_negatives=1), []
    for name in ("encode_query", "encode_document"):
        real = getattr(type(model), name)
        monkeypatch.setattr(
            type(model), name, lambda self, texts, real=real, **o: encoded.append(len(texts)) or real(self, texts, **o)
        )

    def num_encoded() -> int:
        encoded.clear()
        found.live.apply(found.compute_mining(model, is_frozen=True, show_progress_bar=False))
        return sum(encoded)

    assert num_encoded() >= 96 and num_encoded() == 0
    with torch.no_grad():
        model[0].embedding.weight[3] += 1.0
    assert num_encoded() >= 96 and num_encoded() == 0
    model[0].some_factor = 2.0
    assert num_encoded() >= 96 and num_encoded() == 0


def test_two_datasets_that_share_a_corpus_encode_it_once(model, word_pairs, tmp_path, monkeypatch):
    """Whatever their pairs are; a corpus that has grown encodes what is new."""
    corpus, seen = random_texts(60, seed=4), []
    real = type(model).encode_document
    monkeypatch.setattr(
        type(model), "encode_document", lambda self, texts, **o: seen.extend(texts) or real(self, texts, **o)
    )
    for rows, texts in ((range(20), corpus), (range(20, 48), corpus), (range(20, 48), ["a new text", *corpus])):
        found = HardNegativeDataset(word_pairs.select(rows), texts, num_negatives=1, cache_folder=tmp_path)
        found.mine(model, show_progress_bar=False)
    assert max(seen.count(text) for text in set(corpus)) == 1
    assert seen.count("a new text") == 1


def test_some_vectors_are_read_from_files_in_any_order(tmp_path):
    """Rows of several files, in runs and alone, repeated; a file that has become shorter is noticed."""
    store, vectors = Store(str(tmp_path)), np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    texts = [f"text {number}" for number in range(50)]
    for start in range(0, 50, 20):
        store.add(digests_of(texts[start : start + 20]), vectors[start : start + 20])
    rows = np.array([3, 4, 5, 49, 20, 19, 19, 41, 0, 1])
    assert (store.read(rows) == vectors[rows]).all() and (store.read(rows[:3]) == vectors[rows[:3]]).all()
    assert store.read(np.arange(0)).shape == (0, 0)
    path = tmp_path / f"{store.names[1]}.npy"
    path.write_bytes(path.read_bytes()[:-4])
    again = Store(str(tmp_path))
    with pytest.raises(OSError, match="has become shorter than its 20 vectors"):
        again.read(again.find(digests_of(texts[20:40])))
