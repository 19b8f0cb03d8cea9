"""Every text that can be a negative: one numbering, the caller's ids and columns, and what is searched where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from st_hardneg.corpus.digests import FirstIds
from st_hardneg.corpus.enumeration import Block, Enumeration
from st_hardneg.corpus.given import Predicate, given_corpus, rows_where
from st_hardneg.corpus.texts import Ids, TextColumn, distinct_ids

_NONE: Ids = np.arange(0, dtype=np.int64)
TextWriter = Callable[[list[str]], Sequence[Sequence[str]]]
"""Writes texts that are wrong answers: for each positive, none or several."""


@dataclass(frozen=True, eq=False)
class Additions:
    """What can be a negative besides the corpus and the positives, and what of the corpus is searched.

    Args:
        anchors: The anchors, one per row, where they are searched.
        given: Columns of negatives that the caller has; None stands for no text.
        further: Further corpora by name.
        metadata_filter: Which rows of the given corpus may be a negative: a predicate, or int64 row numbers. Positives
            that the corpus lacks have no metadata, and may not.
        subsets: Which rows of the given corpus make a source of their own, by name, likewise.
        synthetic: Writes wrong answers for every positive.
    """

    anchors: TextColumn | None = None
    given: Sequence[TextColumn] = ()
    further: Mapping[str, Any] = field(default_factory=dict)
    metadata_filter: Predicate | Ids | None = None
    subsets: Mapping[str, Predicate | Ids] = field(default_factory=dict)
    synthetic: TextWriter | None = None


@dataclass(frozen=True, eq=False)
class Corpus:
    """All texts that can be a negative, under one numbering.

    The numbers (corpus ids) are the rows of the given corpus, then the positives that are missing from it, then the given
    negatives that are missing from both, then the rows of further corpora, then the anchors where they are searched, then
    synthetic texts.

    Args:
        texts: The texts; row number = corpus id.
        identities: int64 of shape ``(num_texts,)``: the lowest corpus id that carries the same text.
        draw_keys: int64 of shape ``(num_texts,)``: what stands for each text in random draws.
        searched: int64 of shape ``(num_searched,)``: the corpus ids that are searched. Equal texts are searched
            once, or a row could be given the same negative twice.
        num_given: How many of the texts were given as the corpus.
        num_merged: How many different texts count as the same text as an earlier one.
        given: The given corpus with all of its columns, if there was one.
        text_column: The column of ``given`` that holds the texts.
        id_column: The column of ``given`` that holds the caller's own ids, if there is one.
        blocks: The runs of corpus ids, in order.
        parts: Corpus ids that are searched by themselves, by name: further corpora and subsets. Equal texts stand once in
            a part.
        anchor_ids: int64 of shape ``(num_queries,)``: the corpus id under which each query's own text can be a
            negative of others; empty where anchors are not searched.
        synthetic_ids: int64 of shape ``(num_synthetic,)``, ordered by ``synthetic_from``.
        synthetic_from: int64 of the same shape: the positive that each was made from.
        metadata_rows: int64: the rows of ``given`` that a metadata filter lets be a negative, or None for all.
    """

    texts: TextColumn
    identities: Ids
    draw_keys: Ids
    searched: Ids
    num_given: int
    num_merged: int = 0
    given: Dataset | None = None
    text_column: str = "text"
    id_column: str | None = None
    blocks: tuple[Block, ...] = ()
    parts: Mapping[str, Ids] = field(default_factory=dict)
    anchor_ids: Ids = field(default_factory=_NONE.copy)
    synthetic_ids: Ids = field(default_factory=_NONE.copy)
    synthetic_from: Ids = field(default_factory=_NONE.copy)
    metadata_rows: Ids | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def searched_anchors(self) -> Ids:
        """Corpus ids of the anchors that are searched: equal texts once."""
        return self.first_of_each(self.anchor_ids)

    @cached_property
    def draw_order(self) -> Ids:
        """The searched corpus ids in an order that does not depend on that of the corpus, for uniform draws."""
        return self.in_draw_order(self.searched)

    def in_draw_order(self, corpus_ids: Ids) -> Ids:
        """Return some corpus ids in an order that depends on their texts only."""
        return corpus_ids[np.argsort(self.draw_keys[corpus_ids], kind="stable")]

    def first_of_each(self, corpus_ids: Ids) -> Ids:
        """Return the first corpus id of each text."""
        return corpus_ids[np.sort(np.unique(self.identities[corpus_ids], return_index=True)[1])]

    def external_ids(self, corpus_ids: Ids) -> list[str | None]:
        """Return the caller's own ids of these corpus ids.

        A text that was not part of the given corpus has no such id: it is called after where it came from and its corpus
        id, such as ``positive-7``; one of a further corpus after its name and its row there. -1 becomes None.
        """
        known = [] if self.given is None or self.id_column is None else self.given.with_format(None)[self.id_column][:]
        names = {-1: None} | {
            i: str(known[i]) if i < len(known) else self._name_of(i) for i in set(corpus_ids.tolist()) - {-1}
        }
        return [names[i] for i in corpus_ids.tolist()]

    def _name_of(self, corpus_id: int) -> str:
        block = next(block for block in self.blocks if block.start <= corpus_id < block.stop)
        return f"{block.name}-{corpus_id - block.start if block.name in self.parts else corpus_id}"

    @property
    def unused(self) -> list[str]:
        """Columns of the given corpus that are neither its texts nor its ids."""
        return (
            []
            if self.given is None
            else [n for n in self.given.column_names if n not in (self.text_column, self.id_column)]
        )

    @property
    def columns(self) -> str:
        """What the columns of the given corpus are taken for, in words."""
        ids = "row numbers" if self.id_column is None else repr(self.id_column)
        parts = [f"corpus texts {self.text_column!r}", f"corpus ids {ids}"]
        return ", ".join([*parts, *([f"not used of the corpus {self.unused}"] if self.unused else [])])

    def __repr__(self) -> str:
        parts = ", ".join(f"{block.stop - block.start:,} {block.name}" for block in self.blocks)
        return f"Corpus({len(self):,} texts: {parts}; {len(self.searched):,} searched)"


@dataclass(frozen=True, eq=False)
class Numbered:
    """A corpus, which of its texts the rows name, and where to find a text in it.

    Args:
        corpus: The corpus.
        row_positive: int64 of shape ``(num_rows,)``: the corpus id of each row's positive.
        given_ids: For each column of given negatives, int64 of its length: their corpus ids; -1 for none.
        id_of_text: The lowest corpus id of each exact text.
        first_with_key: The lowest corpus id of each text identity.
        identity: The kind of identity, a key of :data:`~st_hardneg.corpus.identity.IDENTITIES`.
    """

    corpus: Corpus
    row_positive: Ids
    given_ids: tuple[Ids, ...]
    id_of_text: FirstIds
    first_with_key: FirstIds
    identity: str

    def with_positives(self, positives: TextColumn) -> Numbered:
        """Return the same corpus with other positives; what is missing is added at the end, and not searched."""
        numbering = Enumeration(self.id_of_text, self.first_with_key, len(self.corpus), self.identity)
        row_positive, missing = numbering.place(positives)
        corpus = replace(
            self.corpus,
            texts=self.corpus.texts.followed_by(missing) if len(missing) else self.corpus.texts,
            identities=np.concatenate([self.corpus.identities, numbering.identities]),
            draw_keys=np.concatenate([self.corpus.draw_keys, numbering.draw_keys]),
        )
        return Numbered(corpus, row_positive, (), numbering.texts, numbering.firsts, self.identity)


def number_texts(
    positives: TextColumn,
    corpus: Any = None,
    *,
    identity: str = "normalized",
    distinct: Literal["identity", "text"] = "identity",
    allow_empty: bool = False,
    additions: Additions | None = None,
) -> Numbered:
    """Give every text that can be a negative its number.

    Args:
        positives: The positives, one per row.
        corpus: Further texts (see :func:`~st_hardneg.corpus.given.given_corpus`), or None for the positives alone.
        identity: When two texts are the same, a key of :data:`~st_hardneg.corpus.identity.IDENTITIES`.
        distinct: Search one text per ``"identity"``, or one per exact ``"text"``, as
            ``sentence_transformers.util.mine_hard_negatives`` does.
        allow_empty: Whether the corpus may hold empty texts.
        additions: What else can be a negative.

    Raises:
        ValueError: If the corpus is empty or has empty texts, no text column can be made out, or a metadata predicate
            leaves nothing.
        TypeError: If the corpus is of another kind.
    """
    additions = additions or Additions()
    given = given_corpus(corpus, positives.name, allow_empty=allow_empty)
    numbering = Enumeration(FirstIds(), FirstIds(), 0, identity)
    blocks: list[Block] = []
    texts = TextColumn.of([])
    if given is not None:
        texts, _ = numbering.append(given.texts, "corpus", texts, blocks)
        numbering.know_titles(given, numbering.first_words_of_missing(positives))
    num_given = len(numbering.identities)
    row_positive, texts = _placed(numbering, positives, "positive", texts, blocks)
    num_merged = len(numbering.unique_texts) - len(distinct_ids(numbering.identities))
    dataset = None if given is None else given.dataset
    # Rows of the given corpus that a predicate selects are found before any further text is written or read.
    wanted = additions.metadata_filter
    rows = None if wanted is None else rows_where(dataset, wanted, "metadata_filter")
    subsets = {name: rows_where(dataset, one, f"sources[{name!r}]") for name, one in additions.subsets.items()}
    searched = _searched(numbering, rows, distinct)
    given_ids: list[Ids] = []
    for column in additions.given:
        ids, texts = _placed(numbering, column, "given", texts, blocks)
        given_ids.append(ids)
    numbered = Corpus(
        texts,
        numbering.identities,
        numbering.draw_keys,
        searched,
        num_given,
        num_merged,
        dataset,
        "text" if given is None else given.text_column,
        None if given is None else given.id_column,
        metadata_rows=rows,
    )
    numbered = _with_further(numbered, numbering, additions, subsets, row_positive, blocks)
    return Numbered(numbered, row_positive, tuple(given_ids), numbering.texts, numbering.firsts, identity)


def _placed(
    numbering: Enumeration, column: TextColumn, name: str, texts: TextColumn, blocks: list[Block]
) -> tuple[Ids, TextColumn]:
    """Return the number of each text of a column, and all texts with those that had none before at the end."""
    start = len(numbering.identities)
    places, missing = numbering.place(column, skips_blank=name == "given")
    if len(missing):
        texts = texts.followed_by(missing)
        blocks.append(Block(name, start, len(texts)))
    return places, texts


def _with_further(
    corpus: Corpus,
    numbering: Enumeration,
    additions: Additions,
    subsets: Mapping[str, Ids],
    row_positive: Ids,
    blocks: list[Block],
) -> Corpus:
    """Return the corpus with further corpora, anchors and synthetic texts at its end, and the parts by name."""
    texts, parts = corpus.texts, dict[str, Ids]()
    for name, further in additions.further.items():
        parameter = f"sources[{name!r}]"
        one = given_corpus(further, "text", parameter=parameter)
        if one is None:
            raise TypeError(f"Expected texts in `{parameter}`, got None. Pass a list or a Dataset, or leave it out.")
        texts, parts[name] = numbering.append(one.texts, name, texts, blocks)
    for name, subset in subsets.items():
        parts[name] = subset if corpus.metadata_rows is None else np.intersect1d(subset, corpus.metadata_rows)
        if not len(parts[name]):
            raise ValueError(
                f"`sources[{name!r}]` and `metadata_filter` have no row of the corpus in common. Loosen one of the two."
            )
    anchor_ids = synthetic_ids = synthetic_from = _NONE
    if additions.anchors is not None:
        unique = list(dict.fromkeys(text for batch in additions.anchors.batches() for text in batch))
        texts, anchor_ids = numbering.append(TextColumn.of(unique), "anchor", texts, blocks)
    if additions.synthetic is not None:
        origins = distinct_ids(row_positive)
        written = additions.synthetic(texts.take(origins))
        synthetic_from = np.repeat(origins, [len(some) for some in written])
        flat = TextColumn.of([text for some in written for text in some])
        texts, synthetic_ids = numbering.append(flat, "synthetic", texts, blocks)
    whole = replace(
        corpus,
        texts=texts,
        identities=numbering.identities,
        draw_keys=numbering.draw_keys,
        blocks=tuple(blocks),
        anchor_ids=anchor_ids,
        synthetic_ids=synthetic_ids,
        synthetic_from=synthetic_from,
    )
    return replace(whole, parts={name: whole.first_of_each(ids) for name, ids in parts.items()})


def _searched(numbering: Enumeration, rows: Ids | None, distinct: str) -> Ids:
    """Return the corpus ids of the corpus and the positives that are searched, in order."""
    if distinct == "text":
        return numbering.unique_texts
    identities = numbering.identities
    if rows is None:
        return np.flatnonzero(identities == np.arange(len(identities)))
    # The first of equal texts that the filter lets through.
    found: Ids = rows[np.sort(np.unique(identities[rows], return_index=True)[1])]
    return found
