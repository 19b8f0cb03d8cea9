"""Every text that can be a negative: one numbering, the caller's ids and columns, and what is searched where."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset

from st_hardneg.corpus.texts import (
    TEXT_TYPES,
    Ids,
    TextColumn,
    check_text_column,
    dataset_of,
    same_text_key,
    text_digest,
)

_ID_COLUMNS = ("_id", "id", "corpus-id", "corpus_id", "docid")
_NONE: Ids = np.arange(0, dtype=np.int64)
# What people put between title and text; a line break counts as a space.
_TITLE_SEPARATORS = (" ", ". ", ": ", " - ")

Predicate = Callable[[dict[str, Any]], bool]
"""Tells of a row of a corpus, as a dictionary of its columns, whether it belongs."""

TextWriter = Callable[[list[str]], Sequence[Sequence[str]]]
"""Writes texts that are wrong answers: for each positive, none or several."""


@dataclass(frozen=True, eq=False)
class Additions:
    """What can be a negative besides the corpus and the positives, and what of the corpus is searched.

    Args:
        anchors: The anchors, one per row, where they are searched.
        cross_domain: Further corpora by name.
        metadata_filter: Which rows of the given corpus may be a negative: a predicate, or int64 row numbers. Positives
            that the corpus lacks have no metadata, and may not.
        metadata_sources: Which rows of the given corpus make a source of their own, by name, likewise.
        synthetic: Writes wrong answers for every positive.
    """

    anchors: TextColumn | None = None
    cross_domain: Mapping[str, Sequence[str] | Dataset] = field(default_factory=dict)
    metadata_filter: Predicate | Ids | None = None
    metadata_sources: Mapping[str, Predicate | Ids] = field(default_factory=dict)
    synthetic: TextWriter | None = None


@dataclass(frozen=True)
class Block:
    """A run of corpus ids that came in together.

    Args:
        name: ``"corpus"``, ``"positive"``, ``"anchor"``, ``"synthetic"``, or the name of a further corpus.
        start: First corpus id.
        stop: The corpus id after the last.
    """

    name: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """All texts that can be a negative, under one numbering.

    The numbers (corpus ids) are the rows of the given corpus, then the positives that are missing from it, then the rows
    of further corpora, then the anchors where they are searched, then synthetic texts.

    Args:
        texts: The texts; row number = corpus id.
        identities: int64 of shape ``(num_texts,)``: the lowest corpus id that carries the same text
            (see :func:`~st_hardneg.corpus.texts.same_text_key`).
        searched: int64 of shape ``(num_searched,)``: the corpus ids that are searched. Equal texts are searched
            once, or a row could be given the same negative twice.
        num_given: How many of the texts were given as the corpus.
        given: The given corpus with all of its columns, if there was one.
        id_column: The column of ``given`` that holds the caller's own ids, if there is one.
        blocks: The runs of corpus ids, in order.
        parts: Corpus ids that are searched by themselves, by name: further corpora and metadata sources. Equal texts
            stand once in a part.
        anchor_ids: int64 of shape ``(num_queries,)``: the corpus id under which each query's own text can be a
            negative of others; empty where anchors are not searched.
        synthetic_ids: int64 of shape ``(num_synthetic,)``, ordered by ``synthetic_from``.
        synthetic_from: int64 of the same shape: the positive that each was made from.
        metadata_rows: int64: the rows of ``given`` that a metadata filter lets be a negative, or None for all.
    """

    texts: TextColumn
    identities: Ids
    searched: Ids
    num_given: int
    given: Dataset | None = None
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
        return self._first_of_each(self.anchor_ids)

    def _first_of_each(self, corpus_ids: Ids) -> Ids:
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

    def __repr__(self) -> str:
        parts = ", ".join(f"{block.stop - block.start:,} {block.name}" for block in self.blocks)
        return f"Corpus({len(self):,} texts: {parts}; {len(self.searched):,} searched)"


@dataclass(frozen=True, eq=False)
class NumberedPositives:
    """A corpus, which of its texts each row's positive is, and where to find a text in it.

    Args:
        corpus: The corpus.
        row_positive: int64 of shape ``(num_rows,)``: the corpus id of each row's positive.
        id_of_text: The lowest corpus id of each exact text, by digest.
        first_with_key: The lowest corpus id of each text identity, by :func:`same_text_key`.
    """

    corpus: Corpus
    row_positive: Ids
    id_of_text: MutableMapping[bytes, int]
    first_with_key: MutableMapping[bytes, int]

    def with_positives(self, positives: TextColumn) -> NumberedPositives:
        """Return the same corpus with other positives; what is missing is added at the end, and not searched."""
        known, first = ChainMap({}, self.id_of_text), ChainMap({}, self.first_with_key)
        numbering = _Numbering(known, first, len(self.corpus))
        row_positive, missing = numbering.place(positives)
        identities = np.concatenate([self.corpus.identities, np.asarray(numbering.identities, dtype=np.int64)])
        texts = self.corpus.texts.followed_by(missing) if missing else self.corpus.texts
        return NumberedPositives(replace(self.corpus, texts=texts, identities=identities), row_positive, known, first)


class _Numbering:
    """Numbers texts from ``start`` on and remembers which are the same."""

    def __init__(self, id_of_text: MutableMapping[bytes, int], first: MutableMapping[bytes, int], start: int) -> None:
        self.id_of_text, self.first_with_key, self.start = id_of_text, first, start
        self.identities: list[int] = []
        self.unique_texts: list[int] = []

    def add(self, text: str) -> int:
        corpus_id = self.start + len(self.identities)
        if self.id_of_text.setdefault(text_digest(text), corpus_id) == corpus_id:
            self.unique_texts.append(corpus_id)
        self.identities.append(self.first_with_key.setdefault(same_text_key(text), corpus_id))
        return corpus_id

    def add_all(self, texts: TextColumn) -> Ids:
        """Number these texts, each anew."""
        numbers = [self.add(text) for batch in texts.batches() for text in batch]
        return np.asarray(numbers, dtype=np.int64)

    def append(self, texts: TextColumn, name: str, before: TextColumn, blocks: list[Block]) -> tuple[TextColumn, Ids]:
        """Number these texts, note their block, and return all texts and the new numbers."""
        numbers = self.add_all(texts)
        if len(numbers):
            blocks.append(Block(name, int(numbers[0]), int(numbers[-1]) + 1))
            before = before.followed_by(texts)
        return before, numbers

    def place(self, texts: TextColumn) -> tuple[Ids, list[str]]:
        """Return the number of every text, and those that had none before."""
        places: list[int] = []
        missing: list[str] = []
        for batch in texts.batches():
            for text in batch:
                corpus_id = self.id_of_text.get(text_digest(text))
                if corpus_id is None:
                    corpus_id = self.add(text)
                    missing.append(text)
                places.append(corpus_id)
        return np.asarray(places, dtype=np.int64), missing


def number_texts(
    positives: TextColumn,
    corpus: Sequence[str] | Mapping[Any, str] | Dataset | None = None,
    *,
    distinct: Literal["identity", "text"] = "identity",
    allow_empty: bool = False,
    additions: Additions | None = None,
) -> NumberedPositives:
    """Give every text that can be a negative its number.

    Args:
        positives: The positives, one per row.
        corpus: Further texts, or None for the positives alone.
        distinct: Search one text per ``"identity"`` (what :func:`~st_hardneg.corpus.texts.same_text_key` calls the same), or one
            per exact ``"text"``, as ``sentence_transformers.util.mine_hard_negatives`` does.
        allow_empty: Whether the corpus may hold empty texts.
        additions: What else can be a negative.

    Raises:
        ValueError: If the corpus is empty or has empty texts, no text column can be made out, or a metadata predicate
            leaves nothing.
        TypeError: If the corpus is neither a list of texts nor a Dataset.
    """
    additions = additions or Additions()
    given, text_column, id_column = _given_corpus(corpus, positives, allow_empty)
    numbering = _Numbering({}, {}, 0)
    blocks: list[Block] = []
    texts = TextColumn.of([])
    if given is not None:
        texts = TextColumn(given, text_column)
        numbering.add_all(texts)
        blocks.append(Block("corpus", 0, len(texts)))
        if any(text_digest(text) not in numbering.id_of_text for some in positives.batches() for text in some):
            _know_by_title(numbering, given, text_column)
    num_given = len(numbering.identities)
    row_positive, missing = numbering.place(positives)
    if missing:
        texts = texts.followed_by(missing) if given is not None else TextColumn.of(missing)
        blocks.append(Block("positive", num_given, len(texts)))
    # Rows of the given corpus that a predicate selects are found before any further text is written or read.
    rows = (
        None if additions.metadata_filter is None else rows_where(given, additions.metadata_filter, "metadata_filter")
    )
    subsets = {
        name: rows_where(given, predicate, f"metadata_sources[{name!r}]")
        for name, predicate in additions.metadata_sources.items()
    }
    searched = _searched(numbering, rows, distinct)
    parts: dict[str, Ids] = {}
    for name, further in additions.cross_domain.items():
        if further is None:
            raise TypeError(
                f"Expected texts in `cross_domain[{name!r}]`, got None. Pass a list or a Dataset, or leave it out."
            )
        dataset, column, _ = _given_corpus(further, positives, False, f"cross_domain[{name!r}]")
        assert dataset is not None
        texts, parts[name] = numbering.append(TextColumn(dataset, column), name, texts, blocks)
    anchor_ids = synthetic_ids = synthetic_from = _NONE
    if additions.anchors is not None:
        unique = list(dict.fromkeys(text for batch in additions.anchors.batches() for text in batch))
        texts, anchor_ids = numbering.append(TextColumn.of(unique), "anchor", texts, blocks)
    if additions.synthetic is not None:
        origins = np.unique(row_positive)
        written = additions.synthetic(texts.take(origins))
        synthetic_from = np.repeat(origins, [len(some) for some in written])
        flat = TextColumn.of([text for some in written for text in some])
        texts, synthetic_ids = numbering.append(flat, "synthetic", texts, blocks)
    numbered = Corpus(
        texts, np.asarray(numbering.identities, dtype=np.int64), searched, num_given, given, id_column, tuple(blocks),
        anchor_ids=anchor_ids, synthetic_ids=synthetic_ids, synthetic_from=synthetic_from, metadata_rows=rows,
    )  # fmt: skip
    for name, subset in subsets.items():
        allowed = subset if rows is None else np.intersect1d(subset, rows)
        if not len(allowed):
            raise ValueError(
                f"Expected texts in `metadata_sources[{name!r}]`, got none that `metadata_filter` lets through. Loosen "
                "one of the two."
            )
        parts[name] = allowed
    parts = {name: numbered._first_of_each(ids) for name, ids in parts.items()}
    return NumberedPositives(
        replace(numbered, parts=parts), row_positive, numbering.id_of_text, numbering.first_with_key
    )


def _know_by_title(numbering: _Numbering, given: Dataset, text_column: str) -> None:
    """Let a document's text with its title in front count as that document, as positives are often made from both."""
    if "title" not in given.column_names or text_column == "title":
        return
    if getattr(given.features["title"], "dtype", None) not in TEXT_TYPES:
        return
    titles, texts = TextColumn(given, "title"), TextColumn(given, text_column)
    corpus_id = 0
    for some_titles, some_texts in zip(titles.batches(), texts.batches(), strict=True):
        for title, text in zip(some_titles, some_texts, strict=True):
            if title and title.strip():
                for separator in _TITLE_SEPARATORS:
                    key = same_text_key(f"{title.strip()}{separator}{text}")
                    numbering.first_with_key.setdefault(key, numbering.identities[corpus_id])
            corpus_id += 1


