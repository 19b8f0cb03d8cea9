"""Counting texts: the number of each, which are the same, and those that have none yet."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from st_hardneg.corpus.given import GivenCorpus, first_word, other_forms
from st_hardneg.corpus.identity import IDENTITIES, draw_keys, identity_keys, text_digests
from st_hardneg.corpus.texts import Ids, TextColumn, blank_rows


@dataclass(frozen=True)
class Block:
    """A run of corpus ids that came in together.

    Args:
        name: ``"corpus"``, ``"positive"``, ``"given"``, ``"anchor"``, ``"synthetic"``, or the name of a further corpus.
        start: First corpus id.
        stop: The corpus id after the last.
    """

    name: str
    start: int
    stop: int


def int64(numbers: Sequence[int]) -> Ids:
    """Return whole numbers as an array."""
    return np.asarray(numbers, dtype=np.int64)


class Enumeration:
    """Numbers texts from ``start`` on and remembers which are the same."""

    def __init__(
        self, id_of_text: MutableMapping[bytes, int], first: MutableMapping[bytes, int], start: int, identity: str
    ) -> None:
        self.id_of_text, self.first_with_key, self.start = id_of_text, first, start
        self.identity = identity
        self.identities: list[int] = []
        self.keys: list[bytes] = []
        self.unique_texts: list[int] = []

    def draw_keys(self) -> Ids:
        """Return what stands for each of the texts that were numbered in random draws."""
        return draw_keys(self.keys)

    def add(self, texts: pa.Array, digests: Sequence[bytes]) -> None:
        """Number these texts, each anew."""
        first = self.start + len(self.identities)
        keys = digests if self.identity == "exact" else identity_keys(texts, self.identity)
        id_of, first_with = self.id_of_text.setdefault, self.first_with_key.setdefault
        for corpus_id, (digest, key) in enumerate(zip(digests, keys, strict=True), start=first):
            if id_of(digest, corpus_id) == corpus_id:
                self.unique_texts.append(corpus_id)
            self.identities.append(first_with(key, corpus_id))
        self.keys += keys

    def add_all(self, texts: TextColumn) -> Ids:
        """Number these texts, each anew, and return their numbers."""
        first = self.start + len(self.identities)
        for some in texts.arrays():
            self.add(some, text_digests(some))
        return np.arange(first, self.start + len(self.identities), dtype=np.int64)

    def append(self, texts: TextColumn, name: str, before: TextColumn, blocks: list[Block]) -> tuple[TextColumn, Ids]:
        """Number these texts, note their block, and return all texts and the new numbers."""
        numbers = self.add_all(texts)
        if len(numbers):
            blocks.append(Block(name, int(numbers[0]), int(numbers[-1]) + 1))
            before = before.followed_by(texts)
        return before, numbers

    def first_words_of_missing(self, texts: TextColumn) -> set[str]:
        """Return the first words of those of these texts that have no number yet."""
        missing: set[str] = set()
        for some in texts.arrays():
            new = [row for row, digest in enumerate(text_digests(some)) if digest not in self.id_of_text]
            missing |= {first_word(some[row].as_py()) for row in new}
        return missing

    def place(self, texts: TextColumn, *, skips_blank: bool = False) -> tuple[Ids, TextColumn]:
        """Return the number of every text, -1 for None and for blank ones if wanted, and those that had none before."""
        places: list[int] = []
        missing: list[pa.Array] = []
        num_missing = 0
        for some in texts.arrays():
            digests: list[bytes | None] = list(text_digests(some))
            for row in blank_rows(some, only_none=not skips_blank):
                digests[row] = None
            unseen: dict[bytes, int] = {}
            for row, digest in enumerate(digests):
                if digest is not None and digest not in self.id_of_text:
                    unseen.setdefault(digest, row)
            if unseen:
                new = some if len(unseen) == len(some) else some.take(pa.array(list(unseen.values())))
                self.add(new, list(unseen))
                missing.append(new)
                num_missing += len(new)
            places += [-1 if digest is None else self.id_of_text[digest] for digest in digests]
        all_texts = texts.in_one_piece() if num_missing == len(texts) else TextColumn.of_arrays(missing)
        return int64(places), all_texts

    def know_titles(self, given: GivenCorpus, missing: set[str]) -> None:
        """Let a document with its title in front, and its body without it, count as that document.

        Args:
            given: The corpus.
            missing: The first words of positives that the corpus lacks.
        """
        key_of = IDENTITIES[self.identity]
        for corpus_id, (title, text) in enumerate(given.titles_and_texts()):
            for form in other_forms(title, text, missing):
                self.first_with_key.setdefault(key_of(form), self.identities[corpus_id])
