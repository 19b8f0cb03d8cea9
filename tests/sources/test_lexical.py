"""Words in common: BM25 against a plain loop, ties, texts without words, and rules that hold all the same."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from st_hardneg import HardNegativeDataset, HardNegativeMiner, MiningConfig
from st_hardneg.errors import MissingExtraError
from tests.conftest import whole
from tests.toys import Model, Untouchable, by_angle, by_seed, mined, texts_of

FRUIT = [
    "apple pie with cinnamon and apple jam",
    "apple tree",
    "pear tree in the garden",
    "the garden of the neighbour",
    "cinnamon",
    "a stone wall",
    "plum jam, plum cake and a plum tree",
    "garden tools",
]


def bm25(query: str, documents: Sequence[str]) -> list[float]:
    """BM25 as Lucene has it, k1 = 1.5 and b = 0.75, in plain Python."""
    split = [re.findall(r"\w\w+", text.lower()) for text in documents]
    average = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for word in re.findall(r"\w\w+", query.lower()):
            frequency, holders = words.count(word), sum(word in other for other in split)
            idf = math.log(1 + (len(split) - holders + 0.5) / (holders + 0.5))
            score += idf * frequency / (frequency + 1.5 * (1 - 0.75 + 0.75 * len(words) / average))
        scores.append(score)
    return scores


LEXICAL_ROWS = [("Apple tree jam", "orchard"), ("the plum garden", "fruit"), ("cinnamon wall cinnamon", "spice")]


def test_lexical_negatives_are_those_of_bm25(bm25s):
    """Order, scores and ranks are a plain loop's; what shares no word is not returned."""
    found = mined(LEXICAL_ROWS, Model(by_seed(0)), FRUIT, num_negatives=6, sources={"lexical": 6})
    documents = [*FRUIT, "orchard", "fruit", "spice"]
    provenance = found.provenance()
    for row, (query, _) in enumerate(LEXICAL_ROWS):
        scores = bm25(query, documents)
        wanted = sorted((i for i in range(len(documents)) if scores[i] > 0), key=lambda i: -scores[i])[:6]
        assert texts_of(found)[row] == [documents[i] for i in wanted]
        empty = 6 - len(wanted)
        np.testing.assert_allclose(
            provenance["negative_source_scores"][row][: len(wanted)], [scores[i] for i in wanted], rtol=1e-5
        )
        assert np.isnan(provenance["negative_source_scores"][row][len(wanted) :]).all()
        assert provenance["negative_ranks"][row] == [*range(len(wanted)), *[-1] * empty]
        assert provenance["negative_sources"][row] == ["lexical"] * len(wanted) + [None] * empty
    assert found.report.num_missing == 18 - sum(map(len, texts_of(found))) > 0


def test_lexical_ties_go_to_the_lower_id_whatever_the_chunks(bm25s):
    """Forty texts score alike: the first three are taken, alone and beside a query that looks deeper."""
    corpus = [f"common u{i:02d}" for i in range(40)]
    rows = [("common", "zz yy"), ("common thing", "kk yy"), *(("other", f"pp{i:02d} yy") for i in range(30))]
    for size in (1, 512):
        found = mined(rows, Model(by_seed(0)), corpus, num_negatives=3, sources={"lexical": 3},
                      parts={"query_chunk_size": size})  # fmt: skip
        assert found.negative_ids[:2].tolist() == [[0, 1, 2]] * 2


def test_texts_without_words_have_no_lexical_negatives(bm25s):
    """Words are of two letters or digits; a corpus or a query without any leaves the slots empty, and no more."""
    for query, corpus in (
        ("apple 0°", ["x 50°", "y 60°"]),
        ("q 0°", ["apple x 50°", "y 60°"]),
        ("plum 0°", ["apple 50°"]),
    ):
        found = mined([(query, "p 4°")], Model(by_angle), corpus, num_negatives=2, sources={"dense": 1, "lexical": 1})
        assert texts_of(found) == [[corpus[0]]]


def test_lexical_negatives_pass_the_filters(bm25s):
    """Copies of the anchor and the positive are out, and so is what the model scores above the margin."""
    rows = [("apple tree 0°", "apple wood 40°")]
    corpus = ["Apple  TREE 0°", "APPLE wood 40°", "apple jam 20°", "apple pie 60°", "tree 90°"]
    found = mined(rows, Model(by_angle), corpus, num_negatives=3, sources={"lexical": 3}, relative_margin=0.05)
    assert texts_of(found) == [["tree 90°", "apple pie 60°"]] or texts_of(found) == [["apple pie 60°", "tree 90°"]]


def test_lexical_negatives_in_a_miner_for_map(bm25s, bag_of_words, word_pairs):
    """``HardNegativeMiner`` finds what the dataset finds, batch by batch."""
    corpus = [*word_pairs["positive"], *word_pairs["anchor"][:20]]
    config = MiningConfig(num_negatives=3, sources={"dense": 1, "lexical": 1, "random": 1})
    expected = HardNegativeDataset(word_pairs, corpus, config)
    expected.mine(bag_of_words, show_progress_bar=False)
    assert set(expected.report.sources) == {"dense", "lexical", "random"}
    miner = HardNegativeMiner(bag_of_words, corpus, config, positives=word_pairs)
    found = word_pairs.map(miner, batched=True, batch_size=10)
    assert found["negative_2"][:] == [texts[1] for texts in texts_of(expected)]
    assert found["negative_3"][:] == [texts[2] for texts in texts_of(expected)]


def test_a_missing_extra_is_named(monkeypatch):
    """Without ``bm25s``, the error says what to install, before anything is encoded."""
    monkeypatch.setattr("st_hardneg.errors.find_spec", lambda module: None)
    message = whole(
        "The source 'lexical' needs `bm25s`, which is not installed. Install it with "
        '`pip install "st-hardneg[lexical]"`.'
    )
    with pytest.raises(MissingExtraError, match=message):
        mined(LEXICAL_ROWS, Untouchable(), FRUIT, sources={"dense": 2, "lexical": 1})
    with pytest.raises(MissingExtraError, match=message):
        HardNegativeMiner(Untouchable(), FRUIT, MiningConfig(num_negatives=1, sources={"lexical": 1}))
