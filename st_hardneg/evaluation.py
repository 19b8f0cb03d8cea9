"""What the evaluators of Sentence Transformers lack: does a positive outrank all of its negatives, who is near whom."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.evaluation import BaseEvaluator

_BLOCK = 1_024


class OutranksEvaluator(BaseEvaluator):
    """Tells for how many rows the positive scores above all of its negatives, and by how much above the hardest one.

    ``TripletEvaluator`` looks at one negative at a time: a row with ten of them may win nine times and still be wrong.
    Models of all four kinds can be evaluated.

    Args:
        anchors: The anchors.
        positives: The positive of each.
        negatives: The negatives of each, one or more.
        name: Goes before the names of the metrics.
        batch_size: Texts encoded at once.

    Raises:
        ValueError: If the lists are of different lengths or empty, or a row has no negative.
    """

    def __init__(
        self,
        anchors: Sequence[str],
        positives: Sequence[str],
        negatives: Sequence[Sequence[str]],
        *,
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        if not len(anchors) == len(positives) == len(negatives) or not len(anchors):
            raise ValueError(
                f"Expected as many anchors, positives and lists of negatives, and at least one, got {len(anchors):,}, "
                f"{len(positives):,} and {len(negatives):,}."
            )
        if lacking := [row for row, some in enumerate(negatives) if not len(some)]:
            raise ValueError(f"Expected a negative in every row, got none in row {lacking[0]}. Leave such rows out.")
        self.anchors, self.positives, self.negatives = (
            list(anchors),
            list(positives),
            [list(some) for some in negatives],
        )
        self.name, self.batch_size = name, batch_size
        self.primary_metric = "outranks_all"

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return ``outranks_all``, the share of rows, and ``margin_to_hardest``, the mean difference of scores."""
        texts = [*self.positives, *(text for some in self.negatives for text in some)]
        count = len(self.anchors)
        lengths = torch.tensor([len(some) for some in self.negatives])
        owner = torch.arange(count).repeat_interleave(lengths)
        scores = _scores(model, self.anchors, texts, torch.cat([torch.arange(count), owner]), self.batch_size)
        right, wrong = scores[:count], scores[count:]
        hardest = torch.full((count,), -torch.inf).scatter_reduce(0, owner, wrong, "amax")
        margin = right - hardest
        metrics = {
            "outranks_all": float((margin > 0).float().mean()),
            "margin_to_hardest": float(margin.mean()),
        }
        return _named(self, metrics)


class NeighbourEvaluator(BaseEvaluator):
    """Looks whether the nearest neighbours of a text are those that people call similar; chance stands beside it.

    Args:
        pairs: Texts that were compared: two texts, and whether they are similar.
        top_k: How many neighbours are looked at.
        name: Goes before the names of the metrics.
        batch_size: Texts encoded at once.

    Raises:
        ValueError: If no pair is similar, or a number of neighbours is below 1.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[str, str, bool]],
        *,
        top_k: Sequence[int] = (1, 5, 10),
        name: str = "",
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        numbers: dict[str, int] = {}
        found = [(numbers.setdefault(a, len(numbers)), numbers.setdefault(b, len(numbers)), bool(is_similar))
                 for a, b, is_similar in pairs]  # fmt: skip
        self.texts = list(numbers)
        both_ways = [(a, b, similar) for a, b, similar in found if a != b]
        both_ways += [(b, a, similar) for a, b, similar in both_ways]
        self.similar = {(a, b) for a, b, similar in both_ways if similar}
        self.dissimilar = {(a, b) for a, b, similar in both_ways if not similar} - self.similar
        if not self.similar:
            raise ValueError("Expected pairs of different texts that are similar, got none. Label some with 1.")
        if not top_k or min(top_k) < 1:
            raise ValueError(f"Expected `top_k` to hold numbers from 1 up, got {list(top_k)}.")
        self.top_k, self.name, self.batch_size = tuple(top_k), name, batch_size
        self.primary_metric = f"neighbour_accuracy@{self.top_k[0]}"

    @property
    def chance(self) -> dict[int, float]:
        """The accuracy of neighbours that are drawn at random, by how many are looked at.

        Of ``n`` others of which ``s`` are similar, none of ``k`` drawn is with probability ``C(n-s, k) / C(n, k)``.
        """
        others = len(self.texts) - 1
        _, counts = np.unique([a for a, _ in self.similar], return_counts=True)
        return {
            k: float(np.mean([1.0 - math.comb(others - s, k) / math.comb(others, k) for s in counts.tolist()]))
            if k < others
            else 1.0
            for k in self.top_k
        }

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return ``neighbour_accuracy@k`` and ``neighbour_chance@k``, and how often a dissimilar text is the nearest."""
        nearest = self._nearest(model)
        owners = sorted({a for a, _ in self.similar})
        metrics = {}
        for k in self.top_k:
            hits = [any((a, b) in self.similar for b in nearest[a][:k]) for a in owners]
            metrics[f"neighbour_accuracy@{k}"] = sum(hits) / len(hits)
        metrics |= {f"neighbour_chance@{k}": share for k, share in self.chance.items()}
        judged = sorted({a for a, _ in self.dissimilar})
        if judged:
            wrong = sum((a, nearest[a][0]) in self.dissimilar for a in judged)
            metrics["nearest_is_dissimilar"] = wrong / len(judged)
        return _named(self, metrics)

    def _nearest(self, model: Any) -> list[list[int]]:
        """Return the nearest other texts of each text, best first."""
        vectors = _encoded(model.encode_document, self.texts, self.batch_size)
        width = min(max(self.top_k), len(self.texts) - 1)
        found: list[list[int]] = []
        for start in range(0, len(vectors), _BLOCK):
            scores = model.similarity(vectors[start : start + _BLOCK], vectors).float().cpu()
            rows = torch.arange(len(scores))
            scores[rows, rows + start] = -torch.inf
            found += scores.argsort(dim=1, descending=True, stable=True)[:, :width].tolist()
        return found


