"""Whether vectors fit into memory, asked before long work."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from st_hardneg.errors import MiningError

logger = logging.getLogger(__name__)

# What of the memory that is free vectors may take, if nobody says more; the rest is for search, texts and others.
_SHARE = 0.7
_GB = 1e9
# An encoding that takes longer is said to, in seconds.
_LONG = 120.0


def free_memory() -> int | None:
    """Return how many bytes of memory this process may still take, or None where that cannot be told."""
    found: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with suppress(OSError, ValueError):  # the limit of a container
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        found.append(int(limit) - int(used))
    return min(found, default=None)


def fits(num_texts: int, dim: int, max_memory: float | None) -> bool:
    """Tell whether float32 vectors of so many texts may be held in memory.

    Args:
        num_texts: How many.
        dim: Dimensions.
        max_memory: What they may take, in GB; most of what is free if None.
    """
    free = free_memory()
    room = max_memory * _GB if max_memory is not None else None if free is None else _SHARE * free
    return room is None or 4 * num_texts * dim <= room


def refuse(num_texts: int, dim: int, max_memory: float | None) -> None:
    """Raise an error that says what vectors would take and which setting goes without.

    Raises:
        MiningError: Always.
    """
    free = free_memory()
    have = "" if free is None else f" {free / _GB:.1f} GB are free."
    allowed = "" if max_memory is None else f" `max_memory={max_memory:g}` allows less."
    raise MiningError(
        f"The vectors of {num_texts:,} texts take {4 * num_texts * dim / _GB:.2g} GB.{allowed}{have} Pass `cache_folder`: "
        "vectors that do not fit are kept there, and searched shard by shard. The earlier negatives are unchanged."
    )


def say_how_long(num_texts: int, num_done: int, seconds: float) -> None:
    """Say how long encoding takes, from a sample, where it is long."""
    total = seconds * num_texts / max(1, num_done)
    if total > _LONG:
        logger.info(
            f"Encoding {num_texts:,} texts takes about {total / 60:,.0f} minutes ({num_done / seconds:,.0f} a second)."
        )