def _searched(numbering: _Numbering, rows: Ids | None, distinct: str) -> Ids:
    """Return the corpus ids of the corpus and the positives that are searched, in order."""
    if distinct == "text":
        return np.asarray(numbering.unique_texts, dtype=np.int64)
    identities = np.asarray(numbering.identities, dtype=np.int64)
    if rows is None:
        return np.flatnonzero(identities == np.arange(len(identities)))
    # The first of equal texts that the filter lets through.
    found: Ids = rows[np.sort(np.unique(identities[rows], return_index=True)[1])]
    return found


def rows_where(given: Dataset | None, predicate: Predicate | Ids, parameter: str) -> Ids:
    """Return the rows of a corpus for which a predicate is true, int64 in ascending order.

    Args:
        given: The corpus.
        predicate: ``row as a dictionary -> bool``; or row numbers, which are returned as they are.
        parameter: What to call the predicate in errors.

    Raises:
        ValueError: If there is no corpus with columns to look at, or the predicate is true for no row.
        TypeError: If the predicate cannot be called, or returns something else than True or False.
    """
    if isinstance(predicate, np.ndarray):
        num_given = 0 if given is None else len(given)
        good = predicate.dtype == np.int64 and predicate.ndim == 1 and len(predicate) > 0
        if not good or predicate[0] < 0 or predicate[-1] >= num_given or bool((np.diff(predicate) <= 0).any()):
            raise ValueError(
                f"Expected `{parameter}` to be a function of a corpus row, or ascending row numbers below {num_given:,} "
                f"as an int64 array, got {predicate.dtype} of shape {predicate.shape}. Pass a function."
            )
        return predicate
    if not callable(predicate):
        raise TypeError(
            f"Expected `{parameter}` to be a function of a corpus row (a dictionary) that returns True or False, got "
            f"{type(predicate).__name__}. Pass `lambda row: row['year'] >= 2020`, for example."
        )
    if given is None:
        raise ValueError(
            f"Expected a `corpus` with columns for `{parameter}` to look at, got none. Pass a `datasets.Dataset` as "
            "`corpus`."
        )
    found: list[int] = []
    for number, row in enumerate(given.with_format(None)):
        try:
            answer = predicate(row)
        except Exception as error:
            raise ValueError(
                f"Expected `{parameter}` to return True or False for every row of the corpus, got {type(error).__name__}: "
                f"{error} for row {number}. Columns are {given.column_names}; pass the corpus as a Dataset with the "
                "columns that it looks at."
            ) from error
        if not isinstance(answer, (bool, np.bool_)):
            raise TypeError(
                f"Expected `{parameter}` to return True or False, got {answer!r} for row {number} of the corpus. Compare "
                "a column with a value, for example."
            )
        if answer:
            found.append(number)
    if not found:
        raise ValueError(
            f"Expected `{parameter}` to be true for some of the {len(given):,} rows of the corpus, got none: it removes "
            f"everything. Columns are {given.column_names}."
        )
    return np.asarray(found, dtype=np.int64)


