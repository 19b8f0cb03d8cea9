"""The corpus that users hand in, in whatever form, and which of its rows a predicate selects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from st_hardneg.corpus.texts import TEXT_TYPES, Ids, TextColumn, check_text_column, dataset_of

# Not "doc_id" and "document_id": the passages of one document share it.
ID_COLUMNS = ("_id", "id", "ID", "corpus-id", "corpus_id", "docid", "docno", "pid", "passage_id")
"""Names of columns that hold a corpus's own ids."""

# What people put between title and text; a line break counts as a space.
_TITLE_SEPARATORS = (" ", ". ", ": ", " - ", " | ", " [SEP] ", "[SEP]", "; ", ", ")
_BETWEEN = re.compile(r"\W+")
_LONGEST_SEPARATOR = 6
_FIRST_WORD = re.compile(r"\w+")

Predicate = Callable[[dict[str, Any]], bool]
"""Tells of a row of a corpus, as a dictionary of its columns, whether it belongs."""


@dataclass(frozen=True, eq=False)
class GivenCorpus:
    """A corpus as a dataset.

    Args:
        dataset: All of its columns.
        text_column: The column that holds the texts.
        id_column: The column that holds the caller's own ids, if there is one.
    """

    dataset: Dataset
    text_column: str
    id_column: str | None

    @property
    def texts(self) -> TextColumn:
        """The texts."""
        return TextColumn(self.dataset, self.text_column)

    def titles_and_texts(self) -> Iterator[tuple[str, str]]:
        """Yield the title, stripped, and the text of every row; nothing if there is no column of titles."""
        has_titles = "title" in self.dataset.column_names and self.text_column != "title"
        if has_titles and getattr(self.dataset.features["title"], "dtype", None) in TEXT_TYPES:
            titles = TextColumn(self.dataset, "title")
            for some_titles, some_texts in zip(titles.batches(), self.texts.batches(), strict=True):
                yield from (
                    (title.strip() if title else "", text) for title, text in zip(some_titles, some_texts, strict=True)
                )


def other_forms(title: str, text: str, missing: set[str]) -> list[str]:
    """Return other forms in which a right answer may hold a document: with its title in front, or without it.

    Positives are often made of title and text; and where queries are documents themselves, they are bodies.

    Args:
        title: The document's title, stripped.
        text: Its text.
        missing: The first words of positives that the corpus lacks: only a document whose title begins with one of them
            can be meant with its title in front, and to look each form up takes time.
    """
    if not title:
        return []
    forms = [f"{title}{text}"] if missing else []
    if missing and first_word(title) in missing:
        forms += [f"{title}{separator}{text}" for separator in _TITLE_SEPARATORS]
    rest = text[len(title) :] if text.startswith(title) else ""
    if between := _BETWEEN.match(rest):
        # Whatever stands between, such as a dash; the body may begin with a quotation mark of its own.
        forms = [rest[stop:].strip() for stop in range(1, min(between.end(), _LONGEST_SEPARATOR) + 1)]
    return [form for form in dict.fromkeys(forms) if form]


def first_word(text: str) -> str:
    """Return the first word of a text, in lower case."""
    found = _FIRST_WORD.search(text)
    return found.group().casefold() if found else ""


def given_corpus(
    corpus: Any, positive_name: str, *, allow_empty: bool = False, parameter: str = "corpus"
) -> GivenCorpus | None:
    """Return the corpus as a dataset.

    Args:
        corpus: None, a list of texts, ``{id: text}``, a Dataset with a column of texts, or what another
            HardNegativeDataset has as its ``corpus``.
        positive_name: Name of the positive column, which a corpus's column of texts may have, too.
        allow_empty: Whether empty texts are let through.
        parameter: What to call it in errors.

    Raises:
        ValueError: If it is empty or has empty texts, or no text column can be made out.
        TypeError: If it is of another kind.
    """
    if corpus is None:
        return None
    if hasattr(corpus, "searched") and hasattr(corpus, "given"):  # another dataset's
        texts = corpus.texts.take(corpus.searched) if corpus.given is None else None
        corpus = texts if corpus.given is None else GivenCorpus(corpus.given, corpus.text_column, corpus.id_column)
        if isinstance(corpus, GivenCorpus):
            return corpus
    text_column = "text"
    if isinstance(corpus, Mapping):
        dataset = _dataset_of_texts_by_id(corpus, parameter)
    elif isinstance(corpus, Dataset):
        dataset, text_column = corpus, _text_column_of(corpus, positive_name)
        if dataset.format["type"] == "custom":
            raise ValueError(
                f"`{parameter}` has a transform (`with_transform` or `set_transform`), and mining would read the texts "
                "without it. Apply it once, with `with_format(None).map(transform, batched=True)`, or take it off with "
                "`with_format(None)`."
            )
    elif isinstance(corpus, Sequence) and not isinstance(corpus, (str, bytes)):
        dataset = _dataset_of_list(corpus, parameter)
    else:
        raise _refused(corpus, parameter)
    if len(dataset) == 0:
        advice = "Pass `corpus=None` to mine among the positives." if parameter == "corpus" else "Leave it out."
        raise ValueError(f"Expected a {parameter} with at least one text, got an empty one. {advice}")
    check_text_column(dataset, text_column, parameter, allow_empty=allow_empty)
    id_column = next((name for name in ID_COLUMNS if name in dataset.column_names), None)
    if id_column is not None:
        _check_ids(dataset, id_column, text_column, parameter)
    return GivenCorpus(dataset, text_column, id_column)


