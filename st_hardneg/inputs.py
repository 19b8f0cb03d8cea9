"""What callers hand in, checked where it comes in: one clear error, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from st_hardneg.config import MiningConfig
from st_hardneg.corpus import Ids
from st_hardneg.filters import RULES, ExtraFilter
from st_hardneg.search import ExactSearcher, FaissSearcher, Searcher
from st_hardneg.view import WEIGHT_UNIT

_MAX_WEIGHT = 1e6
# Names that outputs, labels and the trainer use themselves.
_RESERVED = {"label", "labels", "score", "scores", "return_loss", "dataset_name"}
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


def check_parts(searcher: Any, cross_encoder: Any) -> None:
    """Raise unless a searcher can index and search, and a cross encoder can predict.

    Raises:
        TypeError: If not.
    """
    if searcher is not None and not isinstance(searcher, Searcher):
        raise TypeError(
            f"Expected `searcher` to have the methods `index` and `search`, got {type(searcher).__name__}. Pass an "
            "object, not a class."
        )
    if cross_encoder is not None and not callable(getattr(cross_encoder, "predict", None)):
        raise TypeError(
            f"Expected `cross_encoder` to be a CrossEncoder, got {type(cross_encoder).__name__}, which has no "
            "`predict`."
        )


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
    for parameter, name in (("anchor_column_name", anchor), ("positive_column_name", positive)):
        if not isinstance(name, str):
            raise TypeError(f"Expected `{parameter}` to be a string, got {type(name).__name__}. Name a column.")
        if name in _RESERVED or re.fullmatch(r"negative(_\d+)?", name):
            raise ValueError(
                f"Expected another name than {name!r} for the column of {parameter.split('_')[0]}s: the mined dataset "
                f"has a column of that name. Rename it with `dataset.rename_column({name!r}, 'text')`, for example."
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
    if not isinstance(extra_filters, (Mapping, Sequence)) or isinstance(extra_filters, str):
        raise TypeError(
            f"Expected `extra_filters` to be a function, a list of functions or a mapping of them by name, got "
            f"{type(extra_filters).__name__}."
        )
    named: dict[str, ExtraFilter] = {}
    pairs = extra_filters.items() if isinstance(extra_filters, Mapping) else ((None, one) for one in extra_filters)
    for given_name, extra_filter in pairs:
        if not callable(extra_filter):
            raise TypeError(
                f"Expected `extra_filters` to be callables, got {type(extra_filter).__name__}. Pass functions of "
                "(candidates, corpus)."
            )
        name = str(given_name or getattr(extra_filter, "__name__", type(extra_filter).__name__))
        if name in RULES:
            raise ValueError(
                f"Expected a name for an extra filter that no rule of this package has, got {name!r}. Rename the "
                "function, or pass a mapping: `extra_filters={'my_rule': function}`."
            )
        number = 1
        while name in named:
            number += 1
            name = f"{name.rsplit('#', 1)[0]}#{number}"
        named[name] = extra_filter
    return named


def row_weights(dataset: Dataset) -> Ids:
    """Return the rows' weights in whole millionths, int64 of shape ``(num_rows,)``: the column ``weight``, or 1 each.

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
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0) & (numbers <= _MAX_WEIGHT)))
    if len(bad):
        raise ValueError(
            f"Expected weights from 0 to a million in the column 'weight', got {weights[bad[0]]!r} in row {bad[0]}. "
            "Correct it."
        )
    result: Ids = np.rint(numbers * WEIGHT_UNIT).astype(np.int64)
    return result
