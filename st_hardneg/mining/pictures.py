"""What a report draws: histograms, doubt, diversity, near-duplicates and a map, of a sample that bounds the cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import Negatives
from st_hardneg.encoders.vectors import Vectors
from st_hardneg.mining.filters import RULES
from st_hardneg.mining.pool import StoredScoring
from st_hardneg.mining.risk import Suspects, most_doubtful
from st_hardneg.mining.scoring import Scoring

# Queries that are looked at, those whose vectors are, and those that are on the map.
_QUERIES = 500
_OF_VECTORS = 250
_ON_MAP = 150
_BINS = 40
_CLUSTERS = 20
_COMPONENTS = 16
_POSITIVES = 8
_FOR_CHANCE = 500
_SHOWN = 10
_COMPARED = 40
_LONGEST = 20_000
# Cosine from which two texts are near-duplicates.
NEAR = 0.95


def pictures(
    scoring: Scoring, negatives: Negatives, suspects: Suspects, removed: Mapping[str, int], names: tuple[str, ...]
) -> dict[str, Any]:
    """Return what a report draws, as plain JSON values; without vectors, what the scores of candidates tell.

    Args:
        scoring: Scores and vectors, or candidates that were kept.
        negatives: What was found, query by query.
        suspects: What lies closest to right answers.
        removed: What each rule removed.
        names: What the numbers of sources stand for.
    """
    count = scoring.pairs.num_queries
    queries = torch.from_numpy(np.unique(np.linspace(0, count - 1, min(_QUERIES, count)).round().astype(np.int64)))
    some = negatives.rows(queries)
    drawn = {"histograms": histograms(scoring, negatives), "sampled_queries": len(queries)}
    drawn["repeats"] = _repeats(negatives)
    if (closeness := _closeness(scoring, queries, some.ids)) is not None:
        drawn["risk"] = _risk(scoring, queries, some, closeness, removed, names)
    few = torch.linspace(0, len(queries) - 1, min(_OF_VECTORS, len(queries))).round().long()
    if not isinstance(scoring, StoredScoring):
        drawn |= _of_vectors(scoring, queries[few], some.rows(few))
    if not len(suspects.query_ids) and closeness is not None:  # no rule has compared candidates with right answers
        suspects = _closest_in_use(scoring, queries, some)
    return drawn | {"doubtful": _doubtful(scoring, negatives, suspects)}


def histograms(scoring: Scoring, negatives: Negatives) -> dict[str, dict[str, Any]]:
    """Return how the scores of positives and negatives, and their differences, are spread."""
    scores = negatives.scores.masked_fill(~negatives.is_present, torch.nan)
    difference = scoring.lowest_positive_scores[:, None] - scores
    both = torch.cat([scoring.row_scores.flatten(), scores.flatten()])
    both = both[both.isfinite()]
    edges = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    return {
        "positive": _counts(scoring.row_scores, edges),
        "negative": _counts(scores, edges),
        "difference": _counts(difference, None),
    }


def _counts(values: Tensor, edges: tuple[float, float] | None) -> dict[str, Any]:
    values = values[values.isfinite()].float().cpu()
    if edges is None:
        edges = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    # Scores that are all the same, but for how they were rounded, have bins of their own width.
    is_wide = edges[1] - edges[0] > 1e-6 * max(1.0, abs(edges[0]), abs(edges[1]))
    low, high = edges if is_wide else (edges[0] - 0.5, edges[1] + 0.5)
    counts, _ = np.histogram(values.numpy(), bins=_BINS, range=(low, high))
    return {"low": low, "high": high, "counts": counts.tolist()}


def _nearest_positive(scoring: Scoring, queries: Tensor, ids: Tensor, sample: Vectors | None = None) -> Tensor:
    """Return how similar texts, of shape ``(q, n)``, are to the nearest of their query's first positives.

    Args:
        scoring: Scores and vectors.
        queries: int64 of shape ``(q,)``.
        ids: int64 of shape ``(q, n)``.
        sample: A sample of the searched texts, to count from chance.
    """
    pairs = scoring.pairs
    offsets, groups = torch.from_numpy(pairs.positive_offsets), torch.from_numpy(pairs.group)[queries]
    nearest = torch.full(ids.shape, -torch.inf)
    for number in range(_POSITIVES):
        has = (offsets[groups + 1] - offsets[groups] > number).nonzero().flatten()
        if not len(has):
            break
        positives = torch.from_numpy(pairs.positive_ids)[offsets[groups[has]] + number]
        similarity = scoring.vectors.similarity_among_texts(positives, ids[has])
        if sample is not None:
            similarity = similarity - sample.chance(scoring.vectors.of_texts(positives.numpy()))[:, None]
        nearest[has] = torch.maximum(nearest[has], similarity)
    return nearest


def _sample_of_texts(scoring: Scoring) -> Vectors:
    """Return the vectors with a sample of the searched texts in place of all."""
    ids = scoring.corpus.searched
    some = ids[np.linspace(0, len(ids) - 1, min(_FOR_CHANCE, len(ids))).round().astype(np.int64)]
    return replace(scoring.vectors, searched=scoring.vectors.of_texts(some))


def _closeness(scoring: Scoring, queries: Tensor, ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return how close texts, of shape ``(q, n)``, are to the nearest right answer, and how close the anchors are.

    Both are counted from chance: over all texts where that is known already, else over a sample.

    Returns:
        Tensors of shape ``(q, n)`` and ``(q,)``; None for candidates of which nobody has measured it.
    """
    of_anchors = scoring.lowest_positive_similarities[queries]
    if isinstance(scoring, StoredScoring):
        to_positives = scoring.to_positives(queries, ids)
        chance = None if scoring.pool is None else scoring.pool.chance
        if to_positives is None or chance is None:
            return None
        return to_positives[1], of_anchors - chance[queries]
    sample = _sample_of_texts(scoring)
    chance = sample.chance(scoring.vectors.of_queries(queries))
    return _nearest_positive(scoring, queries, ids, sample), of_anchors - chance


