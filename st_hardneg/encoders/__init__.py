"""Texts to vectors: which kind of model is encoded how."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from st_hardneg.encoders.dense import DenseEncoder, Encoding, Encodings
from st_hardneg.encoders.multi_vector import LateInteraction, MultiVectorTextEncoder
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.reduced import ReducedVectors
from st_hardneg.encoders.sparse import SparseTextEncoder
from st_hardneg.encoders.stored import StoredVectors

__all__ = [
    "DenseEncoder",
    "Encoder",
    "Encoding",
    "Encodings",
    "LateInteraction",
    "MultiVectorTextEncoder",
    "ReducedVectors",
    "SparseTextEncoder",
    "StoredVectors",
    "encoder_for",
]

_CANNOT_SEARCH = ("CrossEncoder",)


def encoder_for(model: Any, encodings: Encodings) -> Encoder:
    """Return the encoder of a model.

    Args:
        model: A SentenceTransformer, a SparseEncoder, a MultiVectorEncoder or a :class:`LateInteraction`, an object
            with ``encode_query`` and ``encode_document``, or an encoder, which is returned as it is.
        encodings: Prompts, routes and batch sizes.

    Raises:
        TypeError: If the model cannot encode queries and documents.
        ValueError: If it cannot be searched by.
    """
    if all(hasattr(model, name) for name in ("queries", "corpus", "pairwise", "similarity")):
        encoder: Encoder = model
        return encoder
    names = [kind.__name__ for kind in type(model).__mro__]
    for name in names:
        if name in ENCODERS:
            return ENCODERS[name](model, encodings)
        if name in _CANNOT_SEARCH:
            raise ValueError(
                f"A {name} cannot search for negatives itself yet. Mine with a SentenceTransformer; in training, pass one "
                "that searches in its place: `MiningCallback(hard_negatives, retriever=SentenceTransformer(...))`."
            )
    return DenseEncoder(model, encodings)


ENCODERS: dict[str, Callable[[Any, Encodings], Encoder]] = {
    "SparseEncoder": SparseTextEncoder,
    "MultiVectorEncoder": partial(MultiVectorTextEncoder, encoder_for=encoder_for),
    "LateInteraction": partial(MultiVectorTextEncoder, encoder_for=encoder_for),
}
"""Encoders by the name of a class of models, or of one of its bases; what is not here is encoded as dense."""
