"""The numbering of texts against one that is written out plainly: corpus, positives, and all that may be added."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from st_hardneg.corpus.digests import FirstIds, digests_of_bytes
from st_hardneg.corpus.enumeration import Block, Enumeration
from st_hardneg.corpus.identity import IDENTITIES, draw_keys
from st_hardneg.corpus.numbering import Additions, number_texts
from st_hardneg.corpus.texts import TextColumn
from tests.conftest import whole
from tests.toys import same

TEXT = st.sampled_from(["a", "A", " a", "b", "B ", "c", "d", "ｄ", "e", "E", "f g", "F  g", "h"])
TEXTS = st.lists(TEXT, max_size=8)
SOME_TEXTS = st.lists(TEXT, min_size=1, max_size=8)
MAYBE = st.lists(st.one_of(st.none(), TEXT, st.just(" ")), min_size=1, max_size=5)


def column(texts, name: str = "text", pieces: int = 1) -> TextColumn:
    """Return a column of texts, None for none, in so many pieces of memory."""
    parts = [list(part) for part in np.array_split(np.array(texts, dtype=object), pieces)]
    tables = [pa.table({name: pa.array(part, pa.large_string())}) for part in parts if len(part) or len(parts) == 1]
    return TextColumn(concatenate_datasets([Dataset(table) for table in tables]), name)


class Plain:
    """A numbering as the docstrings say it, with lists and loops."""

    def __init__(self, key) -> None:
        self.key, self.texts, self.blocks = key, [], []

    def lowest(self, text: str) -> int:
        return self.texts.index(text)

    def identity(self, corpus_id: int) -> int:
        return next(i for i, text in enumerate(self.texts) if self.key(text) == self.key(self.texts[corpus_id]))

    def block(self, name: str, texts) -> list[int]:
        start = len(self.texts)
        self.texts += texts
        if len(self.texts) > start:
            self.blocks.append(Block(name, start, len(self.texts)))
        return list(range(start, len(self.texts)))

    def place(self, name: str, texts) -> list[int]:
        self.block(name, [text for text in dict.fromkeys(texts) if text is not None and text not in self.texts])
        return [-1 if text is None else self.lowest(text) for text in texts]

    def first_of_each(self, corpus_ids) -> list[int]:
        seen, found = set(), []
        for corpus_id in sorted(corpus_ids):
            if (identity := self.identity(corpus_id)) not in seen:
                seen.add(identity)
                found.append(corpus_id)
        return found


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("identity", ["normalized", "exact"])
def test_every_text_has_the_number_that_it_should(identity, data):
    """Order, identities, blocks, what is searched, and where everything that was handed in is found."""
    key = same if identity == "normalized" else str
    corpus, positives = data.draw(TEXTS, "corpus"), data.draw(SOME_TEXTS, "positives")
    negatives, further = data.draw(st.lists(MAYBE, max_size=2), "given"), data.draw(st.lists(SOME_TEXTS, max_size=2))
    anchors, written = data.draw(st.none() | SOME_TEXTS), data.draw(st.none() | st.lists(TEXTS, min_size=8, max_size=8))
    asked: list[list[str]] = []

    def write(texts: list[str]) -> list[list[str]]:
        asked.append(texts)
        return written[: len(texts)]

    pieces = data.draw(st.integers(1, 3))
    numbered = number_texts(
        column(positives, "positive", pieces),
        corpus or None,
        identity=identity,
        additions=Additions(
            anchors=None if anchors is None else column(anchors, "anchor", pieces),
            given=[column(texts, "negative", pieces) for texts in negatives],
            further={f"more{number}": texts for number, texts in enumerate(further)},
            synthetic=None if written is None else write,
        ),
    )
    plain = Plain(key)
    plain.block("corpus", corpus)
    row_positive = plain.place("positive", positives)
    num_texts = len(plain.texts)
    num_merged = len(set(plain.texts)) - len({key(text) for text in plain.texts})
    given_ids = [
        plain.place("given", [text and (text if text.strip() else None) for text in texts]) for texts in negatives
    ]
    parts = {f"more{number}": plain.block(f"more{number}", texts) for number, texts in enumerate(further)}
    anchor_ids = plain.block("anchor", list(dict.fromkeys(anchors or [])))
    origins = sorted(set(row_positive))
    if written is not None:
        assert asked == [[plain.texts[origin] for origin in origins]]
    made = (
        []
        if written is None
        else [(origin, text) for origin, some in zip(origins, written, strict=False) for text in some]
    )
    synthetic_ids = plain.block("synthetic", [text for _, text in made])

    found = numbered.corpus
    assert found.texts.take(np.arange(len(found))) == plain.texts and len(found) == len(plain.texts)
    assert found.identities.tolist() == [plain.identity(i) for i in range(len(plain.texts))]
    assert (
        found.draw_keys.tolist()
        == draw_keys(digests_of_bytes([IDENTITIES[identity](text) for text in plain.texts])).tolist()
    )
    assert list(found.blocks) == plain.blocks
    assert numbered.row_positive.tolist() == row_positive
    assert [ids.tolist() for ids in numbered.given_ids] == given_ids
    assert found.num_given == len(corpus) and found.num_merged == num_merged
    assert found.searched.tolist() == plain.first_of_each(range(num_texts))
    assert {name: ids.tolist() for name, ids in found.parts.items()} == {
        name: plain.first_of_each(ids) for name, ids in parts.items()
    }
    assert found.anchor_ids.tolist() == anchor_ids
    assert found.searched_anchors.tolist() == plain.first_of_each(anchor_ids)
    assert found.synthetic_ids.tolist() == synthetic_ids
    assert found.synthetic_from.tolist() == [origin for origin, _ in made]
    numbers = (found.identities, found.searched, numbered.row_positive, found.anchor_ids, found.synthetic_ids)
    assert {array.dtype for array in (*numbers, *numbered.given_ids)} == {np.dtype(np.int64)}
    assert repr(found) == (
        f"Corpus({len(plain.texts):,} texts: "
        + ", ".join(f"{block.stop - block.start:,} {block.name}" for block in plain.blocks)
        + f"; {len(found.searched):,} searched)"
    )


@settings(max_examples=40, deadline=None)
@given(TEXTS, SOME_TEXTS, SOME_TEXTS)
def test_other_positives_of_the_same_corpus(corpus, positives, others):
    """What is missing comes to the end, is not searched, and does not change the numbering that it begins from."""
    before = number_texts(column(positives, "positive"), corpus or None)
    texts, identities = before.corpus.texts.take(np.arange(len(before.corpus))), before.corpus.identities.tolist()
    after = before.with_positives(column(others, "question"))
    plain = Plain(same)
    plain.texts += texts
    row_positive = plain.place("positive", others)
    assert after.row_positive.tolist() == row_positive
    assert after.corpus.texts.take(np.arange(len(after.corpus))) == plain.texts
    assert after.corpus.identities.tolist() == [plain.identity(i) for i in range(len(plain.texts))]
    assert (
        after.corpus.draw_keys.tolist()
        == draw_keys(digests_of_bytes([IDENTITIES["normalized"](text) for text in plain.texts])).tolist()
    )
    assert after.corpus.searched.tolist() == before.corpus.searched.tolist()
    assert (after.identity, after.given_ids) == ("normalized", ())
    again = before.with_positives(column(others, "question"))
    assert again.row_positive.tolist() == row_positive and before.corpus.identities.tolist() == identities


@pytest.mark.parametrize("identity", ["normalized", "exact"])
def test_one_search_per_text_or_per_identity(identity):
    """Sentence Transformers searches each exact text once; we do so for each text that differs."""
    texts = ["a", "A", "a", "b"]
    by_text = number_texts(column(["b", "c"]), texts, identity=identity, distinct="text").corpus
    assert by_text.searched.tolist() == [0, 1, 3, 4]
    by_identity = number_texts(column(["b", "c"]), texts, identity=identity).corpus
    assert by_identity.searched.tolist() == ([0, 3, 4] if identity == "normalized" else [0, 1, 3, 4])
    assert by_text.num_merged == by_identity.num_merged == (1 if identity == "normalized" else 0)


CORPUS = Dataset.from_dict(
    {"doc_id": [f"d{i}" for i in range(6)], "text": ["a", "A", "b", "c", "b", "e"], "year": [1, 2, 2, 2, 2, 1]}
)


def test_a_metadata_filter_and_subsets():
    """The first of equal texts that the filter lets through is searched; a subset is cut to it; positives are not in."""
    additions = Additions(
        metadata_filter=lambda row: row["year"] == 2, subsets={"old": lambda row: row["doc_id"] in ("d0", "d2", "d4")}
    )
    found = number_texts(column(["e", "x"]), CORPUS, additions=additions).corpus
    assert found.searched.tolist() == [1, 2, 3] and found.metadata_rows.tolist() == [1, 2, 3, 4]
    assert found.parts["old"].tolist() == [2]
    without = number_texts(column(["e", "x"]), CORPUS, additions=Additions(subsets=additions.subsets)).corpus
    assert without.searched.tolist() == [0, 2, 3, 5, 6] and without.metadata_rows is None
    assert without.parts["old"].tolist() == [0, 2]
    nothing = Additions(
        metadata_filter=lambda row: row["year"] == 2, subsets={"old": lambda row: row["doc_id"] == "d0"}
    )
    message = "`sources['old']` and `metadata_filter` have no row of the corpus in common. Loosen one of the two."
    with pytest.raises(ValueError, match=whole(message)):
        number_texts(column(["e"]), CORPUS, additions=nothing)
    with pytest.raises(ValueError, match="Expected `metadata_filter` to be true for some of the 6 rows"):
        number_texts(column(["e"]), CORPUS, additions=Additions(metadata_filter=lambda row: False))
    with pytest.raises(ValueError, match=r"Expected `sources\['old'\]` to be true for some of the 6 rows"):
        number_texts(column(["e"]), CORPUS, additions=Additions(subsets={"old": lambda row: False}))


def test_further_corpora_are_checked_under_their_names():
    """None, and what is no corpus."""
    message = "Expected texts in `sources['more']`, got None. Pass a list or a Dataset, or leave it out."
    with pytest.raises(TypeError, match=whole(message)):
        number_texts(column(["a"]), additions=Additions(further={"more": None}))
    with pytest.raises(TypeError, match=r"^Expected `sources\['more'\]` to be a list of texts"):
        number_texts(column(["a"]), additions=Additions(further={"more": 3}))
    named = Dataset.from_dict({"text": ["right"], "positive": ["wrong column"]})
    found = number_texts(column(["a"], "positive"), additions=Additions(further={"more": named})).corpus
    assert found.texts.take([1]) == ["right"]


def test_the_caller_s_own_ids():
    """Those of the corpus's column; what was not in the corpus is called after where it came from."""
    corpus = CORPUS.rename_column("doc_id", "_id")
    additions = Additions(given=[column(["g", None])], further={"more": ["m", "n"]})
    found = number_texts(column(["e", "x"]), corpus, additions=additions).corpus
    assert (found.id_column, found.text_column, found.unused) == ("_id", "text", ["year"])
    assert found.external_ids(np.arange(-1, len(found))) == [
        None, "d0", "d1", "d2", "d3", "d4", "d5", "positive-6", "given-7", "more-0", "more-1"
    ]  # fmt: skip
    assert found.external_ids(np.array([3, 3, -1])) == ["d3", "d3", None]
    plain = number_texts(column(["e", "x"]), ["e", "y"]).corpus
    assert plain.external_ids(np.array([0, 1, 2])) == ["corpus-0", "corpus-1", "positive-2"]
    assert (plain.id_column, plain.text_column, plain.unused) == (None, "text", [])
    assert number_texts(column(["e"])).corpus.text_column == "text"
    renamed = number_texts(column(["e"], "body"), corpus.rename_column("text", "body").remove_columns("_id")).corpus
    assert (renamed.id_column, renamed.text_column) == (None, "body")
    assert found.columns == "corpus texts 'text', corpus ids '_id', not used of the corpus ['year']"
    assert renamed.columns == "corpus texts 'body', corpus ids row numbers, not used of the corpus ['year']"


