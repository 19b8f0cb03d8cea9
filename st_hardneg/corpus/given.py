"""What callers hand in, checked where it comes in: one clear error, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from st_hardneg.candidates import BUILT_IN_SOURCES
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Additions
from st_hardneg.corpus.texts import Ids
from st_hardneg.errors import require_extra
from st_hardneg.live.view import WEIGHT_UNIT
from st_hardneg.mining.filters import RULES, ExtraFilter
from st_hardneg.search import ExactSearcher, FaissSearcher, Searcher
from st_hardneg.sources.synthetic import checked_synthetic

_MAX_WEIGHT = 1e6
_MAX_SOURCES = 100
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


def checked_additions(
    cross_domain: Any, metadata_filter: Any, metadata_sources: Any, synthetic: Any, guide: Any
) -> Additions:
    """Return what is searched besides the corpus, by name.

    Raises:
        TypeError: If a part is of the wrong kind.
        ValueError: If two sources have one name, or a name is empty.
    """
    further = cross_domain if isinstance(cross_domain, Mapping) else {"cross_domain": cross_domain}
    further = {name: corpus for name, corpus in further.items() if cross_domain is not None}
    predicates = {} if metadata_sources is None else metadata_sources
    if not isinstance(predicates, Mapping):
        raise TypeError(
            f"Expected `metadata_sources` to map names to functions of a corpus row, got {type(predicates).__name__}. "
            "Pass `{'recent': lambda row: row['year'] >= 2020}`, for example."
        )
    for name in (*further, *predicates):
        if not isinstance(name, str) or not name or name in (*BUILT_IN_SOURCES, "corpus", "positive", "anchor"):
            raise ValueError(
                f"Expected a name of its own for each further source, got {name!r}. Names of built-in sources are "
                f"{list(BUILT_IN_SOURCES)}."
            )
    both = sorted(set(further) & set(predicates))
    if both:
        raise ValueError(f"Expected different names in `cross_domain` and `metadata_sources`, got {both} in both.")
    if synthetic is not None and (isinstance(synthetic, type) or not callable(synthetic)):
        got = f"the class {synthetic.__name__}" if isinstance(synthetic, type) else type(synthetic).__name__
        raise TypeError(
            f"Expected `synthetic` to be a function from positives to texts for each, got {got}. Pass a maker of "
            "`st_hardneg.sources.synthetic`, for example `KeywordEdits()`."
        )
    if guide is not None:
        similarity_name(guide)
    writer = None if synthetic is None else partial(checked_synthetic, synthetic)
    return Additions(
        cross_domain=further, metadata_filter=metadata_filter, metadata_sources=predicates, synthetic=writer
    )


def check_sources(config: MiningConfig, additions: Additions) -> tuple[str, ...]:
    """Make sure that there is a source for every quota, and return the names of all sources.

    Raises:
        ValueError: If a quota names an unknown source, or synthetic texts have a quota and no writer, or the other way
            round.
        MissingExtraError: If a source needs an extra that is not installed.
    """
    names = (*BUILT_IN_SOURCES, *additions.cross_domain, *additions.metadata_sources)
    if len(names) > _MAX_SOURCES:
        raise ValueError(
            f"Expected at most {_MAX_SOURCES} sources, got {len(names)}. Join corpora that belong together into one."
        )
    named = config.quotas if config.sources is None else config.sources
    for name in named:
        if name not in names:
            known = [other for other in names if other != "anchors"]
            close = get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"Expected `sources` to name sources of this dataset, got {name!r}. Sources are {known}; further ones "
                f"come with `cross_domain` and `metadata_sources`.{hint}"
            )
    if "lexical" in named:
        require_extra("bm25s", "lexical", "The source 'lexical'")
    if "synthetic" in named and additions.synthetic is None:
        raise ValueError(
            "Expected `synthetic=` to write the texts for the quota of 'synthetic', got None. Pass a maker, for example "
            "`st_hardneg.sources.synthetic.KeywordEdits()`."
        )
    unused = [name for name in (*additions.cross_domain, *additions.metadata_sources) if name not in named]
    unused += ["synthetic"] if additions.synthetic is not None and "synthetic" not in named else []
    if unused:
        raise ValueError(
            f"Expected a quota for every source that was given, got none for {unused}, so that nothing would come from "
            "there. Name them in `MiningConfig(sources={...})` (0 for a source that a schedule brings in later), or leave "
            "them out."
        )
    return names


def check_num_topics(config: MiningConfig, num_queries: int) -> None:
    """Raise if more topics are asked for than there are queries.

    Raises:
        ValueError: If so.
    """
    if config.num_topics is not None and config.num_topics > num_queries:
        raise ValueError(
            f"Expected `num_topics` to be at most the number of queries, {num_queries:,}, got {config.num_topics:,}. "
            "Lower it; a topic should have several batches of anchors."
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
    if dataset.format["type"] == "custom":
        raise ValueError(
            "The dataset has a transform (`with_transform` or `set_transform`), and mining would read the texts without "
            "it. Apply it with `dataset.map` first, or take it off with `dataset.with_format(None)`."
        )
    check_no_wrong_answers(dataset)


def check_no_wrong_answers(dataset: Dataset) -> None:
    """Raise if a column of labels says that some rows are wrong answers: they must not become known positives.

    Raises:
        ValueError: If a numeric column ``label``, ``labels``, ``score`` or ``scores`` holds values that are not above 0,
            or a column of labels holds classes or grades.
    """
    for name in dataset.column_names:
        column = dataset.with_format(None).data.column(name)
        kind = column.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if name not in ("label", "labels", "score", "scores") or not is_number:
            continue
        values = np.asarray(dataset.with_format(None)[name][:], dtype=np.float64)
        if num_wrong := int((~(values > 0)).sum()):
            raise ValueError(
                f"The column {name!r} labels {num_wrong:,} of {len(values):,} rows as wrong answers (not above 0), and a "
                "HardNegativeDataset takes every row for a right one. Keep the right ones with "
                f"`dataset.filter(lambda row: row[{name!r}] > 0)`; pass the others' texts in `corpus`. If the column does "
                f"not say which rows are right, remove it with `dataset.remove_columns({name!r})`."
            )
        if name in ("label", "labels") and bool((values != 1).any()):
            raise ValueError(
                f"The column {name!r} holds other values than 0 and 1, such as {values[values != 1][0]:g}, so it does not "
                "say which rows are right answers. Filter the rows, then remove the column with "
                f"`dataset.remove_columns({name!r})`."
            )


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