def _given_corpus(
    corpus: Sequence[str] | Mapping[Any, str] | Dataset | None,
    positives: TextColumn,
    allow_empty: bool,
    parameter: str = "corpus",
) -> tuple[Dataset | None, str, str | None]:
    """Return the corpus as a dataset, its text column and its id column."""
    if corpus is None:
        return None, "text", None
    if isinstance(corpus, Mapping):
        corpus = _dataset_of_texts_by_id(corpus, parameter)
    if isinstance(corpus, Dataset):
        dataset, text_column = corpus, _text_column_of(corpus, positives._name)
    elif isinstance(corpus, Sequence) and not isinstance(corpus, str):
        wrong = next((i for i, text in enumerate(corpus) if not isinstance(text, str)), None)
        if wrong is not None:
            raise TypeError(
                f"Expected `{parameter}` to be a list of texts, got {type(corpus[wrong]).__name__} at position {wrong}. "
                "Pass strings only."
            )
        try:
            table = pa.table({"text": pa.array(list(corpus), type=pa.large_string())})
        except UnicodeEncodeError:
            bad = next(i for i, text in enumerate(corpus) if not _is_unicode(text))
            raise ValueError(
                f"Expected `{parameter}` to hold valid Unicode, got a lone surrogate at position {bad}. Clean it, for "
                "example with `text.encode('utf-8', 'replace').decode()`."
            ) from None
        dataset, text_column = dataset_of(table), "text"
    else:
        raise TypeError(
            f"Expected `{parameter}` to be a list of texts, a `datasets.Dataset` or None, got {type(corpus).__name__}. "
            "Turn it into one of these."
        )
    if len(dataset) == 0:
        advice = "Pass `corpus=None` to mine among the positives." if parameter == "corpus" else "Leave it out."
        raise ValueError(f"Expected a {parameter} with at least one text, got an empty one. {advice}")
    check_text_column(dataset, text_column, parameter, allow_empty=allow_empty)
    id_column = next((name for name in _ID_COLUMNS if name in dataset.column_names), None)
    return dataset, text_column, id_column


