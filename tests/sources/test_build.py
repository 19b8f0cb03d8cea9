"""From what the caller names to sources that propose: every kind of source, by itself and all at once."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from st_hardneg import HardNegativeDataset, MiningError, Texts, Where, Written
from tests.conftest import whole
from tests.toys import BOTH, Model, Untouchable, by_angle, by_seed, dated, mined, same, texts_of, wrapped


def test_a_further_corpus_has_a_name_of_its_own():
    """It is searched by itself, and the corpus does not see its texts."""
    further = ["x 1°", "X  1°", "Q 0°", "p 40°", "x 50°", "x 90°"]
    found = mined(
        [("q 0°", "p 40°")], Model(by_angle), ["d 60°", "d 70°"], num_negatives=4,
        sources={"dense": 2, "other": Texts(further, 2)},
    )  # fmt: skip
    assert texts_of(found) == [["d 60°", "d 70°", "x 1°", "x 50°"]]
    assert found.provenance()["negative_sources"][0] == ["dense", "dense", "other", "other"]
    # Among the corpus's texts, numbered from 3 on, copies of the anchor and the positive hold ranks 0 and 2.
    assert found.provenance()["negative_ranks"][0] == [1, 2, 1, 3]


def test_several_further_corpora_and_a_text_of_two_of_them():
    """A list and a Dataset with another column; a text of both, and of the corpus, stands in a row once."""
    web = Dataset.from_dict({"url": ["a", "b", "c"], "text": ["both 10°", "d 60°", "web 30°"]})
    found = mined(
        [("q 0°", "p 40°")], Model(by_angle), ["d 60°", "d 70°", "d 80°"],
        num_negatives=4,
        sources={"wiki": Texts(["Both  10°", "wiki 20°"], 1), "web": Texts(web.remove_columns("url"), 2), "dense": 1},
    )  # fmt: skip
    assert texts_of(found) == [["Both  10°", "web 30°", "d 60°", "d 70°"]]
    assert found.report.sources == {"wiki": 1, "web": 2, "dense": 1}


def test_a_metadata_filter_decides_what_may_be_a_negative():
    """Old texts are out for search, random draws and filling; of equal texts, the one that may stay stands for both."""
    corpus = dated(
        ["d 10°", "D 10°", "d 20°", "d 60°", "d 70°"],
        [1990, 2020, 1990, 2020, 2021],
        ["law", "law", "art", "art", "law"],
    )
    found = mined(
        [("q 0°", "p 40°"), ("r 5°", "s 45°")], Model(by_angle), corpus,
        {"metadata_filter": lambda row: row["year"] >= 2000},
        num_negatives=4, sources={"dense": 2, "random": 2}, shortfall="random",
    )  # fmt: skip
    provenance = found.provenance()
    for ids in provenance["negative_ids"]:
        # The positives of the other row have no year.
        assert set(ids) - {None} == {"doc1", "doc3", "doc4"} and ids[0] == "doc1"
    # Each row has all three texts that may be one; the fourth slot holds one of them again, which losses mask.
    assert (found.report.num_missing, found.report.num_last_resort) == (0, 2)


def test_parts_of_the_corpus_are_searched_by_themselves():
    """The nearest of each domain, in the order of the quotas; a text of two sources comes once."""
    angles, years = [10, 20, 60, 70, 80, 90], [1990, 2020, 2020, 1990, 2021, 2022]
    corpus = dated([f"d {a}°" for a in angles], years, ["law", "art", "art", "law", "law", "art"])
    found = mined(
        [("q 0°", "p 40°")], Model(by_angle), corpus,
        num_negatives=5,
        sources={
            "law": Where(lambda row: row["domain"] == "law", 2),
            "dense": 1,
            "new": Where(lambda row: row["year"] >= 2020, 2),
        },
    )  # fmt: skip
    assert texts_of(found) == [["d 10°", "d 70°", "d 20°", "d 60°", "d 80°"]]
    assert found.provenance()["negative_sources"][0] == ["law", "law", "dense", "new", "new"]
    assert found.provenance()["negative_ranks"][0] == [0, 1, 1, 1, 2]


def write_two(positives: list[str]) -> list[list[str]]:
    """Write two wrong answers for each positive."""
    return [[f"not {text}", f"hardly {text}"] for text in positives]


VOCABULARY = "apple pear plum tree garden wall jam cake stone wood leaf root".split()


def everything(seed: int = 0, chunk: int = 512, **changes) -> tuple[HardNegativeDataset, dict]:
    """Return a dataset with every kind of source but those of the caller's own, and the parts it was made of."""
    rng = random.Random(seed)

    def some_texts(name: str, count: int) -> list[str]:
        return [f"{name}{i} " + " ".join(rng.choices(VOCABULARY, k=3)) for i in range(count)]

    anchors, positives, documents = some_texts("q", 20), some_texts("p", 20), some_texts("d", 60)
    corpus = dated(documents + positives[:10], [1980 + i for i in range(70)], ["law", "art"] * 35)
    parts = {
        "texts": {"wiki": [*some_texts("k", 15), *documents[30:35], positives[0].upper()], "web": some_texts("w", 9)},
        "where": {"law": lambda row: row["domain"] == "law", "new": lambda row: row["year"] >= 2030},
        "metadata_filter": lambda row: row["year"] >= 1990,
    }  # fmt: skip
    sources = {
        "dense": 3, "lexical": 1, "random": 1, "synthetic": Written(write_two, 1),
        "wiki": Texts(parts["texts"]["wiki"], 2), "web": Texts(parts["texts"]["web"], 1),
        "law": Where(parts["where"]["law"], 1), "new": Where(parts["where"]["new"], 2),
    }  # fmt: skip
    options = {"num_negatives": 12, "sources": sources, "search_spaces": BOTH, "max_score": 0.9, **changes}
    pairs = [*zip(anchors, positives, strict=True), (anchors[0], positives[1])]
    further = {"metadata_filter": parts["metadata_filter"], "query_chunk_size": chunk}
    return wrapped(pairs, corpus, further, **options), parts


