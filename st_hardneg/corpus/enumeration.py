"""Counting texts: the number of each, which are the same, and those that have none yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from st_hardneg.corpus.digests import Digests, FirstIds, digests_of_bytes, first_rows
from st_hardneg.corpus.given import GivenCorpus, first_word, other_forms
from st_hardneg.corpus.identity import IDENTITIES, draw_keys, identity_keys, text_digests
from st_hardneg.corpus.texts import Ids, TextColumn, blank_rows_of


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
    """Numbers texts from ``start`` on and remembers which are the same.

    Args:
        texts: The lowest number of each exact text, by digest.
        firsts: The lowest number of each text identity, by its key.
        start: The first number to give.
        identity: The kind of identity, a key of :data:`~st_hardneg.corpus.identity.IDENTITIES`.
    """

    def __init__(self, texts: FirstIds, firsts: FirstIds, start: int, identity: str) -> None:
        self.texts, self.firsts, self.start = texts, firsts, start
        self.identity = identity
        self.identities: Ids = int64([])
        self.unique_texts: Ids = int64([])
        self.draw_keys: Ids = int64([])

    def number(self, digests: Digests, keys: Digests) -> Ids:
        """Number texts, each anew, and return their numbers.

        Args:
            digests: Of the texts, of shape ``(m, 2)``.
            keys: Their identity keys, of the same shape.
        """
        first = self.start + len(self.identities)
        numbers = np.arange(first, first + len(digests), dtype=np.int64)
        self.texts, same_text = self.texts.followed_by(digests, numbers)
        self.firsts, identities = self.firsts.followed_by(keys, numbers)
        self.unique_texts = np.concatenate([self.unique_texts, numbers[same_text == numbers]])
        self.identities = np.concatenate([self.identities, identities])
        self.draw_keys = np.concatenate([self.draw_keys, draw_keys(keys)])
        return numbers

    def append(self, texts: TextColumn, name: str, before: TextColumn, blocks: list[Block]) -> tuple[TextColumn, Ids]:
        """Number these texts, each anew, note their block, and return all texts and the new numbers."""
        digests = [text_digests(some) for some in texts.arrays()]
        numbers = self.number(joined(digests), joined(self._keys(some) for some in texts.arrays()))
        if len(numbers):
            blocks.append(Block(name, int(numbers[0]), int(numbers[-1]) + 1))
            before = before.followed_by(texts)
        return before, numbers

    def _keys(self, texts: pa.Array) -> Digests:
        return identity_keys(texts, self.identity)

    def first_words_of_missing(self, texts: TextColumn) -> set[str]:
        """Return the first words of those of these texts that have no number yet."""
        missing: set[str] = set()
        for some in texts.arrays():
            new = np.flatnonzero(self.texts.find(text_digests(some)) < 0)
            missing |= {first_word(some[row].as_py()) for row in new.tolist()}
        return missing

    def place(self, texts: TextColumn, *, skips_blank: bool = False) -> tuple[Ids, TextColumn]:
        """Return the number of every text, -1 for None and for blank ones if wanted, and those that had none before."""
        digests = joined(text_digests(some) for some in texts.arrays())
        blank = int64(blank_rows_of(texts, only_none=not skips_blank))
        places = self.texts.find(digests)
        is_new = places < 0
        is_new[blank] = False
        rows = np.flatnonzero(is_new)
        new = rows[first_rows(digests[rows])[0]]
        missing = texts.in_one_piece() if len(new) == len(texts) else TextColumn.of_arrays([texts.array(new)])
        self.number(digests[new], joined(self._keys(some) for some in missing.arrays()))
        places[rows] = self.texts.find(digests[rows])
        places[blank] = -1
        return places, missing

    def know_titles(self, given: GivenCorpus, missing: set[str]) -> None:
        """Let a document with its title in front, and its body without it, count as that document.

        Args:
            given: The corpus.
            missing: The first words of positives that the corpus lacks.
        """
        key_of = IDENTITIES[self.identity]
        keys: list[bytes] = []
        documents: list[int] = []
        for corpus_id, (title, text) in enumerate(given.titles_and_texts()):
            forms = other_forms(title, text, missing)
            keys += [key_of(form) for form in forms]
            documents += [corpus_id] * len(forms)
        self.firsts, _ = self.firsts.followed_by(digests_of_bytes(keys), self.identities[int64(documents)])


def joined(digests: Iterable[Digests]) -> Digests:
    """Return digests in one array."""
    return np.concatenate([np.empty((0, 2), dtype=np.uint64), *digests])
