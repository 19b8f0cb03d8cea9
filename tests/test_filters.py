"""Every filter alone, on candidates that are written down: what stays, what goes, and what ties do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from st_hardneg.candidates import Candidates
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Additions, number_texts
from st_hardneg.corpus.pairs import pair_up
from st_hardneg.corpus.texts import TextColumn
from st_hardneg.mining.filters import RULES, keep_masks, keeps_texts
from tests.conftest import whole

TEXTS = ["a question", "An  answer", "one", "two words", "three words here", "see other", "A QUESTION"]
SCORES = [[0.9, 0.75, 0.5, 0.25, -0.5, 0.5], [0.5, 0.25, 0.0, -0.25, -0.5, -torch.inf]]


@pytest.fixture
def known():
    """Two queries, "a question" and "b", whose positives are texts 1 and 2, and a corpus of seven texts."""
    numbered = number_texts(TextColumn.of(["An  answer", "one"]), TEXTS, distinct="text")
    return pair_up(TextColumn.of(["a question", "b"]), numbered), numbered.corpus


def candidates(known, **changes) -> Candidates:
    """The first query found texts 0 to 5, the second 6 and 1 to 4, and one place is empty."""
    corpus_ids = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 1, 2, 3, 4, -1]])
    scores = torch.tensor(SCORES)
    values = {
        "query_ids": torch.arange(2),
        "corpus_ids": corpus_ids,
        "scores": scores,
        "similarities": scores,
        "ranks": torch.arange(6).expand(2, 6),
        "positive_scores": torch.tensor([0.75, -0.25]),
        "positive_similarity": torch.tensor([[0.5, 1.0, 0.75, 0.7, 0.1, 0.8], [0.75, 0.76, 0.0, 0.74, 1.0, 0.0]]),
    }
    return Candidates(**{**values, **changes})


def kept(mask: torch.Tensor) -> list[list[int]]:
    """Return the places that stay, row by row."""
    return [row.nonzero().flatten().tolist() for row in mask]


def masks(known, include_positives=False, extra_filters=None, found=None, **config):
    pairs, corpus = known
    return keep_masks(
        found or candidates(known),
        pairs,
        corpus,
        MiningConfig(**config),
        extra_filters,
        include_positives=include_positives,
    )


def test_what_is_always_on(known):
    """The query's own text goes under "anchor", its positive under "positive", and no text counts twice."""
    found = masks(known)
    assert list(found) == ["anchor", "positive"]
    # Text 6 is the first query's anchor in other case; the second query may have it.
    assert kept(found["anchor"]) == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert kept(found["positive"]) == [[0, 2, 3, 4, 5], [0, 1, 3, 4, 5]]
    assert list(keep_masks(candidates(known), *known, MiningConfig())) == ["anchor", "positive"]


def test_a_copy_of_the_anchor_is_the_anchor(known):
    """Text 6 is the first query's own text but for case: it is removed as the anchor and as nothing else."""
    found = masks(known, found=candidates(known, corpus_ids=torch.tensor([[6, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]])))
    assert kept(found["anchor"])[0] == [1, 2, 3, 4, 5] and 0 in kept(found["positive"])[0]


def test_queries_may_come_in_any_order(known):
    """Masks go by the query's number, not by its place in the chunk."""
    # The empty place is looked up as text 0, which is the anchor of query 0.
    swapped = candidates(known, query_ids=torch.tensor([1, 0]))
    found = masks(known, found=swapped)
    assert kept(found["anchor"]) == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4]]
    assert kept(found["positive"]) == [[0, 1, 3, 4, 5], [0, 2, 3, 4, 5]]


