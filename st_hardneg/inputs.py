"""What callers hand in, checked where it comes in: one clear error, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from st_hardneg.config import MiningConfig
from st_hardneg.corpus import Ids
from st_hardneg.filters import ExtraFilter
from st_hardneg.search import ExactSearcher, FaissSearcher, Searcher
from st_hardneg.view import WEIGHT_UNIT

_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def default_searcher(config: MiningConfig) -> Searcher:
    """Return the searcher that the config asks for.

    Raises:
        MissingExtraError: If that is FAISS and it is not installed.
    """
    if config.use_faiss:
        return FaissSearcher(config.faiss_index)
    return ExactSearcher(config.corpus_chunk_size)


def similarity_name(model: Any) -> str:
    """Return the name of the model's similarity.

    Raises:
        TypeError: If the model cannot encode queries and documents.
        ValueError: If it cannot be searched by that similarity.
    """
    for method in ("encode_query", "encode_document", "encode"):
        if not callable(getattr(model, method, None)):
            raise TypeError(
                f"Expected a SentenceTransformer model, got {type(model).__name__}, which has no `{method}`. "
                "Load one with `SentenceTransformer(name_or_path)`."
            )
    name = getattr(model, "similarity_fn_name", None) or "cosine"
    name = str(getattr(name, "value", name))
    if name not in _SIMILARITIES:
        raise ValueError(
            f"Expected a model whose `similarity_fn_name` is one of {list(_SIMILARITIES)}, got {name!r}. Set "
            "`model.similarity_fn_name`, or use a model with one vector per text."
        )
    return name


def check_dataset(dataset: Any) -> None:
    """Raise unless this is a ``datasets.Dataset`` with rows; other kinds are told what to do.

    Raises:
        TypeError: If it is of another kind.
        ValueError: If it is empty.
    """
    kinds = {
        DatasetDict: "a DatasetDict. Wrap each split by itself: `HardNegativeDataset(dataset['train'])`.",
        IterableDatasetDict: "an IterableDatasetDict. Load the data without `streaming=True`, and wrap each split.",
        IterableDataset: "an IterableDataset, whose rows have no numbers. Load the data without `streaming=True`, or "
        "mine in a stream with `HardNegativeMiner`.",
    }
    for kind, rest in kinds.items():
        if isinstance(dataset, kind):
            raise TypeError(f"Expected a `datasets.Dataset`, got {rest}")
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Expected a `datasets.Dataset`, got {type(dataset).__name__}. Make one with `Dataset.from_dict` or "
            "`load_dataset`."
        )
    if len(dataset) == 0:
        raise ValueError("Expected a dataset with at least one row, got an empty one.")


def checked_config(config: Any) -> MiningConfig:
    """Return the config, or the default one for None.

    Raises:
        TypeError: If it is something else.
    """
    if config is None:
        return MiningConfig()
    if not isinstance(config, MiningConfig):
        raise TypeError(
            f"Expected `config` to be a MiningConfig, got {type(config).__name__}. Use `MiningConfig(...)`, or "
            "`MiningConfig.from_dict` for a dictionary."
        )
    return config


def column_names(dataset: Dataset, anchor: str | None, positive: str | None) -> tuple[str, str]:
    """Return the names of the anchor and the positive column; the first two where none is given.

    Raises:
        ValueError: If there are fewer than two columns, or one is given for both.
    """
    names = list(dataset.column_names)
    if anchor is None:
        anchor = next((name for name in names if name != positive), "anchor")
    if positive is None:
        positive = next((name for name in names if name != anchor), None)
        if positive is None:
            raise ValueError(
                f"Expected at least two columns, anchor and positive, got {names}. Add the column of positives."
            )
    if anchor == positive:
        raise ValueError(f"Expected different columns for anchor and positive, got {anchor!r} for both.")
    return anchor, positive


def named_filters(extra_filters: Any) -> dict[str, ExtraFilter]:
    """Return a caller's filters by name: one callable, a sequence of them, or a mapping.

    Raises:
        TypeError: If one of them cannot be called.
    """
    if extra_filters is None:
        return {}
    if callable(extra_filters):
        extra_filters = [extra_filters]
    if not isinstance(extra_filters, Mapping):
        named: dict[str, Callable[..., Any]] = {}
        for number, extra_filter in enumerate(extra_filters):
            name = getattr(extra_filter, "__name__", type(extra_filter).__name__)
            named[name if name not in named else f"{name}_{number}"] = extra_filter
        extra_filters = named
    for name, extra_filter in extra_filters.items():
        if not callable(extra_filter):
            raise TypeError(
                f"Expected `extra_filters` to be callables, got {type(extra_filter).__name__} under {name!r}. Pass "
                "functions of (candidates, corpus)."
            )
    return dict(extra_filters)


def row_weights(dataset: Dataset) -> Ids:
    """Return the rows' weights in millionths, int64 of shape ``(num_rows,)``: the column ``weight``, or 1 each.

    Raises:
        TypeError: If the column does not hold numbers.
        ValueError: If a weight is negative or not finite.
    """
    if "weight" not in dataset.column_names:
        return np.full(len(dataset), WEIGHT_UNIT, dtype=np.int64)
    weights = np.asarray(dataset.with_format(None)["weight"][:], dtype=object)
    try:
        numbers = weights.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            "Expected the column 'weight' to hold numbers, got something else. Rename it if it is not the rows' weight."
        ) from None
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0)))
    if len(bad):
        raise ValueError(
            f"Expected weights from 0 up in the column 'weight', got {weights[bad[0]]!r} in row {bad[0]}. Correct it."
        )
    result: Ids = np.rint(numbers * WEIGHT_UNIT).astype(np.int64)
    return result
