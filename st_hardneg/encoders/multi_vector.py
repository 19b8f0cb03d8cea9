"""Texts to vectors for every token: ColBERT and other models of the kind MultiVectorEncoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from st_hardneg.encoders.dense import Encoding, Encodings, call, check_finite, halving
from st_hardneg.encoders.fingerprint import (
    MAX_PROBES,
    PROBES,
    recipe_fingerprint,
    remembered,
    texts_fingerprint,
    vectors_fingerprint,
)
from st_hardneg.encoders.protocol import Encoder
from st_hardneg.encoders.rows import Rows, concatenated
from st_hardneg.encoders.token_rows import TokenBase, TokenRows, maxsim_of_all, maxsim_of_pairs
from st_hardneg.errors import MiningError

FIRST_STAGE_DEPTH = 128
# Texts whose tokens are in memory while one vector is made of each.
_SHARD = 1_024


@dataclass(frozen=True, eq=False)
class LateInteraction:
    """A MultiVectorEncoder, and what finds the candidates that it compares token by token.

    Args:
        model: The MultiVectorEncoder.
        retriever: Another model, which finds the candidates: a SentenceTransformer, a SparseEncoder, an object with
            ``encode_query`` and ``encode_document``. It is taken to stay as it is, and encodes once. None for the mean of
            the token vectors of the model itself, scaled to unit length.
        first_stage_depth: How many candidates of each query are compared token by token, or more if more are looked at.

    Raises:
        TypeError: If ``first_stage_depth`` is no number.
        ValueError: If it is below 1.
    """

    model: Any
    retriever: Any = None
    first_stage_depth: int = FIRST_STAGE_DEPTH

    def __post_init__(self) -> None:
        """Check the depth."""
        depth = self.first_stage_depth
        if isinstance(depth, bool) or not isinstance(depth, int):
            raise TypeError(f"Expected `first_stage_depth` to be an integer, got {depth!r}.")
        if depth < 1:
            raise ValueError(f"Expected `first_stage_depth` to be at least 1, got {depth!r}.")


def is_multi_vector(model: Any) -> bool:
    """Tell whether a model has a vector for every token."""
    return any(kind.__name__ == "MultiVectorEncoder" for kind in type(model).__mro__)


# What retrievers have computed, by what identifies them and the texts; the latest few.
_KEPT: OrderedDict[str, Rows] = OrderedDict()
_MOST_KEPT = 4


class MultiVectorTextEncoder:
    """A model with a vector for every token.

    The similarity of a query and a text is the model's, ``"maxsim"`` or ``"meanmaxsim"``; of two texts, the mean over the
    tokens of the first.

    Args:
        model: A :class:`LateInteraction`, or a MultiVectorEncoder.
        encodings: Prompts, routes and batch sizes.
        encoder_for: Returns the encoder of a retriever.

    Raises:
        TypeError: If the model cannot encode queries and documents.
        ValueError: If its similarity is another one.
    """

    pairwise = staticmethod(maxsim_of_pairs)
    score_function = staticmethod(maxsim_of_all)

    def __init__(self, model: Any, encodings: Encodings, encoder_for: Callable[[Any, Encodings], Encoder]) -> None:
        self.setting = model if isinstance(model, LateInteraction) else LateInteraction(model)
        self.model = self.setting.model
        self.encodings = encodings
        name = getattr(self.model, "similarity_fn_name", "maxsim")
        self.similarity = str(getattr(name, "value", name))
        if self.similarity not in ("maxsim", "meanmaxsim"):
            raise ValueError(
                f"Expected a MultiVectorEncoder whose `similarity_fn_name` is 'maxsim' or 'meanmaxsim', got {name!r}. Set "
                "`model.similarity_fn_name`."
            )
        own = Encodings(
            Encoding("query", batch_size=encodings.queries.batch_size),
            Encoding("document", batch_size=encodings.corpus.batch_size),
        )
        self.retriever = None if self.setting.retriever is None else encoder_for(self.setting.retriever, own)

    def queries(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> TokenRows:
        """Return the vectors of queries."""
        return self._rows(texts, True, show_progress_bar)

    def corpus(self, texts: Sequence[str], *, show_progress_bar: bool = False) -> Iterator[TokenRows]:
        """Yield the vectors of corpus texts, all of them in one shard."""
        yield self._rows(texts, False, show_progress_bar)

    def fingerprint(self, probes: Sequence[str] = ()) -> str | None:
        """Return what identifies the model and its prompts, or None for a model whose weights cannot be seen.

        Args:
            probes: Texts of the data whose vectors go into it, besides :data:`~st_hardneg.encoders.fingerprint.PROBES`.
        """
        if not isinstance(self.model, nn.Module):
            return None
        found = None if self.retriever is None else self.retriever.fingerprint(probes)
        if self.retriever is not None and found is None:
            return None
        both, texts = (self.encodings.queries, self.encodings.corpus), [*PROBES, *probes[:MAX_PROBES]]
        recipe = [(one.task, one.prompt_name, one.prompt) for one in both]

        def with_vectors(state: str) -> str:
            tokens = (torch.cat(self._tokens(texts, is_query)) for is_query in (True, False))
            return recipe_fingerprint(state, *map(vectors_fingerprint, tokens))

        own = remembered(self.model, [recipe, texts], with_vectors)
        return recipe_fingerprint(own, found, self.setting.first_stage_depth)

    def _rows(self, texts: Sequence[str], is_query: bool, show_progress_bar: bool) -> TokenRows:
        pooled, counts = [], []
        # With a retriever, the tokens of corpus texts are needed only where they are candidates.
        if is_query or self.retriever is None:
            what = "Encoding queries" if is_query else "Encoding texts"
            with tqdm(total=len(texts), desc=what, unit="text", disable=not show_progress_bar) as progress:
                for start in range(0, len(texts), _SHARD):
                    tokens = self._tokens(texts[start : start + _SHARD], is_query)
                    counts.append(torch.tensor([len(one) for one in tokens], dtype=torch.float32))
                    pooled.append(torch.stack([_pooled(one) for one in tokens]))
                    progress.update(len(tokens))
        first: Rows = torch.cat(pooled) if pooled else torch.empty(0, 1)
        similarity, function = "cosine", None
        if self.retriever is not None:
            first = self._retriever_s(texts, is_query, show_progress_bar)
            similarity, function = self.retriever.similarity, self.retriever.score_function
        base = TokenBase(
            first,
            similarity,
            function,
            texts,
            torch.cat(counts) if counts else torch.ones(len(texts)),
            is_query,
            self._tokens,
            self.setting.first_stage_depth,
            self.similarity == "maxsim",
        )
        return TokenRows.of(base)

    def _retriever_s(self, texts: Sequence[str], is_query: bool, show_progress_bar: bool) -> Rows:
        """Return the retriever's vectors, which are computed once as long as it stays the same."""
        assert self.retriever is not None
        fingerprint = self.retriever.fingerprint()
        key = None if fingerprint is None else recipe_fingerprint(fingerprint, is_query, texts_fingerprint(texts))
        if key is not None and key in _KEPT:
            _KEPT.move_to_end(key)
            return _KEPT[key]
        if is_query:
            rows = self.retriever.queries(texts, show_progress_bar=show_progress_bar)
        else:
            rows = concatenated(list(self.retriever.corpus(texts, show_progress_bar=show_progress_bar)))
        if key is not None:
            _KEPT[key] = rows
            while len(_KEPT) > _MOST_KEPT:
                _KEPT.popitem(last=False)
        return rows

    def _tokens(self, texts: Sequence[str], is_query: bool) -> list[Tensor]:
        """Return the vectors of the tokens of each text, float32 of shape ``(num_tokens, dim)``."""
        encoding = self.encodings.queries if is_query else self.encodings.corpus

        def run(batch_size: int) -> list[Tensor]:
            changed = replace(encoding, batch_size=batch_size)
            encoded, _ = call(self.model, texts, changed, show_progress_bar=False)
            return [torch.as_tensor(one).float() for one in encoded]

        tokens = halving(run, encoding.batch_size)
        if len(tokens) != len(texts) or any(one.dim() != 2 for one in tokens):
            shapes = sorted({tuple(one.shape) for one in tokens})[:3]
            raise MiningError(
                f"Expected from {type(self.model).__name__} one matrix of token vectors per text, got {len(tokens):,} of "
                f"shapes such as {shapes} for {len(texts):,} texts."
            )
        check_finite(torch.tensor([bool(one.sum().isfinite()) for one in tokens]), texts)
        return tokens


def _pooled(tokens: Tensor) -> Tensor:
    """Return the mean of token vectors, scaled to unit length, float32 of shape ``(dim,)``; zeros where there are none."""
    return torch.nn.functional.normalize(tokens.sum(dim=0), dim=0)
