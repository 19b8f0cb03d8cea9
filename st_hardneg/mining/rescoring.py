"""Scores of (query, text) pairs by a cross encoder: each distinct pair once, kept while its weights stand."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.dense import as_found
from st_hardneg.encoders.fingerprint import recipe_fingerprint, weights_fingerprint
from st_hardneg.errors import MiningError, naming

# Pairs whose scores are kept from mining to mining (600 MB); above that, only those of the last mining are.
_MOST_KEPT = 50_000_000


def cross_encoder_scores(
    cross_encoder: Any, pairs: Sequence[tuple[str, str]], batch_size: int, pool: Any = None
) -> Tensor:
    """Score (query, text) pairs; a pair that stands there twice is scored once, and pairs of like length together.

    Args:
        cross_encoder: A CrossEncoder with one output.
        pairs: The pairs.
        batch_size: Pairs scored at once.
        pool: A multi-process pool of the cross encoder's.

    Returns:
        float32 of shape ``(len(pairs),)``, in the units of the model: ``max_score``, ``min_score`` and the margins are
        compared with these.

    Raises:
        MiningError: If the model does not give one finite number per pair.
    """
    if not pairs:
        return torch.empty(0)
    place: dict[tuple[str, str], int] = {}
    places = [place.setdefault(pair, len(place)) for pair in pairs]
    distinct = list(place)
    # Padding costs as much as text. One `predict` for all lets the model sort by itself, but not every one does.
    lengths = np.array([len(query) + len(text) for query, text in distinct])
    order = np.argsort(-lengths, kind="stable")
    scores = torch.empty(len(distinct))
    scores[torch.from_numpy(order)] = _predicted(cross_encoder, [distinct[i] for i in order], batch_size, pool)
    return scores[torch.tensor(places)]


def _predicted(cross_encoder: Any, pairs: list[tuple[str, str]], batch_size: int, pool: Any) -> Tensor:
    arguments = {} if pool is None else {"pool": pool}
    with as_found(cross_encoder), naming("the cross encoder's `predict`"):
        scores = cross_encoder.predict(
            pairs, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False, **arguments
        )
    if scores is None:
        raise MiningError("Expected the cross encoder's `predict` to return scores, got None.")
    scores = torch.as_tensor(scores).float().cpu()
    if scores.dim() == 2 and scores.shape[1] == 1:
        scores = scores.squeeze(1)
    if tuple(scores.shape) != (len(pairs),):
        raise MiningError(
            f"Expected the cross encoder to give one score per pair, got shape {tuple(scores.shape)} for "
            f"{len(pairs)} pairs. Use a model with `num_labels=1`."
        )
    if not bool(scores.isfinite().all()):
        bad = pairs[int((~scores.isfinite()).nonzero()[0])]
        raise MiningError(f"Expected finite scores from the cross encoder, got NaN or infinity for {bad!r}.")
    return scores


class PairScores:
    """Scores of pairs of a query and a corpus text, by number; what was scored once is looked up from then on.

    Args:
        num_corpus: How many texts there are.
        score: Scores pairs that are all different: ``(query_ids, corpus_ids) -> float32 (m,)``.
    """

    def __init__(self, num_corpus: int, score: Callable[[Ids, Ids], Tensor]) -> None:
        self._num_corpus, self._score = num_corpus, score
        # Sorted keys and their scores, in parts each of which is more than twice as large as the next.
        self._parts: list[tuple[Ids, Tensor]] = []

    def __call__(self, query_ids: Tensor, corpus_ids: Tensor) -> Tensor:
        """Return the scores of pairs, int64 of shape ``(m,)`` each, as float32 of shape ``(m,)``."""
        keys, place = np.unique(query_ids.numpy() * self._num_corpus + corpus_ids.numpy(), return_inverse=True)
        scores, is_new = torch.empty(len(keys)), np.ones(len(keys), dtype=bool)
        for kept, values in self._parts:
            found = np.searchsorted(kept, keys).clip(max=len(kept) - 1)
            is_there = kept[found] == keys
            scores[torch.from_numpy(is_there)] = values[torch.from_numpy(found[is_there])]
            is_new &= ~is_there
        if is_new.any():
            new = keys[is_new]
            values = self._score(*np.divmod(new, self._num_corpus))
            scores[torch.from_numpy(is_new)] = values
            self._keep(new, values)
        return scores[torch.from_numpy(place.reshape(-1))]

    def _keep(self, keys: Ids, values: Tensor) -> None:
        if sum(len(kept) for kept, _ in self._parts) > _MOST_KEPT:
            self._parts = []
        while self._parts and len(self._parts[-1][0]) <= 2 * len(keys):
            others, their_values = self._parts.pop()
            keys, values = np.concatenate([others, keys]), torch.cat([their_values, values])
            order = np.argsort(keys, kind="stable")
            keys, values = keys[order], values[torch.from_numpy(order)]
        self._parts.append((keys, values))


def rescorer(
    cross_encoder: Any,
    pairs: Pairs,
    corpus: Corpus,
    *,
    batch_size: int,
    pool: Any = None,
    kept: MutableMapping[str, Any] | None = None,
    name: str = "cross encoder",
) -> PairScores:
    """Return what scores queries and texts by number.

    Args:
        cross_encoder: A CrossEncoder with one output.
        pairs: The queries.
        corpus: The texts.
        batch_size: Pairs scored at once.
        pool: A multi-process pool of the cross encoder's.
        kept: What outlives a mining; scores are kept there as long as the cross encoder stays the same. None for one that
            is being trained.
        name: What they are kept as.
    """

    def score(query_ids: Ids, corpus_ids: Ids) -> Tensor:
        queries = pairs.anchors.take(pairs.first_row[query_ids])
        texts = corpus.texts.take(corpus_ids)
        return cross_encoder_scores(cross_encoder, list(zip(queries, texts, strict=True)), batch_size, pool)

    return kept_scores(kept, name, scorer_fingerprint(cross_encoder), PairScores(len(corpus), score))


def kept_scores(kept: MutableMapping[str, Any] | None, name: str, fingerprint: object, empty: PairScores) -> PairScores:
    """Return the scores that something with this fingerprint has given before, or else the empty ones."""
    if kept is None:
        return empty
    if kept.get(name, (None,))[0] != fingerprint:
        kept[name] = (fingerprint, empty)
    scores: PairScores = kept[name][1]
    return scores


def scorer_fingerprint(cross_encoder: Any) -> object:
    """Return what identifies a cross encoder; one whose weights cannot be seen, such as a service, is taken to stay."""
    if not isinstance(cross_encoder, nn.Module):
        return cross_encoder
    settings = [repr(getattr(cross_encoder, name, None)) for name in ("activation_fn", "config")]
    # Adapters that are switched off leave no trace in the weights.
    switches = [getattr(module, "disable_adapters", None) for module in cross_encoder.modules()]
    settings.append(repr([switch for switch in switches if isinstance(switch, bool)]))
    return recipe_fingerprint(weights_fingerprint(cross_encoder), settings)
