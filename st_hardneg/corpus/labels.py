"""What a column of labels says: which rows are right answers, whatever it is called and however it is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset

from st_hardneg.corpus.texts import TEXT_TYPES, TextColumn

# Without regard to case and underscores.
_LABELS = {
    *("label", "labels", "goldlabel", "target", "isduplicate", "isrelevant", "ispositive", "ismatch", "issimilar"),
    *("isparaphrase", "iscorrect", "duplicate", "relevant", "match", "binarylabel"),
}
_GRADES = {
    *("score", "scores", "relevance", "relevancescore", "relevancegrade", "grade", "rating", "similarity"),
    *("similarityscore", "relevancelabel"),
}
_MAY_BE_TEXTS = {"duplicate", "relevant", "match", "target"}
_LONGEST_LABEL = 30
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
_RIGHT = ("1", "1.0", "true", "yes", "duplicate", "paraphrase", "entailment", "relevant", "equivalent", "positive")
_WRONG = ("0", "0.0", "false", "no", "contradiction", "irrelevant", "different", "negative")
_WORDS = {
    **dict.fromkeys(_RIGHT, 1.0),
    **dict.fromkeys(_WRONG, 0.0),
    **{f"{no}{word}": 0.0 for no in ("not ", "not_", "not-", "non-", "non_") for word in _RIGHT},
}


def right_rows(dataset: Dataset, apart: tuple[str, str], *, use_given: bool) -> tuple[str | None, np.ndarray | None]:
    """Return the column of labels, the first if there are several, and which rows it says are right answers.

    Where there are labels, grades are not read: they may be scores of something else.

    Args:
        dataset: The dataset.
        apart: The columns of anchors and positives, whatever they are called.
        use_given: Whether wrong answers are wanted, too.

    Raises:
        ValueError: If it says that some are wrong and these are not wanted, or does not say which are right.
    """
    found: dict[str, np.ndarray] = {}
    for name in [*filter(is_label, dataset.column_names), *filter(_is_grade, dataset.column_names)]:
        if name in apart or (_is_grade(name) and found):
            continue
        values = _numbers(dataset, name)
        if values is None:
            continue
        found[name] = _judged(dataset, name, values, use_given)
    for name, other in pairwise(found):
        if bool((found[name] != found[other]).any()):
            row = int(np.flatnonzero(found[name] != found[other])[0])
            raise ValueError(
                f"The columns {name!r} and {other!r} do not agree which rows are right answers, in row {row} for example. "
                f"Keep the right rows, and remove one of them: `dataset.remove_columns({other!r})`."
            )
    return next(iter(found.items()), (None, None))


def refuse_misread_classes(features: Mapping[str, Any]) -> None:
    """Raise if labels have names that say something else than their numbers, where only numbers will be seen.

    Raises:
        ValueError: If so; the column is named.
    """
    for name, feature in features.items():
        if is_label(name) and isinstance(feature, ClassLabel):
            words = [_WORDS.get(str(word).strip().lower()) for word in feature.names]
            if words != [0.0, 1.0]:
                raise ValueError(
                    f"The column {name!r} has the classes {feature.names}, and a stream hands out their numbers only. "
                    f"Keep the right rows and remove the column: `dataset.filter(lambda row: row[{name!r}] == ...)"
                    f".remove_columns({name!r})`."
                )


def _judged(dataset: Dataset, name: str, values: np.ndarray, use_given: bool) -> np.ndarray:
    """Return which rows a column of numbers, NaN for none, says are right answers."""
    if bool((~(values >= 0)).any()):
        raise ValueError(
            f"The column {name!r} has rows without a label (None, or below 0), so it does not say whether these are "
            f"right answers. Filter them: `dataset.filter(lambda row: row[{name!r}] in (0, 1))`, for example."
        )
    is_right: np.ndarray = values > 0
    if _is_grade(name) and bool((values != np.rint(values)).any()):
        other = values[values != np.rint(values)][0]
        raise ValueError(
            f"The column {name!r} holds fractions, such as {other:g}: how similar two texts are, not which rows are "
            "right answers. Keep the rows that are similar enough, and remove the column: "
            f"`dataset.filter(lambda row: row[{name!r}] >= ...).remove_columns({name!r})`."
        )
    if is_label(name) and bool((is_right & (values != 1)).any()):
        other = values[is_right & (values != 1)][0]
        raise ValueError(
            f"The column {name!r} holds other values than 0 and 1, such as {other:g}, so it does not say which rows "
            "are right answers. Filter the rows, then remove the column with "
            f"`dataset.remove_columns({name!r})`."
        )
    if not is_right.any():
        raise ValueError(f"The column {name!r} labels all rows as wrong answers. Pass rows of right ones.")
    if not is_right.all() and not use_given:
        raise ValueError(
            f"The column {name!r} labels {int((~is_right).sum()):,} of {len(values):,} rows as wrong answers, and a "
            "HardNegativeDataset takes every row for a right one. Use them as negatives with "
            '`sources={"dense": ..., "given": ...}`, or keep the right ones with '
            f"`dataset.filter(lambda row: {_is_right(dataset, name)})`. If the column does not say which rows are "
            f"right, remove it with `dataset.remove_columns({name!r})`."
        )
    return is_right


def is_label(name: str) -> bool:
    """Tell whether a column is called as columns of labels are, in whatever case and with or without underscores."""
    return _plain(name) in _LABELS


def _is_grade(name: str) -> bool:
    return _plain(name) in _GRADES


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _is_right(dataset: Dataset, name: str) -> str:
    """Return the code that tells the right rows by their label: a number, the number of a class, or a word."""
    feature = dataset.features[name]
    if isinstance(feature, ClassLabel):
        right = [number for number, word in enumerate(feature.names) if _WORDS.get(str(word).strip().lower())]
        return f"row[{name!r}] in {right}"
    if getattr(feature, "dtype", None) in TEXT_TYPES:
        words = {text for texts in TextColumn(dataset, name).batches() for text in texts}
        return f"row[{name!r}] in {sorted(word for word in words if _says_right(word))}"
    return f"row[{name!r}] > 0"


def _says_right(word: str) -> bool:
    plain = word.strip().lower()
    return bool(_WORDS[plain] if plain in _WORDS else float(plain) > 0)


def _numbers(dataset: Dataset, name: str) -> np.ndarray | None:
    """Return a column as float64 if there is one of numbers; NaN for None."""
    if name not in dataset.column_names:
        return None
    kind = dataset.with_format(None).data.column(name).type
    if isinstance(dataset.features[name], ClassLabel):
        return _numbers_of_classes(dataset, name)
    if getattr(dataset.features[name], "dtype", None) in TEXT_TYPES:
        return _numbers_in_words(dataset, name)
    if pa.types.is_decimal(kind):
        return np.asarray([math.nan if one is None else float(one) for one in dataset.with_format(None)[name][:]])
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        if is_label(name) and not pa.types.is_null(kind):
            raise ValueError(
                f"The column {name!r} holds {kind} in place of labels, so it does not say which rows are right answers. "
                f"Filter the rows, then remove the column with `dataset.remove_columns({name!r})`."
            )
        return None
    return np.asarray(dataset.with_format(None)[name][:], dtype=np.float64)


def _numbers_of_classes(dataset: Dataset, name: str) -> np.ndarray:
    """Return labels of named classes as float64: which of them is right says the name, and not the number.

    Raises:
        ValueError: If the names do not say it.
    """
    classes = [str(one).strip().lower() for one in dataset.features[name].names]
    numbers = np.asarray(dataset.with_format(None)[name][:], dtype=np.float64)
    present = {int(number) for number in np.unique(numbers[numbers >= 0])}
    if unknown := [dataset.features[name].names[number] for number in sorted(present) if classes[number] not in _WORDS]:
        raise ValueError(
            f"The column {name!r} has classes of which it is not known whether they mean a right answer, such as "
            f"{unknown[0]!r}. Keep the right rows and remove the column: "
            f"`dataset.filter(lambda row: row[{name!r}] == ...).remove_columns({name!r})`."
        )
    values = np.full(len(numbers), np.nan)
    for number in present:
        values[numbers == number] = _WORDS[classes[number]]
    return values


def _numbers_in_words(dataset: Dataset, name: str) -> np.ndarray | None:
    """Return labels that are written as words as float64, or None for a column of texts.

    Raises:
        ValueError: If a column of labels holds other words.
    """
    values = {str(text).strip().lower() for some in TextColumn(dataset, name).batches() for text in some}
    if values <= set(_WORDS):
        texts = (text for some in TextColumn(dataset, name).batches() for text in some)
        return np.asarray([_WORDS[str(text).strip().lower()] for text in texts])
    if all(_NUMBER.fullmatch(value) for value in values - {"", "none"}) and len(values - {"", "none"}):  # of a CSV file
        texts = (str(text).strip() for some in TextColumn(dataset, name).batches() for text in some)
        return np.asarray([float(text) if _NUMBER.fullmatch(text) else math.nan for text in texts])
    # A column of that name may hold texts of another kind.
    if not is_label(name) or (_plain(name) in _MAY_BE_TEXTS and max(map(len, values)) > _LONGEST_LABEL):
        return None
    raise ValueError(
        f"The column {name!r} holds other labels than 0 and 1, such as {sorted(values - set(_WORDS))[0]!r}, so it does "
        "not say which rows are right answers. Filter the rows, then remove the column with "
        f"`dataset.remove_columns({name!r})`."
    )
