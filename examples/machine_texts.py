"""Further retrieval sets from text that machines carry: manual pages, and the docstrings of installed packages.

A manual page's one-line description is a query, and its DESCRIPTION section the right answer. Families of commands that
do nearly the same make near-duplicates, as in most real collections. Writes folders in BEIR's layout:

    python examples/machine_texts.py FOLDER [DIR]

With DIR, a retrieval set in that layout, a copy of it in a script that an English model reads letter by letter: a
language that the model does not know, in which the texts of random pairs are nearly as similar as a query and its answer.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator

from datasets import Dataset

from st_hardneg.command.docstrings import docstrings_below

RetrievalSet = tuple[Dataset, Dataset, dict[str, str], dict[str, set[str]]]
"""Training pairs, the corpus, test queries by id, and the ids of the right answers to each."""

_MOST = 4_000
_LONGEST = 1_500
_ROFF = re.compile(r"\\f[A-Z]|\\[&|]|\\\(..|\\s[-+]?\d|^\.[A-Za-z]+ ?|^'.*$", re.MULTILINE)


def split(pairs: dict[str, str], num_test: int = 400) -> RetrievalSet:
    """Make a retrieval set of queries and their right answers; every answer is in the corpus."""
    anchors = sorted(pairs)
    random.Random(0).shuffle(anchors)
    anchors = anchors[:_MOST]
    documents = {text: f"doc{number}" for number, text in enumerate(dict.fromkeys(pairs[anchor] for anchor in anchors))}
    test, train = anchors[:num_test], anchors[num_test:]
    queries = {f"query{number}": anchor for number, anchor in enumerate(test)}
    return (
        Dataset.from_dict({"anchor": train, "positive": [pairs[anchor] for anchor in train]}),
        Dataset.from_dict({"_id": list(documents.values()), "text": list(documents)}),
        queries,
        {query_id: {documents[pairs[anchor]]} for query_id, anchor in queries.items()},
    )


def man_pages(folder: str = "/usr/share/man") -> RetrievalSet:
    """Return manual pages: the line after the name -> the description."""
    return split(dict(_parsed(_pages(folder))))


def package_docstrings(*packages: str) -> RetrievalSet:
    """Return docstrings of installed packages: summary -> the rest."""
    pairs: dict[str, str] = {}
    for package in packages:
        for docstring in sorted(set(docstrings_below(os.path.join(sysconfig.get_path("purelib"), package)))):
            summary, _, rest = docstring.partition("\n\n")
            summary, rest = " ".join(summary.split()), " ".join(rest.split())[:_LONGEST]
            if len(summary.split()) >= 4 and len(rest.split()) >= 8:
                pairs.setdefault(summary, rest)
    return split(pairs)


def _pages(folder: str) -> Iterator[str]:
    for place, subfolders, files in os.walk(folder):
        subfolders.sort()
        for file in sorted(files):
            if re.search(r"\.[1-8]\w*\.gz$", file) and not os.path.islink(os.path.join(place, file)):
                try:
                    with gzip.open(os.path.join(place, file), "rt", encoding="utf-8") as page:
                        yield page.read()
                except (OSError, UnicodeDecodeError):
                    continue


def _parsed(pages: Iterable[str]) -> Iterator[tuple[str, str]]:
    for page in pages:
        sections = dict(
            re.findall(r'^\.S[Hh] "?([A-Z ]+?)"?\s*\n(.*?)(?=^\.S[Hh] |\Z)', page, re.MULTILINE | re.DOTALL)
        )
        name, text = (_plain(sections.get(key, "")) for key in ("NAME", "DESCRIPTION"))
        _, dash, query = name.partition(" - ")
        if dash and len(query.split()) >= 3 and len(text.split()) >= 12:
            yield query, text[:_LONGEST]


def _plain(roff: str) -> str:
    return " ".join(_ROFF.sub(" ", roff.replace("\\-", "-")).split())


def write(folder: str, found: RetrievalSet) -> None:
    """Write a retrieval set in BEIR's layout."""
    pairs, corpus, queries, relevant = found
    os.makedirs(os.path.join(folder, "qrels"), exist_ok=True)
    id_of = dict(zip(corpus["text"], corpus["_id"], strict=True))
    train = {f"train{number}": row for number, row in enumerate(pairs)}
    texts = {**{key: row["anchor"] for key, row in train.items()}, **queries}
    judged = {
        "train": [(key, id_of[row["positive"]]) for key, row in train.items()],
        "test": [(key, one) for key, ids in relevant.items() for one in sorted(ids)],
    }
    with open(os.path.join(folder, "corpus.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"_id": row["_id"], "text": row["text"]}) + "\n" for row in corpus)
    with open(os.path.join(folder, "queries.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items())
    for split_name, rows in judged.items():
        with open(os.path.join(folder, "qrels", f"{split_name}.tsv"), "w", encoding="utf-8") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            file.writelines(f"{query}\t{one}\t1\n" for query, one in rows)


_SCRIPT = {ord(latin): ord("а") + place for place, latin in enumerate("qwertyuiopasdfghjklzxcvbnm")}  # noqa: RUF001


def write_in_another_script(folder: str, source: str) -> None:
    """Write a copy of a retrieval set with every Latin letter replaced by a Cyrillic one."""
    shutil.copytree(os.path.join(source, "qrels"), os.path.join(folder, "qrels"), dirs_exist_ok=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        path = os.path.join(source, name)
        opened = (
            open(path, encoding="utf-8") if os.path.exists(path) else gzip.open(f"{path}.gz", "rt", encoding="utf-8")
        )
        with opened as rows, open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            for row in map(json.loads, rows):
                texts = {key: row[key].lower().translate(_SCRIPT) for key in ("title", "text") if key in row}
                file.write(json.dumps({**row, **texts}) + "\n")


if __name__ == "__main__":
    for name, make in (
        ("man", man_pages),
        ("torch", lambda: package_docstrings("torch", "sklearn")),
        ("scipy", lambda: package_docstrings("scipy", "numpy", "transformers")),
    ):
        write(os.path.join(sys.argv[1], name), make())
    if len(sys.argv) > 2:
        write_in_another_script(os.path.join(sys.argv[1], "cipher"), sys.argv[2])
