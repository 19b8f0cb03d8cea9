"""Every rule alone, on candidates that are written down: what stays, what goes, what ties do; and the table of rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from st_hardneg.candidates import Candidates
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Additions, number_texts
from st_hardneg.corpus.pairs import pair_up
from st_hardneg.corpus.texts import TextColumn
from st_hardneg.errors import MiningError
from st_hardneg.mining import filters
from st_hardneg.mining.filters import RULES, Facts, Rule, Tally, keep_masks, keeps_texts, looks_deep
from tests.conftest import whole
from tests.toys import Model, by_angle, mined, texts_of

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
        "lowest_positive_similarities": torch.tensor([0.75, -0.25]),
        "sources": torch.zeros(corpus_ids.shape, dtype=torch.int8),
        "source_scores": torch.full(corpus_ids.shape, torch.nan),
        "positive_similarity": torch.tensor([[0.5, 1.0, 0.75, 0.7, 0.1, 0.8], [0.75, 0.76, 0.0, 0.74, 1.0, 0.0]]),
    }
    values |= changes
    shape = values["corpus_ids"].shape
    return Candidates(**{**values, "sources": changes.get("sources", torch.zeros(shape, dtype=torch.int8))})


def kept(mask: torch.Tensor) -> list[list[int]]:
    """Return the places that stay, row by row."""
    return [row.nonzero().flatten().tolist() for row in mask]


def facts(known, found=None, include_positives=False, guide_margin=None, **config) -> Facts:
    pairs, corpus = known
    return Facts(found or candidates(known), pairs, corpus, MiningConfig(**config), include_positives, guide_margin)


def masks(known, extra_filters=None, **options):
    return keep_masks(facts(known, **options), extra_filters)


def test_what_is_always_on(known):
    """The query's own text goes under "anchor", its positive under "positive", and no text counts twice."""
    found = masks(known)
    assert list(found) == ["anchor", "positive"]
    # Text 6 is the first query's anchor in other case; the second query may have it.
    assert kept(found["anchor"]) == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert kept(found["positive"]) == [[0, 2, 3, 4, 5], [0, 1, 3, 4, 5]]
    assert list(keep_masks(facts(known))) == ["anchor", "positive"]


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
        # Of the queries' own 0.75 and -0.25: at most 0.75 - 0.75 * 0.2, and at most -0.25 - 0.25 * (1 - ratio).
        ("max_relative_positive_similarity", 1.0, [[0, 2, 3, 4], []]),
        ("max_relative_positive_similarity", 0.8, [[0, 4], []]),
        ("max_relative_positive_similarity", 2.0, [[0, 1, 2, 3, 4, 5], [2, 5]]),
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
        "max_relative_positive_similarity": 0.9,
        "min_words": 1,
        "exclude_pattern": "x",
    }
    mine = torch.zeros(2, 6, dtype=torch.bool)
    found = masks(known, extra_filters={"b": lambda *_: mine, "a": lambda *_: ~mine}, **config)
    # The other two apply where anchors are searched, and where there is a guide.
    assert list(found) == [*(name for name in RULES if name not in ("shared_positive", "guide")), "b", "a"]
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


def test_a_filter_that_raises_is_named(known):
    """Its own error stands below."""

    def broken(candidates, corpus):
        return candidates.nothing

    message = (
        "The extra filter 'mine' raised AttributeError: 'Candidates' object has no attribute 'nothing'. The earlier "
        "negatives are unchanged."
    )
    with pytest.raises(MiningError, match=whole(message)) as raised:
        masks(known, extra_filters={"mine": broken})
    assert isinstance(raised.value.__cause__, AttributeError)


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


