"""Real text that is on every machine: the docstrings of Python's standard library, as a retrieval set.

The query is a docstring's summary line, the right answer is the rest of it. There are many near-duplicates among them
(the same method of two classes), as in most real collections.
"""

from __future__ import annotations

import ast
import os
import random
import sysconfig
from collections.abc import Iterator

from datasets import Dataset

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "ensurepip"}


def standard_library_pairs(num_test: int = 400) -> tuple[Dataset, Dataset, dict[str, str], dict[str, set[str]]]:
    """Return training pairs, the corpus, test queries by id, and the ids of the right answers to each.

    Every rest of a docstring is in the corpus, those of the test queries included.
    """
    pairs: dict[str, str] = {}
    for docstring in sorted(set(docstrings_below(sysconfig.get_path("stdlib")))):
        summary, _, rest = docstring.partition("\n\n")
        summary, rest = " ".join(summary.split()), " ".join(rest.split())
        if len(summary.split()) >= 3 and len(rest.split()) >= 8:
            pairs.setdefault(summary, rest)
    documents = {text: f"doc{number}" for number, text in enumerate(dict.fromkeys(pairs.values()))}
    anchors = list(pairs)
    random.Random(0).shuffle(anchors)
    test, train = anchors[:num_test], anchors[num_test:]
    queries = {f"query{number}": anchor for number, anchor in enumerate(test)}
    return (
        Dataset.from_dict({"anchor": train, "positive": [pairs[anchor] for anchor in train]}),
        Dataset.from_dict({"_id": list(documents.values()), "text": list(documents)}),
        queries,
        {query_id: {documents[pairs[anchor]]} for query_id, anchor in queries.items()},
    )


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
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
