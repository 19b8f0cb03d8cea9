"""The candidate pool: what is chosen from it is what a mining with that recipe would have found, or an error."""

from __future__ import annotations

import dataclasses
import re
from functools import cache

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from st_hardneg import (
    Distance,
    Guide,
    HardNegativeDataset,
    LogRank,
    MiningConfig,
    MiningError,
    NotMinedError,
    SimANS,
    Softmax,
)
from st_hardneg.mining.pool import FIXED
from tests.conftest import WORDS, other_model, random_texts, word_model

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")

KEPT = 60


def model_of(seed: int):
    return word_model(WORDS, torch.randn(200, 16, generator=torch.Generator().manual_seed(seed)))


def pairs_and_corpus(seed: int) -> tuple[Dataset, list[str]]:
    """Queries with one to four right answers, some of which the corpus holds, in whatever spelling."""
    texts = list(dict.fromkeys(random_texts(260, seed=seed)))
    anchors = [texts[place % 12] for place in range(24)] + [f" {texts[0]} "]
    positives = [f"{anchor.strip()} {WORDS[place]}" for place, anchor in enumerate(anchors)]
    near = [
        f"{' '.join(anchor.split()[place % 3 :])} {WORDS[60 + place]} {WORDS[90]}"
        for place, anchor in enumerate(anchors)
    ]
    return Dataset.from_dict({"anchor": anchors, "positive": positives}), [*positives[::2], *near, *texts[50:]]


def same(chosen: HardNegativeDataset, mined: HardNegativeDataset) -> None:
    ours, theirs = chosen.live.mining.negatives, mined.live.mining.negatives
    for field in dataclasses.fields(ours):
        torch.testing.assert_close(getattr(ours, field.name), getattr(theirs, field.name), equal_nan=True)
    told, expected = chosen.report, mined.report
    for name in (
        "removed",
        "removed_alone",
        "num_candidates",
        "num_kept",
        "sources",
        "doubt",
        "num_missing",
        "typical_rank",
    ):
        assert getattr(told, name) == getattr(expected, name), name
    assert chosen.negative_ids.tolist() == mined.negative_ids.tolist()


RECIPES = st.fixed_dictionaries(
    {"num_negatives": st.integers(1, 6), "shortfall": st.sampled_from(["drop", "repeat", "random"])},
    optional={
        "range_min": st.integers(0, 10),
        "range_max": st.integers(16, KEPT + 10),
        "relative_margin": st.sampled_from([0.0, 0.05, 0.3]),
        "absolute_margin": st.sampled_from([-0.5, 0.0, 0.2]),
        "max_score": st.floats(0.2, 0.9),
        "min_score": st.floats(-0.2, 0.19),
        "max_positive_similarity": st.floats(0.3, 0.9),
        "sampling_strategy": st.sampled_from(["top", "random", Softmax(0.1), SimANS(1.0, 0.05), LogRank(), Distance()]),
        "rank_window": st.sampled_from(["survivors", "raw"]),
        "exclude_pattern": st.sampled_from(["w1", "w7 "]),
        "seed": st.integers(0, 3),
    },
)


@cache
def mined_pool(seed: int) -> HardNegativeDataset:
    """A dataset that keeps candidates; it is never changed."""
    pool = HardNegativeDataset(*pairs_and_corpus(seed), MiningConfig(keep_candidates=KEPT))
    pool.mine(model_of(seed), show_progress_bar=False)
    return pool


@pytest.mark.training  # takes ten seconds or more
@settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate])
@given(fields=RECIPES, is_recommended=st.booleans(), seed=st.integers(0, 2))
def test_what_is_chosen_is_what_would_be_mined(fields, is_recommended, seed):
    """For any recipe: the same negatives, scores, ranks, sources and counts; or an error, where too little is kept."""
    pairs, corpus = pairs_and_corpus(seed)
    model = model_of(seed)
    config = MiningConfig.recommended(**fields) if is_recommended else MiningConfig(**fields)
    pool = mined_pool(seed)
    fresh = HardNegativeDataset(pairs, corpus, config)
    try:
        fresh.mine(model, show_progress_bar=False)
    except MiningError:
        with pytest.raises(MiningError):
            pool.choose(config)
        return
    try:
        chosen = pool.choose(config)
    except MiningError as error:
        needed = fresh.report.num_random or fresh.report.num_last_resort
        look = fresh.live.mining.negatives.ranks.max() >= KEPT
        reach = config.window(4, is_deep=True)[1] + 4 + 4 > KEPT or config.shortfall == "random"
        assert needed or look or reach, error
        return
    same(chosen, fresh)


