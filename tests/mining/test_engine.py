"""The story of a mining run, on angles that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError
from st_hardneg.candidates import is_repeated
from tests.conftest import other_model, random_texts

ANGLES = [20, 35, 41, 45, 60, 90, 120]
# Toy B of the field's literature as rebuilt for this project: query at 0°, positive at 40°, documents at known angles.
CORPUS = ["d 40°", *(f"d {angle}°" for angle in ANGLES)]


def mine(model, corpus=CORPUS, query="q 0°", positive="d 40°", filters=None, **config):
    pairs = Dataset.from_dict({"anchor": [query], "positive": [positive]})
    hard_negatives = HardNegativeDataset(pairs, corpus, MiningConfig(**config), extra_filters=filters)
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


def angles_of(hard_negatives: HardNegativeDataset) -> list[int]:
    ids = [number for number in hard_negatives.negative_ids[0] if number >= 0]
    return [int(text.split()[-1].rstrip("°")) for text in hard_negatives.corpus.texts.take(ids)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [20, 35, 41]),
        ({"relative_margin": 0.05}, [45, 60, 90]),
        ({"absolute_margin": 0.05}, [45, 60, 90]),
        ({"max_score": 0.75}, [45, 60, 90]),
        ({"absolute_margin": 0.0}, [41, 45, 60]),
        ({"range_min": 1, "range_max": 5}, [35, 41, 45]),
        # The window counts the survivors of the filters among the retrieved, as in Sentence Transformers.
        ({"range_min": 1, "range_max": 5, "relative_margin": 0.05}, [60]),
        # FlagEmbedding's windows count raw ranks; the positive takes up rank 2.
        ({"rank_window": "raw", "range_min": 0, "range_max": 4}, [20, 35, 41]),
        ({"rank_window": "raw", "range_min": 1, "range_max": 5}, [35, 41, 45]),
        ({"rank_window": "raw", "range_min": 0, "range_max": 5, "num_negatives": 5}, [20, 35, 41, 45]),
        # Where others refill with what they filtered, there are four and no more.
        ({"relative_margin": 0.05, "num_negatives": 6}, [45, 60, 90, 120]),
        ({"min_score": 0.6, "max_score": 0.8}, [41, 45]),
        # Nothing closer than 10° to the positive.
        ({"max_positive_similarity": math.cos(math.radians(9.5))}, [20, 60, 90]),
    ],
)
def test_windows_and_filters(protractor, config, expected):
    """Windows, bounds and margins leave exactly the documents worked out by hand."""
    assert angles_of(mine(protractor, **{"num_negatives": 3, **config})) == expected


def test_scores_are_cosines_of_the_angles(protractor):
    """A negative's score is the cosine of the angle between query and negative."""
    scores = mine(protractor).negative_scores[0]
    np.testing.assert_allclose(scores, np.cos(np.radians([20, 35, 41])), atol=1e-6)


def test_a_candidate_exactly_at_a_bound_stays(protractor):
    """Equality is kept, as in Sentence Transformers; the next smaller bound drops the candidate."""
    exactly = float(mine(protractor, num_negatives=7).negative_scores[0][ANGLES.index(60)])
    just_below = float(np.nextafter(np.float32(exactly), np.float32(0)))
    assert angles_of(mine(protractor, max_score=exactly, num_negatives=1)) == [60]
    assert angles_of(mine(protractor, max_score=just_below, num_negatives=1)) == [90]


def test_min_words_and_exclude_pattern(protractor):
    """Short texts and texts that match a pattern are dropped."""
    corpus = ["40°", "10°", "see also 20°", "a note 30°", "a longer note 50°"]
    found = mine(protractor, corpus, positive="40°", num_negatives=1, min_words=3, exclude_pattern=r"^see\b")
    assert found.corpus.texts.take(found.negative_ids[0]) == ["a note 30°"]


@pytest.mark.parametrize("planted", ["q 0°", "Q  0°", "ｑ 0°", "d 40°", "D 40°", " d\t40°"])
def test_the_anchor_the_positive_and_their_duplicates_are_never_returned(protractor, planted):
    """Copies that differ in case, whitespace or Unicode form are excluded, although they would be the closest."""
    found = mine(protractor, [planted, "x 10°", "x 50°", "x 60°"], num_negatives=3)
    assert sorted(angles_of(found)) == [10, 50, 60]