def _risk(
    scoring: Scoring,
    queries: Tensor,
    some: Negatives,
    closeness: tuple[Tensor, Tensor],
    removed: Mapping[str, int],
    names: tuple[str, ...],
) -> dict[str, Any]:
    """Return which negatives in use look like right answers, why, and from which source they are."""
    there = some.is_present
    outranks = there & (some.scores >= scoring.lowest_positive_scores[queries][:, None])
    above_chance, of_anchor = closeness
    is_close = there & (above_chance > of_anchor.clamp(min=0.0)[:, None])
    is_doubtful = outranks | is_close
    by_source = {}
    for code in some.sources[there].unique().tolist():
        of_source = there & (some.sources == code)
        by_source[names[code]] = float(is_doubtful[of_source].float().mean())
    total = max(1, int(there.sum()))
    return {
        "share": float(is_doubtful.sum()) / total,
        "reasons": {
            "scores at least as high as a right answer": float(outranks.sum()) / total,
            "closer to a right answer than its anchor is": float(is_close.sum()) / total,
        },
        "by_source": by_source,
        "held_off": {name: count for name, count in removed.items() if name in RULES and RULES[name].guards},
    }


def _repeats(negatives: Negatives) -> dict[str, Any]:
    """Return how often texts are used."""
    ids = negatives.ids[negatives.is_present]
    texts, counts = ids.unique(return_counts=True)
    return {
        "slots": len(ids),
        "texts": len(texts),
        "most_used": int(counts.max()) if len(counts) else 0,
        "tenth": float(counts.sort(descending=True).values[: max(1, len(counts) // 10)].sum()) / max(1, len(ids)),
    }


def _of_vectors(scoring: Scoring, queries: Tensor, some: Negatives) -> dict[str, Any]:
    """Return diversity, topical consistency, near-duplicates and the map; nothing for vectors that are not dense."""
    pairs, vectors = scoring.pairs, scoring.vectors
    first = torch.from_numpy(pairs.row_positive[pairs.first_row])[queries]
    slots = some.ids[some.is_present]
    texts = torch.cat([first, slots])
    anchors, found = vectors.of_queries(queries), vectors.of_texts(texts.numpy())
    if not (isinstance(anchors, Tensor) and isinstance(found, Tensor) and found.layout == torch.strided) or not len(
        slots
    ):
        return {}
    anchors, found = (torch.nn.functional.normalize(one.detach().float().cpu(), dim=1) for one in (anchors, found))
    positives, others = found[: len(queries)], found[len(queries) :]
    owner = some.is_present.nonzero()[:, 0]
    return {
        "topics": _topics(anchors, positives, others),
        "near_duplicates": _near_duplicates(positives, others, owner),
        "map": _map(anchors, positives, others, owner),
    }


def _topics(anchors: Tensor, positives: Tensor, others: Tensor) -> dict[str, Any]:
    """Cluster the texts: how evenly negatives are spread, and how often a right answer is in its anchor's cluster."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    number = min(_CLUSTERS, max(2, len(positives) // 5), len(positives) + len(others))
    texts = torch.cat([positives, others])
    # From random texts: centres that are chosen with care take five times as long as the clustering.
    means_of = KMeans(number, init="random", n_init=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the same text many times makes fewer clusters
        topics = torch.from_numpy(means_of.fit_predict(texts.numpy())).long()
    means = torch.zeros(number, positives.shape[1]).index_add_(0, topics, texts)
    of_anchors = (anchors @ torch.nn.functional.normalize(means, dim=1).T).argmax(dim=1)
    spread = torch.bincount(topics[len(positives) :], minlength=number).double()
    shares, expected = spread / spread.sum(), torch.bincount(topics[: len(positives)], minlength=number).double()
    expected = expected / expected.sum()
    entropy = float(-(shares * shares.clamp(min=1e-12).log()).sum())
    anchor_shares = torch.bincount(of_anchors, minlength=number).double() / len(of_anchors)
    return {
        "clusters": number,
        "entropy": entropy / math.log(number),
        "negatives": sorted(shares.tolist(), reverse=True),
        "consistency": float((of_anchors == topics[: len(positives)]).float().mean()),
        "chance": float((expected * anchor_shares).sum()),
    }


def _near_duplicates(positives: Tensor, others: Tensor, owner: Tensor) -> dict[str, Any]:
    """Count the negatives that nearly repeat another one of their row, or its right answer."""
    # Row by row: one product for all would take memory by the square of rows times negatives.
    is_near = []
    for row in others.split(torch.bincount(owner)[torch.unique_consecutive(owner)].tolist()):
        alike = row @ row.T >= NEAR
        is_near.append(alike.fill_diagonal_(False).any(dim=1))
    return {
        "cosine": NEAR,
        "of_another": float(torch.cat(is_near).float().mean()),
        "of_the_positive": float(((others * positives[owner]).sum(dim=1) >= NEAR).float().mean()),
    }


def _map(anchors: Tensor, positives: Tensor, others: Tensor, owner: Tensor) -> dict[str, Any]:
    """Return the principal components of some anchors, their positives and their hardest negatives."""
    shown = torch.arange(len(anchors))[:: max(1, -(-len(anchors) // _ON_MAP))]
    firsts = torch.full((len(anchors),), -1).scatter_reduce(
        0, owner, torch.arange(len(owner)), "amin", include_self=False
    )
    first = firsts[shown]
    groups = {"anchors": anchors[shown], "positives": positives[shown], "negatives": others[first[first >= 0]]}
    every = torch.cat(list(groups.values()))
    centered = every - every.mean(dim=0)
    # Twice as fast as a singular value decomposition.
    variance, directions = torch.linalg.eigh(centered.T @ centered)
    variance, directions = variance.flip(0).clamp(min=0.0), directions.T.flip(0)
    # The sign of a direction is arbitrary: the largest entry is made positive, so that a map is the same each time.
    directions = directions[:_COMPONENTS]
    directions = directions * directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    points = (centered @ directions.T).tolist()
    placed: dict[str, Any] = {"explained": float(variance[:2].sum() / variance.sum().clamp(min=1e-12))}
    for name, part in groups.items():
        placed[name] = [[round(value, 4) for value in point] for point in points[: len(part)]]
        points = points[len(part) :]
    return placed


def _closest_in_use(scoring: Scoring, queries: Tensor, some: Negatives) -> Suspects:
    """Return the negatives in use that lie closest to a right answer."""
    if isinstance(scoring, StoredScoring):
        nearest = (scoring.to_positives(queries, some.ids) or (torch.full(some.ids.shape, -torch.inf),))[0]
    else:
        nearest = _nearest_positive(scoring, queries, some.ids)
    nearest = nearest.masked_fill(~some.is_present, -torch.inf)
    places = nearest.flatten().argsort(descending=True, stable=True)[:_COMPARED]
    places = places[~nearest.flatten()[places].isneginf()]
    owners = queries[:, None].expand(nearest.shape).flatten()
    return Suspects(owners[places], some.ids.flatten()[places], nearest.flatten()[places])


def _doubtful(scoring: Scoring, negatives: Negatives, suspects: Suspects) -> list[dict[str, Any]]:
    """Return the texts that are most likely right answers nobody has labelled, and whether they are in use."""
    pairs, texts = scoring.pairs, scoring.corpus.texts
    queries, ids = suspects.query_ids[:_COMPARED], suspects.corpus_ids[:_COMPARED]
    if not len(queries):
        return []
    anchors = pairs.anchors.take(pairs.first_row[queries.numpy()])
    positives = [texts.take(pairs.positives_of(query)[:_POSITIVES]) for query in queries.tolist()]
    found = list(zip(anchors, positives, texts.take(ids.numpy()), suspects.closeness.tolist(), strict=False))
    in_use = (negatives.ids[queries] == ids[:, None]).any(dim=1)
    score = scoring.vectors.similarity_of_pairs(queries, ids[:, None]).flatten()
    right = scoring.lowest_positive_similarities[queries]
    return [
        {
            "anchor": found[place][0][:_LONGEST],
            "positive": found[place][1][0][:_LONGEST],
            "text": found[place][2][:_LONGEST],
            "closeness": round(found[place][3], 4),
            "score": round(float(score[place]), 4),
            "positive_score": round(float(right[place]), 4),
            "in_use": bool(in_use[place]),
        }
        for place in most_doubtful(found, _SHOWN)
    ]