def _dataset_of_texts_by_id(corpus: Mapping[Any, Any], parameter: str) -> Dataset:
    """Return ``{id: text}`` as a dataset with the columns ``_id`` and ``text``."""
    wrong = next((key for key, text in corpus.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(
            f"Expected `{parameter}` to map ids to texts, got {type(corpus[wrong]).__name__} for the id {wrong!r}. Join "
            "title and text into one string; `HardNegativeDataset.from_beir` reads documents with titles."
        )
    bad = next((key for key, text in corpus.items() if not _is_unicode(text)), None)
    if bad is not None:
        raise ValueError(
            f"Expected `{parameter}` to hold valid Unicode, got a lone surrogate for the id {bad!r}. Clean it."
        )
    return Dataset.from_dict({"_id": [str(key) for key in corpus], "text": list(corpus.values())})


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_column_of(corpus: Dataset, positive_column: str) -> str:
    strings = [
        name
        for name in corpus.column_names
        if getattr(corpus.features[name], "dtype", None) in TEXT_TYPES and name not in _ID_COLUMNS
    ]
    for name in ("text", positive_column):
        if name in corpus.column_names:
            return name
    if len(strings) == 1:
        return strings[0]
    raise ValueError(
        f"Expected the corpus to have a column 'text' or {positive_column!r}, or one text column only, got "
        f"{corpus.column_names}. Rename the column that holds the texts to 'text'."
    )