def _named(evaluator: Any, metrics: dict[str, float]) -> dict[str, float]:
    named: dict[str, float] = evaluator.prefix_name_to_metrics(metrics, evaluator.name)
    return named


def _scores(model: Any, queries: list[str], texts: list[str], owner: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Return the score of each text with its query, float32 of shape ``(len(texts),)``.

    Args:
        model: A model of any kind.
        queries: The queries.
        texts: The texts.
        owner: Which query each text is compared with.
        batch_size: Texts or pairs at once.
    """
    kind = kind_of(model)
    if kind == "CrossEncoder":
        pairs = [(queries[number], text) for number, text in zip(owner.tolist(), texts, strict=True)]
        scores = model.predict(pairs, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
        return scores.float().cpu()
    # Token vectors come as a list of matrices, which differ in their lengths.
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
    if kind != "MultiVectorEncoder":
        options["convert_to_tensor"] = True
    vectors, documents = model.encode_query(queries, **options), model.encode_document(texts, **options)
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.index_select(0, owner.to(vectors.device))
    else:
        vectors = [vectors[number] for number in owner.tolist()]
    return torch.as_tensor(model.similarity_pairwise(vectors, documents)).float().cpu()


def _encoded(encode: Callable[..., Any], texts: list[str], batch_size: int) -> Any:
    return encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)


# --- evaluators of Sentence Transformers, for a model of any kind -----------------------------------------------------

EVALUATORS = {
    "SparseEncoder": ("sparse_encoder", "Sparse"),
    "CrossEncoder": ("cross_encoder", "CrossEncoder"),
    "MultiVectorEncoder": ("multi_vector_encoder", "MultiVector"),
}
"""Where the evaluators of a kind of model stand in Sentence Transformers, and what their names begin with."""


def kind_of(model: object) -> str:
    """Return the name of the class of models that a model is of; empty for one that encodes a text to one vector."""
    return next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in EVALUATORS), "")


def for_any_model(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> BaseEvaluator:
    """Return an evaluator of Sentence Transformers that hands models of other kinds to the evaluator of their kind.

    Args:
        name: The name of the evaluator's class, such as ``"TripletEvaluator"``.
        arguments: Its data.
        options: Its further arguments.
    """
    from sentence_transformers.sentence_transformer import evaluation

    base: Any = getattr(evaluation, name)

    class Evaluator(base):
        def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            if not (kind := kind_of(model)):
                return super().__call__(model, *args, **kwargs)
            found = _of_kind(kind, name)(*arguments, **options)
            metrics = found(model, *args, **kwargs)
            self.primary_metric = found.primary_metric
            return metrics

    Evaluator.__name__, Evaluator.__qualname__, Evaluator.__module__ = base.__name__, base.__qualname__, base.__module__
    made: BaseEvaluator = Evaluator(*arguments, **options)
    return made


def _of_kind(kind: str, name: str) -> Any:
    """Return the class of an evaluator.

    Raises:
        ValueError: If there is none for models of this kind.
    """
    module, prefix = EVALUATORS[kind]
    found = getattr(importlib.import_module(f"sentence_transformers.{module}.evaluation"), f"{prefix}{name}", None)
    if found is None:
        raise ValueError(
            f"Sentence Transformers has no {name} for a {kind}, which scores pairs of texts. Evaluate it with "
            '`to_evaluator("reranking")` or `to_evaluator("outranks")`.'
        )
    return found
