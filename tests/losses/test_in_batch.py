"""Which candidates the rows of a batch have, against loops over pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim
from torch import Tensor

from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss
from st_hardneg.losses.in_batch import RankedBatch, RankedRows
from st_hardneg.losses.labels import RowLabels
from st_hardneg.pairs import KnownPositives

DIRECTIONS: Any = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
NEGATIVES: Any = ("all_negatives", "hard_negatives", "in_batch_negatives")


def _ranked(label: Tensor, num_negatives: int) -> RankedBatch:
    columns = list(torch.zeros(2 + num_negatives, len(label), 3))
    return RankedBatch.from_columns(columns, RowLabels.parse(label, len(label), num_negatives).text_ids)


class _Loop:
    """What the masks should say about one pair of a row and a candidate, from Python numbers."""

    def __init__(self, label: Tensor, known: KnownPositives) -> None:
        self.label = label.tolist()
        self.identities = known.identities.tolist()
        keys = known.keys.tolist()
        self.pairs = {(key // len(self.identities), key % len(self.identities)) for key in keys}

    def text(self, column: int, of: int) -> int:
        return self.label[of][2 if column == 0 else 3 + column]

    def right(self, row: int, column: int, of: int) -> bool:
        text = self.text(column, of)
        return text >= 0 and (self.label[row][1], self.identities[text]) in self.pairs

    def is_itself(self, direction: str, row: int, column: int, of: int) -> bool:
        return of == row and (column == 0 or direction == "doc_to_doc")

    def is_answer(self, direction: str, row: int, column: int, of: int) -> bool:
        shares = column == 0 and (self.right(row, 0, of) or self.right(of, 0, row))
        found = {
            "query_to_doc": self.right(row, column, of),
            "query_to_query": shares,
            "doc_to_query": self.right(of, 0, row),
            "doc_to_doc": self.right(row, column, of) or shares,
        }[direction]
        return found and not self.is_itself(direction, row, column, of)

    def is_unfilled(self, direction: str, row: int, column: int, of: int) -> bool:
        return self.text(column, of) == -1 and not self.is_itself(direction, row, column, of)

    def is_negative(self, which: str, direction: str, row: int, column: int, of: int) -> bool:
        is_in_own_columns = direction == "query_to_doc" and of == row and column > 0
        allowed = {
            "all_negatives": True,
            "hard_negatives": is_in_own_columns,
            "in_batch_negatives": not is_in_own_columns,
        }[which]
        return allowed and not self.is_itself(direction, row, column, of)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("num_negatives", [0, 1, 3])
@pytest.mark.parametrize(("begin", "end"), [(0, 7), (2, 5), (6, 7)])
def test_masks_equal_a_loop(
    random_ids: Callable[..., tuple[Tensor, KnownPositives]], direction: Any, num_negatives: int, begin: int, end: int
) -> None:
    """Right answers, unfilled slots, kinds of negatives and their number are those of a loop over pairs."""
    width = 1 + num_negatives if direction in ("query_to_doc", "doc_to_doc") else 1
    candidates = list(itertools.product(range(width), range(7)))
    for seed in range(4):
        label, known = random_ids(7, num_negatives, seed)
        loop = _Loop(label, known)
        rows = RankedRows(_ranked(label, num_negatives), begin, end)

        def matrix(decide: Callable[..., bool]) -> list[list[bool]]:
            return [[decide(direction, row, *candidate) for candidate in candidates] for row in range(begin, end)]

        unfilled = rows.unfilled(direction)
        assert unfilled is not None
        assert unfilled.tolist() == matrix(loop.is_unfilled)
        assert rows.right_answers(known, DIRECTIONS)[direction].tolist() == matrix(loop.is_answer)
        assert rows.itself(direction).tolist() == matrix(loop.is_itself)
        for which in NEGATIVES:
            assert rows.negatives(direction, which).tolist() == matrix(partial(loop.is_negative, which))
        negatives = matrix(partial(loop.is_negative, "all_negatives"))
        assert rows.num_negatives(direction) == sum(map(sum, negatives))


def test_one_direction_is_enough(random_ids: Callable[..., tuple[Tensor, KnownPositives]]) -> None:
    """Asked for one direction, the right answers are those of that direction among four."""
    label, known = random_ids(7, 2)
    rows = RankedRows(_ranked(label, 2), 1, 6)
    (answers,) = rows.right_answers(known, DIRECTIONS[:1]).values()
    assert torch.equal(answers, rows.right_answers(known, DIRECTIONS)["query_to_doc"])


def test_without_ids_nothing_is_known() -> None:
    """A batch without ids has no right answers and no unfilled slots."""
    rows = RankedRows(RankedBatch.from_columns(list(torch.zeros(3, 4, 2)), None), 0, 4)
    known = KnownPositives.from_lists([[0]], identities=[0])
    assert rows.right_answers(known, DIRECTIONS) == {}
    assert all(rows.unfilled(direction) is None for direction in DIRECTIONS)


@pytest.mark.parametrize("has_known_positives", [True, False])
def test_equals_pytorch_metric_learning(
    static_model: SentenceTransformer,
    random_ids: Callable[..., tuple[Tensor, KnownPositives]],
    has_known_positives: bool,
) -> None:
    """The loss is an independent InfoNCE over the pairs that a loop keeps."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    theirs = losses.NTXentLoss(temperature=1 / 20, distance=distances.CosineSimilarity())
    for seed in range(5):
        batch_size, num_negatives = 6, 3
        label, known = random_ids(batch_size, num_negatives, seed)
        label[:, 3] = 10**6
        generator = torch.Generator().manual_seed(seed)
        columns = [torch.randn(batch_size, 8, generator=generator).requires_grad_() for _ in range(2 + num_negatives)]
        texts = torch.cat([label[:, 2], label[:, 4:].T.reshape(-1)]).tolist()
        kept = [
            (row, batch_size + place)
            for row in range(batch_size)
            for place, text in enumerate(texts)
            if place != row
            and text != -1
            and not (has_known_positives and known.is_positive(label[row : row + 1, 1], torch.tensor([text])).item())
        ]
        assert len(kept) < batch_size * (len(texts) - 1)
        rows = torch.arange(batch_size)
        indices = (rows, rows + batch_size, *torch.tensor(kept).T)
        embeddings = torch.cat(columns)
        expected = theirs(embeddings, indices_tuple=indices)
        ours = SemiHardMultipleNegativesRankingLoss(
            static_model,
            similarity_fct=cos_sim,
            mask_hard=False,
            known_positives=known if has_known_positives else None,
        )
        value = ours.compute_loss_from_embeddings(columns, label)
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
        results = (torch.autograd.grad(loss, columns) for loss in (value, expected))
        for our_gradient, their_gradient in zip(*results, strict=True):
            torch.testing.assert_close(our_gradient, their_gradient, atol=1e-5, rtol=1e-4)