@pytest.mark.parametrize("identity", ["normalized", "exact"])
def test_a_positive_with_a_title_is_the_document(identity):
    """With its title in front or without it, for every document whose form a positive has; others stay apart."""
    corpus = Dataset.from_dict(
        {
            "title": ["Cats", "Dogs", None, "Birds", "Fish"],
            "text": ["They purr.", "They bark.", "They swim.", "Birds fly.", "Fish - have gills."],
        }
    )
    positives = [
        "Cats They purr.",
        "Dogs: They bark.",
        "They swim.",
        "They bark.",
        "They fly.",
        "have gills.",
        "Cats x",
    ]
    found = number_texts(column(positives), corpus, identity=identity)
    identities = found.corpus.identities[found.row_positive]
    assert identities.tolist() == [0, 1, 2, 1, 7, 4, 9]
    assert not set(found.corpus.searched.tolist()) & {int(found.row_positive[0]), int(found.row_positive[1])}


def test_numbers_go_on_over_pieces_of_memory():
    """More texts than are read at once, in several pieces, in another order than they lie in memory."""
    texts = [f"t{number % 12_000}" for number in range(25_000)]
    shuffled = Dataset.from_dict({"text": texts[::-1]}).select(range(24_999, -1, -1))
    found = number_texts(TextColumn(shuffled, "text")).corpus
    assert found.texts.take(np.arange(len(found))) == texts[:12_000]
    numbered = number_texts(column(["t3", "new"]), texts)
    assert numbered.row_positive.tolist() == [3, 25_000]
    assert numbered.corpus.identities.tolist() == [*(number % 12_000 for number in range(25_000)), 25_000]


