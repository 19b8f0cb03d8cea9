"""The candidates that a mining keeps, as tables, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import nan
from typing import Any

import torch

from st_hardneg.candidates import Pool, PoolPart
from st_hardneg.files.schema import FileColumn, Key, checked_keys, damaged, is_count, is_mapping, is_optional, is_string
from st_hardneg.files.tables import TableReader, read_table, table_of, write_table

_MOST = 10_000
_MEASURED = FileColumn(torch.float32, default=None, is_list=True, may_be_nan=True)

PART: dict[str, FileColumn] = {
    "ids": FileColumn(torch.int64, is_list=True, least=-1, limit="corpus"),
    "similarities": FileColumn(torch.float32, is_list=True),
    "sources": FileColumn(torch.int8, is_list=True, names="source_names"),
    "source_scores": _MEASURED,
    "cross_encoder_scores": _MEASURED,
    "positive_similarity": _MEASURED,
    "positive_closeness": _MEASURED,
    "guide_gap": _MEASURED,
    "chance": FileColumn(torch.float32, default=None, may_be_nan=True),
    "units": FileColumn(torch.float32, default=None),
}
"""One row per query: every tensor of a :class:`~st_hardneg.candidates.PoolPart`; the first part holds what is measured of
queries, too."""

_FLAGS = ("is_ranked", "keeps_order", "is_search")

KEYS: dict[str, Key] = {
    "depth": Key(is_count),
    "similarity": Key(is_string),
    "dim": Key(is_count, default=0),
    "typical_rank": Key(is_optional(lambda value: isinstance(value, (int, float))), default=None),
    "mined_with": Key(is_mapping, default={}),
    "parts": Key(lambda value: isinstance(value, list) and all(_is_part(one) for one in value)),
}
"""What a save's JSON says of the candidates."""


def _is_part(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and is_count(value.get("width"))
        and value["width"] <= _MOST * 100
        and all(isinstance(value.get(flag), bool) for flag in _FLAGS)
    )


def write_pool(folder: str, pool: Pool | None, source_names: Sequence[str]) -> dict[str, Any] | None:
    """Write ``candidates-0.arrow`` and further ones, a row per query; return what the JSON file says of them."""
    if pool is None:
        return None
    described = []
    for number, (name, part) in enumerate(pool.parts.items()):
        values = {column: getattr(part, column, None) for column in PART}
        if number == 0:
            values |= {"chance": pool.chance, "units": pool.units}
        write_table(folder, f"candidates-{number}", table_of(PART, values, source_names))
        described.append({"name": name, "width": part.ids.shape[1], **{flag: getattr(part, flag) for flag in _FLAGS}})
    return {**{name: getattr(pool, name) for name in KEYS if name != "parts"}, "parts": described}


def read_pool(
    folder: str,
    told: Mapping[str, Any] | None,
    positives: tuple[torch.Tensor, torch.Tensor | None],
    *,
    num_queries: int,
    num_corpus: int,
    source_names: Sequence[str],
) -> Pool | None:
    """Read and check what :func:`write_pool` wrote.

    Args:
        folder: Where.
        told: What the JSON file says.
        positives: The similarities of the rows' positives, and a cross encoder's scores of them.
        num_queries: Queries that are expected.
        num_corpus: Texts in the corpus.
        source_names: What sources are called in the mining.

    Raises:
        ValueError: If it is damaged.
    """
    if told is None:
        return None
    told = checked_keys(folder, told, KEYS, "the candidates")
    parts: dict[str, PoolPart] = {}
    of_queries: dict[str, Any] = {}
    for number, one in enumerate(told["parts"]):
        reader = TableReader(
            folder,
            read_table(folder, f"candidates-{number}"),
            num_rows=num_queries,
            width=one["width"],
            limits={"corpus": num_corpus},
            source_names=source_names,
        )
        found = reader.columns(PART)
        of_queries = of_queries or {name: found[name] for name in ("chance", "units")}
        if len(reader.words["source_names"]) > len(source_names):
            raise damaged(folder, "the candidates come from sources that the mining does not have")
        tensors = {part.name: found[part.name] for part in fields(PoolPart) if part.name in found}
        if tensors["source_scores"] is None:
            tensors["source_scores"] = torch.full(tensors["ids"].shape, nan)
        parts[one["name"]] = PoolPart(**tensors, **{flag: one[flag] for flag in _FLAGS})
    if not parts:
        raise damaged(folder, "there are no candidates")
    del told["parts"]
    similarities, rescored = positives
    return Pool(
        parts=parts,
        positive_similarities=similarities,
        positive_cross_encoder_scores=rescored,
        **of_queries,
        **told,
    )
