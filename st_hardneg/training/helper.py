"""The process that mines while another one trains: it is sent a model and datasets once, and weights for each mining."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any, BinaryIO

# The training comes first where both want the same core.
_NICE = 5


@dataclass(frozen=True, eq=False)
class Setup:
    """What the process is sent once.

    Args:
        datasets: The datasets that are refreshed.
        trained: The model in training, or None where it is not needed.
        retriever: A model that mines in its place, or None.
        device: Where to encode.
        num_threads: Threads for work on the CPU.
        names: Names of both models, by which kept vectors know them.
    """

    datasets: list[Any]
    trained: Any
    retriever: Any
    device: str
    num_threads: int
    names: tuple[str | None, str | None]


@dataclass(frozen=True, eq=False)
class Order:
    """A mining that is wanted.

    Args:
        dataset: Which of the datasets.
        state: What is in force: the mining before, its number, and the rows of the live view.
        weights: The weights of the model in training, by name; None where it is not needed.
        arguments: Arguments of ``compute_mining`` besides the model.
        half_precision: Whether to encode in bfloat16; None for where the hardware gains by it.
    """

    dataset: int
    state: tuple[Any, ...]
    weights: dict[str, Any] | None
    arguments: dict[str, Any]
    half_precision: bool | None = None


def serve() -> None:
    """Read a setup and then orders from standard input, and answer each on what was standard output.

    An answer is ``("ready", None)``, ``("mined", mining)`` or ``("error", (error, traceback))``. The process ends when its
    standard input is closed, also in the middle of a mining: the training has ended, in whatever way.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a user's code prints must not get among the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training; it closes the pipe when it ends
    os.environ["CUDA_MODULE_LOADING"] = os.environ.get("CUDA_MODULE_LOADING", "LAZY")

    from st_hardneg.training.messages import packed, read, write

    orders: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, orders, read), daemon=True).start()
    setup: Setup | None = None
    while True:
        try:
            order = orders.get()
            if isinstance(order, BaseException):
                raise order
            if isinstance(order, Setup):
                setup = _settled(order)
                answer: tuple[str, Any] = ("ready", None)
            else:
                assert setup is not None
                answer = ("mined", _mined(setup, order))
        except Exception as error:
            answer = ("error", (_sendable(error), traceback.format_exc()))
        write(answers, packed(answer))


def _listen(stream: BinaryIO, orders: queue.Queue[Any], read: Any) -> None:
    while True:
        try:
            orders.put(read(stream))
        except EOFError:
            os._exit(0)
        except Exception as error:
            orders.put(error)


def _settled(setup: Setup) -> Setup:
    import torch

    from st_hardneg.encoders.reuse import give_name

    if setup.device == "cpu" and hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(_NICE)
    torch.set_num_threads(setup.num_threads)
    for model, name in zip((setup.trained, setup.retriever), setup.names, strict=True):
        give_name(model, name)
        if isinstance(model, torch.nn.Module):
            model.to(setup.device)
    return setup


def _mined(setup: Setup, order: Order) -> Any:
    from st_hardneg.encoders.precision import half_precision

    hard_negatives = setup.datasets[order.dataset]
    hard_negatives.live.load(*order.state)
    if order.weights is not None:
        _load(setup.trained, order.weights)
    model = setup.trained if setup.retriever is None else setup.retriever
    if (rescorer := order.arguments.get("rescorer")) is not None:
        rescorer.model = setup.trained
    with half_precision(model, order.half_precision):
        return hard_negatives.compute_mining(model, show_progress_bar=False, **order.arguments)


def _load(model: Any, weights: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(weights[name])


def _sendable(error: BaseException) -> BaseException | None:
    """Return an error that the other process can read and raise, or None."""
    try:
        found = pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return found if isinstance(found, BaseException) else None
