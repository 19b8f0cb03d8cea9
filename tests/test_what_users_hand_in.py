"""What a user hands in is honoured or refused in words; it is never ignored."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_hardneg import HardNegativeDataset, MiningCallback, MiningConfig
from st_hardneg.samplers import NoDuplicatePairsBatchSampler
from st_hardneg.search import FaissSearcher
from tests.conftest import random_texts

INVISIBLE = ["\u200b", "\u00ad", "\ufeff", "\u200e", "\u2060", "\ufe0f"]


def mined(pairs, corpus=None, *, model, n=1, **fields) -> HardNegativeDataset:
    hard_negatives = HardNegativeDataset(pairs, corpus, MiningConfig(num_negatives=n, **fields))
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


def arguments(path: Path, **changes) -> SentenceTransformerTrainingArguments:
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "learning_rate": 0.1,
    }
    return SentenceTransformerTrainingArguments(str(path), **{**options, **changes})


def trainer_of(model, hard_negatives, args, **options) -> SentenceTransformerTrainer:
    return SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=hard_negatives.as_dataset(),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[MiningCallback(hard_negatives, 4)],
        **options,
    )


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
def test_a_copy_of_the_positive_with_an_invisible_character_is_no_negative(character, bag_of_words):
    pairs = Dataset.from_dict({"anchor": ["w1 w2"], "positive": ["w3 w4"]})
    found = mined(pairs, [f"w3{character} w4", "w90 w91"], model=bag_of_words)
    assert found.to_dataset()["negative"][:] == ["w90 w91"]


def test_a_positive_with_its_title_is_found_in_a_corpus_with_titles(bag_of_words):
    """The corpus has `title` and `text`, the positives were made from both."""
    corpus = Dataset.from_dict({"title": ["w1", "w2", "w3"], "text": ["w11 w12", "w21 w22", "w31 w32"]})
    pairs = Dataset.from_dict({"anchor": ["w1 w11", "w2 w21"], "positive": ["w1 w11 w12", "w2. w21 w22"]})
    found = mined(pairs, corpus, model=bag_of_words)
    assert "2 of 2 positives found in the corpus" in repr(found)
    assert not {"w11 w12"} & set(found.to_dataset().select([0])["negative"][:])
    assert not {"w21 w22"} & set(found.to_dataset().select([1])["negative"][:])


def test_positives_that_the_corpus_lacks_are_said(bag_of_words, word_pairs, caplog):
    hard_negatives = HardNegativeDataset(word_pairs, ["w1 w2 w3", "w5 w6"])
    assert "0 of 48 positives found in the corpus" in repr(hard_negatives)
    assert "48 of 48 positives are not in the corpus" in caplog.text


def test_the_other_side_of_a_pair_is_no_negative(bag_of_words):
    """(a, b) and (b, c): the anchor `a` is right for the query `b`, too, where `a` is in the corpus."""
    pairs = Dataset.from_dict({"anchor": ["w1 w2", "w1 w3", "w7"], "positive": ["w1 w3", "w1 w4", "w8"]})
    found = mined(pairs, ["w1 w2", "w50 w51"], model=bag_of_words, n=2)
    rows = {row["anchor"]: [row["negative_1"], row["negative_2"]] for row in found.to_dataset("n-tuple")}
    assert "w1 w2" not in rows["w1 w3"]


def test_string_views_and_texts_by_id(bag_of_words, word_pairs):
    """Polars and DuckDB hand over `string_view`; a corpus may come as `{id: text}`."""
    table = pa.table({name: pa.array(word_pairs[name][:], pa.string_view()) for name in word_pairs.column_names})
    corpus = {f"d{number}": text for number, text in enumerate(random_texts(30, seed=8))}
    found = mined(Dataset(table), corpus, model=bag_of_words)
    expected = mined(word_pairs, list(corpus.values()), model=bag_of_words)
    assert (found.negative_ids == expected.negative_ids).all()
    assert all(name.startswith(("d", "positive-")) for row in found.provenance()["negative_ids"] for name in row)


def test_thousands_of_spellings_of_one_anchor_are_built_at_once(bag_of_words):
    spellings = [" " * (1 + number) + "w1" for number in range(2_000)]
    pairs = Dataset.from_dict({"anchor": spellings, "positive": [f"w2 x{number}" for number in range(2_000)]})
    started = time.perf_counter()
    hard_negatives = HardNegativeDataset(pairs)
    assert time.perf_counter() - started < 2.0
    assert len(hard_negatives.known_positives.keys) < 5_000


# --- labels, transforms, columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "labels", "score", "scores"])
@pytest.mark.parametrize("wrong", [0, 0.0, False])
def test_rows_labelled_wrong_are_refused(name, wrong):
    pairs = Dataset.from_dict({"a": ["x", "y"], "b": ["p", "q"], name: [type(wrong)(1), wrong]})
    with pytest.raises(ValueError, match=f"The column '{name}' labels 1 of 2 rows as wrong answers"):
        HardNegativeDataset(pairs)


def test_labels_that_are_classes_are_refused_and_ones_are_not():
    pairs = Dataset.from_dict({"a": ["x", "y"], "b": ["p", "q"], "label": [1, 2]})
    with pytest.raises(ValueError, match="holds other values than 0 and 1, such as 2"):
        HardNegativeDataset(pairs)
    right = pairs.remove_columns("label").add_column("label", [1, 1]).add_column("score", [0.3, 0.9])
    assert len(HardNegativeDataset(right)) == 2


def test_a_transform_is_refused(word_pairs):
    with pytest.raises(ValueError, match="has a transform"):
        HardNegativeDataset(word_pairs.with_transform(lambda batch: batch))
    assert len(HardNegativeDataset(word_pairs.with_format("numpy"))) == 48


def test_columns_of_the_users_are_not_replaced(bag_of_words, word_pairs):
    found = mined(word_pairs.add_column("scores", ["mine"] * 48), model=bag_of_words)
    assert found.to_dataset("n-tuple", keep_columns=True)["scores"][:] == ["mine"] * 48
    with pytest.raises(ValueError, match=r"columns \['scores'\] of its own"):
        found.to_dataset("n-tuple", output_scores=True, keep_columns=True)


# --- config -----------------------------------------------------------------------------------------------------------


def test_a_margin_of_500_percent_is_refused():
    with pytest.raises(ValueError, match="share of the positive's score"):
        MiningConfig(relative_margin=5)


def test_a_config_survives_tools_that_rewrite_its_annotations():
    """`HfArgumentParser` replaces `field.type` by types, for the whole process."""
    kept = {part.name: part.type for part in dataclasses.fields(MiningConfig)}
    try:
        for part in dataclasses.fields(MiningConfig):
            part.type = int
        assert MiningConfig(num_negatives=4, relative_margin=0.1).num_negatives == 4
        MiningCallback(schedule={"relative_margin": 0.1})
    finally:
        for part in dataclasses.fields(MiningConfig):
            part.type = kept[part.name]


# --- training ---------------------------------------------------------------------------------------------------------


# --- search, samplers, files ------------------------------------------------------------------------------------------


def test_search_parameters_of_an_index_can_be_set():
    """An inverted-file index looks into one list unless it is told otherwise."""
    corpus = torch.nn.functional.normalize(torch.randn(4_000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    exact = FaissSearcher("Flat")
    exact.index(corpus, "cosine")
    wanted = exact.search(corpus[:50], 20)[0]

    def recall(factory: str) -> float:
        searcher = FaissSearcher(factory)
        searcher.index(corpus, "cosine")
        found = searcher.search(corpus[:50], 20)[0]
        return float((found[:, :, None] == wanted[:, None, :]).any(2).float().mean())

    assert recall("IVF64,Flat,nprobe=64") > 0.999 > 0.9 > recall("IVF64,Flat")
    with pytest.raises(ValueError, match="does not take the search parameters 'nprobe=3'"):
        FaissSearcher("Flat,nprobe=3").index(corpus, "cosine")


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("num_queries", [3, 400])
def test_scores_of_a_flat_index_are_the_similarities(similarity, num_queries):
    corpus, queries = (torch.randn(n, 48, generator=torch.Generator().manual_seed(n)) for n in (900, num_queries))
    searcher = FaissSearcher()
    searcher.index(corpus, similarity)
    ids, scores = searcher.search(queries, 12)
    unit = torch.nn.functional.normalize
    left, right = (queries, corpus) if similarity == "dot" else (unit(queries, dim=1), unit(corpus, dim=1))
    expected = (left.double() @ right.double().T).topk(12)
    torch.testing.assert_close(scores.double(), expected.values, rtol=1e-5, atol=1e-5)
    assert (ids == expected.indices).float().mean() > 0.99


def test_batches_of_few_different_positives_are_made_in_time():
    count = 16_000
    rows = {"anchor": [f"a{number}" for number in range(count)], "positive": [f"p{n % 4}" for n in range(count)]}
    sampler = NoDuplicatePairsBatchSampler(Dataset.from_dict(rows), 32, False, generator=torch.Generator(), seed=1)
    started = time.perf_counter()
    batches = list(sampler)
    assert time.perf_counter() - started < 5.0
    assert sorted(row for batch in batches for row in batch) == list(range(count))
    assert all(len({row % 4 for row in batch}) == len(batch) for batch in batches)


@pytest.mark.parametrize("seed", range(5))
def test_batches_take_the_earliest_rows_that_repeat_nothing(seed):
    """As the plain loop over all rows that are left does."""
    rng = np.random.default_rng(seed)
    pairs = {
        "anchor": [f"a{n}" for n in rng.integers(0, 25, 90)],
        "positive": [f"p{n}" for n in rng.integers(0, 12, 90)],
    }
    sampler = NoDuplicatePairsBatchSampler(Dataset.from_dict(pairs), 8, False, generator=torch.Generator(), seed=seed)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(seed)).tolist()
    expected = []
    while order:
        batch, texts = [], set()
        for row in order:
            own = {pairs["anchor"][row], pairs["positive"][row]}
            if len(batch) < 8 and not texts & own:
                batch.append(row)
                texts |= own
        expected.append(batch)
        order = [row for row in order if row not in batch]
    assert list(sampler) == expected
