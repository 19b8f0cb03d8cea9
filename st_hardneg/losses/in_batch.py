"""Who is whose candidate when the rows of a batch are ranked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from st_hardneg.pairs import KnownPositives

Direction: TypeAlias = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
Negatives: TypeAlias = Literal["all_negatives", "hard_negatives", "in_batch_negatives"]


@dataclass(frozen=True)
class RankedBatch:
    """The embeddings that are ranked against each other, of all devices if gathered, and which texts they are.

    Args:
        queries: Anchors, of shape ``(world, dim)``, where ``world`` is the batch size times the number of devices
            gathered from.
        documents: All positives, then all first negatives, and so on, of shape ``(world * num_columns, dim)``.
        offset: Position of this device's first row in ``queries``.
        query_ids: int64 of shape ``(world,)``, or None if nothing is masked by identity.
        document_ids: int64 corpus ids of shape ``(world * num_columns,)``, or None.
    """

    queries: Tensor
    documents: Tensor
    offset: int
    query_ids: Tensor | None = None
    document_ids: Tensor | None = None


class RankedRows:
    """Some rows of this device, and what all candidates are to them.

    Every mask has a row for each of them and a column for each candidate in the direction asked for: documents for
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
        """Mark what is no negative because it belongs to the row itself."""
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
        """Read a mask of documents in a direction; an anchor goes with the positive of its row."""
        is_to_doc = direction in ("query_to_doc", "doc_to_doc")
        return documents if is_to_doc else documents[:, : len(self.batch.queries)]

    def right_answers(self, known: KnownPositives, directions: Sequence[Direction]) -> dict[Direction, Tensor]:
        """Mark the negatives that by their ids are none.

        A document is right for an anchor if it is a known positive of it. Two rows share an answer if the positive of
        one is right for the anchor of the other: then their anchors are no negatives of each other, and neither are
        their positives.

        Args:
            known: The right answers, on the embeddings' device.
            directions: Which to look at.

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
