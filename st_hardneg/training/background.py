"""Refreshes in the background: another process mines with a snapshot of the weights, while the training goes on."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from st_hardneg.candidates import Mining
from st_hardneg.encoders.multi_vector import is_multi_vector
from st_hardneg.encoders.ranks import from_first_rank
from st_hardneg.encoders.reuse import name_of
from st_hardneg.errors import MiningError
from st_hardneg.hosts import is_sharded
from st_hardneg.training.helper import Order, Setup
from st_hardneg.training.messages import packed, read, write
from st_hardneg.training.refresh import InlineRefresher, Refresher, Request

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from st_hardneg.training.targets import Target

logger = logging.getLogger(__name__)

_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from st_hardneg.training.helper import serve; serve()"
)
# A process with these would take itself for a rank of the training.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


def checked_background(background: Any) -> bool | str:
    """Return whether, or on which device, refreshes run in the background.

    Raises:
        TypeError: If it is neither a boolean nor the name of a device.
        ValueError: If there is no such device on this machine.
    """
    if background is None or isinstance(background, bool):
        return bool(background)
    if not isinstance(background, (str, torch.device)):
        raise TypeError(
            f"Expected `background` to be True, or the name of a device such as 'cuda:1' or 'cpu', got {background!r}."
        )
    try:
        torch.empty(0, device=background)
    except (RuntimeError, AssertionError, NotImplementedError):
        accelerators = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        raise ValueError(
            f"Expected `background` to be a device of this machine, got {str(background)!r}. There are "
            f"{['cpu', *accelerators]}; True is the device of the training."
        ) from None
    return str(background)


def maker_of_refreshers(background: Any, refresher: Callable[[], Refresher] | None) -> Callable[[], Refresher]:
    """Return what makes a refresher for each training.

    Args:
        background: Whether, or on which device, refreshes run in the background.
        refresher: The caller's own.

    Raises:
        ValueError: If both are asked for, or there is no such device.
        TypeError: If ``background`` is of the wrong kind.
    """
    device = checked_background(background)
    if refresher is None:
        return (lambda: BackgroundRefresher(device)) if device else InlineRefresher
    if device:
        raise ValueError("`background` and `refresher` both say how to mine. Leave one of them out.")
    return refresher


class Helper:
    """A process that mines, as the one that trains sees it.

    Args:
        setup: What it is sent at its start.

    Raises:
        MiningError: If the setup cannot be sent.
    """

    def __init__(self, setup: Setup) -> None:
        message = _sendable(setup)
        environment = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        # It ends with its standard input, so also where this process is killed.
        self.end = weakref.finalize(self, _end, self.process)
        assert self.process.stdin is not None
        pickle.dump(sys.path, self.process.stdin)
        self.send(message)

    def send(self, message: list[bytes | memoryview]) -> None:
        """Send a message."""
        write(self.process.stdin, message)  # type: ignore[arg-type]

    def answer(self) -> tuple[str, Any]:
        """Wait for an answer."""
        answer: tuple[str, Any] = read(self.process.stdout)  # type: ignore[arg-type]
        return answer

    def how_it_ended(self) -> str:
        """Return in words how the process has ended."""
        code = self.process.wait()
        if code >= 0:
            return f"ended with status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:  # what was not yet sent has nobody to read it
                pass


def _sendable(setup: Setup) -> list[bytes | memoryview]:
    try:
        return packed(setup, by_value=True)
    except Exception as error:
        raise MiningError(
            "Expected a model and datasets that can be sent to the process that mines in the background, got something "
            f"that cannot ({type(error).__name__}: {error}). Look at what you gave the dataset: searcher, sources, "
            "`extra_filters`, cross encoder, guide. Or leave `background` out."
        ) from error


def _bare(model: Any) -> Any:
    """Return a model without what only its trainer needs; weights are shared."""
    if not isinstance(model, nn.Module) or not hasattr(model, "model_card_data"):
        return model
    bare = object.__new__(type(model))
    bare.__dict__.update(model.__dict__)
    bare.__dict__["model_card_data"] = type(model.model_card_data)()
    return bare


@dataclass(eq=False)
class _Job:
    """One mining in the background.

    Args:
        request: What is wanted.
        copied: Set when the weights were copied, and may change.
        answer: What came back, if it has.
        is_dropped: Whether nobody wants its result any more.
    """

    request: Request
    copied: threading.Event = field(default_factory=threading.Event)
    answer: tuple[str, Any] | None = None
    is_dropped: bool = False


class BackgroundRefresher:
    """Mines in a second process, which belongs to rank 0, with the weights as they were when the refresh was asked for.

    One mining runs at a time. What is asked for meanwhile waits, and then mines with the weights of that moment; of
    several that wait for one dataset, only the last is made. A refresh that the training waits for, such as the first of a
    curriculum's stage, is mined at once and by the training itself; what was under way for its dataset is dropped.

    Args:
        device: Where to mine; True for the device of the model in training.
    """

    def __init__(self, device: bool | str = True) -> None:
        self.device = device
        self.num_dropped = 0
        self._inline = InlineRefresher()
        self._helper: Helper | None = None
        self._targets: list[Target] = []
        self._models: tuple[Any, Any] = (None, None)
        self._job: _Job | None = None
        self._waiting: dict[int, Request] = {}
        self._buffers: dict[str, Tensor] = {}
        self._is_first_rank = True
        self._arguments: tuple[Any, Any] = (None, None)

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The second process, where there is one; only on rank 0."""
        return None if self._helper is None else self._helper.process

    def begin(
        self, targets: Sequence[Target], trained: Any, retriever: Any, args: TrainingArguments, trainer: Trainer | None
    ) -> None:
        """Start the process, and wait until it has everything, so that what cannot work is refused before the training.

        Raises:
            MiningError: If it cannot be given what it needs.
            ValueError: If the model is sharded, or would have to compare what a retriever finds.
        """
        if is_sharded(trainer):
            raise ValueError(
                "`background` needs the whole model on rank 0, and FSDP or DeepSpeed have split it over the ranks. Leave "
                "`background` out."
            )
        if retriever is not None and is_multi_vector(trained):
            raise ValueError(
                "`background` does not compare what a `retriever` finds with the MultiVectorEncoder in training. Leave "
                "one of the two out."
            )
        self._targets, self._models, self._arguments = list(targets), (trained, retriever), (args, trainer)
        self._is_first_rank = args.process_index == 0
        problem: tuple[Any, str] | None = None
        if self._is_first_rank:
            try:
                self._helper = self._started()
                if isinstance(trained, nn.Module):
                    self._buffers = {name: torch.empty_like(one, device="cpu") for name, one in _weights(trained)}
            except Exception as error:
                problem = (error, str(error))
        _raise(from_first_rank(problem))

    def _started(self) -> Helper:
        """Start a process, and wait until it has everything."""
        trained, retriever = self._models
        device = self.device if isinstance(self.device, str) else str(getattr(trained, "device", "cpu"))
        threads = max(1, torch.get_num_threads() // 2)
        datasets = [copy.copy(target.hard_negatives) for target in self._targets]
        helper = Helper(
            Setup(datasets, _bare(trained), retriever, device, threads, (name_of(trained), name_of(retriever)))
        )
        try:
            kind, value = helper.answer()
        except EOFError:
            raise MiningError(
                f"The process that mines in the background {helper.how_it_ended()} before it was ready. See what it has "
                "printed, or leave `background` out."
            ) from None
        if kind == "error":
            _raise(value)
        return helper

    def start(self, request: Request, args: TrainingArguments, trainer: Trainer | None) -> None:
        """Begin a mining with the weights of the moment, or note that one is wanted."""
        place = self._place(request)
        if request.waits:
            self.num_dropped += self._waiting.pop(place, None) is not None
            if self._job is not None and self._place(self._job.request) == place and not self._job.is_dropped:
                self._job.is_dropped = True
                self.num_dropped += 1
            self._inline.start(request, args, trainer)
        elif self._job is None:
            self._begin_job(request)
        else:
            if place in self._waiting:
                self.num_dropped += 1
                overtaken = self._waiting[place].step
                logger.warning(
                    f"The refresh of step {overtaken:,} was overtaken by that of step {request.step:,} and is dropped: "
                    "mining takes longer than the steps between two refreshes. Raise `mining_steps`, or mine on another "
                    "device."
                )
            self._waiting[place] = request

    def _place(self, request: Request) -> int:
        return next(place for place, target in enumerate(self._targets) if target is request.target)

    def _begin_job(self, request: Request) -> None:
        self._job = job = _Job(request)
        if not self._is_first_rank:
            job.copied.set()
            return
        live, model = request.target.hard_negatives.live, self._models[0]
        order = Order(self._place(request), live.starting_state(), None, request.arguments, request.half_precision)
        weights = dict(_weights(model)) if isinstance(model, nn.Module) else {}
        threading.Thread(target=self._work, args=(job, order, weights), daemon=True).start()

    def _work(self, job: _Job, order: Order, weights: dict[str, Tensor]) -> None:
        """Copy the weights, have the other process mine, and note its answer; in a thread of its own."""
        try:
            with torch.no_grad():
                for name, tensor in weights.items():
                    self._buffers[name].copy_(tensor)
            job.copied.set()
            if self._helper is None:
                self._helper = self._started()
            self._helper.send(packed(replace(order, weights=self._buffers if weights else None)))
            job.answer = self._helper.answer()
        except (EOFError, OSError):
            how = "could not be started" if self._helper is None else self._helper.how_it_ended()
            self._helper = None
            job.answer = ("lost", how)
        except Exception as error:
            job.answer = ("error", (error, str(error)))
        finally:
            job.copied.set()

    def before_weights_change(self) -> None:
        """Wait until the weights were copied, which goes on while the next batch is on its way through the model."""
        if self._job is not None:
            self._job.copied.wait()

    def finished(self, step: int) -> Iterator[tuple[Request, Mining]]:
        """Yield what is done, on every rank the same, and begin what waits.

        Args:
            step: The training's step.

        Raises:
            Exception: What the mining has raised in the other process.
        """
        yield from self._inline.finished(step)
        if self._job is None:
            return
        answer: tuple[str, Any] = from_first_rank(self._job.answer) or ("", None)
        kind, value = answer
        if not kind:
            return
        job, self._job = self._job, None
        if kind == "error":
            _raise(value)
        if kind == "lost":
            logger.warning(
                f"The process that mines in the background {value}, so that the refresh of step {job.request.step:,} is "
                "lost. The training goes on with the negatives that it has, and the next refresh starts a new process."
            )
        elif not job.is_dropped:
            yield job.request, value
        if self._waiting:
            place = next(iter(self._waiting))
            # With the weights of today, which are better than those of the step at which it was due.
            self._begin_job(replace(self._waiting.pop(place), step=step))

    @property
    def under_way(self) -> list[int]:
        """The steps at which refreshes were asked for that are not done."""
        running = [] if self._job is None or self._job.is_dropped else [self._job.request.step]
        return running + [request.step for request in self._waiting.values()]

    def close(self) -> None:
        """End the process; what is under way is dropped."""
        if self._job is not None:
            self._job.copied.wait()
        if self._helper is not None:
            self._helper.end()
        self._job, self._helper = None, None
        self._waiting.clear()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            yield name, tensor


def _raise(problem: tuple[Any, str] | None) -> None:
    """Raise an error of the other process, with its traceback there as the cause."""
    if problem is None:
        return
    error, text = problem
    if not isinstance(error, BaseException):
        error = MiningError(f"Mining in the background failed: {text.strip().splitlines()[-1]}")
    raise error from RuntimeError(f"in the process that mines in the background:\n{text}")
