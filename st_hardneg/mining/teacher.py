"""A teacher's scores of what was mined, for losses that learn from them: only pairs that are new are scored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from st_hardneg.candidates import Negatives
from st_hardneg.corpus.texts import Ids, distinct_ids
from st_hardneg.encoders import Encoder, Encoding, Encodings, encoder_for
from st_hardneg.encoders.fingerprint import MAX_PROBES
from st_hardneg.encoders.rows import concatenated
from st_hardneg.mining.rescoring import PairScores, kept_scores, rescorer
from st_hardneg.mining.task import Task

_NAME = "teacher"
# Pairs compared at once.
_BLOCK = 4_096


def taught(task: Task, negatives: Negatives) -> tuple[Negatives, Tensor | None]:
    """Return the negatives with the teacher's scores, and those of the positives, float32 of shape ``(num_rows,)``.

    Without a teacher, they are returned as they are, and None.

    Args:
        task: What is mined.
        negatives: The negatives of every query.
    """
    if task.teacher is None:
        return negatives, None
    score = _scorer(task)
    pairs = task.pairs
    of_positives = score(torch.from_numpy(pairs.row_query), torch.from_numpy(pairs.row_positive))
    queries, slots = negatives.is_present.nonzero(as_tuple=True)
    scores = torch.full(negatives.ids.shape, torch.nan)
    scores[queries, slots] = score(queries, negatives.ids[queries, slots])
    return replace(negatives, teacher_scores=scores), of_positives


def _scorer(task: Task) -> PairScores:
    if callable(getattr(task.teacher, "predict", None)):
        return rescorer(task.teacher, task.pairs, task.corpus, batch_size=task.batch_size, kept=task.kept, name=_NAME)
    own = Encodings(Encoding("query", batch_size=task.batch_size), Encoding("document", batch_size=task.batch_size))
    encoder = encoder_for(task.teacher, own)
    fingerprint = encoder.fingerprint(task.pairs.anchors.take(task.pairs.first_row[:MAX_PROBES]))
    empty = PairScores(len(task.corpus), _Similarities(task, encoder))
    return kept_scores(task.kept, _NAME, task.teacher if fingerprint is None else fingerprint, empty)


class _Similarities:
    """A model's similarity of queries and texts, each of which is encoded once, when it is first asked for."""

    def __init__(self, task: Task, encoder: Encoder) -> None:
        self._encoder = encoder
        self._read_queries = lambda ids: task.pairs.anchors.take(task.pairs.first_row[ids])
        self._read_texts = task.corpus.texts.take
        self._queries = np.full(task.pairs.num_queries, -1, dtype=np.int64)
        self._texts = np.full(len(task.corpus), -1, dtype=np.int64)
        self._vectors: dict[str, Any] = {}

    def __call__(self, query_ids: Ids, corpus_ids: Ids) -> Tensor:
        self._encode("queries", self._queries, query_ids)
        self._encode("texts", self._texts, corpus_ids)
        left, right = torch.from_numpy(self._queries[query_ids]), torch.from_numpy(self._texts[corpus_ids])
        similarities = [
            self._encoder.pairwise(self._at("queries", some), self._at("texts", others)).float().cpu()
            for some, others in zip(left.split(_BLOCK), right.split(_BLOCK), strict=True)
        ]
        return torch.cat(similarities)

    def _at(self, kind: str, places: Tensor) -> Any:
        vectors = self._vectors[kind]
        return vectors[places.to(vectors.device)]

    def _encode(self, kind: str, place: Ids, ids: Ids) -> None:
        """Encode those that have no place yet, and give them one."""
        new = distinct_ids(ids[place[ids] < 0])
        if not len(new):
            return
        before = self._vectors.get(kind)
        place[new] = np.arange(len(new)) + (0 if before is None else len(before))
        if kind == "queries":
            parts = [self._encoder.queries(self._read_queries(new))]
        else:
            parts = list(self._encoder.corpus(self._read_texts(new)))
        self._vectors[kind] = concatenated([*([] if before is None else [before]), *parts])
