"""A cross encoder's scores in place of the bi-encoder's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from st_hardneg.errors import MiningError, naming

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


def cross_encoder_scores(
    cross_encoder: CrossEncoder, pairs: Sequence[tuple[str, str]], batch_size: int, pool: Any = None
) -> Tensor:
    """Score (query, text) pairs.

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
    arguments = {} if pool is None else {"pool": pool}
    with naming("the cross encoder's `predict`"):
        scores = cross_encoder.predict(
            list(pairs), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False, **arguments
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
