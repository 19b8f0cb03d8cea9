"""Digests in arrays against dictionaries, also where halves of different digests agree."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from st_hardneg.corpus.digests import FirstIds, digests_of_bytes, first_rows

# Few values for each half, so that halves agree often; the largest one, to see that nothing is signed.
HALF = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1])
DIGESTS = st.lists(st.tuples(HALF, HALF), max_size=12)


def array(digests) -> np.ndarray:
    return np.array(digests, dtype=np.uint64).reshape(-1, 2)


@settings(max_examples=200, deadline=None)
@given(DIGESTS)
def test_where_each_stands_first(digests):
    """As a dictionary that is filled row by row has it."""
    place_of: dict[tuple[int, int], int] = {}
    rows, places = [], []
    for row, digest in enumerate(digests):
        if digest not in place_of:
            place_of[digest] = len(rows)
            rows.append(row)
        places.append(place_of[digest])
    found_rows, found_places = first_rows(array(digests))
    assert found_rows.tolist() == rows and found_places.tolist() == places
    assert found_rows.dtype == found_places.dtype == np.int64


@settings(max_examples=300, deadline=None)
@given(st.lists(DIGESTS, max_size=4), DIGESTS)
def test_numbers_are_those_of_a_dictionary(parts, asked):
    """Whatever comes first keeps its number; what was there before a part came does not change."""
    numbers: dict[tuple[int, int], int] = {}
    found, next_id = FirstIds(), 100
    for part in parts:
        before, held, earlier = found, dict(numbers), len(found)
        ids = np.arange(next_id, next_id + len(part))
        next_id += len(part)
        found, given_numbers = found.followed_by(array(part), ids)
        assert given_numbers.tolist() == [numbers.setdefault(one, int(i)) for one, i in zip(part, ids, strict=True)]
        assert before.find(array(asked)).tolist() == [held.get(one, -1) for one in asked] and len(before) == earlier
    assert found.find(array(asked)).tolist() == [numbers.get(one, -1) for one in asked] and len(found) == len(numbers)
    again = FirstIds(array(list(numbers)), np.array(list(numbers.values()), dtype=np.int64))
    assert again.find(array(asked)).tolist() == found.find(array(asked)).tolist()
    assert found.find(array(asked)).dtype == np.int64


def test_halves_are_read_as_they_stand():
    """The first eight bytes with the lowest first, then the others."""
    digest = bytes(range(16))
    expected = [[int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]]
    assert digests_of_bytes([digest]).tolist() == expected
    assert digests_of_bytes([]).shape == (0, 2) and digests_of_bytes([digest]).dtype == np.uint64
    assert digests_of_bytes([digest, digest]).flags.writeable


def test_a_million_are_numbered_in_seconds():
    """Far from quadratic, also where the left halves of all of them agree in pairs."""
    halves = np.random.default_rng(0).integers(0, 2**64, size=(500_000, 2), dtype=np.uint64)
    twins = halves.copy()
    twins[:, 1] += np.uint64(1)
    both = np.concatenate([halves, twins])
    found, numbers = FirstIds().followed_by(both, np.arange(1_000_000))
    assert len(found) == 1_000_000 and (numbers == np.arange(1_000_000)).all()
    assert (found.find(both[::-1]) == np.arange(1_000_000)[::-1]).all()