def test_positives_of_other_rows_of_the_same_query_are_excluded(protractor):
    """Rows with the same anchor, also but for case, are one query for what is known to be right."""
    pairs = Dataset.from_dict({"anchor": ["q 0°", "q 0°", "Q 0°"], "positive": ["a 40°", "b 10°", "c 20°"]})
    found = HardNegativeDataset(pairs, ["x 50°", "x 60°"], MiningConfig(num_negatives=2))
    found.mine(protractor, show_progress_bar=False)
    assert {text for row in found.negative_ids for text in found.corpus.texts.take(row)} == {"x 50°", "x 60°"}


def test_equal_texts_are_one_candidate(protractor):
    """A row never gets the same text twice, however often the corpus has it."""
    found = mine(protractor, ["x 10°", "X 10°", "x 10°", "x 20°", "x 30°"], num_negatives=3)
    assert angles_of(found) == [10, 20, 30]


@pytest.mark.parametrize("strategy", ["top", "random"])
def test_chunking_changes_nothing(bag_of_words, word_pairs, strategy):
    """The same negatives come out whatever the chunk sizes, drawn or not."""
    results = []
    for chunks in ((1, 7), (5, 100_000), (512, 3)):
        config = MiningConfig(sampling_strategy=strategy, range_max=20)
        found = HardNegativeDataset(word_pairs, config=config, query_chunk_size=chunks[0], corpus_chunk_size=chunks[1])
        found.mine(bag_of_words, show_progress_bar=False)
        results.append(found.negative_ids)
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


def test_random_draws_differ_between_refreshes_and_seeds_and_repeat_otherwise(bag_of_words, word_pairs):
    """A draw depends on the seed and on how often the dataset was mined, and on nothing else."""

    def draws(seed: int) -> list[np.ndarray]:
        config = MiningConfig(sampling_strategy="random", range_max=30, seed=seed)
        found = HardNegativeDataset(word_pairs, config=config)
        return [found.mine(bag_of_words, show_progress_bar=False) and found.negative_ids for _ in range(2)]

    first, second, other = draws(0), draws(0), draws(1)
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all()
    assert (first[0] != first[1]).any() and (first[0] != other[0]).any()


def test_random_draws_are_uniform(protractor):
    """Over many queries, every candidate of the window is drawn equally often (5 sigma)."""
    rows = [(f"q{i} 0°", "p 1°") for i in range(3000)]
    pairs = Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [b for _, b in rows]})
    corpus = [f"d {angle}°" for angle in range(10, 20)]
    config = MiningConfig(num_negatives=3, sampling_strategy="random", range_max=10)
    found = HardNegativeDataset(pairs, corpus, config)
    found.mine(protractor, show_progress_bar=False)
    counts = np.bincount(found.negative_ids.ravel(), minlength=10)[:10]
    sigma = math.sqrt(3000 * 0.3 * 0.7)
    assert np.abs(counts - 900).max() < 5 * sigma


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("use_faiss", [False, True])
def test_equals_brute_force(bag_of_words, similarity, use_faiss):
    """With every similarity, exact and FAISS, negatives and scores are those of a loop in plain NumPy."""
    if use_faiss:
        pytest.importorskip("faiss")
    bag_of_words.similarity_fn_name = similarity
    texts = list(dict.fromkeys(random_texts(200, seed=5)))
    pairs = Dataset.from_dict({"anchor": texts[:40], "positive": texts[40:80]})
    config = MiningConfig(num_negatives=4, absolute_margin=0.01)
    found = HardNegativeDataset(pairs, texts[80:], config, use_faiss=use_faiss)
    found.mine(bag_of_words, show_progress_bar=False)

    corpus = found.corpus.texts.take(range(len(found.corpus)))
    documents = bag_of_words.encode(corpus).astype(np.float64)
    for row, (query, positive) in enumerate(zip(texts[:40], texts[40:80], strict=True)):
        vector = bag_of_words.encode(query).astype(np.float64)
        scores = plain_scores(similarity, vector, documents)
        bound = scores[corpus.index(positive)] - 0.01
        ranked = sorted(range(len(corpus)), key=lambda number: -scores[number])[:42]
        wanted = [n for n in ranked if scores[n] <= bound and corpus[n] not in (query, positive)][:4]
        kept = [n for n in found.negative_ids[row] if n >= 0]
        assert kept == wanted
        np.testing.assert_allclose(found.negative_scores[row][: len(kept)], scores[kept], atol=1e-4)