def test_all_sources_at_once(bm25s):
    """Quotas are honoured, no text comes twice, nothing known to be right comes, and provenance says what is true."""
    found, parts = everything()
    model = Model(by_seed(3))
    found.live.apply(found.compute_mining(model, step=17, show_progress_bar=False))
    quotas, corpus = found.config.sources, found.corpus
    given, provenance = corpus.given, found.provenance()
    wanted = [name for name, quota in quotas.items() for _ in range(quota)]
    rows = [(a, p) for a, p in found.known_pairs()]
    assert provenance.column_names[-1] == "negative_source_scores" and found.report.num_missing == 0
    all_texts = texts_of(found)
    for number, row in enumerate(provenance):
        anchor, positive = rows[number]
        texts = all_texts[number]
        right = {same(p) for a, p in rows if a == anchor}
        assert len({same(text) for text in texts}) == 12
        assert not {same(text) for text in texts} & {same(anchor), *right}
        names = row["negative_sources"]
        assert ["dense" if name == "anchors" else name for name in names] == wanted
        np.testing.assert_allclose(row["negative_scores"], [model.score(anchor, text) for text in texts], atol=1e-6)
        assert row["positive_score"] == pytest.approx(model.score(anchor, positive), abs=1e-6)
        assert row["negative_steps"] == [17] * 12 and row["negative_slots"] == ["mined"] * 12
        for name, text, own_id, rank, words in zip(
            names, texts, row["negative_ids"], row["negative_ranks"], row["negative_source_scores"], strict=True
        ):
            assert math.isnan(words) == (name != "lexical")
            check_origin(name, text, own_id, right, parts, given)
            if name in ("random", "synthetic"):
                assert rank == -1
            elif name in ("law", "new", "wiki", "web"):
                ranked = sorted(texts_in(name, parts, given, rows), key=lambda other: -model.score(anchor, other))
                assert rank == ranked.index(text)
        check_nearest(anchor, texts, quotas, right, parts, given, rows, model)
    counts = Counter(name for row in provenance.select(range(20)) for name in row["negative_sources"])
    assert found.report.sources == counts and counts["anchors"] > 0


def texts_in(name: str, parts: dict, given: Dataset, rows: list[tuple[str, str]]) -> list[str]:
    """Return the texts that a source searches by itself."""
    if name in parts["texts"]:
        return parts["texts"][name]
    is_in = parts["where"].get(name, lambda row: True)
    texts = [row["text"] for row in given if is_in(row) and parts["metadata_filter"](row)]
    return texts + list({anchor for anchor, _ in rows}) if name == "dense" else texts


