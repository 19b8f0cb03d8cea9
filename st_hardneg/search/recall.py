"""How much of the nearest texts an approximate search finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from st_hardneg.search.exact import ExactSearcher
from st_hardneg.search.protocol import Searcher, checked_search

_SAMPLE = 100
_NEAREST = 10


def sampled_recall(
    searcher: Searcher,
    queries: Any,
    corpus: Any,
    similarity_fn_name: str,
    score_function: Callable[[Any, Any], Tensor] | None = None,
) -> float:
    """Return which share of the nearest texts of a sample of queries is found.

    Args:
        searcher: A searcher that has indexed the corpus.
        queries: float32 of shape ``(num_queries, dim)``, or other rows; the sample is spread evenly over them.
        corpus: The same of shape ``(num_corpus, dim)``.
        similarity_fn_name: Name of the similarity.
        score_function: A similarity ``(q, dim), (c, dim) -> (q, c)`` in place of the one of this name, or None.

    Returns:
        Recall of the 10 nearest, from 0 to 1. A text that is as near as the tenth counts as found.
    """
    places = torch.linspace(0, len(queries) - 1, min(_SAMPLE, len(queries))).round().long()
    sample = queries[places.to(queries.device)]
    k = min(_NEAREST, len(corpus))
    exact: Any = ExactSearcher()
    if not isinstance(corpus, Tensor):
        exact = corpus.searcher(exact)
    if hasattr(exact, "score_function"):
        exact.score_function = score_function
    exact.index(corpus, similarity_fn_name)
    _, best = checked_search(exact, sample, k, len(corpus))
    _, found = checked_search(searcher, sample, k, len(corpus))
    as_near = found >= best[:, -1:] - best[:, -1:].abs() * 1e-4 - 1e-6
    return float(as_near.float().mean())
