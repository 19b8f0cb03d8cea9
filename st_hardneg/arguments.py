"""What the faces are handed besides texts, checked where it comes in: one clear error, before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from st_hardneg.config import MiningConfig, explain_unknown_field
from st_hardneg.encoders import Encodings, encoder_for
from st_hardneg.errors import check_takes, require_extra
from st_hardneg.mining.filters import RULES, ExtraFilter
from st_hardneg.mining.task import Guide
from st_hardneg.search import ExactSearcher, FaissSearcher, Searcher


def checked_config(config: Any, fields: Mapping[str, Any] | None = None) -> MiningConfig:
    """Return the recipe: the one that is given, or the recommended one with some fields changed.

    Raises:
        TypeError: If it is something else, a field is unknown or of the wrong type, or both are given.
        ValueError: If a value is out of range.
    """
    if fields and config is not None:
        raise TypeError(
            f"Pass `config`, or fields of the recipe such as `{next(iter(fields))}`, not both. Put the field into the "
            "config: `MiningConfig.recommended(...)` takes the same ones."
        )
    if config is None:
        for name in fields or {}:
            if name not in MiningConfig.__dataclass_fields__:
                raise TypeError(explain_unknown_field(name))
        return MiningConfig.recommended(**(fields or {}))
    if not isinstance(config, MiningConfig):
        raise TypeError(
            f"Expected `config` to be a MiningConfig, got {type(config).__name__}. Use `MiningConfig(...)`, or "
            "`MiningConfig.from_dict` for a dictionary."
        )
    return config


def searcher_maker(searcher: Any, use_faiss: bool, corpus_chunk_size: int) -> Callable[[bool], Searcher]:
    """Return a function that makes searchers; its argument says whether one is for the whole corpus.

    A searcher holds the vectors: one of our own is made for each mining, and gone after it. A searcher of the caller's is
    a single one, and serves the corpus.

    Raises:
        TypeError: If the caller's cannot index and search.
        ValueError: If both are asked for.
        MissingExtraError: If FAISS is asked for and is not installed.
    """
    if searcher is not None and not isinstance(searcher, Searcher):
        raise TypeError(
            f"Expected `searcher` to have the methods `index` and `search`, got {type(searcher).__name__}. Pass an "
            "object, not a class."
        )
    if not isinstance(use_faiss, bool):
        raise TypeError(f"Expected `use_faiss` to be True or False, got {use_faiss!r}.")
    if searcher is not None and use_faiss:
        raise ValueError("Expected either a `searcher` or `use_faiss=True`, got both. Leave one of them out.")
    if use_faiss:
        require_extra("faiss", "faiss", "`use_faiss=True`")
    return partial(_make_searcher, searcher, use_faiss, corpus_chunk_size)


def _make_searcher(searcher: Searcher | None, use_faiss: bool, corpus_chunk_size: int, is_main: bool) -> Searcher:
    if searcher is not None and is_main:
        return searcher
    return FaissSearcher() if use_faiss else ExactSearcher(corpus_chunk_size)


def check_sizes(**sizes: Any) -> None:
    """Raise unless these are whole numbers from 1 up.

    Raises:
        TypeError: If one is no whole number.
        ValueError: If one is below 1.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"Expected `{name}` to be an integer, got {size!r}.")
        if size < 1:
            raise ValueError(f"Expected `{name}` to be at least 1, got {size!r}.")


def checked_cache_folder(cache_folder: Any) -> str | None:
    """Return the path of the folder in which embeddings are kept, or None.

    Raises:
        TypeError: If it is no path.
    """
    if cache_folder is None:
        return None
    if not isinstance(cache_folder, (str, os.PathLike)):
        raise TypeError(
            f"Expected `cache_folder` to be the path of a folder, got {cache_folder!r} ({type(cache_folder).__name__})."
        )
    return os.fspath(cache_folder)


def check_max_memory(max_memory: Any) -> None:
    """Raise unless this is a number above 0, or None.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 0.
    """
    if max_memory is None:
        return
    if isinstance(max_memory, bool) or not isinstance(max_memory, (int, float)):
        raise TypeError(f"Expected `max_memory` to be a number of GB, got {max_memory!r}.")
    if not max_memory > 0:
        raise ValueError(f"Expected `max_memory` to be above 0 GB, got {max_memory!r}.")


def check_num_topics(num_topics: Any, num_queries: int) -> None:
    """Raise if topics are asked for that cannot be.

    Raises:
        TypeError: If the number is none.
        ValueError: If there are more topics than queries.
    """
    if num_topics is None:
        return
    check_sizes(num_topics=num_topics)
    if num_topics > num_queries:
        raise ValueError(
            f"Expected `num_topics` to be at most the number of queries, {num_queries:,}, got {num_topics:,}. "
            "Lower it; a topic should have several batches of anchors."
        )


def checked_cross_encoder(cross_encoder: Any) -> Any:
    """Return a cross encoder that can predict, or None.

    Raises:
        TypeError: If it cannot.
    """
    if isinstance(cross_encoder, type):
        raise TypeError(
            f"Expected an object as `cross_encoder`, got the class {cross_encoder.__name__}. Make one of it."
        )
    if cross_encoder is not None and not callable(getattr(cross_encoder, "predict", None)):
        raise TypeError(
            f"Expected `cross_encoder` to be a CrossEncoder, got {type(cross_encoder).__name__}, which has no "
            "`predict`."
        )
    return cross_encoder


def checked_guide(guide: Any) -> Guide | None:
    """Return the guide, with a margin of 0 if a model is given.

    Raises:
        TypeError: If it is neither.
    """
    return guide if guide is None or isinstance(guide, Guide) else Guide(guide)


def checked_teacher(teacher: Any) -> Any:
    """Return a model that can score, or None.

    Raises:
        TypeError: If it can neither predict nor encode queries and documents.
        ValueError: If it cannot be searched by.
    """
    if teacher is None or (callable(getattr(teacher, "predict", None)) and not isinstance(teacher, type)):
        return teacher
    if isinstance(teacher, type):
        raise TypeError(f"Expected an object as `teacher`, got the class {teacher.__name__}. Make one of it.")
    encoder_for(teacher, Encodings.from_config(MiningConfig()))
    return teacher


def named_filters(extra_filters: Any) -> dict[str, ExtraFilter]:
    """Return a caller's filters by name: one callable, a sequence of them, or a mapping.

    Raises:
        TypeError: If one of them cannot be called with candidates and corpus.
        ValueError: If one has the name of a rule of this package.
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
        check_takes(extra_filter, f"the extra filter {name!r}", "candidates", "corpus")
        number = 1
        while name in named:
            number += 1
            name = f"{name.rsplit('#', 1)[0]}#{number}"
        named[name] = extra_filter
    return named