WRITTEN = torch.tensor([0, 0, 1, 1, 1, 4, 5], dtype=torch.int8).expand(3, 7)
"""The sources of these texts: dense, anchors, and the last two synthetic and given."""


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
        lowest_positive_similarities=torch.full((3,), 0.5),
        positive_similarity=scores,
        guide_gap=scores,
        sources=WRITTEN,
    )
    rules = {
        "absolute_margin": 0.1,
        "relative_margin": 0.1,
        "max_score": 0.8,
        "max_positive_similarity": 0.5,
        "max_relative_positive_similarity": 0.7,
        "min_words": 5,
        "exclude_pattern": "not",
    }
    result = masks(with_additions, found=found, guide_margin=0.0, **rules)
    assert kept(result["anchor"]) == [[0, 1, 3, 4, 5, 6], [0, 1, 2, 4, 5, 6], [0, 1, 2, 3, 5, 6]]
    # Each query's own text is the business of the rule "anchor" alone.
    assert kept(result["shared_positive"]) == [[0, 1, 2, 4, 5, 6], [0, 1, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
    assert kept(result["positive"]) == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [0, 2, 3, 4, 5, 6]]
    guards = [name for name, rule in RULES.items() if rule.guards]
    assert guards == ["absolute_margin", "relative_margin", "max_score", "max_positive_similarity",
                      "max_relative_positive_similarity", "guide"]  # fmt: skip
    for name in guards:
        assert kept(result[name]) == [[5, 6]] * 3, name
    assert not result["min_words"].any()
    assert not masks(with_additions, found=found, min_score=0.95)["min_score"].any()
    assert kept(result["exclude_pattern"]) == [[0, 1, 2, 3, 4]] * 3


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_rule_holds_under_the_name_of_its_field():
    """Each rule that is no fixed one is in force where a field of its name is set, and only there."""
    assert {name for name, rule in RULES.items() if rule.always} == {"anchor", "positive", "shared_positive"}
    fields = set(MiningConfig.__dataclass_fields__)
    assert set(RULES) - fields == {"anchor", "positive", "shared_positive", "guide"}


EXAMPLES = {
    "absolute_margin": 0.1,
    "relative_margin": 0.1,
    "max_score": 0.9,
    "min_score": 0.1,
    "max_positive_similarity": 0.9,
    "max_relative_positive_similarity": 0.9,
    "min_words": 2,
    "exclude_pattern": "x",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_depth_derives_from_the_table(name):
    """A recipe looks deeper exactly where a rule that may remove the closest is in force."""
    config = MiningConfig(**{name: EXAMPLES[name]})
    deep = {"is_guided": False, "is_filtered": False, "is_rescored": False}
    assert looks_deep(config, **deep) == RULES[name].may_remove_closest == (name != "min_score")
    assert looks_deep(config, **{**deep, "is_rescored": True})
    assert not looks_deep(MiningConfig(), **{**deep, "is_rescored": True})


@pytest.mark.parametrize("name", ["is_guided", "is_filtered"])
def test_guides_and_filters_of_the_caller_look_deep(name):
    """They may remove the closest."""
    deep = {"is_guided": False, "is_filtered": False, "is_rescored": False}
    assert not looks_deep(MiningConfig(), **deep) and looks_deep(MiningConfig(), **{**deep, name: True})


def test_every_rule_of_the_table_is_tried():
    """A rule that is added has an example here."""
    assert set(EXAMPLES) == set(RULES) & set(MiningConfig.__dataclass_fields__)


def keeps_even(facts: Facts) -> torch.Tensor:
    """Keep texts of an even number."""
    return facts.candidates.corpus_ids % 2 == 0


@pytest.mark.parametrize("may_remove_closest", [False, True])
def test_a_rule_in_the_table_is_enough(monkeypatch, may_remove_closest):
    """A line in the table gives the mask, the counts in the report, and the depth."""
    monkeypatch.setitem(filters.RULES, "even", Rule(keeps_even, may_remove_closest=may_remove_closest))
    corpus = [f"d {angle}°" for angle in range(50, 90)]
    pair = [("q 0°", "p 40°")]
    found = mined(pair, Model(by_angle), corpus, num_negatives=3)
    # Among 3 + 1 (positive) retrieved places at first, or 10 times as many: 40 (positive), 50 … of which 50, 52 are even.
    wanted = [f"d {angle}°" for angle in ((50, 52, 54) if may_remove_closest else (50, 52))]
    assert texts_of(found) == [wanted]
    assert list(found.report.removed) == ["anchor", "positive", "even"]
    # The positive has the number 40, which is even.
    assert found.report.removed["even"] == found.report.removed_alone["even"] == (15 if may_remove_closest else 2)
    assert found.report.num_candidates == (32 if may_remove_closest else 5)
    assert "- even" in str(found.report)
    monkeypatch.delitem(filters.RULES, "even")
    off = mined(pair, Model(by_angle), corpus, num_negatives=3)
    assert texts_of(off) == [["d 50°", "d 51°", "d 52°"]] and "even" not in off.report.removed


def test_a_rule_with_a_field_is_in_force_where_the_field_is_set(monkeypatch):
    """The field of its name decides on depth, and a rule that compares with positives is given their similarities."""
    seen = []

    def keeps(facts: Facts) -> torch.Tensor | None:
        if facts.config.min_words is None:
            return None
        seen.append(facts.candidates.positive_similarity)
        return torch.ones(facts.candidates.corpus_ids.shape, dtype=torch.bool)

    monkeypatch.setitem(filters.RULES, "min_words", Rule(keeps, may_remove_closest=True, compares_positives=True))
    corpus = [f"d {angle}°" for angle in range(50, 90)]
    found = mined([("q 0°", "p 40°")], Model(by_angle), corpus, num_negatives=3, min_words=0)
    assert found.report.num_candidates == 32
    assert seen[0][0, :2].tolist() == pytest.approx([1.0, math.cos(math.radians(10))], abs=1e-6)
    assert mined([("q 0°", "p 40°")], Model(by_angle), corpus, num_negatives=3).report.num_candidates == 5


def test_a_rule_that_guards_lets_written_texts_through(monkeypatch, with_additions):
    """What holds off unlabelled answers does not hold for texts that are known to be wrong; the flag says so."""
    corpus_ids = torch.arange(7).expand(3, 7)
    scores = torch.full((3, 7), 0.9)
    found = candidates(None, query_ids=torch.arange(3), corpus_ids=corpus_ids, scores=scores, similarities=scores,
                       sources=WRITTEN)  # fmt: skip
    for guards, expected in ((True, [5, 6]), (False, [])):
        rule = Rule(lambda facts: torch.zeros(facts.candidates.corpus_ids.shape, dtype=torch.bool), guards=guards)
        monkeypatch.setitem(filters.RULES, "nothing", rule)
        assert kept(masks(with_additions, found=found)["nothing"]) == [expected] * 3


def test_a_tally_counts_alone_and_together(known):
    """What each rule removes, and what no other rule removes, of the queries that count."""
    found = candidates(known)
    some = {"a": found.corpus_ids > 1, "b": found.corpus_ids > 3}
    keep = some["a"] & some["b"] & found.is_present
    tally = Tally()
    tally.count(found, some, keep, torch.tensor([True, False]))
    assert (tally.num_candidates, tally.num_kept) == (6, 2)
    assert (tally.removed, tally.removed_alone) == ({"a": 2, "b": 4}, {"a": 0, "b": 2})
    tally.count(found, some, keep, torch.tensor([False, True]))
    # The second query found 6, 1, 2, 3, 4 and nothing.
    assert (tally.num_candidates, tally.num_kept) == (11, 4)
    assert (tally.removed, tally.removed_alone) == ({"a": 3, "b": 7}, {"a": 0, "b": 4})


def test_a_centered_margin_counts_from_chance(known):
    """What stays is at most .8 of the way from chance to the positive; a positive below chance lets nothing above it."""
    # 0.25 + 0.8 * (0.75 - 0.25) = 0.65; in the second row the positive, -0.25, is below chance, 0.
    found = candidates(known, chance=torch.tensor([0.25, 0.0]))
    assert kept(filters.keeps_centered_margin(found, 0.2)) == [[2, 3, 4, 5], [2, 3, 4, 5]]
    # A margin of half, and an edge that is kept: 0.25 + 0.5 * 0.5 = 0.5.
    assert kept(filters.keeps_centered_margin(found, 0.5))[0] == [2, 3, 4, 5]
    assert kept(filters.keeps_centered_margin(found, 0.51))[0] == [3, 4]
    # With nothing to leave, all up to the positive itself.
    assert kept(filters.keeps_centered_margin(found, 0.0))[0] == [1, 2, 3, 4, 5]


def test_a_centered_closeness_is_a_share_of_the_positive_above_chance(known):
    """At most .7 of (0.75 - 0.25) = 0.35 above chance; a positive below chance has no share to give."""
    closeness = torch.tensor([[0.5, 0.36, 0.35, 0.1, 0.0, -0.2], [0.01, 0.0, -0.1, 0.5, 0.2, 0.0]])
    found = candidates(known, chance=torch.tensor([0.25, 0.0]), positive_closeness=closeness)
    assert kept(filters.keeps_centered_closeness(found, 0.7)) == [[2, 3, 4, 5], [1, 2, 5]]
    assert kept(filters.keeps_centered_closeness(found, 0.72))[0] == [1, 2, 3, 4, 5]


def test_every_bounded_rule_reads_its_own_field(known):
    """Each field alone puts one rule in force, with the field's own value."""
    for name, value in (
        ("max_score", 0.5),
        ("min_score", 0.25),
        ("absolute_margin", 0.1),
        ("max_positive_similarity", 0.7),
    ):
        found = masks(known, **{name: value})
        assert set(found) == {"anchor", "positive", name}
        assert not bool(found[name].all())


def test_a_tally_counts_more_rules_than_a_byte_holds(known):
    """What two hundred rules remove is removed by many, and by none alone."""
    tally, found = Tally(), candidates(known)
    removes_all = torch.zeros(found.corpus_ids.shape, dtype=torch.bool)
    tally.count(found, {str(number): removes_all for number in range(200)}, removes_all, torch.tensor([True, True]))
    assert tally.num_candidates == 11 and tally.num_kept == 0
    assert set(tally.removed.values()) == {11} and set(tally.removed_alone.values()) == {0}
