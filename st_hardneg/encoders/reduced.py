"""Vectors of a model made shorter or coarser, as they will be where they are searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from sentence_transformers.util import quantize_embeddings
from torch import Tensor

from st_hardneg.encoders.dense import Encoding, call, similarity_name

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]


class ReducedVectors:
    """A model for ``mine`` whose vectors are made shorter or coarser, as they will be where they are searched.

    Negatives are then those that are hard for the vectors that are served: the first dimensions of a Matryoshka model, or
    numbers of one byte or one bit. Scores are those of the reduced vectors, in the model's own similarity.

    Args:
        model: A SentenceTransformer, or an object with ``encode_query`` and ``encode_document``.
        truncate_dim: How many dimensions are kept, the first ones; None for all.
        precision: ``"float32"``; ``"int8"`` or ``"uint8"``, one of 256 steps between the least and the greatest value of a
            dimension; ``"binary"`` or ``"ubinary"``, the sign. As in ``sentence_transformers.util.quantize_embeddings``.
        ranges: float of shape ``(2, dim)``: the least and the greatest value of each dimension. None: those among the
            texts that are encoded first, 4,096 of the corpus.

    Raises:
        ValueError: If one is out of range.
        TypeError: If the model cannot encode queries and documents.
    """

    def __init__(
        self, model: Any, truncate_dim: int | None = None, precision: Precision = "float32", ranges: Any = None
    ) -> None:
        if truncate_dim is not None and (not isinstance(truncate_dim, int) or int(truncate_dim) < 1):
            raise ValueError(f"Expected `truncate_dim` to be a number from 1 up, or None, got {truncate_dim!r}.")
        if precision not in get_args(Precision):
            raise ValueError(f"Expected `precision` to be one of {list(get_args(Precision))}, got {precision!r}.")
        self.similarity_fn_name = similarity_name(model)
        self.model, self.truncate_dim, self.precision = model, truncate_dim, precision
        self.ranges = None if ranges is None else np.asarray(ranges, dtype=np.float32)

    def encode_query(self, inputs: Sequence[str], **options: Any) -> Tensor:
        """Return the vectors of queries, float32 of shape ``(len(inputs), truncate_dim)``."""
        return self._encoded("query", inputs, options)

    def encode_document(self, inputs: Sequence[str], **options: Any) -> Tensor:
        """Return the vectors of texts, float32 of shape ``(len(inputs), truncate_dim)``."""
        return self._encoded("document", inputs, options)

    def _encoded(self, task: str, texts: Sequence[str], options: dict[str, Any]) -> Tensor:
        names = ("prompt_name", "prompt", "batch_size", "pool")
        encoding = Encoding(task, **{name: options.pop(name) for name in names if name in options})
        encoded, _ = call(self.model, texts, encoding, **{**options, "convert_to_tensor": True})
        vectors = torch.as_tensor(encoded).float().cpu()[:, : self.truncate_dim]
        if self.truncate_dim is not None and vectors.shape[1] < self.truncate_dim:
            raise ValueError(
                f"Expected vectors of at least `truncate_dim={self.truncate_dim}` dimensions, got {vectors.shape[1]}."
            )
        if self.precision == "float32" or not len(vectors):
            return vectors
        if self.precision in ("binary", "ubinary"):
            # One bit a dimension; as numbers, 1 and -1, dot product and cosine are those of the bits.
            return torch.where(vectors > 0, 1.0, -1.0)
        return self._in_steps(vectors.numpy())

    def _in_steps(self, vectors: Any) -> Tensor:
        """Return the middle of what each number stands for once it is one of 256 steps."""
        if self.ranges is None:
            self.ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
        low, high = self.ranges
        steps = quantize_embeddings(vectors, precision=self.precision, ranges=self.ranges)
        number = steps.astype(np.float32) + (128.0 if self.precision == "int8" else 0.0)
        return torch.from_numpy(np.minimum(low + (number + 0.5) * (high - low) / 255.0, high))
