"""Further columns of rows and of a corpus, which files of other tools have no name for: JSON texts beside the rest."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import Dataset

from st_hardneg.corpus.texts import Ids

logger = logging.getLogger(__name__)

# What files hold already, under these names or in a form of their own.
_TOLD = re.compile(r"anchor|positive|weight|positive_score|negative_scores|negative(_\d+)?")


@dataclass(frozen=True, eq=False)
class Further:
    """Columns that are carried along, and read a few rows at a time.

    Args:
        dataset: These columns alone, or None if there are none.
    """

    dataset: Dataset | None

    @classmethod
    def of(cls, dataset: Dataset | None, used: Iterable[str | None], what: str) -> Further:
        """Return the columns of a dataset that are not used; what JSON cannot hold is left out with a warning.

        Args:
            dataset: The dataset, if there is one.
            used: Columns that files hold already.
            what: What to call the dataset in the warning.
        """
        if dataset is None:
            return cls(None)
        plain = dataset.with_format(None)
        names = [name for name in plain.column_names if name not in set(used)]
        schema = plain.data.schema
        taken = [name for name in names if not _TOLD.fullmatch(name) and _is_json(schema.field(name).type)]
        said = [name for name in names if not _is_told(name) and not _is_empty(schema.field(name).type)]
        odd = [name for name in said if name not in taken]
        if odd:
            logger.warning(
                f"The columns {odd} of the {what} are not written: a file cannot hold values of their kind, or has other "
                "values under their name."
            )
        return cls(plain.select_columns(taken) if taken else None)

    def take(self, rows: Ids) -> list[dict[str, Any]]:
        """Return the values of some rows, by name."""
        if self.dataset is None or not len(rows):
            return [{} for _ in rows]
        table = self.dataset.with_format("arrow")[rows.tolist()]
        values: list[dict[str, Any]] = table.to_pylist()
        return values

    def nothing(self) -> dict[str, None]:
        """Return None for every column."""
        return {} if self.dataset is None else dict.fromkeys(self.dataset.column_names)


def _is_told(name: str) -> bool:
    return _TOLD.fullmatch(name) is not None and name not in ("anchor", "positive")


def _is_empty(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.num_fields == 0


def _is_json(kind: pa.DataType) -> bool:
    """Tell whether values of a type can be said in JSON, dates as texts."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    if pa.types.is_struct(kind):
        return not _is_empty(kind) and all(_is_json(kind.field(place).type) for place in range(kind.num_fields))
    said = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
    )
    more = (pa.types.is_null, pa.types.is_date, pa.types.is_timestamp, pa.types.is_time, pa.types.is_decimal)
    return any(is_it(kind) for is_it in (*said, *more)) or str(kind) == "string_view"


def packed(values: Mapping[str, Any]) -> str:
    """Return values by name as a JSON text.

    A text, and no object: readers that infer a type from the first lines of a file stumble over what is None there.

    Example:
        >>> packed({"year": 2020})
        '{"year": 2020}'
    """
    return json.dumps(values, default=str)


def unpacked(text: Any, place: str) -> dict[str, Any]:
    """Return the values of a JSON text; none for None.

    Raises:
        ValueError: If it is something else.
    """
    try:
        values = {} if text is None else json.loads(text)
    except (TypeError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f"Expected a JSON object as text in {place}, got {str(text)[:60]!r}. Correct it, or remove it."
        )
    return values


def laid_out(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a file with its further columns beside the others, if it holds any as :func:`packed` has them."""
    try:
        further = json.loads(row["columns"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return dict(row)
    rest = {name: value for name, value in row.items() if name != "columns"}
    return rest | further if isinstance(further, dict) else dict(row)


def storable(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Return the rows of a corpus as a dataset, without the columns that Arrow cannot hold.

    Raises:
        ValueError: If ids or texts are among these.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    if (whole := _stored(columns)) is not None:
        return whole
    wrong = [name for name in columns if _stored({name: columns[name]}) is None]
    if {"_id", "text"} & set(wrong):
        raise ValueError("Expected `corpus` to hold columns of one type each, got ids or texts that are no text.")
    logger.warning(
        f"{len(wrong):,} columns of `corpus` are left out, because they hold values of several types or no valid "
        f"Unicode: {', '.join(map(repr, wrong))}."
    )
    return Dataset.from_dict({name: column for name, column in columns.items() if name not in wrong})


def _stored(columns: dict[str, list[Any]]) -> Dataset | None:
    try:
        return Dataset.from_dict(columns)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
        return None


def together(values: Sequence[Mapping[str, Any]], path: str) -> dict[str, pa.Array]:
    """Return columns of values by name; None where a row has none.

    Raises:
        ValueError: If a column holds values of several kinds.
    """
    columns = {}
    for name in dict.fromkeys(name for one in values for name in one):
        try:
            columns[name] = pa.array([one.get(name) for one in values])
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(
                f"Expected values of one kind in the column {name!r} of {path!r}, got several ({error})."
            ) from None
    return columns