def test_positives_may_be_let_through(known):
    """With `include_positives` the anchor still goes."""
    found = masks(known, include_positives=True)
    assert list(found) == ["anchor"] and kept(found["anchor"])[0] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        # The lowest positive scores are 0.75 and -0.25; a candidate exactly at the bound stays.
        ("absolute_margin", 0.0, [[1, 2, 3, 4, 5], [3, 4, 5]]),
        ("absolute_margin", 0.25, [[2, 3, 4, 5], [4, 5]]),
        ("absolute_margin", 0.5, [[3, 4], [5]]),
        ("relative_margin", 0.0, [[1, 2, 3, 4, 5], [3, 4, 5]]),
        ("relative_margin", 1.0, [[4], [4, 5]]),
        ("relative_margin", 0.25, [[2, 3, 4, 5], [4, 5]]),
        ("max_score", 0.5, [[2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]),
        ("max_score", 0.0, [[4], [2, 3, 4, 5]]),
        ("min_score", 0.5, [[0, 1, 2, 5], [0]]),
        ("min_score", 0.0, [[0, 1, 2, 3, 5], [0, 1, 2]]),
        ("max_positive_similarity", 0.75, [[0, 2, 3, 4], [0, 2, 3, 5]]),
        ("max_positive_similarity", 0.0, [[], [2, 5]]),
        # "one" has one word, "two words" two; the empty place is looked at as the first text.
        ("min_words", 2, [[0, 1, 3, 4, 5], [0, 1, 3, 4, 5]]),
        ("min_words", 3, [[4], [4]]),
        ("min_words", 0, [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]),
        ("exclude_pattern", "words", [[0, 1, 2, 5], [0, 1, 2, 5]]),
        ("exclude_pattern", "^see", [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]),
    ],
)
def test_each_rule(known, rule, value, expected):
    """A rule that the config asks for is there under its name, and keeps what was worked out by hand."""
    found = masks(known, **{rule: value})
    assert list(found) == ["anchor", "positive", rule] and rule in RULES
    assert found[rule].dtype == torch.bool and kept(found[rule]) == expected


def test_all_rules_at_once_in_order(known):
    """The names come in the order of `RULES`; a caller's rules come after them, in the caller's order."""
    config = {
        "absolute_margin": 0.1,
        "relative_margin": 0.1,
        "max_score": 0.8,
        "min_score": -0.8,
        "max_positive_similarity": 0.9,
        "min_words": 1,
        "exclude_pattern": "x",
    }
    mine = torch.zeros(2, 6, dtype=torch.bool)
    found = masks(known, extra_filters={"b": lambda *_: mine, "a": lambda *_: ~mine}, **config)
    # The last two apply where anchors are searched, and where there is a guide.
    assert RULES[-2:] == ("shared_positive", "guide")
    assert tuple(found) == (*RULES[:-2], "b", "a")
    assert not found["b"].any() and found["a"].all()


def test_each_text_is_looked_at_once(known):
    """However many queries found a text, the function sees it once."""
    seen: list[str] = []

    def is_long(text: str) -> bool:
        seen.append(text)
        return len(text) > 5

    mask = keeps_texts(candidates(known), known[1], is_long)
    assert kept(mask) == [[0, 1, 3, 4, 5], [0, 1, 3, 4, 5]]
    # The empty place stands for no text; it is looked up as the first one.
    assert sorted(seen) == sorted([*TEXTS, TEXTS[0]])


def test_no_queries_at_all(known):
    """A mask of no rows is still a boolean one."""
    none = candidates(known, corpus_ids=torch.zeros((0, 6), dtype=torch.int64))
    mask = keeps_texts(none, known[1], str.isupper)
    assert mask.shape == (0, 6) and mask.dtype == torch.bool


def test_extra_filters_see_candidates_and_corpus(known):
    """A caller's filter gets the very candidates and the corpus."""
    found = candidates(known)
    got = []

    def extra(*arguments):
        got.append(arguments)
        return found.corpus_ids > 2

    assert kept(masks(known, found=found, extra_filters={"mine": extra})["mine"]) == [[3, 4, 5], [0, 3, 4]]
    ((candidates_seen, corpus_seen),) = got
    assert candidates_seen is found and corpus_seen is known[1]


