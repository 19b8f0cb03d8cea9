"""What outlives a mining: token ids, and vectors of which a share is encoded anew by turns."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.encoders import tokens
from st_hardneg.encoders.precision import gains_by_half_precision, half_precision
from st_hardneg.encoders.reuse import Reuse
from st_hardneg.encoders.tokens import kept_tokens
from tests.conftest import WORDS, random_texts, word_model
from tests.toys import Model, by_seed

TEXTS = list(dict.fromkeys(random_texts(300, seed=3, length=3)))


def make(texts=TEXTS, **fields):
    pairs = Dataset.from_dict({"anchor": texts[:40], "positive": texts[40:80]})
    return HardNegativeDataset(pairs, texts[60:200], MiningConfig(**fields))


class Counting(Model):
    """Notes which texts were encoded since the last time that anybody asked."""

    def __init__(self, seed=0):
        super().__init__(by_seed(seed))
        self.seen = Counter()

    def encode(self, texts, **options):
        self.seen.update(texts)
        return super().encode(texts, **options)

    encode_query = encode_document = encode

    def taken(self):
        seen, self.seen = self.seen, Counter()
        return seen


def mine(hard_negatives, model, step, reuse):
    mining = hard_negatives.compute_mining(model, step=step, reuse=reuse, show_progress_bar=False)
    return mining, mining.report


@pytest.mark.parametrize(("share", "turns"), [(0.5, 2), (0.25, 4), (0.3, 4), (0.01, 100)])
def test_a_share_is_encoded_by_turns(share, turns):
    """Queries and positives always; of the other texts each turn another share, until all had theirs."""
    found, model = make(), Counting()
    found.mine(model, show_progress_bar=False)
    model.taken()
    queries, positives, others = set(TEXTS[:40]), set(TEXTS[40:80]), set(TEXTS[80:200])
    seen = Counter()
    for turn in range(turns):
        _, report = mine(found, model, 10 * (turn + 1), Reuse(share, keeps_vectors=True))
        encoded = model.taken()
        assert set(encoded) >= queries | positives and set(encoded) <= queries | positives | others
        assert max(encoded.values()) == 1 and report.num_encoded == len(encoded)
        part = set(encoded) & others
        assert abs(len(part) - share * len(others)) <= 10 * share + 1
        seen.update(part)
    assert set(seen) == others
    assert max(seen.values()) - min(seen.values()) <= 1


def test_the_vectors_are_those_of_their_step_and_the_report_has_their_age():
    """New vectors are the new model's, and the others the old one's, moved as these have moved."""
    found = make(num_negatives=3)
    model = Counting(0)
    found.mine(model, show_progress_bar=False)
    model.taken()
    model.vector_of = by_seed(1)
    mining, report = mine(found, model, 8, Reuse(0.5, keeps_vectors=True))
    encoded = set(model.taken())
    old, new = by_seed(0), by_seed(1)
    before, after = (np.stack([of(text) for text in TEXTS[40:200] if text in encoded]) for of in (old, new))
    squares = before.T @ before
    ridge = 1e-3 * squares.diagonal().mean() * np.eye(len(squares))
    move = np.linalg.solve(squares + ridge, before.T @ (after - before))
    assert len(before) > len(squares) and np.abs(move).max() > 0.01

    def moved(text):
        return old(text) + old(text) @ move

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for query, text in enumerate(TEXTS[:40]):
        scores = {}
        for number, other in enumerate(found.corpus.texts.take(np.arange(len(found.corpus)))):
            scores[number] = cosine(new(text), (new if other in encoded else moved)(other))
        own = {number for number in scores if found.corpus.texts.take([number])[0] in (text, TEXTS[40 + query])}
        best = sorted(set(scores) - own, key=scores.get, reverse=True)[:3]
        assert mining.negatives.ids[query].tolist() == best
    num_old = sum(text not in encoded for text in TEXTS[60:200])
    assert report.vector_age == pytest.approx(8 * num_old / 160, rel=0.15)
    assert report.metrics()["mining/vector_age"] == round(report.vector_age, 4)
    assert "steps old in the mean" in str(report)


def test_queries_only():
    """The corpus keeps its vectors, and its age grows; a model that nothing is kept of is encoded whole, once."""
    found, model = make(), Counting()
    queries_only = Reuse(0.0, keeps_vectors=True)
    _, report = mine(found, model, 5, queries_only)
    assert (report.num_encoded, report.vector_age) == (40 + 160, 0.0)
    model.taken()
    _, report = mine(found, model, 9, queries_only)
    assert set(model.taken()) == set(TEXTS[:40]) and (report.num_encoded, report.vector_age) == (40, 4.0)
    # Another model, or another prompt, has vectors of its own.
    other = Counting(1)
    _, report = mine(found, other, 9, queries_only)
    assert report.num_encoded == 200


def test_a_whole_refresh_keeps_nothing():
    found, model = make(), Counting()
    found.mine(model, show_progress_bar=False)
    kept = found._wrapped.task.kept
    assert kept["vectors"]
    mine(found, model, 5, None)
    assert not kept["vectors"]


def test_many_vectors_are_not_kept_from_the_first_mining(monkeypatch):
    monkeypatch.setattr("st_hardneg.encoders.reuse._MAX_BYTES", 1000)
    found, model = make(), Counting()
    found.mine(model, show_progress_bar=False)
    assert not found._wrapped.task.kept["vectors"]
    _, report = mine(found, model, 5, Reuse(0.5, keeps_vectors=True))
    assert report.num_encoded == 200
    _, report = mine(found, model, 6, Reuse(0.5, keeps_vectors=True))
    assert report.num_encoded < 160


def test_vectors_that_are_streamed_are_not_kept_beside(tmp_path, monkeypatch):
    """Shard by shard each would fit; all of them do not, and parts of a corpus are of no use."""
    monkeypatch.setattr("st_hardneg.encoders.cached.SHARD", 40)
    pairs, corpus = Dataset.from_dict({"anchor": TEXTS[:40], "positive": TEXTS[40:80]}), TEXTS[80:200]
    num_bytes = len(corpus) * Counting().encode_document(["a"]).shape[1] * 4
    found = HardNegativeDataset(
        pairs, corpus, MiningConfig(num_negatives=3), cache_folder=str(tmp_path), max_memory=num_bytes / 2e9
    )
    found.mine(Counting(), show_progress_bar=False)
    assert not found._wrapped.task.kept["vectors"]


def test_a_share_of_a_corpus_that_does_not_fit_is_refused(tmp_path):
    """Its other vectors would have to stay in memory from one refresh to the next."""
    pairs = Dataset.from_dict({"anchor": TEXTS[:40], "positive": TEXTS[40:80]})
    found = HardNegativeDataset(
        pairs, TEXTS[80:200], MiningConfig(num_negatives=3), cache_folder=str(tmp_path), max_memory=1e-6
    )
    with pytest.raises(
        MiningError, match=r"do not fit into memory, where `corpus_refresh_fraction` and `refresh_scope`"
    ):
        mine(found, Counting(), 5, Reuse(0.5, keeps_vectors=True))


# --- token ids --------------------------------------------------------------------------------------------------------


def counted(model, monkeypatch):
    """Return a list to which every batch is added that is really tokenised."""
    batches = []
    module, real = model[0], model[0].preprocess

    def preprocess(inputs, **options):
        batches.append(list(inputs))
        return real(inputs, **options)

    monkeypatch.setattr(module, "preprocess", preprocess)
    return batches


@pytest.fixture
def model():
    return word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))


def test_a_refresh_tokenises_nothing_again(model, monkeypatch):
    """And finds what it would have found otherwise, with the weights of the moment."""
    found, plain = make(num_negatives=3), make(num_negatives=3)
    batches = counted(model, monkeypatch)
    found.mine(model, show_progress_bar=False)
    assert sum(map(len, batches)) >= 200
    with torch.no_grad():
        model[0].embedding.weight.mul_(torch.randn(16, generator=torch.Generator().manual_seed(1)))
    batches.clear()
    mining, _ = mine(found, model, 5, None)
    assert sum(map(len, batches)) <= 32  # the batch that is compared
    assert (mining.negatives.ids == mine(plain, model, 5, None)[0].negatives.ids).all()
    assert "preprocess" not in model.__dict__


def test_another_tokenizer_or_length_is_noticed(model):
    """Also one of as many words."""
    kept = {}
    other = word_model(WORDS[::-1], torch.zeros(200, 16))
    with kept_tokens(model, kept):
        first = model.preprocess(["w1 w2"])
    with kept_tokens(other, kept):
        assert other.preprocess(["w1 w2"])["input_ids"].tolist() == [199, 198]
    with kept_tokens(model, kept):
        again = model.preprocess(["w1 w2"])
    assert {name: one.tolist() for name, one in first.items()} == {name: one.tolist() for name, one in again.items()}
    assert again["input_ids"].dtype == torch.int64 and len(kept["tokens"].batches) == 1


def test_tokens_are_bounded_and_can_be_sent(model):
    kept = {}
    with kept_tokens(model, kept, max_bytes=20):
        for text in TEXTS[:50]:
            model.preprocess([text])
    assert 0 < kept["tokens"].num_bytes <= 20
    again = pickle.loads(pickle.dumps(kept))
    assert again["tokens"].batches.keys() == kept["tokens"].batches.keys()


def test_what_is_no_text_or_no_model_is_left_alone():
    kept = {}
    with kept_tokens(object(), kept):
        pass
    assert not kept
    assert tokens._packed({"pixels": torch.zeros(2, dtype=torch.float32)}) is None


# --- half precision ---------------------------------------------------------------------------------------------------


def test_half_precision_where_it_gains(monkeypatch):
    """A model of a million weights in products, on hardware that has the type; never a small one."""
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(1000, 1001)
    monkeypatch.setattr("st_hardneg.encoders.precision.computes_bfloat16", lambda kind: True)
    assert gains_by_half_precision(large) and not gains_by_half_precision(small)
    assert not gains_by_half_precision(Counting())
    assert not gains_by_half_precision(large.bfloat16())
    monkeypatch.setattr("st_hardneg.encoders.precision.computes_bfloat16", lambda kind: False)
    assert not gains_by_half_precision(torch.nn.Linear(1000, 1001))
    for wanted, dtype in ((True, torch.bfloat16), (False, torch.float32), (None, torch.float32)):
        with half_precision(small, wanted):
            assert small(torch.zeros(1, 10)).dtype == dtype


def test_hardware_says_whether_it_has_the_type():
    from st_hardneg.hosts import computes_bfloat16

    assert isinstance(computes_bfloat16("cpu"), bool) and computes_bfloat16("tpu") is False
