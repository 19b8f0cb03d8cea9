"""Sources of the caller's own: what they are asked, what they may return, and what is refused in our words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from st_hardneg import HardNegativeDataset, MiningConfig, MiningError, Texts
from st_hardneg.sources import Plan, Proposal, Queries, Source
from tests.conftest import whole
from tests.toys import Model, by_angle, mined, texts_of, wrapped

PAIRS = [("q 0°", "p 40°"), ("r 5°", "s 45°")]
CORPUS = Dataset.from_dict(
    {"_id": [f"doc-{angle}" for angle in (50, 60, 70, 80)], "text": [f"d {angle}°" for angle in (50, 60, 70, 80)]}
)
NONE = math.nan


class Own:
    """A source that answers with what a function makes of the number of queries."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.asked: list[tuple[list[str], Plan]] = []

    def propose(self, queries: Queries, plan: Plan):
        assert isinstance(queries, Queries) and isinstance(plan, Plan)
        self.asked.append((queries.texts, plan))
        assert len(queries) == len(queries.ids) == len(queries.texts) == len(queries.embeddings)
        return self.answer(len(queries))


def mine(answer, corpus=CORPUS, **config) -> HardNegativeDataset:
    return mined(
        PAIRS, Model(by_angle), corpus, **{"num_negatives": 2, "sources": {"mine": (Own(answer), 2)}, **config}
    )


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: torch.tensor([[2, 0, 3]]).expand(n, 3),
        lambda n: torch.tensor([[2, 0, -1]], dtype=torch.int32).expand(n, 3),
        lambda n: [[2, 0]] * n,
        lambda n: [(2, 0, 3)] * n,
        lambda n: np.array([[2, 0, 1]] * n),
        lambda n: [["doc-70", "doc-50"]] * n,
        lambda n: [["doc-70", 0]] * n,
        lambda n: [np.array([2, 0])] * n,
        lambda n: [range(2, -1, -2)] * n,
        lambda n: Proposal(torch.tensor([[2, 0]]).expand(n, 2)),
        lambda n: Proposal([["doc-70", "doc-50"]] * n),
        lambda n: (row for row in [[2, 0]] * n),
    ],
)
def test_proposals_in_whatever_form(answer):
    """Tensors, arrays, lists of row numbers or of the corpus's own ids, with -1 for none, and generators."""
    found = mine(answer)
    assert texts_of(found) == [["d 70°", "d 50°"]] * 2
    provenance = found.provenance()
    assert provenance["negative_sources"][:] == [["mine", "mine"]] * 2
    assert provenance["negative_ranks"][:] == [[0, 1]] * 2
    assert provenance["negative_ids"][0] == ["doc-70", "doc-50"]
    np.testing.assert_allclose(
        found.negative_scores[0], [math.cos(math.radians(70)), math.cos(math.radians(50))], atol=1e-6
    )
    assert "negative_source_scores" not in provenance.column_names and found.report.sources == {"mine": 4}


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: Proposal([[2, 0], [3]], [[7.5, 6.0], [1.0]]),
        lambda n: Proposal(
            torch.tensor([[2, 0], [3, -1]]), torch.tensor([[7.5, 6.0], [1.0, 9.0]], dtype=torch.float64)
        ),
        lambda n: Proposal([["doc-70", "doc-50"], ["doc-80"]], [[7.5, 6], [1]]),
        lambda n: Proposal(torch.tensor([[2, 0], [3, -1]]), [[7.5, 6.0], [1.0, 9.0]]),
    ],
)
def test_a_source_s_own_scores_stand_in_the_provenance(answer):
    """Under a name of their own, NaN where a slot is empty; the similarity is the model's all the same."""
    provenance = mine(answer).provenance()
    np.testing.assert_array_equal(provenance["negative_source_scores"][:], [[7.5, 6.0], [1.0, NONE]])
    assert provenance["negative_ids"][:] == [["doc-70", "doc-50"], ["doc-80", None]]


def test_a_source_is_asked_for_what_is_wanted():
    """Texts, vectors and draw keys of the queries; how many, how deep, which seed and refresh."""
    source = Own(lambda n: [[0, 1]] * n)
    found = wrapped(PAIRS, CORPUS, {"query_chunk_size": 1}, num_negatives=3, seed=7, max_score=0.99,
                    sources={"dense": 1, "mine": (source, 2)})  # fmt: skip
    assert isinstance(source, Source)
    for refresh in range(2):
        source.asked.clear()
        found.mine(Model(by_angle), show_progress_bar=False)
        assert [texts for texts, _ in source.asked] == [["q 0°"], ["r 5°"]]
        # 10 places for each of three negatives, one for the positive in the window and one beside.
        assert {plan for _, plan in source.asked} == {Plan(32, 2, seed=7, refresh=refresh)}


