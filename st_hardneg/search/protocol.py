"""What a searcher has to offer, and the check of what one returns."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from st_hardneg.candidates import is_repeated


@runtime_checkable
class Searcher(Protocol):
    """Anything that finds the nearest corpus texts of a query. Two methods, no base class.

    One that has an attribute ``is_exact`` which is True finds all of them; of others, the recall is sampled at each mining
    and stands in the report. One that has a number ``queries_at_once`` is asked for up to so many queries at a time, ahead
    of the chunks in which they are mined, because fewer of them cost it as much; others are asked chunk by chunk.
    """

    def index(self, corpus_embeddings: Tensor, similarity_fn_name: str) -> None:
        """Take in the corpus; what was indexed before is forgotten.

        Args:
            corpus_embeddings: float of shape ``(num_corpus, dim)``.
            similarity_fn_name: The model's similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
        """

    def search(self, query_embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the ``k`` nearest corpus rows of each query.

        Args:
            query_embeddings: float of shape ``(num_queries, dim)``.
            k: How many to return.

        Returns:
            Row numbers, int64, and scores, float32, both of shape ``(num_queries, k)``, closest first. A score is
            a similarity, higher is closer. Missing places have the number -1 and the score -inf.
        """


def checked_search(searcher: Searcher, query_embeddings: Tensor, k: int, num_corpus: int) -> tuple[Tensor, Tensor]:
    """Search, and make sure that the answer is one.

    Returns:
        Row numbers, int64, and scores, float32, both of shape ``(num_queries, k)`` on the CPU, ordered by score, then
        by the lower number.

    Raises:
        ValueError: If shapes, numbers or scores are not what :class:`Searcher` promises.
    """
    ids, scores = searcher.search(query_embeddings, k)
    ids = torch.as_tensor(ids).cpu()
    if ids.dtype.is_floating_point:
        raise ValueError(
            f"Expected {type(searcher).__name__}.search to return ids first, as integers, then scores, got {ids.dtype}."
        )
    ids = ids.long()
    scores = torch.as_tensor(scores).cpu().float()
    shape = (len(query_embeddings), k)
    name = type(searcher).__name__
    if tuple(ids.shape) != shape or tuple(scores.shape) != shape:
        raise ValueError(
            f"Expected {name}.search to return ids and scores of shape {shape}, got {tuple(ids.shape)} and "
            f"{tuple(scores.shape)}. Pad missing places with id -1 and score -inf."
        )
    if len(ids) and (int(ids.min()) < -1 or int(ids.max()) >= num_corpus):
        raise ValueError(
            f"Expected {name}.search to return ids in [0, {num_corpus}) or -1, got ids from {int(ids.min())} to "
            f"{int(ids.max())}. Return row numbers of the indexed corpus."
        )
    scores = scores.masked_fill(ids < 0, -torch.inf)
    if bool(scores.isnan().any()):
        raise ValueError(f"Expected {name}.search to return scores that are numbers, got NaN. Check its similarity.")
    # Most searchers return most rows in order already, and sorting takes as long as many a search.
    is_ordered = (scores[:, :-1] > scores[:, 1:]) | (ids[:, 1:] < 0)
    rows = (~is_ordered).any(dim=1).nonzero().flatten()
    if len(rows):
        ids = ids.clone()  # the searcher's own, maybe
        ids[rows], scores[rows] = _ordered(ids[rows], scores[rows], num_corpus)
    # A text that a searcher returns twice counts at its better place.
    again = is_repeated(ids)
    return ids.masked_fill(again, -1), scores.masked_fill(again, -torch.inf)


def _ordered(ids: Tensor, scores: Tensor, num_corpus: int) -> tuple[Tensor, Tensor]:
    by_id = ids.masked_fill(ids < 0, num_corpus).argsort(dim=1, stable=True)
    by_score = scores.gather(1, by_id).argsort(dim=1, descending=True, stable=True)
    order = by_id.gather(1, by_score)
    return ids.gather(1, order), scores.gather(1, order)
