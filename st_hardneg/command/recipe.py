"""Every field of the recipe as a flag and as a line of a YAML file."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import yaml

from st_hardneg.config import MiningConfig, explain_unknown_field

RUN = (
    "output report model corpus anchor_column_name positive_column_name split subset cross_encoder batch_size "
    "cache_folder use_faiss"
).split()
"""What a recipe file may also name: options of the run, by the names of their flags."""

_PREFIX = "recipe:"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of the recipe; what it means is said by MiningConfig's own documentation."""
    group = parser.add_argument_group("the recipe: fields of MiningConfig, laid over the recommended recipe")
    said = _documentation()
    for part in fields(MiningConfig):
        flag = f"--{part.name.replace('_', '-')}"
        help_of = said.get(part.name, "").replace("%", "%%")
        group.add_argument(flag, dest=_PREFIX + part.name, metavar="VALUE", help=help_of, default=argparse.SUPPRESS)


def _documentation() -> dict[str, str]:
    """Return what the docstring of MiningConfig says of each field."""
    text = (MiningConfig.__doc__ or "").partition("Args:")[2].partition("Raises:")[0]
    found = re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(said.split())).replace("``", "") for name, said in found}


def settings_of(asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of the recipe and the options of the run that were given, flags before the file.

    Raises:
        ValueError: If the file is no YAML, or names something unknown.
        OSError: If it cannot be read.
    """
    recipe, run = _of_file(asked.config) if asked.config else ({}, {})
    for name, value in vars(asked).items():
        if name.startswith(_PREFIX):
            recipe[name.removeprefix(_PREFIX)] = _value(name.removeprefix(_PREFIX), value)
        elif name in RUN and value is not None:
            run[name] = value
    return recipe, run


def _value(name: str, word: str) -> Any:
    """Return a flag's value: a number, true, null or a mapping as YAML has it, and else the word itself."""
    if name in ("exclude_pattern", "query_prompt", "corpus_prompt", "query_prompt_name", "corpus_prompt_name"):
        return word
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def _of_file(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path}{where}: this is no YAML ({getattr(error, 'problem', error)}).") from None
    except UnicodeDecodeError:
        raise ValueError(f"Expected {path!r} to be UTF-8. Save it so.") from None
    except OSError as error:
        raise OSError(f"Cannot read {path!r} ({error.strerror}).") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"Expected {path!r} to hold lines such as `num_negatives: 5`, got {type(found).__name__}.")
    known = {part.name for part in fields(MiningConfig)}
    for name in found:
        if name not in known and name not in RUN:
            close = get_close_matches(str(name), RUN, n=1)
            hint = f"`{name}` is no option. Did you mean {close[0]!r}?" if close else explain_unknown_field(name)
            raise ValueError(f"{path}: {hint}")
    recipe = {name: value for name, value in found.items() if name in known}
    return recipe, {name: value for name, value in found.items() if name in RUN}


def make_config(recipe: Mapping[str, Any]) -> MiningConfig:
    """Return the recommended recipe with these fields.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a value is of the wrong type.
    """
    values = dict(recipe)
    if isinstance(values.get("sources"), Mapping) and "num_negatives" not in values:
        quotas = [quota for quota in values["sources"].values() if isinstance(quota, int)]
        values["num_negatives"] = sum(quotas)
    return MiningConfig.recommended(**values)


def existing(path: str, what: str) -> str:
    """Return a path that is there.

    Raises:
        FileNotFoundError: If it is not.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no {what} {path!r}. Check the path.")
    return path