def enumeration(*texts: str) -> Enumeration:
    """Return a numbering that has these texts."""
    numbering = Enumeration(FirstIds(), FirstIds(), 0, "normalized")
    numbering.place(column(texts))
    return numbering


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_blank_text_is_one_unless_it_is_said_that_it_is_none(pieces):
    """None never is; nothing and whitespace are texts by default, and have no number where they are skipped."""
    texts = ["a", None, " ", "", "a", "b"]
    places, missing = enumeration("a").place(column(texts, pieces=pieces))
    assert places.tolist() == [0, -1, 1, 2, 0, 3]
    assert missing.take(np.arange(3)) == [" ", "", "b"]
    skipped, missing = enumeration("a").place(column(texts, pieces=pieces), skips_blank=True)
    assert skipped.tolist() == [0, -1, -1, -1, 0, 1]
    assert missing.take(np.arange(len(missing))) == ["b"]


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_first_words_of_what_has_no_number_yet(pieces):
    """Also of texts in several pieces of memory, and not of the first text that has one."""
    texts = ["Known one", "Cats purr", "other text", "Dogs bark", "birds fly"]
    assert enumeration("Known one", "other text").first_words_of_missing(column(texts, pieces=pieces)) == {
        "cats",
        "dogs",
        "birds",
    }