def test_what_is_right_or_ruled_out_is_taken_out_of_proposals():
    """The anchor, positives, copies of both, and what rules remove: a source need not know of them."""
    corpus = ["d 50°", "P  40°", "q 0°", "d 10°", "d 90°", "D 50°"]
    found = mine(lambda n: [[1, 2, 3, 5, 0, 4]] * n, corpus, max_score=0.7)
    # "D 50°" came first; it is a copy of "d 50°", which is searched in its place and has the vector.
    assert texts_of(found)[0] == ["d 50°", "d 90°"]
    assert found.report.removed["positive"] >= 1 and found.report.removed["anchor"] == 1
    # The window counts what survives, and draws by weights hold for a source that ranks.
    found = mine(lambda n: [[0, 1, 2, 3]] * n, range_min=1, range_max=3)
    assert texts_of(found)[0] == ["d 60°", "d 70°"]
    # Where the order means nothing, there is no window and no rank.
    found = mine(lambda n: Proposal([[3, 1]] * n, is_ranked=False), range_min=1, range_max=3)
    assert texts_of(found)[0] == ["d 80°", "d 60°"] and found.provenance()["negative_ranks"][0] == [-1, -1]


def test_no_text_comes_from_two_sources():
    """What one source gave is no longer taken from the next."""
    sources = {"dense": 1, "mine": (Own(lambda n: [[0, 1, 2]] * n), 2), "web": Texts(["D 50°", "w 5°"], 1)}
    found = mined(PAIRS, Model(by_angle), CORPUS, num_negatives=4, sources=sources)
    assert texts_of(found)[0] == ["s 45°", "d 50°", "d 60°", "w 5°"]


def test_an_object_without_a_quota_gets_what_the_others_leave():
    """One open source, two that share, and none."""
    sources = {"dense": 1, "mine": Own(lambda n: [[0, 1]] * n)}
    assert wrapped(PAIRS, CORPUS, num_negatives=3, sources=sources).config.quotas == {"dense": 1, "mine": 2}
    two = {"a": Own(None), "dense": 1, "b": Texts(["x 1°"])}
    assert wrapped(PAIRS, CORPUS, num_negatives=4, sources=two).config.quotas == {"a": 2, "dense": 1, "b": 1}
    # The number of negatives follows from the quotas where neither a recipe nor a field says it.
    fixed = HardNegativeDataset(Dataset.from_dict({"anchor": ["a", "b"], "positive": ["c", "d"]}),
                                sources={"dense": 3, "random": 2})  # fmt: skip
    assert (fixed.config.num_negatives, fixed.config.quotas) == (5, {"dense": 3, "random": 2})
    later = wrapped(PAIRS, CORPUS, num_negatives=3, sources={"dense": 3, "mine": (Own(None), 0)})
    assert later.config.quotas == {"dense": 3} and later.config.sources == {"dense": 3, "mine": 0}
    # Quotas of the recipe and of the dataset are laid over each other where they agree.
    config = MiningConfig(num_negatives=3, sources={"dense": 3})
    found = HardNegativeDataset(Dataset.from_dict({"anchor": ["a", "b"], "positive": ["c", "d"]}), None, config,
                                sources={"mine": (Own(None), 0)})  # fmt: skip
    assert found.config.sources == {"dense": 3, "mine": 0}
    message = "`config.sources` and `sources` have other quotas for ['dense']. Leave one of them out."
    with pytest.raises(ValueError, match=whole(message)):
        HardNegativeDataset(Dataset.from_dict({"anchor": ["a", "b"], "positive": ["c", "d"]}), None, config,
                            sources={"dense": 2, "random": 1})  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            lambda n: torch.zeros(n + 1, 2, dtype=torch.int64),
            ValueError,
            "Expected the source 'mine' to propose an integer tensor of shape (2, k), got torch.int64 of shape (3, 2).",
        ),
        (
            lambda n: torch.zeros(n, dtype=torch.int64),
            ValueError,
            "Expected the source 'mine' to propose an integer tensor of shape (2, k), got torch.int64 of shape (2,).",
        ),
        (
            lambda n: torch.zeros(n, 2),
            ValueError,
            "Expected the source 'mine' to propose an integer tensor of shape (2, k), got torch.float32 of shape (2, 2).",
        ),
        (
            lambda n: Proposal(torch.zeros(n, 2, dtype=torch.int64), torch.zeros(n, 3)),
            ValueError,
            "Expected as many scores as ids from the source 'mine', got (2, 3) and (2, 2).",
        ),
        (
            lambda n: [[0]],
            ValueError,
            "Expected the source 'mine' to answer 2 queries, got 1 lists.",
        ),
        (
            lambda n: Proposal([[0], [1]], [[1.0], []]),
            ValueError,
            "Expected the source 'mine' to give a score for each id, got lists of other lengths.",
        ),
        (
            lambda n: [[0], [6]],
            ValueError,
            "Expected the source 'mine' to propose ids in [0, 6) or -1, got ids from 0 to 6. They are row numbers of "
            "`hard_negatives.corpus`; its own ids are strings.",
        ),
        (
            lambda n: torch.full((n, 1), -2),
            ValueError,
            "Expected the source 'mine' to propose ids in [0, 6) or -1, got ids from -2 to -2. They are row numbers of "
            "`hard_negatives.corpus`; its own ids are strings.",
        ),
        (
            lambda n: [["doc-50"], ["doc-51"]],
            ValueError,
            "The source 'mine' proposes 'doc-51', which is no id of the corpus. Give the corpus a column `_id` that holds "
            "the source's ids, or propose row numbers.",
        ),
        (
            lambda n: [[0], [1.5]],
            TypeError,
            "Expected row numbers or ids as strings from the source 'mine', got 1.5.",
        ),
        (
            lambda n: [[0], [True]],
            TypeError,
            "Expected row numbers or ids as strings from the source 'mine', got True.",
        ),
        (
            lambda n: None,
            TypeError,
            "Expected the source 'mine' to return a Proposal or a list of ids per query, got NoneType.",
        ),
        (
            lambda n: [0, 1],
            TypeError,
            "Expected the source 'mine' to return a Proposal or a list of ids per query, got list.",
        ),
        (
            lambda n: {"doc-50": 1.0, "doc-60": 0.5},
            ValueError,
            "The source 'mine' proposes 'd', which is no id of the corpus. Give the corpus a column `_id` that holds the "
            "source's ids, or propose row numbers.",
        ),
    ],
)  # fmt: skip
def test_what_is_no_proposal_is_refused(answer, error, message):
    """Wrong shapes and types, other numbers of queries, ids of nothing: the whole message is compared."""
    with pytest.raises(error, match=whole(message)):
        mine(answer)


