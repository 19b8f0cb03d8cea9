"""Clusters of anchors, so that a batch can be filled with anchors about one thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

_ROWS_AT_ONCE = 4096


def cluster(embeddings: Tensor, num_topics: int, seed: int) -> npt.NDArray[np.int32]:
    """Cluster embeddings by direction.

    Source: TAS-Balanced, https://huggingface.co/papers/2104.06967, clusters queries by k-means; here in mini-batches
    (scikit-learn), on unit vectors.

    Args:
        embeddings: float32 of shape ``(num_queries, dim)``.
        num_topics: How many clusters, at most ``num_queries``.
        seed: Seed of the start.

    Returns:
        int32 of shape ``(num_queries,)``: a number in ``[0, num_topics)`` for each.
    """
    vectors: Any = torch.nn.functional.normalize(embeddings.float(), dim=1).cpu().numpy()
    means = MiniBatchKMeans(num_topics, batch_size=_ROWS_AT_ONCE, n_init=1, random_state=seed % 2**32)
    topics: npt.NDArray[np.int32] = means.fit_predict(vectors).astype(np.int32)
    return topics
