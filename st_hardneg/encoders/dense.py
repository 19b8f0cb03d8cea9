"""Texts to embeddings, with the model in hand; leaves the model and the random states as it found them."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from st_hardneg.config import MiningConfig
from st_hardneg.errors import MiningError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoding:
    """How texts of one kind are encoded.

    Args:
        task: ``"query"`` and ``"document"`` go through ``encode_query`` and ``encode_document``; any other task is
            the name of a Router's route and goes to ``encode(task=...)``.
        prompt_name: Name of the model's prompt.
        prompt: The prompt itself; takes precedence. ``""`` is none at all, None is the model's default for the task.
        batch_size: Texts encoded at once.
        normalize_embeddings: Whether embeddings are scaled to unit length.
        pool: A multi-process pool of the model's.
    """

    task: str
    prompt_name: str | None = None
    prompt: str | None = None
    batch_size: int = 32
    normalize_embeddings: bool = False
    pool: Any = None


@dataclass(frozen=True)
class Encodings:
    """How queries and corpus texts are encoded."""

    queries: Encoding
    corpus: Encoding

    @classmethod
    def from_config(cls, config: MiningConfig) -> Encodings:
        """Take prompts and batch size from the config."""
        return cls(
            Encoding("query", config.query_prompt_name, config.query_prompt, config.batch_size),
            Encoding("document", config.corpus_prompt_name, config.corpus_prompt, config.batch_size),
        )

    def replace_both(self, **changes: Any) -> Encodings:
        """Return a copy in which both kinds have these changes."""
        return Encodings(replace(self.queries, **changes), replace(self.corpus, **changes))


def encode(
    model: SentenceTransformer, texts: Sequence[str], encoding: Encoding, *, show_progress_bar: bool = False
) -> Tensor:
    """Encode texts.

    Args:
        model: The model.
        texts: The texts.
        encoding: Prompt, route and batch size.
        show_progress_bar: Whether to show progress.

    Returns:
        Embeddings of shape ``(len(texts), dim)``, in float32, on the model's device.

    Raises:
        MiningError: If an embedding is not finite (the texts are named), or if memory does not suffice even for one
            text at a time; before that, the batch size is halved as often as needed.
    """
    batch_size = encoding.batch_size
    while True:
        try:
            embeddings = _encode(model, texts, replace(encoding, batch_size=batch_size), show_progress_bar)
            break
        except RuntimeError as error:
            if not _is_memory_exhausted(error):
                raise
            if batch_size == 1:
                # Not the words that `auto_find_batch_size` waits for: it would start the training over.
                raise MiningError(
                    "Expected enough memory to encode one text at a time while mining, got too little "
                    f"({type(error).__name__}). Free memory, or lower the model's `max_seq_length`."
                ) from None
            batch_size //= 2
        # Out of the handler, whose traceback keeps the tensors of the failed batch alive.
        if torch.cuda.is_available():  # pragma: no cover - needs an accelerator
            torch.cuda.empty_cache()
        logger.warning(f"Memory did not suffice to encode {batch_size * 2} texts at once; going on with {batch_size}.")
    _check_finite(embeddings, texts)
    return embeddings


def _is_memory_exhausted(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _encode(model: Any, texts: Sequence[str], encoding: Encoding, show_progress_bar: bool) -> Tensor:
    arguments: dict[str, Any] = {
        "prompt_name": encoding.prompt_name,
        "prompt": encoding.prompt,
        "batch_size": encoding.batch_size,
        "show_progress_bar": show_progress_bar,
        "convert_to_tensor": True,
        "normalize_embeddings": encoding.normalize_embeddings,
    }
    if encoding.pool is not None:
        arguments["pool"] = encoding.pool
    with as_found(model):
        if encoding.task == "query":
            embeddings = model.encode_query(list(texts), **arguments)
        elif encoding.task == "document":
            embeddings = model.encode_document(list(texts), **arguments)
        else:
            embeddings = model.encode(list(texts), task=encoding.task, **arguments)
    return torch.as_tensor(embeddings).float()


def _check_finite(embeddings: Tensor, texts: Sequence[str]) -> None:
    # One number per text: a sum is not finite if any of its parts is not (or if it overflows, which is as bad).
    bad = (~embeddings.sum(dim=1).isfinite()).nonzero().flatten().tolist()
    if bad:
        shown = "; ".join(repr(texts[i][:60]) for i in bad[:3])
        raise MiningError(
            f"Expected finite embeddings, got NaN or infinity for {len(bad):,} of {len(texts):,} texts, such as "
            f"{shown}. The weights may have diverged (lower the learning rate), or a module overflows in half "
            "precision. The earlier negatives are unchanged."
        )


@contextmanager
def as_found(model: object) -> Iterator[None]:
    """Give every module its training mode back, and Python, NumPy and torch their random states."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - saved, never drawn from
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module, training in modes:
            module.training = training
