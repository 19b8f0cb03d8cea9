"""Which texts are candidates for which rows when the rows of a batch are ranked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.hosts import all_gather, all_gather_with_grad, get_rank
from st_hardneg.losses.labels import UNFILLED

Direction: TypeAlias = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
Negatives: TypeAlias = Literal["all_negatives", "hard_negatives", "in_batch_negatives"]

_UNKNOWN = -2
"""Stands for an id from another numbering than that of this device. It is not a right answer to any query."""


@dataclass(frozen=True)
class RankedBatch:
    """The embeddings that are ranked against each other, of all devices if gathered, and which texts they are.

    Args:
        queries: Anchors, of shape ``(world, dim)``, where ``world`` is the batch size times the number of devices
            gathered from.
        documents: All positives, then all first negatives, and so on, of shape ``(world * num_columns, dim)``.
        offset: Position of this device's first row in ``queries``.
        query_ids: int64 of shape ``(world,)``, or None if the batch has no ids.
        document_ids: int64 corpus ids of shape ``(world * num_columns,)``, or None.
    """

    queries: Tensor
    documents: Tensor
    offset: int = 0
    query_ids: Tensor | None = None
    document_ids: Tensor | None = None

    @classmethod
    def from_columns(cls, columns: Sequence[Tensor], text_ids: Tensor | None, offset: int = 0) -> RankedBatch:
        """Put columns of embeddings together.

        Args:
            columns: Anchors, positives and negatives, each of shape ``(batch, dim)``.
            text_ids: int64 of shape ``(batch, num_columns)``: query, positive, negatives; or None.
            offset: Position of this device's first row.
        """
        queries, *documents = columns
        if text_ids is None:
            return cls(queries, torch.cat(documents), offset)
        return cls(queries, torch.cat(documents), offset, text_ids[:, 0], text_ids[:, 1:].T.reshape(-1))

    @classmethod
    def gathered(cls, columns: Sequence[Tensor], text_ids: Tensor | None, known: KnownPositives | None) -> RankedBatch:
        """Put the rows of all devices together.

        Args:
            columns: As in :meth:`from_columns`, of this device. Gradients flow back to every device.
            text_ids: As in :meth:`from_columns`, of this device.
            known: The right answers on this device.
        """
        world_ids = _gather_ids(columns, text_ids, known)
        world_columns = [all_gather_with_grad(column) for column in columns]
        return cls.from_columns(world_columns, world_ids, get_rank() * len(columns[0]))


def _gather_ids(columns: Sequence[Tensor], text_ids: Tensor | None, known: KnownPositives | None) -> Tensor:
    """Gather the ids of all devices, with ``_UNKNOWN`` in place of those from another numbering.

    Devices can have batches of different datasets at the same step. So a device without ids takes part, too, because
    the others would wait for it for ever; and the ids of each are compared only if both number the same texts.
    """
    if text_ids is None:
        text_ids = torch.full((len(columns[0]), len(columns)), _UNKNOWN, device=columns[0].device)
    numbering = text_ids.new_zeros(())
    if known is not None:
        numbering = len(known.identities) + known.identities.sum() + known.keys.sum()
    own = torch.column_stack([numbering.expand(len(text_ids)), text_ids])
    world = all_gather(own.contiguous())
    world_ids = world[:, 1:]
    readable = (world[:, :1] == numbering) | (world_ids == UNFILLED)
    return world_ids.where(readable, torch.full_like(world_ids, _UNKNOWN))


class RankedRows:
    """Some rows of this device, and what every candidate is to them.

    Each mask has one row for each of them and one column for each candidate in the given direction: documents for
    ``"query_to_doc"`` and ``"doc_to_doc"``, anchors for the other two.

    Args:
        batch: What is ranked.
        begin: First row of this device.
        end: The row after the last.
    """

    def __init__(self, batch: RankedBatch, begin: int, end: int) -> None:
        self.batch = batch
        world = len(batch.queries)
        self.own = torch.arange(batch.offset + begin, batch.offset + end, device=batch.queries.device)
        self.rows = torch.arange(end - begin, device=batch.queries.device)
        self._own_rows = torch.zeros(end - begin, world, dtype=torch.bool, device=batch.queries.device)
        self._own_rows[self.rows, self.own] = True
        self._own_documents = self._own_rows.repeat(1, len(batch.documents) // world)
        self._own_positives = functional.pad(self._own_rows, (0, self._own_documents.shape[1] - world))

    def itself(self, direction: Direction) -> Tensor:
        """Mark what is not a negative because it belongs to the row itself."""
        if direction == "query_to_doc":
            return self._own_positives
        return self._own_documents if direction == "doc_to_doc" else self._own_rows

    def num_negatives(self, direction: Direction) -> int:
        """Count the negatives of all rows together."""
        width = self.itself(direction).shape[1]
        per_row = width // len(self.batch.queries) if direction == "doc_to_doc" else 1
        return len(self.rows) * (width - per_row)

    def negatives(self, direction: Direction, which: Negatives) -> Tensor:
        """Mark the negatives of one kind: in the row's own columns, from other rows, or both."""
        if which == "all_negatives" or (which == "in_batch_negatives" and direction != "query_to_doc"):
            return ~self.itself(direction)
        if which == "in_batch_negatives":
            return ~self._own_documents
        if direction == "query_to_doc":
            return self._own_documents & ~self._own_positives
        return torch.zeros_like(self.itself(direction))

    def as_candidates(self, documents: Tensor, direction: Direction) -> Tensor:
        """Turn a mask of documents into one of candidates. An anchor is treated as the positive of its row is."""
        is_to_doc = direction in ("query_to_doc", "doc_to_doc")
        return documents if is_to_doc else documents[:, : len(self.batch.queries)]

    def unfilled(self, direction: Direction) -> Tensor | None:
        """Mark the documents, of any row, that only complete their row. Anchors never do.

        Returns:
            A mask, or None if the batch has no ids.
        """
        if self.batch.document_ids is None:
            return None
        if direction in ("query_to_query", "doc_to_query"):
            return torch.zeros_like(self._own_rows)
        return (self.batch.document_ids == UNFILLED) & ~self.itself(direction)

    def right_answers(self, known: KnownPositives, directions: Sequence[Direction]) -> dict[Direction, Tensor]:
        """Mark the candidates that are not negatives, going by their ids.

        A document is right for an anchor if it is a known positive of it. Two rows share an answer if the positive of
        one is right for the anchor of the other: then neither their anchors nor their positives are negatives of each
        other.

        Args:
            known: The right answers, on the embeddings' device.
            directions: The directions to return a mask for.

        Returns:
            A mask for each direction; empty if the batch has no ids.
        """
        query_ids, document_ids = self.batch.query_ids, self.batch.document_ids
        if query_ids is None or document_ids is None:
            return {}
        right = known.is_positive(query_ids[self.own], document_ids)
        answers: dict[Direction, Tensor] = {"query_to_doc": right & ~self._own_positives}
        if len(directions) > 1:
            world = len(query_ids)
            asked_by = known.is_positive(query_ids, document_ids[self.own]).T
            sharing = right[:, :world] | asked_by
            answers["query_to_query"] = sharing & ~self._own_rows
            answers["doc_to_query"] = asked_by & ~self._own_rows
            sharing_documents = functional.pad(sharing, (0, right.shape[1] - world))
            answers["doc_to_doc"] = (right | sharing_documents) & ~self._own_documents
        return answers
