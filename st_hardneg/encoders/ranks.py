"""Several processes that mine together: the texts are shared out over all of them, and all get what one has found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn

from st_hardneg.encoders.dense import as_found
from st_hardneg.encoders.described import has_all_weights
from st_hardneg.encoders.fingerprint import weights_fingerprint
from st_hardneg.errors import HardNegativeError, MiningError
from st_hardneg.hosts import broadcast_object_list, distributed_evaluation, length_of_input

# Well below the shortest default time-out of a backend, which is 10 minutes.
_KEEP_ALIVE_SECONDS = 60.0
_METHODS = ("encode_query", "encode_document", "encode", "predict")

Value = TypeVar("Value")


def from_first_rank(value: Value) -> Value:
    """Return what rank 0 has, on every rank."""
    received: Value = broadcast_object_list([value])[0]
    return received


class KeepAlive:
    """Lets the other ranks take part in something before they give up waiting for the one that searches.

    They wait in a collective operation of ``distributed_evaluation``, which fails after the backend's time-out. Encoding
    a text goes over all ranks, and so starts that time anew.

    Args:
        encode_something: Encodes a text with the model that is shared.
    """

    def __init__(self, encode_something: Callable[[], object]) -> None:
        self._encode_something = encode_something
        self._last = time.monotonic()

    def __call__(self) -> None:
        """Encode a text, if it is time."""
        if time.monotonic() - self._last > _KEEP_ALIVE_SECONDS:
            self._encode_something()
            self._last = time.monotonic()


@contextmanager
def shared_inference(models: Sequence[Any], *, enabled: bool = True, is_exact: bool = False) -> Iterator[bool]:
    """Let all ranks run models for rank 0, and tell whether this rank is to do the rest.

    What ``distributed_evaluation`` of Sentence Transformers does for one model, for several at once: while a rank serves
    one of them, it could not serve another. Models that know nothing of it, such as services, run on rank 0, unless
    ``is_exact``.

    Args:
        models: The models.
        enabled: Whether to do so; otherwise every rank does everything.
        is_exact: Whether results have to be those of one process bit by bit. What a model makes of a text depends, in the
            last digit, on the texts beside it in a batch, so that whole batches are shared out then.
    """
    several = _Several(
        [model for model in models if hasattr(model, "__dict__" if is_exact else "_distributed_inference")]
    )
    with distributed_evaluation(several, enabled=enabled) as is_first, ExitStack() as stack:
        inference = several._distributed_inference
        if inference is not None:
            for place, model in enumerate(several.models):
                stack.enter_context(_served(model, partial(inference, place=place), is_exact, several))
        yield is_first


class _Several:
    """Several models that look like one to ``distributed_evaluation``: each call says which is meant."""

    def __init__(self, models: list[Any]) -> None:
        self.models = models
        self._distributed_inference: Any = None
        self.is_running = False

    @property
    def device(self) -> torch.device:
        devices = (getattr(model, "device", None) for model in self.models)
        return next((device for device in devices if isinstance(device, torch.device)), torch.device("cpu"))

    def _inference(self, inputs: list[Any], *, place: int, form: str = "texts", **options: Any) -> Any:
        model = self.models[place]
        if form == "batches":
            return [model._inference(batch, **options) for batch in inputs if batch]
        if form == "texts":
            return model._inference(inputs, **options)
        options.pop("show_progress_bar", None)  # which `distributed_evaluation` adds, and a service need not know
        self.is_running = True  # one method of a service may call another
        try:
            return torch.as_tensor(np.asarray(getattr(model, form)(inputs, **options)))
        finally:
            self.is_running = False


@contextmanager
def _served(model: Any, inference: Callable[..., Any], is_exact: bool, several: _Several) -> Iterator[None]:
    """Let a model's own methods go over all ranks, on rank 0."""
    stand_ins: dict[str, Any] = {}
    if not hasattr(model, "_distributed_inference"):
        for name in _METHODS:
            if callable(method := getattr(model, name, None)):
                stand_ins[name] = _shared_method(name, method, inference, several)
    elif is_exact and not _is_static(model):
        stand_ins["_distributed_inference"] = _InBatches(model, inference)
    else:
        stand_ins["_distributed_inference"] = inference
    before = {name: vars(model)[name] for name in stand_ins if name in vars(model)}
    vars(model).update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del vars(model)[name]
        vars(model).update(before)


def _shared_method(name: str, method: Any, inference: Callable[..., Any], several: _Several) -> Callable[..., Any]:
    @wraps(method)
    def shared(texts: Sequence[Any], **options: Any) -> Any:
        if several.is_running:
            return method(texts, **options)
        return inference(list(texts), form=name, **options)

    return shared


def _is_static(model: Any) -> bool:
    """Tell whether what a model makes of a text cannot depend on the texts beside it: nothing is padded."""
    return isinstance(model, nn.Sequential) and len(model) > 0 and isinstance(model[0], StaticEmbedding)


