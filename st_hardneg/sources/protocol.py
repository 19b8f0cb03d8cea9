"""What a source has to offer: proposals for queries. One method, no base class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from st_hardneg.candidates import is_repeated
from st_hardneg.corpus.numbering import Corpus


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries that a source is asked for; ``q`` of them.

    Args:
        ids: int64 of shape ``(q,)``.
        embeddings: float32 of shape ``(q, dim)``: their vectors.
        draw_keys: int64 of shape ``(q,)``: what stands for each in random draws.
        read_texts: Returns their texts.
    """

    ids: Tensor
    embeddings: Tensor
    draw_keys: Tensor
    read_texts: Callable[[], list[str]]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def texts(self) -> list[str]:
        """Their texts."""
        return self.read_texts()


@dataclass(frozen=True)
class Plan:
    """How much is asked of a source.

    Args:
        depth: How many candidates to propose for each query. The anchor, known positives and what the rules remove are
            taken out afterwards, so it is more than are wanted.
        num_negatives: How many negatives are wanted of it.
        seed: The recipe's seed.
        refresh: How many times the queries were mined before.
        reach: int64 of shape ``(q,)``: how many candidates each query needs, ``depth`` being the most of them; None
            where all need as many.
    """

    depth: int
    num_negatives: int
    seed: int = 0
    refresh: int = 0
    reach: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a source proposes, best first; as many queries as were asked for, ``k`` places each or lists of any length.

    Args:
        ids: Corpus ids: rows of ``hard_negatives.corpus``, an int64 tensor of shape ``(q, k)`` with -1 for none, or a list
            per query. Or the corpus's own ids, as strings.
        scores: Scores of the source's own, in the same layout, if it has some; they go into the provenance.
        similarities: float32 of shape ``(q, k)``: the model's similarity, if the source has computed it.
        sources: int8 of shape ``(q, k)``: where each comes from, if not from one source.
        is_ranked: Whether the order means something, so that the rank window and the sampling strategy apply.
        keeps_order: Whether a cross encoder's scores leave the order as it is.
        are_rows: Whether integers are certainly row numbers, should the corpus have integers of its own as ids.
    """

    ids: Tensor | Sequence[Sequence[int | str]]
    scores: Tensor | Sequence[Sequence[float]] | None = None
    similarities: Tensor | None = None
    sources: Tensor | None = None
    is_ranked: bool = True
    keeps_order: bool = False
    are_rows: bool = False


@runtime_checkable
class Source(Protocol):
    """Anything that proposes candidates for queries: a search engine, a vector database, a file of candidates."""

    def propose(self, queries: Queries, plan: Plan) -> Proposal | Sequence[Sequence[int | str]]:
        """Return candidates for each query, best first.

        Args:
            queries: The queries.
            plan: How many are asked for.

        Returns:
            A :class:`Proposal`, or just a list of ids per query.
        """


def holds_other_numbers(corpus: Corpus) -> bool:
    """Tell whether a corpus has integers as ids that are not its row numbers."""
    if corpus.given is None or corpus.id_column is None:
        return False
    column = corpus.given.data.column(corpus.id_column)
    if not pa.types.is_integer(column.type):
        return False
    ids = corpus.given.with_format("numpy")[corpus.id_column][:]
    return not np.array_equal(ids, np.arange(len(ids)))


def checked_proposal(
    proposal: Any, queries: Queries, corpus: Corpus, name: str, row_of: dict[str, int], *, is_unclear: bool = False
) -> Proposal:
    """Return a caller's proposal as tensors, each text once.

    Args:
        proposal: What a source returned.
        queries: What it was asked for.
        corpus: The corpus that ids count.
        name: The source's name, for errors.
        row_of: The corpus id of each of the corpus's own ids.
        is_unclear: Whether integers could be these own ids as well as row numbers.

    Raises:
        TypeError: If it is no proposal.
        ValueError: If it is for another number of queries, names texts that are not there, or its integers are unclear.
    """
    if not isinstance(proposal, Proposal):
        proposal = Proposal(proposal)
    if isinstance(proposal.ids, Tensor):
        ids, scores = _rectangular(proposal, queries, name)
        has_integers = True
    else:
        ids, scores = _from_lists(proposal, queries, name, row_of)
        has_integers = any(not isinstance(one, str) for row in proposal.ids for one in row)
    if is_unclear and has_integers and not proposal.are_rows:
        raise ValueError(
            f"The source {name!r} proposes integers, and the corpus has integers in its column {corpus.id_column!r} that "
            "are not its row numbers. Propose these ids as strings, or say that row numbers are meant: "
            "`Proposal(ids, are_rows=True)`."
        )
    if ids.numel() and (int(ids.min()) < -1 or int(ids.max()) >= len(corpus)):
        raise ValueError(
            f"Expected the source {name!r} to propose ids in [0, {len(corpus):,}) or -1, got ids from {int(ids.min())} to "
            f"{int(ids.max())}. They are row numbers of `hard_negatives.corpus`; its own ids are strings."
        )
    identities = torch.from_numpy(corpus.identities)[ids.clamp(min=0)].masked_fill(ids < 0, -1)
    again = is_repeated(identities)
    ids = ids.masked_fill(again, -1)
    scores = None if scores is None else scores.masked_fill(ids < 0, torch.nan)
    return Proposal(ids, scores, None, None, proposal.is_ranked, True)


def _rectangular(proposal: Proposal, queries: Queries, name: str) -> tuple[Tensor, Tensor | None]:
    ids = proposal.ids
    assert isinstance(ids, Tensor)
    if ids.dim() != 2 or len(ids) != len(queries) or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"Expected the source {name!r} to propose an integer tensor of shape ({len(queries)}, k), got {ids.dtype} of "
            f"shape {tuple(ids.shape)}."
        )
    if proposal.scores is None:
        return ids.cpu().long(), None
    scores = torch.as_tensor(proposal.scores).float().cpu()
    if scores.shape != ids.shape:
        raise ValueError(
            f"Expected as many scores as ids from the source {name!r}, got {tuple(scores.shape)} and {tuple(ids.shape)}."
        )
    return ids.cpu().long(), scores


def _from_lists(
    proposal: Proposal, queries: Queries, name: str, row_of: dict[str, int]
) -> tuple[Tensor, Tensor | None]:
    try:
        rows = [list(row) for row in proposal.ids]
        scores = None if proposal.scores is None else [list(row) for row in proposal.scores]
    except TypeError:
        raise TypeError(
            f"Expected the source {name!r} to return a Proposal or a list of ids per query, got "
            f"{type(proposal.ids).__name__}."
        ) from None
    if len(rows) != len(queries):
        raise ValueError(f"Expected the source {name!r} to answer {len(queries)} queries, got {len(rows)} lists.")
    if scores is not None and [len(row) for row in scores] != [len(row) for row in rows]:
        raise ValueError(f"Expected the source {name!r} to give a score for each id, got lists of other lengths.")
    width = max(1, max((len(row) for row in rows), default=1))
    ids = np.full((len(rows), width), -1, dtype=np.int64)
    own = np.full((len(rows), width), np.nan, dtype=np.float32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = [_corpus_id(one, name, row_of) for one in row]
        if scores is not None:
            own[number, : len(row)] = scores[number]
    return torch.from_numpy(ids), None if scores is None else torch.from_numpy(own)


def _corpus_id(given: Any, name: str, row_of: dict[str, int]) -> int:
    if isinstance(given, str):
        if given not in row_of:
            raise ValueError(
                f"The source {name!r} proposes {given!r}, which is no id of the corpus. Give the corpus a column `_id` "
                "that holds the source's ids, or propose row numbers."
            )
        return row_of[given]
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise TypeError(f"Expected row numbers or ids as strings from the source {name!r}, got {given!r}.")
    return int(given)
