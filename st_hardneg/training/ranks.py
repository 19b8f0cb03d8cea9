"""Several processes that train together: what one of them has found, all of them get."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from st_hardneg.hosts import broadcast_object_list, distributed_evaluation, gather_object

if TYPE_CHECKING:
    from st_hardneg.dataset import HardNegativeDataset

# Well below the shortest default time-out of a backend, which is 10 minutes.
_KEEP_ALIVE_SECONDS = 60.0

Value = TypeVar("Value")


def from_first_rank(value: Value) -> Value:
    """Return what rank 0 has, on every rank."""
    received: Value = broadcast_object_list([value])[0]
    return received


@contextmanager
def shared_inference(models: Sequence[Any], *, enabled: bool = True) -> Iterator[bool]:
    """Let all ranks run models for rank 0, and tell whether this rank is to do the rest.

    What ``distributed_evaluation`` of Sentence Transformers does for one model, for several at once: while a rank serves
    one of them, it could not serve another. Models that know nothing of it, such as services, run on rank 0.

    Args:
        models: The models.
        enabled: Whether to do so; otherwise every rank does everything.
    """
    several = _Several([model for model in models if hasattr(model, "_distributed_inference")])
    with distributed_evaluation(several, enabled=enabled) as is_first:
        inference = several._distributed_inference
        if inference is None:
            yield is_first
            return
        before = [model._distributed_inference for model in several.models]
        try:
            for place, model in enumerate(several.models):
                model._distributed_inference = partial(inference, place=place)
            yield is_first
        finally:
            for model, one in zip(several.models, before, strict=True):
                model._distributed_inference = one


class _Several:
    """Several models that look like one to ``distributed_evaluation``: each call says which is meant."""

    def __init__(self, models: list[Any]) -> None:
        self.models = models
        self._distributed_inference: Any = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.models[0].device
        return device

    def _inference(self, inputs: list[Any], *, place: int, **options: Any) -> Any:
        return self.models[place]._inference(inputs, **options)


def start_from_first_rank(datasets: Iterable[HardNegativeDataset]) -> None:
    """Let every rank begin with the negatives of rank 0: weights that round differently mine differently.

    Raises:
        ValueError: On all ranks, if the live view of one of them has other rows.
    """
    for hard_negatives in datasets:
        first = from_first_rank(hard_negatives.live.starting_state())
        problem = None
        try:
            hard_negatives.live.start_from(first)
        except ValueError as error:
            problem = str(error)
        # If one rank raised alone, the others would wait for it until their time-out.
        if found := [one for one in gather_object([problem]) if one is not None]:
            raise ValueError(found[0])


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
