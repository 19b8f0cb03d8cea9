"""Values on their way from one process to another, through a pipe: objects by pickle, tensors as they are."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, BinaryIO

import dill
import torch
from torch import Tensor, nn

_LENGTH = struct.Struct("<Q")


class _Tensors:
    """The tensors of a value, which stand behind it in the message, each once."""

    def __init__(self) -> None:
        self.all: list[Tensor] = []
        self._places: dict[int, int] = {}

    def place_of(self, value: Any) -> int | None:
        """Return the place of a tensor among all, or None for what pickle has to write."""
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
            return None
        if id(value) not in self._places:
            self._places[id(value)] = len(self.all)
            self.all.append(value)  # kept alive, so that its id stays its own
        return self._places[id(value)]


class _Pickler(pickle.Pickler):
    tensors: _Tensors

    def persistent_id(self, obj: Any) -> int | None:
        return self.tensors.place_of(obj)


class _ByValue(dill.Pickler):
    # Functions and classes of the user's script, which the other process does not run, go with their code.
    tensors: _Tensors

    def persistent_id(self, obj: Any) -> int | None:
        return self.tensors.place_of(obj)


class _Unpickler(dill.Unpickler):
    tensors: list[Tensor]

    def persistent_load(self, pid: int) -> Tensor:
        return self.tensors[pid]


def packed(value: Any, *, by_value: bool = False) -> list[bytes | memoryview]:
    """Return a value as the parts of a message; tensors are not copied, unless they are on another device.

    Args:
        value: What is sent.
        by_value: Whether functions and classes that another process cannot import are sent with their code.

    Raises:
        Exception: Whatever pickle raises for what cannot be sent.
    """
    tensors, body = _Tensors(), io.BytesIO()
    pickler = _ByValue(body, protocol=5, recurse=True) if by_value else _Pickler(body, protocol=5)
    pickler.tensors = tensors
    pickler.dump(value)
    raw = [tensor.detach().cpu().contiguous() for tensor in tensors.all]
    specs = []
    for tensor, given in zip(raw, tensors.all, strict=True):
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs.append((dtype, tuple(tensor.shape), isinstance(given, nn.Parameter), given.requires_grad))
    head = pickle.dumps((specs, body.tell()))
    return [_LENGTH.pack(len(head)), head, body.getbuffer(), *(_bytes_of(tensor) for tensor in raw)]


def write(stream: BinaryIO, parts: list[bytes | memoryview]) -> None:
    """Write a message."""
    for part in parts:
        stream.write(part)
    stream.flush()


def read(stream: BinaryIO) -> Any:
    """Wait for a message and return its value; tensors are on the CPU.

    Raises:
        EOFError: If the other process has closed the pipe, or has ended.
    """
    (length,) = _LENGTH.unpack(_exactly(stream, bytearray(_LENGTH.size)))
    specs, size = pickle.loads(_exactly(stream, bytearray(length)))
    body = _exactly(stream, bytearray(size))
    tensors = []
    for dtype, shape, is_parameter, requires_grad in specs:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        _exactly(stream, _bytes_of(tensor))
        tensors.append(nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad))
    unpickler = _Unpickler(io.BytesIO(body))
    unpickler.tensors = tensors
    return unpickler.load()


def _bytes_of(tensor: Tensor) -> memoryview:
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _exactly(stream: BinaryIO, buffer: Any) -> Any:
    """Fill a buffer."""
    view, filled = memoryview(buffer), 0
    while filled < len(view):
        count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other process has closed the pipe")
        filled += count
    return buffer
