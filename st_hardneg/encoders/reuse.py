"""Vectors that outlive a mining: of a corpus, only a share is encoded anew at a refresh, and the rest moves along."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from math import ceil
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.drift import Drift
from st_hardneg.encoders.fingerprint import recipe_fingerprint, texts_fingerprint
from st_hardneg.encoders.prompts import with_texts
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.room import fits
from st_hardneg.encoders.tokens import kept_tokens
from st_hardneg.encoders.vectors import stacked
from st_hardneg.errors import MiningError

# Vectors of a mining before a training are kept for its first refresh if they take no more than this.
_MAX_BYTES = 2**28
_MOST_PARTS = 20

_NAMES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class Reuse:
    """How much of a corpus is encoded anew.

    Args:
        share: From 0, nothing of it, to 1, all. Queries, and positives unless it is 0, always are.
        keeps_vectors: Whether the vectors are kept for the next mining.
    """

    share: float = 1.0
    keeps_vectors: bool = False

    @property
    def parts(self) -> tuple[int, int]:
        """Of how many parts of the corpus how many are encoded at each turn: 0.3 is (3, 10)."""
        exact = Fraction(self.share).limit_denominator(_MOST_PARTS)
        if not exact and self.share > 0:
            return 1, ceil(1 / self.share)
        return exact.numerator, exact.denominator


def name_of(model: Any) -> str | None:
    """Return what tells a model from others, whatever its weights are; None for an object that cannot be told."""
    try:
        return _NAMES.setdefault(model, uuid.uuid4().hex)
    except TypeError:
        return None


def give_name(model: Any, name: str | None) -> None:
    """Let a model, which another process has sent, go by the name that it has there."""
    if name is not None and model is not None:
        _NAMES[model] = name


@dataclass(eq=False)
class _Kept:
    """The vectors of some texts.

    Args:
        vectors: float32 of shape ``(num_texts, dim)``.
        encoded_at: int64 of shape ``(num_texts,)``: the step of each.
        turn: How many times a share was encoded.
    """

    vectors: Tensor
    encoded_at: Ids
    turn: int = 0


class ReusingEncoder:
    """An encoder that encodes a share of corpus texts anew, and has the other vectors from the time before.

    Args:
        encoder: The encoder.
        kept: Where vectors are kept.
        reuse: How much is encoded anew.
        step: The training's step; 0 before it.
        always: Texts that are always encoded, such as positives, from whose scores margins are measured.
        max_memory: GB that kept vectors may take; most of what is free if None.
    """

    def __init__(
        self,
        encoder: Encoder,
        kept: MutableMapping[str, Any],
        reuse: Reuse,
        step: int,
        always: Sequence[str] = (),
        max_memory: float | None = None,
    ) -> None:
        self.encoder, self.reuse, self.step, self.max_memory = encoder, reuse, step, max_memory
        self.similarity, self.pairwise, self.score_function = (
            encoder.similarity,
            encoder.pairwise,
            encoder.score_function,
        )
        self.num_encoded = 0
        self._num_bytes = 0
        self._always = frozenset(always)
        self._kept: dict[str, _Kept] = kept.get("vectors", {})
        self._new: dict[str, _Kept] = {}
        # What this mining does not ask for again is not kept any longer.
        kept["vectors"] = self._new
        self._ages: list[Ids] = []

    def keep_nothing(self) -> None:
        """Keep no vectors of texts that come in pieces, which are kept elsewhere and are never asked for again."""
        if self.reuse.share == 1:
            self.reuse = replace(self.reuse, keeps_vectors=False)

    @property
    def age(self) -> float | None:
        """Mean age of the vectors of the corpus in steps, or None where all are new."""
        ages = np.concatenate(self._ages) if self._ages else np.zeros(0)
        return None if self.reuse.share == 1 or not len(ages) else float(ages.mean())

    def queries(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Any:
        """Return the vectors of queries, which are always new."""
        self.num_encoded += len(texts)
        return self.encoder.queries(texts, show_progress_bar=show_progress_bar)

    def corpus(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Iterator[Any]:
        """Yield the vectors of corpus texts, new ones and kept ones, in one shard where some are kept."""
        is_wanted = self.reuse.keeps_vectors and self.reuse.share < 1 and bool(self._kept)
        key = self._key(texts) if is_wanted else ""
        found = self._kept.get(key) if is_wanted else None
        if found is None:
            shards = self._counted(self.encoder.corpus(texts, show_progress_bar=show_progress_bar))
            yield from self._keeping(texts, shards) if self.reuse.keeps_vectors else shards
            return
        texts, vectors = list(texts), found.vectors
        drift, is_old = Drift(vectors.shape[1]), torch.ones(len(texts), dtype=torch.bool)
        for rows in self._share_of(texts, found):
            some, places = [texts[row] for row in rows], torch.from_numpy(rows)
            shards = self._counted(self.encoder.corpus(some, show_progress_bar=show_progress_bar))
            new, there = stacked(shards, len(some)).to(vectors.device), places.to(vectors.device)
            with torch.inference_mode():  # which a model's vectors may come from
                drift.add(vectors[there], new)
                vectors[there] = new
            is_old[places], found.encoded_at[rows] = False, self.step
        with torch.inference_mode():
            drift.apply(vectors, is_old.nonzero().flatten().to(vectors.device))
        self._keep(key, replace(found, turn=found.turn + 1))
        yield found.vectors

    def _counted(self, shards: Iterator[Any]) -> Iterator[Any]:
        for shard in shards:
            self.num_encoded += len(shard)
            yield shard

    def fingerprint(self, probes: Sequence[str] = ()) -> str | None:
        """Return None: vectors of different times are nobody's."""
        return self.encoder.fingerprint(probes) if self.reuse.share == 1 else None

    def _key(self, texts: Sequence[str]) -> str:
        model, encodings = (getattr(self.encoder, name, None) for name in ("model", "encodings"))
        how = None if encodings is None else with_texts(model, encodings).corpus
        prompt = None if how is None else (how.task, how.prompt_name, how.prompt, how.normalize_embeddings)
        return recipe_fingerprint(texts_fingerprint(texts), prompt, name_of(model))

    def _keeping(self, texts: Sequence[str], shards: Iterator[Any]) -> Iterator[Any]:
        """Yield shards, put together, and keep them; before a training, if they are few enough."""
        first = next(shards, None)
        if first is None:
            return
        is_wanted = self.reuse.share < 1
        if is_wanted and not isinstance(first, Tensor):
            raise ValueError(
                "Expected a model with one dense vector per text, whose vectors can be kept from one refresh to the next, "
                f"got {type(first).__name__}. Leave out `corpus_refresh_fraction` and `refresh_scope`."
            )
        if is_wanted:
            check_room(len(texts), first.shape[1], self.max_memory)
        if not isinstance(first, Tensor) or not (is_wanted or self._has_room(len(texts) * first[0].nbytes)):
            yield from chain([first], shards)
            return
        vectors = stacked(chain([first], shards), len(texts))
        self._keep(self._key(texts), _Kept(vectors, np.full(len(texts), self.step, dtype=np.int64)))
        yield vectors

    def _has_room(self, num_bytes: int) -> bool:
        """Tell whether so much may be kept besides what is; if not, nothing is, since parts of a corpus are of no use."""
        self._num_bytes += num_bytes
        if self._num_bytes > min(_MAX_BYTES, math.inf if self.max_memory is None else 1e9 * self.max_memory):
            self._new.clear()
            return False
        return True

    def _keep(self, key: str, kept: _Kept) -> None:
        self._new[key] = kept
        self._ages.append(self.step - kept.encoded_at)

    def _share_of(self, texts: Sequence[str], kept: _Kept) -> list[Ids]:
        """Return the rows that are encoded at this turn, in parts that come again in later turns, each as it was."""
        count, parts = self.reuse.parts
        always = np.array([text in self._always for text in texts], dtype=bool)
        others = np.flatnonzero(~always)
        turns = [(kept.turn * count + number) % parts for number in range(count)]
        found = [np.flatnonzero(always), *(others[number::parts] for number in turns)]
        return [rows for rows in found if len(rows)]


