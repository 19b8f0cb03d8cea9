"""Pairs against ones that are written out plainly: queries, groups, right answers, given negatives, shared positives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from st_hardneg.corpus.digests import digests_of_bytes
from st_hardneg.corpus.identity import IDENTITIES, draw_keys
from st_hardneg.corpus.numbering import Additions, number_texts
from st_hardneg.corpus.pairs import by_group, pair_up
from tests.corpus.test_numbering import column
from tests.toys import same

TEXT = st.sampled_from(["a", "A", " a", "b", "B", "c", "d", "e", "E"])
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9)


def paired(rows, corpus=(), *, given=(), anchors: bool = False, **options):
    """Return the pairs and the corpus of some rows, with columns of given negatives: (anchors, texts) each."""
    own = column([anchor for anchor, _ in rows], "anchor")
    additions = Additions(anchors=own if anchors else None, given=[column(texts) for _, texts in given])
    numbered = number_texts(column([right for _, right in rows], "positive"), list(corpus) or None, additions=additions)
    return pair_up(own, numbered, given_anchors=[column(some) for some, _ in given], **options), numbered.corpus


@settings(max_examples=60, deadline=None)
@given(ROWS, st.lists(TEXT, max_size=6), st.booleans())
def test_queries_and_their_right_answers(rows, corpus, share_positives):
    """One query for each exact anchor; what is right for a query is right for its other spellings, and the other way."""
    pairs, numbered = paired(rows, corpus, share_positives=share_positives)
    texts = numbered.texts.take(np.arange(len(numbered)))
    queries = list(dict.fromkeys(anchor for anchor, _ in rows))
    assert pairs.query_texts() == queries and pairs.num_queries == len(queries) and pairs.num_rows == len(rows)
    assert pairs.row_query.tolist() == [queries.index(anchor) for anchor, _ in rows]
    assert pairs.first_row.tolist() == [[anchor for anchor, _ in rows].index(query) for query in queries]
    assert pairs.row_positive.tolist() == [texts.index(positive) for _, positive in rows]
    assert (
        pairs.draw_keys.tolist()
        == draw_keys(digests_of_bytes([IDENTITIES["normalized"](query) for query in queries])).tolist()
    )

    identities = [next(i for i, one in enumerate(texts) if same(one) == same(text)) for text in texts]
    own = [next((i for i, one in enumerate(texts) if same(one) == same(query)), -1) for query in queries]
    assert pairs.own_identity.tolist() == own
    assert pairs.num_identical(numbered) == sum(same(anchor) == same(positive) for anchor, positive in rows)
    for number, query in enumerate(queries):
        shares = (lambda anchor, query=query: same(anchor) == same(query)) if share_positives else query.__eq__
        positives = list(dict.fromkeys(texts.index(positive) for anchor, positive in rows if shares(anchor)))
        assert pairs.positives_of(number).tolist() == positives and pairs.num_positives[number] == len(positives)
        held = [
            pairs.own_positives.contains(torch.tensor([number]), torch.tensor([[i]])).item() for i in range(len(texts))
        ]
        assert held == [i in positives for i in range(len(texts))]
        right = {identities[texts.index(positive)] for anchor, positive in rows if same(anchor) == same(query)}
        right |= {own[number]} - {-1}
        # (a, b) makes a right for b, where both are numbered.
        right |= {own[queries.index(anchor)] for anchor, positive in rows if same(positive) == same(query)} - {-1}
        known = pairs.known.is_positive(torch.tensor([number]), torch.arange(len(texts)))[0].tolist()
        assert known == [identity in right for identity in identities]
    assert pairs.largest_cluster == 0 and pairs.num_unused_given == 0 and len(pairs.given_ids) == 0
    assert pairs.given_offsets.tolist() == [0] * (len({same(query) for query in queries}) + 1)


@settings(max_examples=40, deadline=None)
@given(
    ROWS,
    st.lists(st.tuples(TEXT, st.none() | st.sampled_from(["x", "y", "X", "a", " "])), min_size=1, max_size=8),
    st.integers(1, 2),
)
def test_given_negatives(rows, negatives, num_columns):
    """By group of queries that are the same text, each text once, in order; those of other anchors are counted."""
    parts = [negatives[start::num_columns] for start in range(num_columns)]
    parts = [part for part in parts if part]
    columns = [([anchor for anchor, _ in part], [text for _, text in part]) for part in parts]
    pairs, numbered = paired(rows, given=columns)
    texts = numbered.texts.take(np.arange(len(numbered)))
    groups = list(dict.fromkeys(same(anchor) for anchor, _ in rows))
    every = [(same(anchor), text) for part in parts for anchor, text in part if text is not None and text.strip()]
    for number, group in enumerate(groups):
        expected = list(dict.fromkeys(texts.index(text) for anchor, text in every if anchor == group))
        assert pairs.given_ids[pairs.given_offsets[number] : pairs.given_offsets[number + 1]].tolist() == expected
    assert len(pairs.given_offsets) == len(groups) + 1 and pairs.given_offsets[-1] == len(pairs.given_ids)
    assert pairs.num_unused_given == sum(anchor not in groups for anchor, _ in every)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.lists(TEXT, max_size=4))
def test_anchors_that_share_a_right_answer(rows, corpus):
    """An anchor is no negative of a query if one of its positives is right for the query."""
    pairs, numbered = paired(rows, corpus, anchors=True)
    texts = numbered.texts.take(np.arange(len(numbered)))
    queries, anchor_ids = pairs.query_texts(), numbered.anchor_ids.tolist()
    assert [texts[i] for i in anchor_ids] == queries
    candidates = torch.arange(-1, len(texts))[None, :].expand(len(queries), -1)
    found = pairs.share_positives(torch.arange(len(queries)), candidates, numbered)
    for number in range(len(queries)):
        for place, corpus_id in enumerate(candidates[number].tolist()):
            shares = False
            if corpus_id in anchor_ids:
                other = anchor_ids.index(corpus_id)
                ids = torch.from_numpy(pairs.positives_of(other))
                shares = same(queries[other]) == same(queries[number]) or bool(
                    pairs.known.is_positive(torch.tensor([number]), ids).any()
                )
            assert bool(found[number, place]) == shares
    assert found.dtype == torch.bool and found.shape == candidates.shape
    apart, corpus_apart = paired(rows, corpus)
    there = torch.zeros(1, 2, dtype=torch.int64)
    assert apart.share_positives(torch.tensor([0]), there, corpus_apart).tolist() == [[False, False]]


def test_what_hangs_together_by_pairs():
    """In symmetric data: no text of a cluster is a negative of a query in it; other clusters are free."""
    rows = [("a", "b"), ("b", "c"), ("d", "a"), ("x", "y")]
    pairs, numbered = paired(rows, symmetric=True, anchors=True)
    texts = numbered.texts.take(np.arange(len(numbered)))
    assert pairs.largest_cluster == 4
    for number, query in enumerate(pairs.query_texts()):
        known = pairs.known.is_positive(torch.tensor([number]), torch.arange(len(texts)))[0].tolist()
        cluster = "abcd" if query in "abcd" else "xy"
        assert known == [text in cluster for text in texts]
    alone, _ = paired(rows, symmetric=False, anchors=True)
    assert alone.largest_cluster == 0 and alone.known.query_clusters is None and alone.known.text_clusters is None


def test_by_group():
    """Pairs in order of their groups, each once, in the order in which they came; empty groups have no width."""
    offsets, ids = by_group(np.array([2, 0, 2, 2, 0]), np.array([5, 1, 3, 5, 1]), num_texts=6, num_groups=4)
    assert offsets.tolist() == [0, 1, 1, 3, 3] and ids.tolist() == [1, 5, 3]
    offsets, ids = by_group(np.array([1, 1]), np.array([0, 0]), num_texts=6)
    assert offsets.tolist() == [0, 0, 1] and ids.tolist() == [0] and offsets.dtype == np.int64
    offsets, ids = by_group(np.arange(0), np.arange(0), num_texts=6)
    assert offsets.tolist() == [0] and len(ids) == 0


@pytest.mark.parametrize("count", [25_000])
def test_rows_in_more_pieces_than_one(count):
    """Queries are counted on over what is read at once."""
    rows = [(f"q{number % 12_000}", f"p{number}") for number in range(count)]
    pairs, _ = paired(rows)
    assert pairs.num_queries == 12_000 and pairs.row_query.tolist() == [number % 12_000 for number in range(count)]
    assert pairs.first_row.tolist() == list(range(12_000)) and pairs.query_texts()[11_000] == "q11000"
    assert pairs.num_positives.sum() == count
