"""Half precision while mining, where the hardware gains by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from st_hardneg.hosts import computes_bfloat16

# Below so many weights in products of matrices, casting costs what the products gain.
_MIN_WEIGHTS = 1_000_000


def gains_by_half_precision(model: Any) -> bool:
    """Tell whether a model encodes faster in bfloat16: it multiplies large float32 matrices where that type is native."""
    if not isinstance(model, nn.Module):
        return False
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    number = sum(weight.numel() for weight in weights if weight.dtype == torch.float32)
    return number >= _MIN_WEIGHTS and computes_bfloat16(weights[0].device.type)


@contextmanager
def half_precision(model: Any, wanted: bool | None) -> Iterator[None]:
    """Let a model encode in bfloat16: always, never, or for None where it gains."""
    if not (gains_by_half_precision(model) if wanted is None else wanted) or not isinstance(model, nn.Module):
        yield
        return
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    with torch.autocast(device, dtype=torch.bfloat16):
        yield