def test_an_empty_proposal_leaves_slots_empty():
    """For one query, and -1 for another."""
    found = mine(lambda n: [[], [0]])
    assert texts_of(found) == [[], ["d 50°"]] and found.report.num_missing == 3
    assert mine(lambda n: [[-1, 2], [0, 1]]).negative_ids[0].tolist() == [2, -1]


def test_own_ids_need_a_column_of_ids():
    """Without one, no string is an id."""
    with pytest.raises(ValueError, match=r"proposes 'doc-50', which is no id of the corpus"):
        mine(lambda n: [["doc-50"]] * n, CORPUS.remove_columns("_id"))
    # Ids that are numbers are given as strings, too, and numbers could be either.
    numbered = Dataset.from_dict({"id": [30, 20, 10, 0], "text": CORPUS["text"][:]})
    assert texts_of(mine(lambda n: [["10", "0"]] * n, numbered))[0] == ["d 70°", "d 80°"]
    message = (
        "The source 'mine' proposes integers, and the corpus has integers in its column 'id' that are not its row "
        "numbers. Propose these ids as strings, or say that row numbers are meant: `Proposal(ids, are_rows=True)`."
    )
    for unclear in ([[0, 1]], [["10", 1]], torch.tensor([[0, 1]])):
        with pytest.raises(ValueError, match=whole(message)):
            mine(lambda n, ids=unclear: ids.expand(n, 2) if torch.is_tensor(ids) else ids * n, numbered)
    assert texts_of(mine(lambda n: Proposal([[0, 1]] * n, are_rows=True), numbered))[0] == ["d 50°", "d 60°"]
    in_order = Dataset.from_dict({"id": [0, 1, 2, 3], "text": CORPUS["text"][:]})
    assert texts_of(mine(lambda n: [[0, 1]] * n, in_order))[0] == ["d 50°", "d 60°"]


def test_a_cross_encoder_leaves_a_source_s_order_as_it_is():
    """Rules go by its scores; what a search engine ranks first stays first."""

    class ByAngle:
        def predict(self, pairs, **options):
            return torch.tensor([float(text.split()[-1].rstrip("°")) for _, text in pairs])

    source = Own(lambda n: [[1, 3, 0, 2]] * n)
    found = mined(PAIRS, Model(by_angle), CORPUS, {"cross_encoder": ByAngle()}, num_negatives=2, max_score=75,
                  sources={"mine": (source, 2)})  # fmt: skip
    assert texts_of(found)[0] == ["d 60°", "d 50°"]
    assert found.provenance()["negative_cross_encoder_scores"][0] == [60.0, 50.0]


def test_an_error_of_a_source_says_which_source_it_was():
    """Nothing is changed, and the error itself stands below."""

    class Broken(Exception):
        pass

    def fail(n):
        raise Broken("no connection")

    found = mine(lambda n: [[0, 1]] * n)
    before = found.negative_ids
    found._wrapped.task.sources["mine"].answer = fail
    message = "The source 'mine' raised Broken: no connection. The earlier negatives are unchanged."
    with pytest.raises(MiningError, match=whole(message)) as raised:
        found.mine(Model(by_angle), show_progress_bar=False)
    assert isinstance(raised.value.__cause__, Broken)
    assert (found.negative_ids == before).all()


def test_a_source_that_takes_something_else_is_refused_at_once():
    """When the dataset is made, not hours later."""

    class Odd:
        def propose(self, queries):
            return [[0]]

    message = (
        "Expected `propose` of the source 'odd' to take the arguments (queries, plan), got `(queries)`. Change what it "
        "takes."
    )
    with pytest.raises(TypeError, match=whole(message)):
        wrapped(PAIRS, CORPUS, num_negatives=1, sources={"odd": Odd()})
