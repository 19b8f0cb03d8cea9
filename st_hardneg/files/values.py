"""Dataclasses of integer arrays and plain values, such as a corpus and its pairs, taken apart for files and put together.

Nothing in a file says of what class a value is: that is known from the annotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from st_hardneg.corpus.texts import Ids, TextColumn
from st_hardneg.files.schema import damaged, warn_of_unknown
from st_hardneg.files.tables import read_table, write_table

# What is in a folder of its own, and handed over when a value is put together.
_OUTSIDE = (TextColumn, Dataset)


@dataclass
class Arrays:
    """Int64 arrays of shape ``(n,)`` by name; one that several fields share is held once."""

    by_name: dict[str, Ids] = field(default_factory=dict)
    _name_of: dict[tuple[int, int], str] = field(default_factory=dict)

    def add(self, name: str, array: Any) -> str:
        """Hold an array, and return the name under which it is held."""
        if array.dtype != np.int64 or array.ndim != 1:
            raise TypeError(f"Expected {name} to be an int64 array of one dimension, got {array.dtype} {array.shape}.")
        array = np.ascontiguousarray(array)
        place = (array.__array_interface__["data"][0], len(array))
        if not len(array) or place not in self._name_of:
            self._name_of[place] = name
            self.by_name[name] = array
        return self._name_of[place]

    def write(self, folder: str, name: str) -> None:
        """Write all arrays into one file: one row, a list in each column."""
        columns = {
            key: pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), pa.array(array))
            for key, array in self.by_name.items()
        }
        write_table(folder, name, pa.table(columns))

    @classmethod
    def read(cls, folder: str, name: str) -> Arrays:
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: If it is damaged.
        """
        table = read_table(folder, name)
        if table.num_rows != 1 or any(part.type != pa.large_list(pa.int64()) for part in table.columns):
            raise damaged(folder, f"{name!r} does not hold lists of integers")
        found = cls()
        for key in table.column_names:
            flat = pa.concat_arrays([chunk.flatten() for chunk in table.column(key).chunks])
            if flat.null_count:
                raise damaged(folder, f"{key!r} in {name!r} has gaps")
            found.by_name[key] = np.array(flat.to_numpy())
        return found


def take_apart(value: Any, name: str, arrays: Arrays) -> Any:
    """Return a value as plain JSON; arrays go to ``arrays``, columns of texts and datasets are left out.

    Args:
        value: A dataclass, or what one may hold.
        name: What arrays in it are called after.
        arrays: Takes the arrays.
    """
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return {"array": arrays.add(name, value)}
    if is_dataclass(value):
        parts = {part.name: getattr(value, part.name) for part in fields(value)}
        return {
            key: take_apart(part, f"{name}.{key}", arrays)
            for key, part in parts.items()
            if not isinstance(part, _OUTSIDE)
        }
    if isinstance(value, Mapping):
        return {key: take_apart(part, f"{name}.{key}", arrays) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [take_apart(part, f"{name}.{number}", arrays) for number, part in enumerate(value)]
    return value


def arrays_in(value: Any, name: str) -> Iterator[tuple[str, Ids]]:
    """Yield the arrays that a value holds, by the names of their fields."""
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        yield name, value
    elif is_dataclass(value):
        for part in fields(value):
            yield from arrays_in(getattr(value, part.name), f"{name}.{part.name}")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from arrays_in(part, f"{name}.{key}")


_annotations = cache(get_type_hints)


@dataclass
class Builder:
    """Puts values together that :func:`take_apart` took apart.

    Args:
        folder: Where they were read, for errors.
        arrays: The arrays.
    """

    folder: str
    arrays: Arrays

    def build(self, kind: Any, plain: Any, name: str, **outside: Any) -> Any:
        """Return a value.

        Args:
            kind: Its class.
            plain: What :func:`take_apart` returned.
            name: What to call it in errors.
            **outside: The fields that are in folders of their own.

        Raises:
            ValueError: If the plain value is not of this kind.
        """
        if not isinstance(plain, dict):
            raise self._wrong(name)
        hints = _annotations(kind)
        known = {part.name: part for part in fields(kind)}
        warn_of_unknown(self.folder, {f"{name}.{key}" for key in set(plain) - set(known)})
        values = dict(outside)
        for key, part in known.items():
            if key in outside:
                continue
            if key in plain:
                values[key] = self._value(hints[key], plain[key], f"{name}.{key}")
            elif part.default is MISSING and part.default_factory is MISSING:
                raise damaged(self.folder, f"{name}.{key} is missing")
        return kind(**values)

    def _value(self, kind: Any, plain: Any, name: str) -> Any:
        origin, inner = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            if plain is None and NoneType in inner:
                return None
            kind = next(one for one in inner if one is not NoneType)
            return self._value(kind, plain, name)
        if origin is np.ndarray or kind is Tensor:
            array = self._array(plain, name)
            return torch.from_numpy(array) if kind is Tensor else array
        if is_dataclass(kind):
            return self.build(kind, plain, name)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            if not isinstance(plain, dict):
                raise self._wrong(name)
            return {key: self._value(inner[1], part, f"{name}.{key}") for key, part in plain.items()}
        if origin is tuple:
            if not isinstance(plain, list):
                raise self._wrong(name)
            return tuple(self._value(inner[0], part, f"{name}.{number}") for number, part in enumerate(plain))
        if type(plain) is not kind:
            raise self._wrong(name)
        return plain

    def _array(self, plain: Any, name: str) -> Ids:
        key = plain.get("array") if isinstance(plain, dict) else None
        if not isinstance(key, str) or key not in self.arrays.by_name:
            raise self._wrong(name)
        return self.arrays.by_name[key]

    def _wrong(self, name: str) -> ValueError:
        return damaged(self.folder, f"{name} is not what was written")