def check_room(num_texts: int, dim: int, max_memory: float | None) -> None:
    """Raise if vectors that are kept from one refresh to the next do not fit into memory.

    Args:
        num_texts: How many texts.
        dim: Dimensions.
        max_memory: GB that they may take; most of what is free if None.

    Raises:
        MiningError: If so.
    """
    if not fits(num_texts, dim, max_memory):
        raise MiningError(
            f"The vectors of {num_texts:,} texts, {4 * num_texts * dim / 1e9:.2g} GB, do not fit into memory, where "
            "`corpus_refresh_fraction` and `refresh_scope` keep them from one refresh to the next. Leave these out, so "
            "that vectors are kept in `cache_folder`, or raise `max_memory`."
        )


@contextmanager
def reusing(
    encoder: Encoder,
    kept: MutableMapping[str, Any],
    reuse: Reuse | None,
    step: int | None,
    always: Callable[[], list[str]],
    max_memory: float | None = None,
) -> Iterator[ReusingEncoder]:
    """Give an encoder what earlier minings of a dataset have left: token ids, and vectors if they are asked for.

    Args:
        encoder: The encoder.
        kept: Where they are kept.
        reuse: How much is encoded anew; None for all.
        step: The training's step; None before one, whose vectors the first refresh may want.
        always: Returns the texts that are always encoded.
        max_memory: GB that kept vectors may take; most of what is free if None.
    """
    reuse = reuse or Reuse(keeps_vectors=step is None)
    with kept_tokens(getattr(encoder, "model", None), kept):
        some = always() if 0 < reuse.share < 1 else ()
        yield ReusingEncoder(encoder, kept, reuse, step or 0, some, max_memory)