def plain_scores(similarity: str, query: np.ndarray, documents: np.ndarray) -> np.ndarray:
    if similarity == "dot":
        return documents @ query
    if similarity == "euclidean":
        return -np.sqrt(((documents - query) ** 2).sum(axis=1))
    if similarity == "manhattan":
        return -np.abs(documents - query).sum(axis=1)
    return documents @ query / (np.linalg.norm(documents, axis=1) * np.linalg.norm(query))


def test_extra_filters_are_masks(protractor):
    """A caller's filter returns a keep-mask; what it drops is counted under its name."""

    def no_even_ids(candidates, corpus):
        return candidates.corpus_ids % 2 == 1

    found = mine(protractor, filters=no_even_ids, num_negatives=3)
    assert (found.negative_ids % 2 == 1).all()
    assert found.report.removed["no_even_ids"] > 0


def test_an_extra_filter_of_the_wrong_shape_is_refused(protractor):
    """The error says which shape a mask has to have."""
    with pytest.raises(ValueError, match=r"extra filter 'broken' to return a boolean tensor of shape \(1, 8\)"):
        mine(protractor, filters={"broken": lambda candidates, corpus: torch.ones(3, dtype=torch.bool)})


class ByLength:
    """A cross encoder that likes long texts."""

    def predict(self, pairs, batch_size=32, convert_to_tensor=True, show_progress_bar=False):
        return torch.tensor([float(len(text)) for _, text in pairs])


def test_a_cross_encoder_reorders_and_filters(protractor):
    """Margins and order go by the cross encoder, while the scores stay the model's similarity."""
    corpus = ["d 40° 40°", "a 10°", "b 20° 20°", "c 30° 30° 30°"]
    pairs = Dataset.from_dict({"anchor": ["q 0°"], "positive": [corpus[0]]})
    found = HardNegativeDataset(
        pairs, corpus, MiningConfig(num_negatives=2, absolute_margin=0), cross_encoder=ByLength()
    )
    found.mine(protractor, show_progress_bar=False)
    assert found.corpus.texts.take(found.negative_ids[0]) == ["b 20° 20°", "a 10°"]
    np.testing.assert_allclose(found.negative_scores[0], np.cos(np.radians([20, 10])), atol=1e-6)


def test_nothing_found_is_an_error_that_names_the_rule(protractor):
    """If the filters remove everything, the error says which removed most."""
    with pytest.raises(MiningError, match=r"the rules removed all \(.*Loosen `max_score`"):
        mine(protractor, max_score=-0.9)


def test_the_report_counts_alone_and_together(protractor):
    """Candidates are counted per rule, and again where a rule is the only one to remove them."""
    report = mine(protractor, relative_margin=0.05, max_score=0.8, num_negatives=3).report
    # 20° and 35° exceed both bounds, 41° the margin only, and the positive exceeds the margin, too.
    assert report.removed == {"anchor": 0, "positive": 1, "relative_margin": 4, "max_score": 2}
    assert report.removed_alone == {"anchor": 0, "positive": 0, "relative_margin": 1, "max_score": 0}
    assert (report.num_candidates, report.num_kept) == (8, 4)
    assert report.hardness == {"easy": 2 / 3, "semi_hard": 1 / 3, "hard": 0.0}
    assert report.scores["negative"]["max"] == pytest.approx(math.cos(math.radians(45)), abs=1e-6)
    assert report.to_dict()["config"]["relative_margin"] == 0.05
    assert "relative_margin" in str(report) and "semi-hard 33.3%" in str(report)


def test_wide_rows_take_no_quadratic_memory():
    """500 negatives a row from two sources, twice: memory for all pairs of a row would be gigabytes."""
    import resource

    texts = list(dict.fromkeys(random_texts(500, seed=8, length=2)))
    pairs = Dataset.from_dict({"anchor": texts[:60], "positive": texts[60:120]})
    corpus = [f"{one} {number}" for number, one in enumerate(texts * 5)]
    config = MiningConfig(num_negatives=500, random_rate=0.5, sources={"dense": 400, "random": 100})
    hard_negatives = HardNegativeDataset(pairs, corpus, config)
    hard_negatives.mine(other_model(0), show_progress_bar=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hard_negatives.mine(other_model(1), show_progress_bar=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    ids = torch.from_numpy(hard_negatives.negative_ids)
    assert bool((ids >= 0).all()) and not bool(is_repeated(ids).any())
