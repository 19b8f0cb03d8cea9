"""Texts to embeddings, one vector each, with the model in hand; model and random states are left as they were found."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from sentence_transformers import SimilarityFunction
from torch import Tensor, nn
from tqdm.auto import tqdm

from st_hardneg.config import MiningConfig
from st_hardneg.encoders.fingerprint import (
    MAX_PROBES,
    PROBES,
    recipe_fingerprint,
    remembered,
    vectors_fingerprint,
)
from st_hardneg.encoders.vectors import stacked
from st_hardneg.errors import MiningError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Texts encoded into one shard: what is sorted by length together, and what is encoded again if memory runs out.
_SHARD = 4096


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
    def from_config(cls, config: MiningConfig, batch_size: int = 32) -> Encodings:
        """Take the prompts from the config."""
        return cls(
            Encoding("query", config.query_prompt_name, config.query_prompt, batch_size),
            Encoding("document", config.corpus_prompt_name, config.corpus_prompt, batch_size),
        )

    def replace_both(self, **changes: Any) -> Encodings:
        """Return a copy in which both kinds have these changes."""
        return Encodings(replace(self.queries, **changes), replace(self.corpus, **changes))


class DenseEncoder:
    """A model with one vector per text: a SentenceTransformer, or an object with ``encode_query`` and ``encode_document``.

    Args:
        model: The model.
        encodings: Prompts, routes and batch sizes.
        pairwise: The similarity of row i with row i, ``(m, dim), (m, dim) -> (m,)``, in place of the model's by its name.
        score_function: The similarity ``(q, dim), (c, dim) -> (q, c)`` to search by, likewise.

    Raises:
        TypeError: If the model cannot encode queries and documents.
        ValueError: If it cannot be searched by its similarity, or has no prompt of a name that is asked for.
    """

    def __init__(
        self,
        model: Any,
        encodings: Encodings,
        *,
        pairwise: Callable[[Tensor, Tensor], Tensor] | None = None,
        score_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.encodings = encodings
        self.similarity = similarity_name(model)
        _check_prompt_names(model, encodings)
        self.pairwise = pairwise or SimilarityFunction.to_similarity_pairwise_fn(self.similarity)
        self.score_function = score_function
        self._width: int | None = None

    def queries(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Tensor:
        """Return the vectors of queries, float32 of shape ``(len(texts), dim)``."""
        if not texts:
            return encode(self.model, texts, self.encodings.queries)
        return stacked(self._shards(texts, self.encodings.queries, "Encoding queries", show_progress_bar), len(texts))

    def corpus(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Iterator[Tensor]:
        """Return the vectors of corpus texts in shards, float32 of shape ``(at most 4,096, dim)`` each."""
        return self._shards(texts, self.encodings.corpus, "Encoding texts", show_progress_bar)

    def _shards(
        self, texts: Sequence[str], encoding: Encoding, title: str, show_progress_bar: bool
    ) -> Iterator[Tensor]:
        # A pool shares out what it is given at once.
        size = len(texts) if encoding.pool is not None else _SHARD
        with tqdm(total=len(texts), desc=title, unit="text", disable=not show_progress_bar) as progress:
            for start in range(0, len(texts), max(1, size)):
                some = texts[start : start + size]
                vectors = encode(self.model, some, encoding)
                self._check_width(vectors.shape[1])
                progress.update(len(some))  # before the last shard is handed out, after which nobody may ask for more
                yield vectors

    def _check_width(self, width: int) -> None:
        """Raise if other texts were encoded to vectors of another width."""
        self._width = width if self._width is None else self._width
        if width != self._width:
            raise MiningError(
                f"Expected vectors of queries and of documents to be of one width, got {self._width} and {width} from "
                f"{type(self.model).__name__}. Let `encode_query` and `encode_document` embed into the same space."
            )

    def fingerprint(self, probes: Sequence[str] = ()) -> str | None:
        """Return what identifies the model and its prompts, or None for a model whose weights cannot be seen.

        Args:
            probes: Texts of the data whose vectors go into it, besides :data:`PROBES`, whose words a model need not know.
        """
        if not isinstance(self.model, nn.Module):
            return None
        both = (self.encodings.queries, self.encodings.corpus)
        recipe = [(one.task, one.prompt_name, one.prompt, one.normalize_embeddings) for one in both]
        texts = [*PROBES, *probes[:MAX_PROBES]]

        def with_vectors(state: str) -> str:
            return recipe_fingerprint(state, *(vectors_fingerprint(encode(self.model, texts, one)) for one in both))

        return remembered(self.model, [recipe, texts], with_vectors)


def _check_prompt_names(model: Any, encodings: Encodings) -> None:
    prompts = getattr(model, "prompts", None)
    if not isinstance(prompts, Mapping):
        return
    for kind, encoding in (("query", encodings.queries), ("corpus", encodings.corpus)):
        if encoding.prompt is None and encoding.prompt_name is not None and encoding.prompt_name not in prompts:
            raise ValueError(
                f"Expected `{kind}_prompt_name` to be one of the model's prompts, {sorted(prompts)}, got "
                f"{encoding.prompt_name!r}. Give the text itself as `{kind}_prompt`, or add it to `model.prompts`."
            )


def similarity_name(model: Any) -> str:
    """Return the name of the model's similarity.

    Raises:
        TypeError: If the model cannot encode queries and documents.
        ValueError: If it cannot be searched by that similarity.
    """
    for method in ("encode_query", "encode_document"):
        if not callable(getattr(model, method, None)):
            raise TypeError(
                f"Expected a SentenceTransformer model, or an object with `encode_query` and `encode_document`, got "
                f"{type(model).__name__}, which has no `{method}`. Load one with `SentenceTransformer(name_or_path)`."
            )
    name = getattr(model, "similarity_fn_name", None) or "cosine"
    name = str(getattr(name, "value", name))
    if name not in _SIMILARITIES:
        raise ValueError(
            f"Expected a model whose `similarity_fn_name` is one of {list(_SIMILARITIES)}, got {name!r}. Set "
            "`model.similarity_fn_name`, or use a model with one vector per text."
        )
    return name


def encode(model: Any, texts: Sequence[str], encoding: Encoding, *, show_progress_bar: bool = False) -> Tensor:
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
    embeddings = halving(
        lambda size: _encode(model, texts, replace(encoding, batch_size=size), show_progress_bar), encoding.batch_size
    )
    # One number per text: a sum is not finite if any of its parts is not (or if it overflows, which is as bad).
    check_finite(embeddings.sum(dim=1).isfinite(), texts)
    return embeddings


def halving(run: Callable[[int], T], batch_size: int) -> T:
    """Return what a function of a batch size returns, with half of it as often as memory does not suffice.

    Raises:
        MiningError: If memory does not suffice for one text.
    """
    while True:
        try:
            return run(batch_size)
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


def _is_memory_exhausted(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _encode(model: Any, texts: Sequence[str], encoding: Encoding, show_progress_bar: bool) -> Tensor:
    wanted = {"convert_to_tensor": True, "normalize_embeddings": encoding.normalize_embeddings}
    encoded, accepted = call(model, texts, encoding, show_progress_bar=show_progress_bar, **wanted)
    embeddings = _as_tensor(encoded, model)
    if embeddings.dim() != 2 or len(embeddings) != len(texts):
        raise MiningError(
            f"Expected one vector per text from {type(model).__name__}, got shape {tuple(embeddings.shape)} for "
            f"{len(texts):,} texts."
        )
    if encoding.normalize_embeddings and "normalize_embeddings" not in accepted:
        return torch.nn.functional.normalize(embeddings, dim=1)
    return embeddings


def _as_tensor(encoded: Any, model: Any) -> Tensor:
    """Return what a model returned, such as an array or a list of lists, as a float32 tensor."""
    try:
        if isinstance(encoded, (list, tuple)) and encoded and isinstance(encoded[0], (Tensor, np.ndarray)):
            encoded = torch.stack([torch.as_tensor(vector) for vector in encoded])
        return torch.as_tensor(encoded).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise MiningError(
            f"Expected one vector per text from {type(model).__name__}, got {type(encoded).__name__} ({error}). Let its "
            "`encode_query` and `encode_document` return an array or a tensor of shape (texts, dimensions)."
        ) from error


def call(model: Any, texts: Sequence[str], encoding: Encoding, **options: Any) -> tuple[Any, set[str]]:
    """Have a model encode texts, and leave it as it was found.

    Args:
        model: The model.
        texts: The texts.
        encoding: Prompt, route and batch size.
        **options: Further arguments of the model's ``encode``.

    Returns:
        What the model returned, and the names of those arguments that it took.
    """
    wanted: dict[str, Any] = {
        "prompt_name": encoding.prompt_name,
        "prompt": encoding.prompt,
        "batch_size": encoding.batch_size,
        **options,
    }
    if encoding.pool is not None:
        wanted["pool"] = encoding.pool
    methods = {"query": "encode_query", "document": "encode_document"}
    method = getattr(model, methods.get(encoding.task, "encode"))
    if encoding.task not in methods:
        wanted["task"] = encoding.task
    accepted = _accepted(method, wanted, model)
    with as_found(model):
        return method(list(texts), **accepted), set(accepted)


def _accepted(method: Any, wanted: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return the arguments that a model's method takes: a client of an embedding service need not know all of them.

    Raises:
        MiningError: If a prompt is asked for that the method cannot be given.
    """
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return wanted
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return wanted
    for name in ("prompt", "prompt_name", "task"):
        if wanted.get(name) and name not in parameters:
            raise MiningError(
                f"`{method.__name__}` of {type(model).__name__} takes no `{name}`, so that texts cannot be encoded with "
                f"{wanted[name]!r}. Leave the prompt out, or let the method take it."
            )
    return {name: value for name, value in wanted.items() if name in parameters}


def check_finite(is_finite: Tensor, texts: Sequence[str]) -> None:
    """Raise if some vectors are not finite.

    Args:
        is_finite: Boolean of shape ``(len(texts),)``.
        texts: The texts, of which some are named.

    Raises:
        MiningError: If so.
    """
    bad = (~is_finite).nonzero().flatten().tolist()
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
