"""KnownPositives: what a loop over sets says, however many spellings one anchor has."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from st_hardneg import HardNegativeDataset
from st_hardneg.corpus.known import KnownPositives
from tests.conftest import random_texts
from tests.toys import rows_of


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5),
    st.lists(st.integers(0, 9), min_size=10, max_size=10),
)
def test_known_positives_equal_a_loop(right_answers, identities):
    """The sorted-key lookup says what a loop over sets says."""
    known = KnownPositives.from_lists(right_answers, identities)
    queries, texts = torch.arange(len(right_answers)), torch.tensor([*range(10), -1])
    expected = [
        [number >= 0 and identities[number] in {identities[i] for i in answers} for number in texts.tolist()]
        for answers in right_answers
    ]
    assert known.is_positive(queries, texts).tolist() == expected


def test_ids_that_are_nobodys_are_never_right():
    """Query ids outside of the numbering, and -1 for no text; nothing is known of a set without pairs."""
    known = KnownPositives.from_lists([[0], [1]], [0, 1, 0])
    assert known.num_queries == 2 and repr(known) == "KnownPositives(2 pairs, 3 texts)"
    queries = torch.tensor([-1, 0, 1, 2, 10**12])
    found = known.is_positive(queries, torch.tensor([0, 1, 2, -1]))
    assert found.tolist() == [[False] * 4, [True, False, True, False], [False, True, False, False]] + [[False] * 4] * 2
    empty = KnownPositives.from_lists([[], []], [0, 1])
    assert not bool(empty.is_positive(torch.arange(2), torch.arange(2)).any())
    assert known.contains(torch.tensor([0, 1]), torch.tensor([[2, -1], [0, 1]])).tolist() == [
        [True, False],
        [False, True],
    ]


def test_clusters_say_that_all_in_one_are_right():
    """In symmetric data, a query's cluster is right for it; -1 is no cluster."""
    known = KnownPositives(
        torch.arange(4), torch.tensor([0]), torch.arange(2), torch.tensor([7, -1]), torch.tensor([7, 7, -1, 3])
    )
    texts = torch.arange(4)
    assert known.is_positive(torch.arange(2), texts).tolist() == [[True, True, False, False], [False] * 4]
    moved = known.to("cpu")
    assert moved.is_positive(torch.arange(2), texts).tolist() == known.is_positive(torch.arange(2), texts).tolist()


def spellings(count: int) -> list[str]:
    """Return so many texts that differ by case or whitespace only."""
    words = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12".split()
    spelled = []
    for number in range(count):
        cased = [word.upper() if number >> place & 1 else word for place, word in enumerate(words)]
        spelled.append(" ".join(cased))
    return spelled


def test_each_spelling_of_an_anchor_has_the_positives_of_all(bag_of_words):
    """Ten spellings with a positive each: none of the ten positives is a negative of any."""
    pairs = [*zip(spellings(10), [f"p{i} w{20 + i}" for i in range(10)], strict=True), ("w50", "w51")]
    found = HardNegativeDataset(rows_of(pairs), [f"d{i} w{60 + i}" for i in range(30)], num_negatives=3)
    found.mine(bag_of_words, show_progress_bar=False)
    texts = found.corpus.texts
    for row in found.negative_ids[:10].tolist():
        assert not {text.split()[0] for text in texts.take(row)} & {f"p{i}" for i in range(10)}
    known = found.known_positives
    assert len(known.groups.unique()) == 2 and len(known.keys) == 11


@pytest.mark.parametrize("same_positive", [False, True])
def test_two_thousand_spellings_of_one_anchor_take_seconds(bag_of_words, same_positive):
    """Built in less than 2 s and mined in less than 5 s of CPU time with the recommended recipe: nothing is quadratic."""
    count = 2000
    near = [f"w1 w2 w3 w4 w{13 + number % 150} answer{number}" for number in range(count)]
    others = list(dict.fromkeys(random_texts(700, seed=11)))
    anchors, positives = spellings(count), near[:1] * count if same_positive else near
    pairs = Dataset.from_dict({"anchor": [*anchors, *others[:50]], "positive": [*positives, *others[50:100]]})
    assert len(set(anchors)) == count and len({anchor.lower() for anchor in anchors}) == 1
    started = time.process_time()
    found = HardNegativeDataset(pairs, others[100:600], num_negatives=3)
    built = time.process_time() - started
    assert built < 2.0, f"{built:.1f} s"
    started = time.process_time()
    found.mine(bag_of_words, show_progress_bar=False)
    mined = time.process_time() - started
    assert mined < 5.0, f"{mined:.1f} s"
    assert found.num_queries == count + 50 and len(found.known_positives.groups.unique()) == 51
    # One group of right answers, whatever the number of spellings.
    assert len(found.known_positives.keys) <= count + 100
    texts = found.corpus.texts
    assert not set(texts.take(np.unique(found.negative_ids[:count]))) & {*near, *anchors}


def test_where_nothing_is_known_the_answer_is_no():
    """Booleans, of the shape of what was asked."""
    known = KnownPositives.from_lists([], identities=[0, 1])
    found = known.contains(torch.tensor([0, 1]), torch.tensor([[0, 1, -1], [1, 0, 0]]))
    assert found.dtype == torch.bool and found.tolist() == [[False] * 3] * 2


def test_every_cluster_counts_the_first_one_too():
    """Texts of a query's own cluster are right answers; -1 is in none."""
    known = replace(
        KnownPositives.from_lists([[0], [1], [2]], identities=[0, 1, 2, 3]),
        query_clusters=torch.tensor([0, 1, -1]),
        text_clusters=torch.tensor([-1, 0, 1, -1]),
    )
    found = known.is_positive(torch.arange(3), torch.arange(4))
    assert found.tolist() == [[True, True, False, False], [False, True, True, False], [False, False, True, False]]


@pytest.mark.parametrize("most", [1, 4, 6])
def test_many_texts_at_once_equal_a_loop(most):
    """Thousands of look-ups, by queries with up to so many right answers or none, and with ids that are nobody's."""
    rng = np.random.default_rng(most)
    right = [rng.choice(50, rng.integers(0, most + 1), replace=False).tolist() for _ in range(1_500)]
    identities = rng.integers(0, 40, 50).tolist()
    known = KnownPositives.from_lists(right, identities)
    queries, ids = rng.integers(-1, 1_502, 1_600), rng.integers(-1, 50, (1_600, 8))
    same = [{identities[corpus_id] for corpus_id in row} for row in right]
    expected = [
        [0 <= query < 1_500 and one >= 0 and identities[one] in same[query] for one in row]
        for query, row in zip(queries.tolist(), ids.tolist(), strict=True)
    ]
    assert known.contains(torch.from_numpy(queries), torch.from_numpy(ids)).tolist() == expected