def _check_ids(dataset: Dataset, id_column: str, text_column: str, parameter: str) -> None:
    """Raise if an id stands for two texts.

    Raises:
        ValueError: If so.
    """
    plain = dataset.with_format("arrow").select_columns([id_column])[:].column(id_column)
    if pa.types.is_nested(plain.type) or pc.count_distinct(plain, mode="all").as_py() == len(plain):
        return
    texts, found = TextColumn(dataset, text_column), dict[str, str]()
    for place, name in enumerate(map(str, plain.to_pylist())):
        (text,) = texts.take([place])
        if found.setdefault(name, text) != text:
            raise ValueError(
                f"Expected every id in the column {id_column!r} of `{parameter}` once, got {name!r} twice, with different "
                "texts. Give each text an id of its own, or rename the column."
            )


def _refused(corpus: Any, parameter: str) -> TypeError:
    """Return the error for what is no corpus, with what to do about it."""
    wanted = f"Expected `{parameter}` to be a list of texts, `{{id: text}}`, a `datasets.Dataset` or None, got"
    if isinstance(corpus, str):
        return TypeError(f"{wanted} the single text {corpus[:60]!r}. {_how_to_read(corpus)}")
    for sign, where in (("encode_query", "`.mine(model)`"), ("num_negatives", "`config=...`")):
        if hasattr(corpus, sign):
            return TypeError(f"Expected texts as `{parameter}`, got {type(corpus).__name__}. Pass it to {where}.")
    return TypeError(f"{wanted} {type(corpus).__name__}. Turn it into one of these, for example with `list(...)`.")


def _how_to_read(text: str) -> str:
    if text.endswith((".jsonl", ".json", ".csv", ".parquet", ".txt", ".gz")):
        return "Read the file first, with `datasets.load_dataset`, or `HardNegativeDataset.from_beir`."
    return "Put it into a list: `[text]`."


def _dataset_of_list(corpus: Sequence[Any], parameter: str) -> Dataset:
    wrong = next((i for i, text in enumerate(corpus) if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(
            f"Expected `{parameter}` to be a list of texts, got {type(corpus[wrong]).__name__} at position {wrong}. "
            "Pass strings only."
        )
    try:
        return dataset_of(pa.table({"text": pa.array(list(corpus), type=pa.large_string())}))
    except UnicodeEncodeError:
        bad = next(i for i, text in enumerate(corpus) if not _is_unicode(text))
        raise ValueError(
            f"Expected `{parameter}` to hold valid Unicode, got a lone surrogate at position {bad}. Clean it, for "
            "example with `text.encode('utf-8', 'replace').decode()`."
        ) from None


def _dataset_of_texts_by_id(corpus: Mapping[Any, Any], parameter: str) -> Dataset:
    """Return ``{id: text}`` as a dataset with the columns ``_id`` and ``text``."""
    wrong = next((key for key, text in corpus.items() if not isinstance(text, str)), None)
    if wrong is not None and isinstance(corpus[wrong], Dataset):
        raise TypeError(f"Expected one corpus, got several by name. Pass one split: `{parameter}[{wrong!r}]`.")
    if wrong is not None and isinstance(wrong, str) and " " in wrong:
        raise TypeError(f"`{parameter}` maps texts to ids. Turn it round: ids are keys, texts are values.")
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
    ids = [str(key) for key in corpus]
    if len(set(ids)) < len(ids):
        raise ValueError(f"`{parameter}` has two ids that are the same as strings. Give each text an id of its own.")
    return Dataset.from_dict({"_id": ids, "text": list(corpus.values())})


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_column_of(corpus: Dataset, positive_name: str) -> str:
    strings = [
        name
        for name in corpus.column_names
        if getattr(corpus.features[name], "dtype", None) in TEXT_TYPES and name not in ID_COLUMNS
    ]
    for name in ("text", positive_name):
        if name in corpus.column_names:
            return name
    if len(strings) == 1:
        return strings[0]
    raise ValueError(
        f"Expected the corpus to have a column 'text' or {positive_name!r}, or one text column only, got "
        f"{corpus.column_names}. Rename the column that holds the texts to 'text'."
    )


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
        return _checked_rows(predicate, 0 if given is None else len(given), parameter)
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


def _checked_rows(rows: Ids, num_given: int, parameter: str) -> Ids:
    good = rows.dtype == np.int64 and rows.ndim == 1 and len(rows) > 0
    if not good or rows[0] < 0 or rows[-1] >= num_given or bool((np.diff(rows) <= 0).any()):
        raise ValueError(
            f"Expected `{parameter}` to be a function of a corpus row, or ascending row numbers below {num_given:,} "
            f"as an int64 array, got {rows.dtype} of shape {rows.shape}. Pass a function."
        )
    return rows
