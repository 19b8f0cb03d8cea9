"""Values and mutants for the fuzz tests."""

from __future__ import annotations

import random
import string
from typing import Any


def anything(rng: random.Random, depth: int = 2) -> Any:
    """Return a JSON value, or something that JSON does not know."""
    leaves = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice([0, 1, -1, 3, 2**31, 2**63, 2**70, 10**19]),
        lambda: rng.choice([0.0, 0.5, -1.5, 1e308, float("nan"), float("inf")]),
        lambda: "".join(rng.choices(string.printable + "é\u2028\ud800", k=rng.randint(0, 6))),
        lambda: rng.choice(["top", "random", "raw", "(", "a{9}", "../..", "Flat"]),
        lambda: object(),
    ]
    if depth and rng.random() < 0.3:
        if rng.random() < 0.5:
            return [anything(rng, depth - 1) for _ in range(rng.randint(0, 3))]
        return {str(anything(rng, 0)): anything(rng, depth - 1) for _ in range(rng.randint(0, 3))}
    return rng.choice(leaves)()


def mutated(rng: random.Random, value: Any) -> Any:
    """Return a JSON-like value with something in it changed, dropped or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.2:
            return {name: one for name, one in value.items() if name != key}
        if kind < 0.3:
            return {**value, str(anything(rng, 0)): anything(rng)}
        return {**value, key: mutated(rng, value[key])}
    return anything(rng)


def is_ours(error: Exception) -> bool:
    """Tell whether an error says what was expected, and is not one that a library threw on its way."""
    return isinstance(error, (ValueError, TypeError)) and any(
        word in str(error)
        for word in ("Expected", "Cannot keep", "has no effect", "is no field", "has no [", "may take for ever")
    )
