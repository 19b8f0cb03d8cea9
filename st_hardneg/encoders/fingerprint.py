"""What identifies weights, texts and recipes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor, nn

PROBES = ("What does the model make of a short question?", "And of a statement with 42 numbers, and CAPITALS.", "")
"""Texts whose vectors show what weights do not: numbers in plain attributes, another backend, a disabled adapter."""

MAX_PROBES = 8
"""Texts of the data that are encoded besides."""


def vectors_fingerprint(vectors: Tensor) -> str:
    """Identify vectors, float of shape ``(m, dim)``, to three digits: more would tell one device from another."""
    scaled = vectors.detach().float().cpu() / vectors.detach().float().abs().max().cpu().clamp(min=1e-12)
    return hashlib.blake2b((scaled * 1000.0).round().to(torch.int16).numpy().tobytes(), digest_size=16).hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """Identify everything about a model that its embeddings depend on.

    Weights and buffers byte by byte, and the settings that change embeddings without changing a weight: the modules'
    structure, truncation, sequence length, prompts, similarity. What neither shows, the vectors of :data:`PROBES` do.

    Returns:
        32 hexadecimal digits.
    """
    # Ten times as fast as BLAKE2, which would take a tenth of what a static embedding takes to mine with.
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(_raw_bytes(tensor))
    settings = [str(model)]
    for name in ("truncate_dim", "max_seq_length", "prompts", "default_prompt_name", "similarity_fn_name"):
        settings.append(f"{name}={getattr(model, name, None)!r}")
    tokenizer = getattr(model, "tokenizer", None)
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        settings.append(_tokenizer_fingerprint(backend.to_str()))
    digest.update("\n".join(settings).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def attributes_fingerprint(model: nn.Module) -> str:
    """Identify the plain values among the attributes of a model's modules, such as a factor or a switch.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, module in model.named_modules():
        for attribute, value in sorted(vars(module).items()):
            if attribute != "training" and _is_plain(value):
                digest.update(f"{name}.{attribute}={value!r};".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(one) for pair in value.items() for one in pair)
    return value is None or isinstance(value, (bool, int, float, str))


_SEEN: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


def remembered(model: nn.Module, recipe: Any, with_vectors: Callable[[str], str]) -> str:
    """Return a fingerprint of a model and a recipe, for which its probes are encoded once as long as nothing changes.

    Args:
        model: The model.
        recipe: What else decides the vectors, such as prompts: plain values.
        with_vectors: From the fingerprint of what can be seen without encoding to the whole one.
    """
    patched = sorted(
        f"{name}.{attribute}={id(value)}"
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if callable(value) and not isinstance(value, nn.Module) and not getattr(value, "changes_no_vector", False)
    )
    state = recipe_fingerprint(weights_fingerprint(model), attributes_fingerprint(model), recipe)
    seen = _SEEN.setdefault(model, {})
    key = recipe_fingerprint(state, patched)
    if key not in seen:
        seen.clear()
        seen[key] = with_vectors(state)
    return seen[key]


def _raw_bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


# What was made of a tokenizer's JSON, by the digest of that: to parse it takes longer than to read the weights.
_TOKENIZERS: dict[bytes, str] = {}


def _tokenizer_fingerprint(tokenizer_json: str) -> str:
    key = xxhash.xxh3_128_digest(tokenizer_json.encode("utf-8", "surrogatepass"))
    if key not in _TOKENIZERS:
        content = json.loads(tokenizer_json)
        # Padding and truncation are set anew by every batch; they are no property of the model.
        content.pop("padding", None)
        content.pop("truncation", None)
        _TOKENIZERS[key] = recipe_fingerprint(content)
    return _TOKENIZERS[key]


def texts_fingerprint(texts: Iterable[str]) -> str:
    """Identify a sequence of texts, order included. Returns 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def recipe_fingerprint(*parts: Any) -> str:
    """Identify plain JSON values. Returns 32 hexadecimal digits."""
    raw = json.dumps(parts, sort_keys=True, default=str).encode()
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
