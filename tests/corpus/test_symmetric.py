"""Symmetric pairs, such as duplicate questions: what hangs together by pairs is never each other's negative."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig
from st_hardneg.corpus.symmetric import cluster_pairs

SAME = ["w1 w2 w3", "w1 w2 w4", "w1 w2 w5", "w1 w2 w6"]


def duplicates() -> Dataset:
    """(a, b), (b, c), (d, a): b and d are the same question, by way of a."""
    a, b, c, d = SAME
    return Dataset.from_dict({"anchor": [a, b, d, "w70 w71"], "positive": [b, c, a, "w70 w72"]})


def mined(pairs, corpus=None, *, model, n=1, symmetric=None, **fields) -> HardNegativeDataset:
    config = MiningConfig(num_negatives=n, **fields)
    hard_negatives = HardNegativeDataset(pairs, corpus, config, symmetric=symmetric)
    hard_negatives.mine(model, show_progress_bar=False)
    return hard_negatives


@pytest.mark.parametrize("spaces", [("corpus",), ("corpus", "anchors")])
def test_duplicates_of_duplicates_are_no_negatives(bag_of_words, spaces):
    found = mined(duplicates(), model=bag_of_words, search_spaces=spaces)
    assert "symmetric pairs, up to 4 texts hang together" in repr(found)
    for row in found.to_dataset():
        assert (row["anchor"] in SAME) != (row["negative"] in SAME)


def test_it_is_an_option(bag_of_words):
    """Where pairs are no duplicates, `symmetric=False` mines what hangs together by chance."""
    found = mined(duplicates(), model=bag_of_words, symmetric=False)
    assert "symmetric" not in repr(found)
    by_anchor = {row["anchor"]: row["negative"] for row in found.to_dataset()}
    assert by_anchor[SAME[0]] in SAME  # c is near, and no pair says that it is right


def test_the_other_side_of_a_pair_is_no_negative(bag_of_words):
    """(a, b) and (b, c): the anchor `a` is right for the query `b`, too, where `a` is in the corpus."""
    pairs = Dataset.from_dict({"anchor": ["w1 w2", "w1 w3", "w7"], "positive": ["w1 w3", "w1 w4", "w8"]})
    for symmetric in (None, False):
        found = mined(pairs, ["w1 w2", "w50 w51"], model=bag_of_words, n=2, symmetric=symmetric)
        rows = {row["anchor"]: [row["negative_1"], row["negative_2"]] for row in found.to_dataset("n-tuple")}
        assert "w1 w2" not in rows["w1 w3"]


def test_questions_and_answers_are_not_taken_for_duplicates(bag_of_words, word_pairs):
    assert "symmetric" not in repr(HardNegativeDataset(word_pairs))


def test_a_few_duplicates_among_questions_and_answers_are_seen(bag_of_words):
    """One pair of twenty is a duplicate of a duplicate; the answers that two questions share hang nothing together."""
    a, b, c, _ = SAME
    answers = [(f"w{10 + i} w{11 + i}", f"w{40 + i} w{41 + i}") for i in range(30)]
    shared = [(answers[0][0], answers[1][1])]
    rows = [(a, b), (b, c), *answers, *shared]
    pairs = Dataset.from_dict({"anchor": [x for x, _ in rows], "positive": [y for _, y in rows]})
    found = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=3))
    assert "symmetric pairs, up to 3 texts hang together" in repr(found)
    found.mine(bag_of_words, show_progress_bar=False)
    for row in found.to_dataset("triplet"):
        assert (row["anchor"], row["negative"]) not in {(a, c), (b, a), (b, c)}
    # (q0, d0), (q0, d1) and (q1, d1): d0 is not right for q1, by whatever way.
    clusters = found.known_positives.text_clusters
    assert sorted(clusters[clusters >= 0].tolist()) == [clusters[clusters >= 0][0].item()] * 2


def test_pairs_that_all_hang_together_still_have_negatives(bag_of_words):
    """A chain of ten: no text would be left, so that only the two sides of each pair are kept from each other."""
    texts = [f"w{i} w{i + 1}" for i in range(10)]
    pairs = Dataset.from_dict({"anchor": texts[:-1], "positive": texts[1:]})
    found = mined(pairs, model=bag_of_words)
    assert "symmetric" not in repr(found)
    assert found.report.num_slots == 9 and found.report.num_missing == 0


def chained(num_linked: int, num_alone: int):
    """Return what `cluster_pairs` takes: a chain of texts, each right for the one before, and pairs by themselves."""
    links = [(number, number + 1) for number in range(num_linked - 1)]
    alone = [(num_linked + 2 * number, num_linked + 2 * number + 1) for number in range(num_alone)]
    rows = links + alone
    num_texts = num_linked + 2 * num_alone
    return {
        "row_group": np.arange(len(rows)),
        "row_positive": np.array([right for _, right in rows]),
        "group_identity": np.array([left for left, _ in rows]),
        "query_group": np.arange(len(rows)),
        "identities": np.arange(num_texts),
    }


@pytest.mark.parametrize(("num_linked", "num_alone", "is_symmetric"), [(8, 1, True), (9, 1, False), (16, 2, True)])
def test_what_hangs_together_may_be_four_fifths_of_a_small_set(num_linked, num_alone, is_symmetric):
    """8 of 10 texts and 16 of 20 are, 9 of 11 are more: a set that hangs together as a whole leaves no negative."""
    found = cluster_pairs(**chained(num_linked, num_alone), symmetric=None)
    assert (found is not None) is is_symmetric
    if found is not None:
        assert found.largest == num_linked
        assert len(set(found.of_texts[:num_linked])) == 1 and found.of_queries[0] == found.of_texts[0]
        assert len(set(found.of_texts)) == 1 + num_alone
    assert cluster_pairs(**chained(num_linked, num_alone), symmetric=True).largest == num_linked
    assert cluster_pairs(**chained(num_linked, num_alone), symmetric=False) is None


def test_texts_of_no_pair_are_in_no_cluster():
    """Where few queries are positives, too, only what hangs together with one counts; the rest is -1."""
    given = chained(3, 30)
    given["identities"] = np.arange(len(given["identities"]) + 1)  # one text that no pair holds
    found = cluster_pairs(**given, symmetric=None)
    assert found.largest == 3 and set(found.of_texts[3:]) == {-1} and len(set(found.of_texts[:3])) == 1
    every = cluster_pairs(**given, symmetric=True)
    assert every.largest == 3 and every.of_texts[-1] == -1 and (every.of_texts[:-1] >= 0).all()


@pytest.mark.parametrize("value", ["no", 0, 1, "auto"])
def test_symmetric_is_yes_no_or_not_said(value):
    """A word would count as yes."""
    with pytest.raises(TypeError, match="Expected `symmetric` to be True, False or None"):
        HardNegativeDataset(Dataset.from_dict({"a": ["a", "b"], "b": ["c", "d"]}), symmetric=value)
