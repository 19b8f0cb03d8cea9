"""Right answers that are planted unlabelled in a labelled set: how many of the texts that ``suspects`` lists are they?

    python tests/benchmarks/suspects.py --data PATH_OF_scifact [--model PATH_OF_all-MiniLM-L6-v2]

``--data`` is a folder in BEIR's layout. Of 300 right answers a changed copy is put into the corpus under an id of its own:
a copy with a line behind it, one without its first sentence, and one in which a word in ten is left out. The set is mined
with the recommended recipe and the word vectors of the model alone (``--whole`` takes all of it), and of the 50 most
doubtful texts at least 45 have to be a planted copy of a right answer of that very anchor, or judged relevant to it.
Copies that differ in nothing are known to be right: they have to be among neither the negatives nor the suspects.

It ends with 1 if a floor is missed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import numpy as np
from datasets import Dataset, disable_progress_bars
from train_with_refresh import word_vectors

from st_hardneg import HardNegativeDataset
from st_hardneg.formats.beir import read_beir
from st_hardneg.layouts import beir_tables


def with_a_line(text: str, _: random.Random) -> str:
    """Return a text with a line of another hand behind it."""
    return f"{text} Reprinted."


def without_its_beginning(text: str, _: random.Random) -> str:
    """Return a text without its first sentence, or without its first words if it is the only one."""
    rest = re.split(r"(?<=[.?!])\s+", text, maxsplit=1)[1:]
    return rest[0] if rest else " ".join(text.split()[2:]) or f"{text} …"


def with_words_left_out(text: str, rng: random.Random) -> str:
    """Return a text without a tenth of its words."""
    words = text.split()
    left_out = set(rng.sample(range(len(words)), max(1, len(words) // 10)))
    return " ".join(word for place, word in enumerate(words) if place not in left_out)


def as_it_is(text: str, _: random.Random) -> str:
    """Return the text."""
    return text


COPIES: dict[str, Callable[[str, random.Random], str]] = {
    "copies with a line behind them": with_a_line,
    "copies without their first sentence": without_its_beginning,
    "near-copies, a tenth of the words left out": with_words_left_out,
}


def planted(pairs: Dataset, corpus: Dataset, number: int, copy: Callable[[str, random.Random], str]) -> dict[str, str]:
    """Return copies of some right answers by id: ``planted-`` and the id of the text that it is one of."""
    rng = random.Random(0)
    texts = dict(zip(corpus["_id"][:], corpus["text"][:], strict=True))
    right = sorted(set(pairs["corpus-id"][:]))
    return {f"planted-{name}": copy(texts[name], rng) for name in rng.sample(right, min(number, len(right)))}


def mined(pairs: Dataset, corpus: Dataset, copies: dict[str, str], model: Any) -> HardNegativeDataset:
    """Return the set, with copies in its corpus, mined with the recommended recipe."""
    names, texts = [*corpus["_id"][:], *copies], [*corpus["text"][:], *copies.values()]
    dataset = HardNegativeDataset(pairs, Dataset.from_dict({"_id": names, "text": texts}))
    dataset.mine(model, show_progress_bar=False)
    return dataset


def listed(dataset: HardNegativeDataset, number: int) -> list[tuple[str, str]]:
    """Return anchor and id of the most doubtful texts."""
    found = dataset.suspects(number)
    return list(zip(found["anchor"][:], dataset.corpus.external_ids(np.asarray(found["corpus_id"][:])), strict=True))


def relevant(data: str, pairs: Dataset) -> dict[str, set[str]]:
    """Return what any split of the set judges to be relevant, by anchor."""
    known: dict[str, set[str]] = {}
    for name in os.listdir(os.path.join(data, "qrels")):
        rows, _ = read_beir(*beir_tables(data, None, None, name.split(".")[0]))
        for anchor, document in zip(rows["anchor"][:], rows["corpus-id"][:], strict=True):
            known.setdefault(anchor, set()).add(document)
    return known


def main() -> None:
    """Plant, mine, list and count; once for each kind of copy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--whole", action="store_true", help="the whole model, and not its word vectors alone")
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--listed", type=int, default=50)
    args = parser.parse_args()
    disable_progress_bars()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(args.model, device="cpu") if args.whole else word_vectors(args.model)
    pairs, corpus = read_beir(*beir_tables(args.data, None, None, "train"))
    judged, floor, is_well = relevant(args.data, pairs), args.listed * 9 // 10, True
    for kind, copy in COPIES.items():
        copies = planted(pairs, corpus, args.copies, copy)
        found = listed(mined(pairs, corpus, copies, model), args.listed)
        own = sum(name in copies and name.removeprefix("planted-") in judged[anchor] for anchor, name in found)
        known = sum(name in judged[anchor] for anchor, name in found)
        is_well &= own + known >= floor
        print(
            f"{len(copies)} {kind}: of {len(found)} suspects {own} are planted copies of a right answer of their anchor, "
            f"{known} judged relevant (at least {floor}){'' if own + known >= floor else '  TOO FEW'}",
            flush=True,
        )
    copies = planted(pairs, corpus, args.copies, as_it_is)
    dataset = mined(pairs, corpus, copies, model)
    among = sum(name in copies for _, name in listed(dataset, args.listed))
    used = sum(name in copies for row in dataset.provenance()["negative_ids"][:] for name in row)
    of_theirs = sum(
        name is not None and name.removeprefix("planted-") in judged[anchor]
        for anchor, names in zip(pairs["anchor"][:], dataset.provenance()["negative_ids"][:], strict=True)
        for name in names
    )
    is_well &= not of_theirs
    print(
        f"{len(copies)} copies that differ in nothing: {among} suspects, {used} slots, {of_theirs} of their own anchor"
    )
    sys.exit(not is_well)


if __name__ == "__main__":
    main()
