"""Text that is on every machine: the docstrings of Python's standard library, as pairs of summary and rest."""

from __future__ import annotations

import ast
import os
import random
import sysconfig
from collections.abc import Iterator

from datasets import Dataset

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "ensurepip"}


def docstring_pairs(num_pairs: int) -> tuple[Dataset, list[str], Dataset]:
    """Return training pairs, the corpus, and as many held-out pairs as a fifth of them.

    Args:
        num_pairs: How many training pairs, at most.
    """
    pairs = summaries_and_rests()
    anchors = list(pairs)
    random.Random(0).shuffle(anchors)
    parts = anchors[:num_pairs], anchors[num_pairs : num_pairs + num_pairs // 5]
    train, held_out = (Dataset.from_dict({"anchor": some, "positive": [pairs[one] for one in some]}) for some in parts)
    return train, list(dict.fromkeys(pairs[one] for some in parts for one in some)), held_out


def summaries_and_rests() -> dict[str, str]:
    """Return the rest of each docstring of the standard library by its summary, both on one line."""
    pairs: dict[str, str] = {}
    for docstring in sorted(set(docstrings_below(sysconfig.get_path("stdlib")))):
        summary, _, rest = docstring.partition("\n\n")
        summary, rest = " ".join(summary.split()), " ".join(rest.split())
        if len(summary.split()) >= 3 and len(rest.split()) >= 8:
            pairs.setdefault(summary, rest)
    return pairs


def docstrings_below(folder: str) -> Iterator[str]:
    """Yield the docstrings of all modules in a folder and below."""
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED)
        for file in sorted(files):
            if file.endswith(".py"):
                yield from _docstrings_of(os.path.join(place, file))


def _docstrings_of(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as source:
            tree = ast.parse(source.read())
    except (SyntaxError, UnicodeDecodeError, ValueError):  # files that are kept to test just that
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if docstring := ast.get_docstring(node):
                yield docstring
