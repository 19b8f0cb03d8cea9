"""What a report says of the model that negatives were mined with."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from st_hardneg.encoders.fingerprint import weights_fingerprint


def describe_model(model: Any) -> dict[str, str]:
    """Return a model's ``kind`` (its class), ``name`` and ``weights`` (a fingerprint), as far as they can be told.

    The name is that of a repository where there is one, else the last part of a path: no report tells of folders.
    """
    described = {"kind": type(model).__name__}
    if name := _name(model):
        described["name"] = name
    if isinstance(model, nn.Module) and has_all_weights(model):
        described["weights"] = weights_fingerprint(model)
    return described


def has_all_weights(model: Any) -> bool:
    """Tell whether this process has all weights of a model, of which no rank has if it is sharded over them."""
    # Only its state tells of it at all times.
    return not isinstance(model, nn.Module) or not any(hasattr(one, "to_local") for one in model.state_dict().values())


def _name(model: Any) -> str | None:
    card = getattr(model, "model_card_data", None)
    config = getattr(getattr(model, "transformers_model", None), "config", None)
    for name in (getattr(card, "base_model", None), getattr(config, "_name_or_path", None)):
        if isinstance(name, (str, os.PathLike)) and os.fspath(name):
            text = os.fspath(name)
            is_path = os.path.isabs(text) or text.count("/") > 1 or os.path.exists(text)
            return os.path.basename(os.path.normpath(text)) if is_path else text
    return None