def check_nearest(anchor, texts, quotas, right, parts, given, rows, model) -> None:
    """Each source that is searched gave the nearest of its texts that pass and that no source before it gave."""
    start = 0
    asks_the_same = {a for a, p in rows if same(p) in right}
    for name, quota in quotas.items():
        taken = {same(text) for text in texts[:start]}
        if name not in ("lexical", "random", "synthetic"):
            passing = [
                text
                for text in texts_in(name, parts, given, rows)
                if not {same(text)} & {same(anchor), *right, *taken}
                and text not in asks_the_same
                and model.score(anchor, text) <= 0.9
            ]
            nearest = sorted(passing, key=lambda text: -model.score(anchor, text))[:quota]
            assert texts[start : start + quota] == nearest
        start += quota


def check_origin(name: str, text: str, own_id: str, right: set[str], parts: dict, given: Dataset) -> None:
    """A negative is a text of its source, under the id that the caller knows."""
    rows = {row["_id"]: row for row in given}
    if name in ("wiki", "web"):
        assert text in parts["texts"][name] and re.fullmatch(rf"{name}-\d+", own_id)
    elif name == "synthetic":
        assert text in {f"{how} {positive}" for positive in right for how in ("not", "hardly")}
        assert re.fullmatch(r"synthetic-\d+", own_id)
    elif name == "anchors" or (name == "random" and own_id not in rows):
        assert text.startswith("q") and re.fullmatch(r"anchor-\d+", own_id)
    else:
        assert rows[own_id]["text"] == text and parts["metadata_filter"](rows[own_id])
        assert name not in parts["where"] or parts["where"][name](rows[own_id])


def test_all_sources_are_the_same_in_any_chunk(bm25s):
    """Chunks of 1, 3 and 512 queries."""
    results = []
    for size in (1, 3, 512):
        found = everything(chunk=size, sampling_strategy="softmax", random_rate=0.3)[0]
        found.mine(Model(by_seed(3)), show_progress_bar=False)
        results.append(found.provenance().to_dict())
    for result in results[1:]:
        for name, column in result.items():
            if name.endswith(("score", "scores")):
                np.testing.assert_allclose(column, results[0][name], atol=1e-6)
            else:
                assert column == results[0][name]


def test_every_source_survives_saving(bm25s, tmp_path):
    """Further corpora, metadata and written texts come back; mining again gives what it would have given."""
    found = everything()[0]
    found.mine(Model(by_seed(3)), show_progress_bar=False)
    found.save_to_disk(tmp_path / "saved")
    loaded = HardNegativeDataset.load_from_disk(tmp_path / "saved")
    assert str(loaded.provenance().to_dict()) == str(found.provenance().to_dict())
    assert loaded.live.mining.source_names == found.live.mining.source_names and loaded.report == found.report
    assert loaded.corpus.blocks == found.corpus.blocks
    for hard_negatives in (found, loaded):
        hard_negatives.mine(Model(by_seed(4)), show_progress_bar=False)
    assert str(loaded.provenance().to_dict()) == str(found.provenance().to_dict())
    loaded.save_to_disk(tmp_path / "again")
    assert (HardNegativeDataset.load_from_disk(tmp_path / "again").negative_ids == found.negative_ids).all()


# --- bad input --------------------------------------------------------------------------------------------------------

SMALL = dated(["d 10°", "d 20°"], [1990, 2020], ["law", "art"])


class NoSource:
    """An object that proposes nothing."""


