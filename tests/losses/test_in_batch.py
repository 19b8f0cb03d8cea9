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

from st_hardneg.corpus.pairs import KnownPositives
from st_hardneg.losses import SemiHardMultipleNegativesRankingLoss, in_batch
from st_hardneg.losses.in_batch import RankedBatch, RankedRows
from st_hardneg.losses.labels import RowLabels

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


def test_masks_are_on_the_device_of_the_embeddings() -> None:
    """Nothing is put on the default device."""
    batch = RankedBatch.from_columns(list(torch.zeros(3, 4, 2, device="meta")), torch.zeros(4, 3, device="meta"))
    rows = RankedRows(batch, 1, 3)
    masks = [rows.own, rows.rows, *(rows.itself(direction) for direction in DIRECTIONS)]
    assert {mask.device.type for mask in masks} == {"meta"}


def _gather(
    monkeypatch: pytest.MonkeyPatch, ranks: list[tuple[list[Tensor], Tensor | None, KnownPositives | None]]
) -> list[RankedBatch]:
    """Let every rank gather, in one process: once to hear what each hands over, once to give it all to each."""
    handed_over: list[list[Tensor]] = []
    for rank in range(len(ranks)):
        calls: list[Tensor] = []
        monkeypatch.setattr(in_batch, "all_gather", lambda tensor, calls=calls: calls.append(tensor) or tensor)
        monkeypatch.setattr(in_batch, "all_gather_with_grad", in_batch.all_gather)
        RankedBatch.gathered(*ranks[rank])
        handed_over.append(calls)
    assert len({len(calls) for calls in handed_over}) == 1, "a rank that gathers less often makes the others wait"
    batches = []
    for rank in range(len(ranks)):
        world = iter([torch.cat(tensors) for tensors in zip(*handed_over, strict=True)])
        monkeypatch.setattr(in_batch, "all_gather", lambda tensor, world=world: next(world))
        monkeypatch.setattr(in_batch, "all_gather_with_grad", in_batch.all_gather)
        monkeypatch.setattr(in_batch, "get_rank", lambda rank=rank: rank)
        batches.append(RankedBatch.gathered(*ranks[rank]))
    return batches


def _columns(rank: int) -> list[Tensor]:
    return list(torch.arange(18.0).reshape(3, 3, 2) + 100 * rank)


IDS = torch.tensor([[0, 1, -1], [1, 2, 0], [0, 1, 2]])
KNOWN = KnownPositives.from_lists([[1], [2]], identities=[0, 1, 2])


def test_all_devices_have_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one numbering, each device has all embeddings and ids, and knows which rows are its own."""
    other_ids = torch.tensor([[1, 2, -1], [1, 2, -1], [0, 1, 0]])
    for known in (None, KNOWN):
        batches = _gather(monkeypatch, [(_columns(0), IDS, known), (_columns(1), other_ids, known)])
        for rank, batch in enumerate(batches):
            columns = [torch.cat(pair) for pair in zip(_columns(0), _columns(1), strict=True)]
            assert torch.equal(batch.queries, columns[0])
            assert torch.equal(batch.documents, torch.cat(columns[1:]))
            assert batch.query_ids.tolist() == [0, 1, 0, 1, 1, 0]
            assert batch.document_ids.tolist() == [1, 2, 1, 2, 2, 1, -1, 0, 2, -1, -1, 0]
            assert batch.offset == 3 * rank


@pytest.mark.parametrize(
    "other",
    [
        None,
        KnownPositives.from_lists([[1], [2]], identities=[0, 1, 2, 3]),
        KnownPositives.from_lists([[1], [2]], identities=[0, 1, 1]),
        KnownPositives.from_lists([[1], [0]], identities=[0, 1, 2]),
    ],
)
def test_ids_of_another_numbering_are_unknown(monkeypatch: pytest.MonkeyPatch, other: KnownPositives | None) -> None:
    """The ids of a device with other right answers say nothing here, except that a slot is unfilled."""
    batches = _gather(monkeypatch, [(_columns(0), IDS, KNOWN), (_columns(1), IDS, other)])
    assert batches[0].query_ids.tolist() == [0, 1, 0, -2, -2, -2]
    assert batches[0].document_ids.tolist() == [1, 2, 1, -2, -2, -2, -1, 0, 2, -1, -2, -2]
    assert batches[1].query_ids.tolist() == [-2, -2, -2, 0, 1, 0]
    rows = RankedRows(batches[0], 0, 3)
    assert not any(mask[:, 3:6].any() for mask in rows.right_answers(KNOWN, DIRECTIONS).values())
    assert rows.unfilled("query_to_doc").sum(dim=0).tolist() == [0] * 6 + [3, 0, 0, 3, 0, 0]


def test_a_device_without_ids_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its texts are unknown to the others, whether it has right answers or not."""
    for known in (None, KNOWN):
        batches = _gather(monkeypatch, [(_columns(0), IDS, KNOWN), (_columns(1), None, known)])
        for batch in batches:
            assert batch.query_ids.tolist()[3:] == [-2] * 3
            assert batch.document_ids.tolist()[3:6] == batch.document_ids.tolist()[9:] == [-2] * 3


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
