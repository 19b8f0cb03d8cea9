"""Scores of queries, texts and positives: against loops, also where thousands of positives are compared at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from st_hardneg.encoders import Encodings, encoder_for
from st_hardneg.encoders.vectors import Vectors, embed
from st_hardneg.mining import scoring as scoring_module
from st_hardneg.mining.scoring import Scoring
from tests.toys import Model, by_angle, by_seed, mined, random_pairs, texts_of, wrapped


def test_queries_that_are_the_same_text_share_their_lowest_positive():
    """Spelled differently, anchors are queries with vectors of their own; margins go by the lowest row of them all."""
    pairs = [("q 0°", "p 40°"), ("Q  0°", "s 60°"), ("r 0°", "t 40°")]
    corpus = [f"d {angle}°" for angle in (45, 65, 70)]
    found = mined(pairs, Model(by_angle), corpus, {"symmetric": False}, num_negatives=2, absolute_margin=0.0)
    assert texts_of(found) == [["d 65°", "d 70°"], ["d 65°", "d 70°"], ["p 40°", "d 45°"]]


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("worth", [0, 30, 10**9])
@pytest.mark.parametrize("most_floats", [64, 16_000_000])
def test_closeness_to_positives_equals_a_loop(similarity, worth, most_floats, monkeypatch):
    """One product, blocks of one, or pair by pair: the nearest positive of each query, by similarity and above chance."""
    monkeypatch.setattr(Vectors, "worth_a_product", lambda *_: worth)
    monkeypatch.setattr(scoring_module, "_MAX_FLOATS", most_floats)
    model = Model(by_seed(3), similarity)
    # Distances by a product, as torch has them, are rough near 0.
    close_by = 1e-5 if similarity == "cosine" else 3e-3
    pairs = [*random_pairs(6), *(("many", f"m{i}") for i in range(25)), ("Many", "m25"), ("two", "a"), ("two", "b")]
    found = wrapped(pairs, [f"d{i}" for i in range(30)])._wrapped
    vectors = embed(found.pairs, found.corpus, encoder_for(model, Encodings.from_config(found.config)))
    scoring = Scoring(vectors, found.pairs, found.corpus, with_positive_similarity=True, is_centered=True)
    queries = torch.arange(found.pairs.num_queries)
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(-1, len(found.corpus), (len(queries), 12)))
    kind = torch.zeros(ids.shape, dtype=torch.int8)
    candidates = scoring.candidates(queries, ids, sources=kind, ranks=torch.full_like(ids, -1))
    texts = found.corpus.texts.take(np.arange(len(found.corpus)))
    searched = [texts[i] for i in found.corpus.searched]
    chance = {text: np.mean([model.score(text, other) for other in searched]) for text in texts}
    for row, query in enumerate(found.pairs.query_texts()):
        positives = [texts[i] for i in found.pairs.positives_of(row)]
        assert len(positives) == {"many": 26, "Many": 26, "two": 2}.get(query, 1)
        for place, one in enumerate(ids[row].tolist()):
            near, close = candidates.positive_similarity[row, place], candidates.positive_closeness[row, place]
            if one < 0:
                assert near == close == -math.inf
                continue
            scores = {positive: model.score(positive, texts[one]) for positive in positives}
            assert float(near) == pytest.approx(max(scores.values()), abs=close_by)
            assert float(close) == pytest.approx(max(scores[one] - chance[one] for one in positives), abs=close_by)