class _InBatches:
    """Runs the batches of one process, each as a whole on one of the ranks.

    Each goes to the rank that has had the fewest texts so far.

    Args:
        model: A model of Sentence Transformers.
        inference: Runs lists of batches on all ranks, a share of each list.
    """

    changes_no_vector = True

    def __init__(self, model: Any, inference: Callable[..., Any]) -> None:
        self.model, self.inference = model, inference
        self.had = [0] * torch.distributed.get_world_size()

    def __call__(self, inputs: list[Any], **options: Any) -> Any:
        if not inputs:
            return self.model._inference(inputs, **options)
        size = options["batch_size"]
        # The order in which these models encode, longest first.
        order = np.argsort([-length_of_input(self.model, one) for one in inputs])
        shares: list[list[Any]] = [[] for _ in self.had]
        for start in range(0, len(order), size):
            rank = self.had.index(min(self.had))
            shares[rank].append(order[start : start + size])
            self.had[rank] += len(shares[rank][-1])
        # Lists are cut into equal parts.
        longest = max(map(len, shares))
        batches = [[inputs[i] for i in batch] for share in shares for batch in [*share, *[()] * (longest - len(share))]]
        outputs = self.inference(batches, form="batches", **options)
        back = np.argsort(np.concatenate(list(chain.from_iterable(shares))))
        if isinstance(outputs[0], torch.Tensor):
            return torch.cat(outputs).index_select(0, torch.from_numpy(back).to(outputs[0].device))
        found = list(chain.from_iterable(outputs))
        return [found[i] for i in back]


# --- a mining outside a training --------------------------------------------------------------------------------------


def mined_together(
    compute: Callable[[Callable[[], None] | None], Value], models: Sequence[Any], data: Callable[[], str]
) -> Value:
    """Mine on rank 0, with the texts shared out over all ranks, and return what was found on every rank.

    Args:
        compute: Mines; takes what is to be called between chunks of queries.
        models: The models that are run; None for none.
        data: Returns what identifies everything that is mined: recipe, rows, corpus.

    Raises:
        MiningError: On every rank, if one of them fails, ends, or does not answer in time.
        ValueError: On every rank, if they have different data or models, or a model is sharded over them.
    """
    if _world_size() == 1:
        return compute(None)
    parts = [part for model in models for part in _parts_of(model)]
    for part in parts:
        if not has_all_weights(part):
            raise ValueError(
                "The model is sharded over the ranks, so that none of them can encode a text by itself. Mine before it is "
                "sharded, or without `over_ranks`."
            )
    with _in_words():
        _check_same(
            "rows, corpus or settings",
            data(),
            "Give every rank the whole dataset, in the same order, and mine with the same recipe, prompts and batch size.",
        )
        _check_same("weights", "".join(map(_weights, parts)), "Load or train the model alike on every rank.")
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(as_found(part))
            sign = _SignOfLife()
            is_first = stack.enter_context(shared_inference([*parts, sign], is_exact=True))
            found = [compute(KeepAlive(sign)) if is_first else None]
        torch.distributed.broadcast_object_list(found, src=0)
    received: Any = found[0]
    return received


class _SignOfLife:
    """What all ranks take part in, whatever they mine with."""

    def __call__(self) -> None:
        self.predict(["."])

    def predict(self, texts: Sequence[str]) -> list[float]:
        return [0.0] * len(texts)


def _world_size() -> int:
    """Return how many ranks there are; they are brought together if a launcher has started them and nobody has yet."""
    if not torch.distributed.is_available():
        return 1
    if not torch.distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return 1
        from accelerate import PartialState

        PartialState()
    return torch.distributed.get_world_size()


def _parts_of(model: Any) -> list[Any]:
    """Return the models that a model consists of: a late interaction has one that finds the candidates."""
    parts = [getattr(model, name, None) for name in ("model", "retriever")] if not isinstance(model, nn.Module) else []
    found = [part for part in parts if isinstance(part, nn.Module)] or [model]
    return [part for part in found if part is not None]


def _weights(model: Any) -> str:
    return weights_fingerprint(model) if isinstance(model, nn.Module) else type(model).__qualname__


def _check_same(what: str, ours: str, advice: str) -> None:
    """Raise on every rank if they do not have the same."""
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, ours)
    if others := [rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]]:
        raise ValueError(f"The ranks cannot mine together: rank {others[0]} has other {what} than rank 0. {advice}")


@contextmanager
def _in_words() -> Iterator[None]:
    """Say which rank failed, and how, where the hosts speak of evaluators and sockets.

    Raises:
        MiningError: In place of an error of the communication, or of what another rank has raised.
    """
    try:
        yield
    except HardNegativeError:
        raise
    except RuntimeError as error:
        text = str(error)
        if text.startswith("Distributed evaluator"):
            where = next((line[:-1] for line in text.splitlines() if line.startswith("Rank ")), "Rank 0")
            raise MiningError(
                f"{where} failed while the ranks mined together: {text.strip().splitlines()[-1]}. The earlier negatives "
                "are unchanged."
            ) from error
        if not _is_of_communication(error):
            raise
        raise MiningError(
            "The ranks were cut off from each other while they mined together: one of them has ended, or did not answer "
            "before the time-out of the process group. Its own output says why. Every rank has to call "
            f"`mine(model, over_ranks=True)`. The earlier negatives are unchanged. ({text.splitlines()[0]})"
        ) from error


def _is_of_communication(error: RuntimeError) -> bool:
    is_named = any(kind.__name__.startswith("Dist") for kind in type(error).__mro__)
    return is_named or any(word in str(error) for word in ("gloo", "NCCL", "Connection ", "Timed out", "timed out"))
