"""Easy, semi-hard, hard: the only definition in the package, as functions of scores and a margin.

With ``p`` the score of a query and its positive, ``n`` the score of the query and a negative, and ``m`` a margin::

    negative score n
    ────────────┬──────────────────┬────────────▶
       easy     │    semi-hard     │    hard
                p − m              p

A hard negative scores at least as high as the positive; a semi-hard one stays below it by at most the margin; an easy
one is further away. A score is a similarity, higher is closer: for a distance pass its negative. Two definitions of
the outer edge are in use, and both are here:

* ``"half-open"`` (default): ``0 < p - n <= m`` on the scores themselves, usually cosines. A negative exactly at the
  margin is semi-hard. This is what the triplet miners of pytorch-metric-learning call semi-hard.
* ``"facenet"``: ``d²(a, p) < d²(a, n) < d²(a, p) + m`` on squared L2 distances of unit vectors, where
  ``d² = 2 - 2 cos``; equation 4 of `FaceNet <https://huggingface.co/papers/1503.03832>`_. A negative exactly at the
  margin is easy. The paper's margin of 0.2 is a difference of 0.1 in cosine.

In both a negative that ties with the positive is hard.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

from torch import Tensor

HardnessDefinition: TypeAlias = Literal["half-open", "facenet"]


def is_hard(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """Tell which negatives score at least as high as their positive.

    Args:
        positive_scores: Scores of any shape that broadcasts with ``negative_scores``, such as ``(num_queries, 1)``.
        negative_scores: Scores of any shape, such as ``(num_queries, num_negatives)``.

    Returns:
        Boolean tensor of the broadcast shape.

    Example:
        >>> import torch
        >>> is_hard(torch.tensor([[0.75]]), torch.tensor([[0.875, 0.75, 0.5]])).tolist()
        [[True, True, False]]
    """
    return negative_scores >= positive_scores


def is_easy(
    positive_scores: Tensor,
    negative_scores: Tensor,
    margin: float,
    definition: HardnessDefinition = "half-open",
) -> Tensor:
    """Tell which negatives lie beyond the margin, too far from the query to teach much.

    Args:
        positive_scores: Scores of any shape that broadcasts with ``negative_scores``, such as ``(num_queries, 1)``.
        negative_scores: Scores of any shape, such as ``(num_queries, num_negatives)``.
        margin: Width of the semi-hard band, at least 0: in units of the score for ``"half-open"``, in units of the
            squared L2 distance for ``"facenet"``.
        definition: Which outer edge to use, see the module's text. ``"facenet"`` expects cosines.

    Returns:
        Boolean tensor of the broadcast shape.

    Raises:
        ValueError: If ``margin`` is negative or not a number, or ``definition`` is unknown.

    Example:
        >>> import torch
        >>> is_easy(torch.tensor(0.75), torch.tensor([0.625, 0.5, 0.25]), margin=0.25).tolist()
        [False, False, True]
    """
    check_margin(margin)
    check_definition(definition)
    gap = positive_scores - negative_scores
    if definition == "half-open":
        return gap > margin
    # At a margin of 0 the open band is empty and its outer edge is the positive itself: a tie stays hard.
    return (2 * gap >= margin) & (gap > 0)


def is_semi_hard(
    positive_scores: Tensor,
    negative_scores: Tensor,
    margin: float,
    definition: HardnessDefinition = "half-open",
) -> Tensor:
    """Tell which negatives score below their positive, by no more than the margin.

    Args:
        positive_scores: Scores of any shape that broadcasts with ``negative_scores``, such as ``(num_queries, 1)``.
        negative_scores: Scores of any shape, such as ``(num_queries, num_negatives)``.
        margin: Width of the semi-hard band, at least 0: in units of the score for ``"half-open"``, in units of the
            squared L2 distance for ``"facenet"``.
        definition: Which outer edge to use, see the module's text. ``"facenet"`` expects cosines.

    Returns:
        Boolean tensor of the broadcast shape. Every negative with a score is exactly one of hard, semi-hard and easy.

    Raises:
        ValueError: If ``margin`` is negative or not a number, or ``definition`` is unknown.

    Example:
        >>> import torch
        >>> is_semi_hard(torch.tensor(0.75), torch.tensor([0.875, 0.75, 0.625, 0.5, 0.25]), margin=0.25).tolist()
        [False, False, True, True, False]
        >>> is_semi_hard(torch.tensor(0.75), torch.tensor([0.625, 0.5]), margin=0.5, definition="facenet").tolist()
        [True, False]
    """
    check_margin(margin)
    check_definition(definition)
    gap = positive_scores - negative_scores
    return (gap > 0) & ((gap <= margin) if definition == "half-open" else (2 * gap < margin))


def hardness_shares(
    positive_scores: Tensor,
    negative_scores: Tensor,
    margin: float,
    definition: HardnessDefinition = "half-open",
) -> dict[str, float]:
    """Return which fraction of the negatives is easy, semi-hard and hard.

    Args:
        positive_scores: Scores of any shape that broadcasts with ``negative_scores``, such as ``(num_queries, 1)``.
        negative_scores: Scores of any shape; NaN stands for "no negative" and is not counted.
        margin: Width of the semi-hard band, at least 0.
        definition: Which outer edge to use, see the module's text.

    Returns:
        The shares under ``"easy"``, ``"semi_hard"`` and ``"hard"``: they sum to 1, or are all 0 if there is nothing
        to count.

    Raises:
        ValueError: If ``margin`` is negative or not a number, or ``definition`` is unknown.

    Example:
        >>> import torch
        >>> hardness_shares(torch.tensor([[0.75]]), torch.tensor([[0.875, 0.5, 0.25, float("nan")]]), margin=0.25)
        {'easy': 0.3333333333333333, 'semi_hard': 0.3333333333333333, 'hard': 0.3333333333333333}
    """
    counts = {
        "easy": int(is_easy(positive_scores, negative_scores, margin, definition).sum()),
        "semi_hard": int(is_semi_hard(positive_scores, negative_scores, margin, definition).sum()),
        "hard": int(is_hard(positive_scores, negative_scores).sum()),
    }
    total = max(sum(counts.values()), 1)
    return {name: count / total for name, count in counts.items()}


def check_margin(margin: float, name: str = "margin") -> None:
    """Raise unless a margin is a number of at least 0.

    Args:
        margin: The width of a semi-hard band. Infinity is allowed: then nothing is easy.
        name: The parameter's name, for the message.

    Raises:
        ValueError: If ``margin`` is negative or not a number.
    """
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or math.isnan(margin) or margin < 0:
        raise ValueError(
            f"Expected `{name}`, the width of the semi-hard band, to be a number of at least 0. Got {margin!r}. "
            "Pass a width in units of the score, such as 0.1."
        )


def check_definition(definition: str) -> None:
    """Raise unless a definition of the semi-hard band is one of those offered.

    Args:
        definition: The name of a definition.

    Raises:
        ValueError: If ``definition`` is unknown.
    """
    if definition not in get_args(HardnessDefinition):
        raise ValueError(
            f"Expected `definition` to be one of {list(get_args(HardnessDefinition))}. Got {definition!r}. "
            "Use 'half-open' unless you reproduce FaceNet's numbers."
        )