def test_what_is_chosen_has_the_pictures_that_candidates_tell(tmp_path):
    """Histograms, risk, repeats and doubtful texts are a mining's own; what takes vectors is not drawn."""
    pairs, corpus = pairs_and_corpus(0)
    config = MiningConfig.recommended(num_negatives=2, shortfall="drop")
    fresh = HardNegativeDataset(pairs, corpus, config)
    expected = fresh.mine(model_of(0), show_progress_bar=False).figures
    chosen = mined_pool(0).choose(config)
    figures = chosen.report.figures
    for name in ("histograms", "repeats", "sampled_queries", "risk"):
        assert figures[name] == expected[name], name
    assert [one["text"] for one in figures["doubtful"]] == [one["text"] for one in expected["doubtful"]]
    assert len(figures["doubtful"]) == 10 and chosen.report.risk == fresh.report.risk
    assert not {"map", "topics", "near_duplicates"} & set(figures)
    chosen.report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    drawn = {"scores", "differences", "hardness", "waterfall", "risk", "diversity"}
    assert set(re.findall('<figure id="([^"]*)">', page)) == drawn
    plain = mined_pool(0).choose(MiningConfig(num_negatives=2)).report  # a recipe that compares with no right answer
    assert 0 < len(plain.figures["doubtful"]) <= 10 and plain.risk is not None


def test_every_recipe_within_the_depth_is_answered():
    """With as many candidates as there are texts, no recipe but those that fill at random is refused."""
    pairs, corpus = pairs_and_corpus(5)
    model = model_of(5)
    pool = HardNegativeDataset(pairs, corpus, MiningConfig(keep_candidates=1_000))
    pool.mine(model, show_progress_bar=False)
    for config in (
        MiningConfig(num_negatives=5, range_min=3, range_max=200),
        MiningConfig(relative_margin=0.05, shortfall="repeat"),
        MiningConfig.recommended(shortfall="drop", min_words=2),
        MiningConfig(sampling_strategy=Distance(), range_max=150),
    ):
        fresh = HardNegativeDataset(pairs, corpus, config)
        fresh.mine(model, show_progress_bar=False)
        same(pool.choose(config), fresh)


class Teacher:
    """A cross encoder that has its own opinion."""

    def predict(self, pairs, **_):
        return torch.tensor([sum(map(ord, a + b)) % 97 / 97 for a, b in pairs])


def test_sources_guides_and_cross_encoders(bm25s):
    """Each source keeps its own candidates; what a guide and a cross encoder say is kept with them."""
    pairs, corpus = pairs_and_corpus(7)
    model = model_of(7)
    given = pairs.add_column("negative", random_texts(len(pairs), seed=77))
    options = {
        "cross_encoder": Teacher(),
        "guide": Guide(other_model(3)),
        "extra_filters": lambda found, _: found.ranks != 1,
    }
    sources = {"dense": 2, "lexical": 1, "given": 1}
    pool = HardNegativeDataset(
        given, corpus, MiningConfig(num_negatives=4, keep_candidates=200), sources=sources, **options
    )
    pool.mine(model, show_progress_bar=False)
    for quotas in (sources, {"dense": 3}, {"lexical": 2, "dense": 1}):
        fields = {"num_negatives": sum(quotas.values()), "relative_margin": 0.1, "shortfall": "drop"}
        fresh = HardNegativeDataset(given, corpus, MiningConfig(**fields), sources=quotas, **options)
        fresh.mine(model, show_progress_bar=False)
        chosen = pool.choose(MiningConfig(sources=quotas, **fields))
        assert chosen.negative_ids.tolist() == fresh.negative_ids.tolist()
        assert chosen.report.sources == fresh.report.sources and chosen.report.removed == fresh.report.removed


def test_both_spaces():
    """Anchors among the candidates are told from corpus texts."""
    pairs, corpus = pairs_and_corpus(8)
    model, spaces = model_of(8), ("corpus", "anchors")
    pool = HardNegativeDataset(pairs, corpus, MiningConfig(search_spaces=spaces, keep_candidates=200))
    pool.mine(model, show_progress_bar=False)
    config = MiningConfig(num_negatives=4, search_spaces=spaces, relative_margin=0.1)
    fresh = HardNegativeDataset(pairs, corpus, config)
    fresh.mine(model, show_progress_bar=False)
    same(pool.choose(config), fresh)
    with pytest.raises(ValueError, match="other values of \\['search_spaces'\\]"):
        pool.choose(MiningConfig(num_negatives=4))


@pytest.fixture
def pool(bag_of_words) -> HardNegativeDataset:
    pairs, corpus = pairs_and_corpus(0)
    dataset = HardNegativeDataset(
        pairs, {f"d{number}": text for number, text in enumerate(corpus)}, keep_candidates=KEPT
    )
    dataset.mine(bag_of_words, show_progress_bar=False)
    return dataset