def test_two_rules_of_one_name_are_refused(known):
    """A caller's rule must have a name of its own."""
    with pytest.raises(AssertionError, match="two rules are named 'anchor'"):
        masks(known, extra_filters={"anchor": lambda *_: torch.ones(2, 6, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (torch.ones(2, 5, dtype=torch.bool), "torch.bool of shape (2, 5)"),
        (torch.ones(6, dtype=torch.bool), "torch.bool of shape (6,)"),
        (torch.ones(2, 6), "torch.float32 of shape (2, 6)"),
        (np.ones((2, 6), dtype=bool), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_mask_is_refused(known, result, got):
    """The message says what was expected and what came."""
    message = (
        "Expected the extra filter 'mine' to return a boolean tensor of shape (2, 6), True where a candidate may stay, "
        f"got {got}. Compare `candidates.scores` or `candidates.corpus_ids` elementwise, for example."
    )
    with pytest.raises(ValueError, match=whole(message)):
        masks(known, extra_filters={"mine": lambda *_: result})


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.0, [[1, 2, 3, 4, 5], [0, 1]]), (0.25, [[2, 3, 4], [0]]), (0.5, [[3, 4], []])],
)
def test_a_guide(known, margin, expected):
    """What the guide scores exactly the margin below the positive stays; the rule is there with a guide only."""
    gap = torch.tensor([[0.1, 0.0, -0.25, -0.5, -0.75, -0.1], [-0.3, -0.2, 0.2, 0.3, 0.4, 0.5]])
    found = masks(known, found=candidates(known, guide_gap=gap), guide_margin=margin)
    assert list(found) == ["anchor", "positive", "guide"] and kept(found["guide"]) == expected


@pytest.fixture
def with_additions():
    """Three queries, of which the first two share a positive, searched as anchors, and two synthetic texts."""
    anchors = TextColumn.of(["a", "b", "c"])
    positives = TextColumn.of(["x", "x", "y"])
    writer = {"x": ["x is not"], "y": ["not y"]}
    additions = Additions(anchors=anchors, synthetic=lambda texts: [writer[text] for text in texts])
    numbered = number_texts(positives, additions=additions)
    return pair_up(anchors, numbered), numbered.corpus


def test_other_anchors_and_synthetic_texts(with_additions):
    """Anchors with the same answer go; rules against unlabelled answers leave synthetic texts alone, others do not."""
    corpus_ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6]]).expand(3, 7)
    names = [with_additions[1].texts.take([i])[0] for i in range(7)]
    assert names == ["x", "y", "a", "b", "c", "x is not", "not y"]
    scores = torch.full((3, 7), 0.9)
    found = candidates(
        None,
        query_ids=torch.arange(3),
        corpus_ids=corpus_ids,
        scores=scores,
        similarities=scores,
        positive_scores=torch.full((3,), 0.5),
        positive_similarity=scores,
        guide_gap=scores,
    )
    rules = {
        "absolute_margin": 0.1,
        "relative_margin": 0.1,
        "max_score": 0.8,
        "max_positive_similarity": 0.5,
        "min_words": 5,
        "exclude_pattern": "not",
    }
    result = masks(with_additions, found=found, **rules)
    assert kept(result["anchor"]) == [[0, 1, 3, 4, 5, 6], [0, 1, 2, 4, 5, 6], [0, 1, 2, 3, 5, 6]]
    # Each query's own text is the business of the rule "anchor" alone.
    assert kept(result["shared_positive"]) == [[0, 1, 2, 4, 5, 6], [0, 1, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
    assert kept(result["positive"]) == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [0, 2, 3, 4, 5, 6]]
    for name in ("absolute_margin", "relative_margin", "max_score", "max_positive_similarity", "guide"):
        assert kept(result[name]) == [[5, 6]] * 3, name
    assert not result["min_words"].any()
    assert not masks(with_additions, found=found, min_score=0.95)["min_score"].any()
    assert kept(result["exclude_pattern"]) == [[0, 1, 2, 3, 4]] * 3
