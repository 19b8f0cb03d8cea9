"""A probe: how far the negatives in force have fallen behind the model, from a sample of queries."""

from __future__ import annotations

import numpy as np
import torch

from st_hardneg.candidates import Mining
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.vectors import stacked

_SAMPLE = 256


def gap_growth(encoder: Encoder, pairs: Pairs, corpus: Corpus, mining: Mining, size: int = _SAMPLE) -> float:
    """Return by how much, in the mean, the gap between positive and negative has grown since the negatives were mined.

    In units of the similarity. 0 is a model that has not moved; as a model learns to tell its negatives from its
    positives, the gap grows.

    Args:
        encoder: The model of the moment.
        pairs: The queries.
        corpus: The corpus.
        mining: The negatives in force.
        size: How many queries to look at, spread evenly.
    """
    has_any = mining.negatives.is_present.any(dim=1).numpy()
    queries = np.flatnonzero(has_any)
    queries = queries[np.linspace(0, len(queries) - 1, min(size, len(queries))).round().astype(np.int64)]
    rows, negatives = pairs.first_row[queries], mining.negatives.rows(torch.from_numpy(queries))
    ids = torch.cat([torch.from_numpy(pairs.row_positive[rows])[:, None], negatives.ids], dim=1)
    then = mining.positive_similarities[torch.from_numpy(rows)][:, None] - negatives.similarities
    texts, places = ids.clamp(min=0).unique(return_inverse=True)
    vectors = stacked(encoder.corpus(corpus.texts.take(texts.numpy())), len(texts))
    of_queries = encoder.queries(pairs.anchors.take(rows))
    width = ids.shape[1]
    left = of_queries[torch.arange(len(queries)).repeat_interleave(width).to(of_queries.device)]
    now = encoder.pairwise(left, vectors[places.flatten().to(vectors.device)]).float().cpu().view(ids.shape)
    growth = (now[:, :1] - now[:, 1:] - then)[negatives.is_present]
    return float(growth.mean())