@pytest.mark.parametrize(
    ("config", "parts", "error", "message"),
    [
        (
            {"num_negatives": 4, "sources": {"dense": 2, "random": 1}},
            {},
            ValueError,
            "Expected the quotas in `sources` to add up to `num_negatives=4`, got {'dense': 2, 'random': 1}, which add "
            "up to 3. Set `num_negatives=3`, or change the quotas.",
        ),
        (
            {"sources": {"dense": 2, "anchors": 1}},
            {},
            ValueError,
            "Expected the sources of `sources`, got 'anchors', which are a search space: with "
            "`search_spaces=('corpus', 'anchors')`, \"dense\" finds negatives among them, too.",
        ),
        (
            {"sources": {"dense": 4, "random": -1}},
            {},
            ValueError,
            "Expected the quota of the source 'random' to be a number from 0 up, got -1.",
        ),
        (
            {"sources": {"dense": 4, "web": Texts(["x 1°"], True)}},
            {},
            ValueError,
            "Expected the quota of the source 'web' to be a number from 0 up, got True.",
        ),
        (
            {"sources": {"dense": 2, "lexcal": 1}},
            {},
            ValueError,
            "Expected `sources` to name sources of this dataset, got 'lexcal'. Sources are ['dense', 'lexical', 'random', "
            "'synthetic', 'given']; give others to `HardNegativeDataset(sources={'lexcal': ...})`. Did you mean "
            "'lexical'?",
        ),
        (
            {"sources": {"dense": 1, "web": 1, "wed": Texts(["x 1°"], 1)}},
            {},
            ValueError,
            "Expected `sources` to name sources of this dataset, got 'web'. Sources are ['dense', 'lexical', 'random', "
            "'synthetic', 'given', 'wed']; give others to `HardNegativeDataset(sources={'web': ...})`. Did you mean "
            "'wed'?",
        ),
        (
            {},
            {"metadata_filter": "year >= 2000"},
            TypeError,
            "Expected `metadata_filter` to be a function of a corpus row (a dictionary) that returns True or False, got "
            "str. Pass `lambda row: row['year'] >= 2020`, for example.",
        ),
        (
            {},
            {"metadata_filter": lambda row: row["year"] > 3000},
            ValueError,
            "Expected `metadata_filter` to be true for some of the 2 rows of the corpus, got none: it removes everything. "
            "Columns are ['_id', 'text', 'year', 'domain'].",
        ),
        (
            {},
            {"metadata_filter": lambda row: row["year"]},
            TypeError,
            "Expected `metadata_filter` to return True or False, got 1990 for row 0 of the corpus. Compare a column with "
            "a value, for example.",
        ),
        (
            {},
            {"metadata_filter": lambda row: True, "corpus": None},
            ValueError,
            "Expected a `corpus` with columns for `metadata_filter` to look at, got none. Pass a `datasets.Dataset` as "
            "`corpus`.",
        ),
        (
            {"sources": {"dense": 2, "new": Where(2020, 1)}},
            {},
            TypeError,
            "Expected `sources['new']` to be a function of a corpus row (a dictionary) that returns True or False, got "
            "int. Pass `lambda row: row['year'] >= 2020`, for example.",
        ),
        (
            {"sources": {"dense": 2, "new": Where(lambda row: row["year"] < 2000, 1)}},
            {"metadata_filter": lambda row: row["year"] > 2000},
            ValueError,
            "`sources['new']` and `metadata_filter` have no row of the corpus in common. Loosen one of the two.",
        ),
        (
            {"sources": [Where(lambda row: True, 3)]},
            {},
            TypeError,
            "Expected `sources` to map names to quotas and sources, got list. Write "
            '`sources={"dense": 3, "recent": Where(lambda row: row["year"] > 2020, 1)}`, for example.',
        ),
        (
            {"sources": {"dense": 2, "random": Texts(["x 1°"], 1)}},
            {},
            ValueError,
            "'random' is a source of this package. Give yours another name.",
        ),
        (
            {"sources": {"dense": 2, "corpus": Texts(["x 1°"], 1)}},
            {},
            ValueError,
            "Expected a name of its own for each source, got 'corpus'. Rename it.",
        ),
        (
            {"sources": {"dense": 2, 7: Texts(["x 1°"], 1)}},
            {},
            ValueError,
            "Expected a name of its own for each source, got 7. Rename it.",
        ),
        (
            {"sources": {"dense": 3, "web": Texts(["x 1°"]), "synthetic": Written(write_two)}},
            {},
            ValueError,
            "Expected a quota for ['web', 'synthetic']: the other sources leave 0 of `num_negatives=3`. Write "
            "`sources={'web': (source, 1)}`, or raise `num_negatives`.",
        ),
        (
            {"sources": {"dense": 2, "synthetic": 1}},
            {},
            ValueError,
            "The source 'synthetic' needs a writer: `sources={'synthetic': Written(KeywordEdits(), 1)}`, for example.",
        ),
        (
            {"sources": {"dense": 2, "synthetic": Written(["not d 10°"], 1)}},
            {},
            TypeError,
            "Expected a function from positives to texts for each in `Written`, got ['not d 10°']. Pass a maker of "
            "`st_hardneg.sources.synthetic`, for example `KeywordEdits()`.",
        ),
        (
            {"sources": {"dense": 2, "edits": Written(write_two, 1)}},
            {},
            ValueError,
            "Written texts are the source 'synthetic', and only they are; got 'edits'. Rename it.",
        ),
        (
            {"sources": {"dense": 2, "synthetic": Texts(["x 1°"], 1)}},
            {},
            ValueError,
            "Written texts are the source 'synthetic', and only they are; got 'synthetic'. Rename it.",
        ),
        (
            {"sources": {"dense": 2, "other": Texts([], 1)}},
            {},
            ValueError,
            "Expected a sources['other'] with at least one text, got an empty one. Leave it out.",
        ),
        (
            {"sources": {"dense": 2, "web": Texts(["x 1°", 5], 1)}},
            {},
            TypeError,
            "Expected `sources['web']` to be a list of texts, got int at position 1. Pass strings only.",
        ),
        (
            {"sources": {"dense": 2, "other": Texts(7, 1)}},
            {},
            TypeError,
            "Expected `sources['other']` to be a list of texts, `{id: text}`, a `datasets.Dataset` or None, got int. Turn "
            "it into one of these, for example with `list(...)`.",
        ),
        (
            {"sources": {"dense": 2, "other": Texts(None, 1)}},
            {},
            TypeError,
            "Expected texts in `sources['other']`, got None. Pass a list or a Dataset, or leave it out.",
        ),
        (
            {"sources": {"dense": 2, "mine": (NoSource(), 1)}},
            {},
            TypeError,
            "Expected the source 'mine' to be a quota, a `Where`, `Texts` or `Written`, or an object with "
            "`propose(queries, plan)`, got NoSource.",
        ),
        (
            {"sources": {"dense": 2, "mine": (NoSource, 1)}},
            {},
            TypeError,
            "Expected an object as the source 'mine', got the class NoSource. Make one of it.",
        ),
        (
            {"sources": {"dense": 2, "mine": None}},
            {},
            TypeError,
            "Expected the source 'mine' to be a quota, a `Where`, `Texts` or `Written`, or an object with "
            "`propose(queries, plan)`, got NoneType.",
        ),
        (
            {},
            {"guide": "bge-base"},
            TypeError,
            "Expected a SentenceTransformer model, or an object with `encode_query` and `encode_document`, got str, which "
            "has no `encode_query`. Load one with `SentenceTransformer(name_or_path)`.",
        ),
        ({"random_rate": 1.5}, {}, ValueError, "Expected `random_rate` to be at most 1, got 1.5."),
        ({"random_rate": "often"}, {}, TypeError, "Expected `random_rate` to be a finite number, got 'often' (str)."),
        (
            {"search_spaces": ("anchors",)},
            {},
            ValueError,
            "Expected `search_spaces` to be one of [('corpus',), ('corpus', 'anchors')], got ('anchors',).",
        ),
        (
            {"search_spaces": "anchors"},
            {},
            TypeError,
            "Expected `search_spaces` to be a tuple of strings, got 'anchors' (str).",
        ),
        (
            {},
            {"num_topics": 3},
            ValueError,
            "Expected `num_topics` to be at most the number of queries, 2, got 3. Lower it; a topic should have several "
            "batches of anchors.",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_encoded(config, parts, error, message):
    """The whole message is compared; neither the model nor the guide sees a text."""
    corpus = parts.get("corpus", SMALL)
    parts = {name: part for name, part in parts.items() if name != "corpus"}
    with pytest.raises(error, match=whole(message)):
        mined([("q 0°", "p 40°"), ("r 5°", "s 45°")], Untouchable(), corpus, parts, **config)


# --- for every input --------------------------------------------------------------------------------------------------

WORD = st.sampled_from(["w1", "w2", "w3", "W1", "ｗ2", "w4"])
TEXT = st.builds(
    lambda words, gap: gap.join(words), st.lists(WORD, min_size=1, max_size=3), st.sampled_from([" ", "  "])
)
PROBLEM = st.fixed_dictionaries(
    {
        "rows": st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=8),
        "corpus": st.lists(TEXT, min_size=1, max_size=15),
        "web": st.lists(TEXT, min_size=1, max_size=6),
        "quotas": st.fixed_dictionaries(
            {name: st.integers(0, 2) for name in ("dense", "lexical", "random", "synthetic", "web", "even", "own")}
        ),
        "is_filtered": st.booleans(),
        "chunk": st.integers(1, 5),
        "refreshes": st.lists(st.integers(0, 2), min_size=1, max_size=2),
    }
)
OPTIONS = st.fixed_dictionaries(
    {
        "search_spaces": st.sampled_from([("corpus",), BOTH]),
        "random_rate": st.sampled_from([0.0, 0.5, 1.0]),
        "sampling_strategy": st.sampled_from(["top", "random", "softmax", "simans", "log_rank", "distance"]),
        "rank_window": st.sampled_from(["survivors", "raw"]),
        "shortfall": st.sampled_from(["drop", "random"]),
        "replacement": st.sampled_from(["all", "easy"]),
        "relative_margin": st.none() | st.floats(0, 0.3),
        "max_score": st.none() | st.floats(0.2, 1),
        "min_score": st.none() | st.floats(-1, -0.3),
        "exclude_pattern": st.none() | st.just("w4"),
        "seed": st.integers(0, 3),
    }
)


class Everything:
    """A source of the caller's own that proposes the whole corpus, backwards."""

    def __init__(self, corpus: list[str]) -> None:
        self.ids = list(range(len(corpus)))[::-1]

    def propose(self, queries, plan):
        return [self.ids for _ in queries.texts]


def write_some(positives: list[str]) -> list[list[str]]:
    """Write a wrong answer with a new word, one in capitals, and one that is known."""
    return [[f"new {text}", f"NEW {text}", "w1 w2"] for text in positives]


@pytest.mark.training
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(PROBLEM, OPTIONS)
def test_nothing_wrong_comes_from_any_source(problem, options):
    """Over random sources, strategies, spaces, rates and refreshes: nothing right, filtered or twice in a row."""
    pytest.importorskip("bm25s")
    quotas = problem["quotas"] if any(problem["quotas"].values()) else {**problem["quotas"], "dense": 1}
    corpus = Dataset.from_dict({"text": problem["corpus"], "number": list(range(len(problem["corpus"])))})
    sources = {
        **quotas,
        "web": Texts(problem["web"], quotas["web"]),
        "even": Where(lambda row: row["number"] % 2 == 0, quotas["even"]),
        "synthetic": Written(write_some, quotas["synthetic"]),
        "own": (Everything(problem["corpus"]), quotas["own"]),
    }
    found = wrapped(
        problem["rows"],
        corpus,
        {
            "metadata_filter": (lambda row: row["number"] < 8) if problem["is_filtered"] else None,
            "query_chunk_size": problem["chunk"],
        },
        num_negatives=sum(quotas.values()),
        sources=sources,
        **options,
    )
    for seed in problem["refreshes"]:
        model = Model(by_seed(seed, 3))
        try:
            found.mine(model, show_progress_bar=False)
        except MiningError:
            return
        check_rows(found, model, problem, options)


def check_rows(found: HardNegativeDataset, model: Model, problem: dict, options: dict) -> None:
    """Check every negative of every row against the rows as they were given."""
    provenance, negatives = found.provenance(), texts_of(found)
    names, slots = provenance["negative_sources"], provenance["negative_slots"]
    allowed = {same(text) for text in problem["corpus"][:8]} | {same(text) for text in problem["web"]}
    for row, (anchor, _) in enumerate(problem["rows"]):
        positives = {p for a, p in problem["rows"] if same(a) == same(anchor)}
        texts = negatives[row]
        identities = [same(text) for text in texts]
        # Nothing that is right is ever there, not even as a last resort.
        assert not set(identities) & {same(anchor), *map(same, positives)}
        stands_in = [slot == "last resort" for slot in slots[row][: len(texts)]]
        assert not any(stands_in) or options["shortfall"] == "random"
        own = [one for one, last in zip(identities, stands_in, strict=True) if not last]
        assert len(set(own)) == len(own)
        lowest = min(model.score(anchor, p) for p in positives)
        for text, name, last in zip(texts, names[row], stands_in, strict=False):
            if last:  # no rule lets it through, and losses mask it
                continue
            score = model.score(anchor, text)
            assert options["exclude_pattern"] is None or "w4" not in text
            assert options["min_score"] is None or score >= options["min_score"] - 1e-5
            if name == "synthetic":
                assert text in {one for written in write_some(sorted(positives)) for one in written}
                continue
            assert options["max_score"] is None or score <= options["max_score"] + 1e-5
            if options["relative_margin"] is not None:
                assert score <= lowest - abs(lowest) * options["relative_margin"] + 1e-5
            if problem["is_filtered"] and name not in ("anchors", "random", "web", "own"):
                assert same(text) in allowed