def test_choosing_leaves_the_dataset_as_it_is(pool):
    """And nothing is encoded: no model is needed. Fields lie over the dataset's own recipe."""
    before = pool.negative_ids.tolist()
    chosen = pool.choose(num_negatives=1, shortfall="drop", relative_margin=0.0, max_relative_positive_similarity=None)
    assert pool.negative_ids.tolist() == before and pool.config.num_negatives == 3
    assert chosen.negative_ids.shape == (len(pool), 1)
    assert chosen.report.model == pool.report.model and "weights" in chosen.report.model
    assert len(chosen.to_dataset("triplet")) and len(chosen.candidates()) == pool.num_queries
    again = chosen.choose(pool.config)
    assert again.negative_ids.tolist() == before


def test_what_cannot_be_answered(pool, bag_of_words):
    """Each refusal says why, and what to do."""
    pairs, corpus = pairs_and_corpus(0)
    plain = HardNegativeDataset(pairs, corpus)
    with pytest.raises(NotMinedError, match=r"Call `\.mine"):
        plain.choose(MiningConfig())
    plain.mine(bag_of_words, show_progress_bar=False)
    with pytest.raises(MiningError, match="Mine with `keep_candidates=100`"):
        plain.candidates()
    with pytest.raises(MiningError, match=r"Mine with `keep_candidates=\d+` or more"):
        pool.choose(MiningConfig(range_max=100))
    with pytest.raises(ValueError, match="`random_rate` would need other texts"):
        pool.choose(MiningConfig(random_rate=0.5))
    with pytest.raises(ValueError, match=r"the sources \['lexical'\] would need other texts"):
        pool.choose(MiningConfig(sources={"dense": 2, "lexical": 1}))
    for name, value in (("query_prompt", "q: "), ("identity", "exact")):
        with pytest.raises(ValueError, match=f"other values of \\['{name}'\\]"):
            pool.choose(MiningConfig(**{name: value}))
    with pytest.raises(TypeError, match="`num_negative` is not a field"):
        pool.choose(num_negative=2)
    with pytest.raises(TypeError, match="Pass `config`, or fields"):
        pool.choose(MiningConfig(), num_negatives=2)
    assert set(FIXED) < set(MiningConfig().to_dict())


def test_candidates_are_a_plain_dataset(pool):
    """Right answers first, then what was found, best first, without what is known to be right."""
    rows = pool.candidates()
    texts = pool.corpus.texts.take(np.arange(len(pool.corpus.texts)))
    assert len(rows) == pool.num_queries
    for query, row in enumerate(rows):
        own = sorted(set(pool._wrapped.pairs.row_positive[pool._wrapped.pairs.row_query == query]))
        assert row["num_positives"] == len(own) and row["sources"][: len(own)] == ["positive"] * len(own)
        found = row["scores"][len(own) :]
        assert found == sorted(found, reverse=True) and len(found) >= KEPT - 6
        assert len(set(row["document_ids"])) == len(row["document_ids"]) == len(row["ranks"]) == len(row["scores"])
        assert all(name.startswith(("d", "positive-")) for name in row["document_ids"])
        known = {texts[place].casefold().strip() for place in own}
        ids = [int(name[1:]) for name in row["document_ids"][len(own) :] if name.startswith("d")]
        assert not known & {texts[place].casefold().strip() for place in ids}


def test_candidates_are_saved_and_pushed(pool, tmp_path):
    """A saved pool answers as the one in memory; a published one can be resolved by id."""
    pool.save_to_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    config = MiningConfig(num_negatives=2, relative_margin=0.1, shortfall="repeat")
    same(loaded.choose(config), pool.choose(config))
    assert loaded.candidates().to_dict() == pool.candidates().to_dict()
    folder = pool.push_to_hub("me/x", dry_run=tmp_path / "out")
    read = {
        name: load_dataset(folder, name, split="train", cache_dir=str(tmp_path / "cache"))
        for name in ("candidates", "queries", "documents")
    }
    assert read["candidates"].to_dict() == pool.candidates().to_dict()
    assert set(read["documents"]["document_id"]) >= {one for ids in read["candidates"]["document_ids"] for one in ids}
    assert read["queries"]["query_id"] == read["candidates"]["query_id"]


def test_a_damaged_pool_is_not_read(pool, tmp_path):
    """Bytes that have changed, and a file that is gone."""
    pool.save_to_disk(tmp_path / "saved")
    path = tmp_path / "saved" / "candidates-0.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        HardNegativeDataset.load_from_disk(tmp_path / "saved")
    path.unlink()
    with pytest.raises(ValueError, match="damaged"):
        HardNegativeDataset.load_from_disk(tmp_path / "saved")
