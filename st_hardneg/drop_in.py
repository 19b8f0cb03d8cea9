"""``mine_hard_negatives``: Sentence Transformers' signature and output, on this package's engine."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SimilarityFunction
from torch import Tensor

from st_hardneg.candidates import Candidates
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Corpus, number_texts
from st_hardneg.corpus.pairs import Pairs, pair_up
from st_hardneg.corpus.texts import Ids, TextColumn, check_text_column
from st_hardneg.encoders import DenseEncoder, Encoder, Encodings, encoder_for
from st_hardneg.encoders.cached import cached
from st_hardneg.errors import require_extra
from st_hardneg.formats.sentence_transformers import OutputFormat, check_output_format, write_rows
from st_hardneg.formats.statistics import Outcome
from st_hardneg.mining.engine import mine
from st_hardneg.mining.task import Task
from st_hardneg.search import ExactSearcher, FaissSearcher, Searcher

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

logger = logging.getLogger(__name__)

# FAISS on a GPU returns at most this many texts per query.
_MAX_GPU_DEPTH = 2048
# Queries searched at once, whatever `faiss_batch_size` allows.
_MAX_QUERY_CHUNK = 2048


def mine_hard_negatives(
    dataset: Dataset,
    model: SentenceTransformer,
    anchor_column_name: str | None = None,
    positive_column_name: str | None = None,
    corpus: list[str] | None = None,
    cross_encoder: CrossEncoder | None = None,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    num_negatives: int = 3,
    sampling_strategy: Literal["random", "top"] = "top",
    query_prompt_name: str | None = None,
    query_prompt: str | None = None,
    corpus_prompt_name: str | None = None,
    corpus_prompt: str | None = None,
    include_positives: bool = False,
    output_format: Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"] = "triplet",
    output_scores: bool = False,
    batch_size: int = 32,
    faiss_batch_size: int = 16384,
    use_faiss: bool = False,
    use_multi_process: list[str] | bool = False,
    verbose: bool = True,
    cache_folder: str | None = None,
    as_triplets: bool | None = None,
    margin: float | None = None,
) -> Dataset:
    """Add hard negatives to (anchor, positive) pairs, as ``sentence_transformers.util.mine_hard_negatives`` does.

    Arguments, rank windows, row handling and output are Sentence Transformers' own (see its documentation of the
    function of this name). What differs:

    * The anchor itself, a known positive of the query over all rows, and texts that differ from one of these only in
      case, whitespace or Unicode form are never returned; the search goes as much deeper as there are such texts.
    * The cache in ``cache_folder`` is keyed by the weights, so that a model that was trained on is encoded anew.
    * FAISS searches by the model's own similarity function, not always by inner product.
    * ``sampling_strategy="random"`` draws the same negatives again for the same texts, whatever the global random state.
    * Post-processing is done in Arrow: several times faster, in a fraction of the memory.

    Args:
        dataset: The pairs. Rows with the same anchor are one query with several positives.
        model: The model to search with.
        anchor_column_name: The anchor column; the first one if not given or not there.
        positive_column_name: The positive column; the second one if not given or not there.
        corpus: Further texts to search besides the positives.
        cross_encoder: Rescores candidates where a margin or a score bound is set.
        range_min: How many of the closest remaining candidates to skip.
        range_max: How many of the closest candidates to consider.
        max_score: Drop candidates that score above this.
        min_score: Drop candidates that score below this.
        absolute_margin: Drop candidates that score above the lowest positive score minus this.
        relative_margin: Drop candidates that score above ``p - |p| * relative_margin``, ``p`` the lowest positive score.
        num_negatives: Negatives per pair.
        sampling_strategy: ``"top"`` or ``"random"``.
        query_prompt_name: Name of the model's prompt for queries.
        query_prompt: Prompt for queries.
        corpus_prompt_name: Name of the model's prompt for corpus texts.
        corpus_prompt: Prompt for corpus texts.
        include_positives: Let known positives through, in an n-tuple, for evaluating a reranker.
        output_format: ``"triplet"``, ``"n-tuple"``, ``"labeled-pair"`` or ``"labeled-list"``.
        output_scores: Whether to add scores.
        batch_size: Texts encoded at once.
        faiss_batch_size: Queries searched at once, with FAISS or without.
        use_faiss: Search with FAISS.
        use_multi_process: Encode in several processes: True, or a list of devices.
        verbose: Print statistics.
        cache_folder: Folder to keep embeddings in.
        as_triplets: Deprecated, use ``output_format``.
        margin: Deprecated, use ``absolute_margin``.

    Returns:
        The dataset in the asked format.

    Raises:
        ValueError: If the dataset is empty, a window cannot hold the negatives, or an argument is out of range.
        MissingExtraError: If ``use_faiss=True`` and FAISS is not installed.
    """
    _check_arguments(dataset, faiss_batch_size, use_faiss)
    anchor_name, positive_name = _columns(dataset, anchor_column_name, positive_column_name)
    bounds = (max_score, min_score, absolute_margin, relative_margin, margin)
    is_default = range_min == 0 and range_max is None and sampling_strategy == "top" and bounds == (None,) * 5
    output_format, output_scores, absolute_margin = _resolve_deprecated(
        output_format, output_scores, absolute_margin, as_triplets, margin, include_positives, is_default
    )
    check_output_format(output_format)
    _check_names((anchor_name, positive_name), output_format, num_negatives, output_scores)
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be at least 1, got num_negatives={num_negatives}.")

    say: Callable[..., None] = print if verbose else _say_nothing
    # Infinite bounds bound nothing; but as in ST, one that is given has a cross encoder rescore, and a deeper search.
    in_force = (absolute_margin, relative_margin, max_score, min_score)
    max_score = None if max_score == math.inf else max_score
    min_score = None if min_score == -math.inf else min_score
    if isinstance(corpus, Iterator):
        corpus = list(corpus)
    given = corpus if corpus is None or not hasattr(corpus, "__len__") or len(corpus) else None
    numbered = number_texts(TextColumn(dataset, positive_name), given, distinct="text", allow_empty=True)
    pairs = pair_up(TextColumn(dataset, anchor_name), numbered, share_positives=False)
    max_positives = int(np.bincount(pairs.row_query).max())
    rescored = cross_encoder is not None and any(bound is not None for bound in in_force)
    range_max = _range_max(
        range_min,
        range_max,
        num_negatives,
        max_positives,
        deep=any(bound is not None for bound in in_force[:3])
        or (cross_encoder is not None and in_force[3] is not None),
        use_faiss=use_faiss,
        say=say,
    )
    if pairs.num_queries != pairs.num_rows:
        say(f"Found {pairs.num_queries} unique queries out of {pairs.num_rows} total queries.")
    if max_positives > 1:
        say(f"Found an average of {pairs.num_rows / pairs.num_queries:.3f} positives per query.")

    # Bounds that exclude each other are an error in a MiningConfig; here, as in ST, they leave nothing.
    leave_nothing = min_score is not None and max_score is not None and min_score > max_score
    config = MiningConfig(
        num_negatives=num_negatives,
        range_min=range_min,
        range_max=range_max,
        max_score=max_score,
        min_score=None if leave_nothing else min_score,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        sampling_strategy=sampling_strategy,
        query_prompt_name=query_prompt_name,
        query_prompt=query_prompt,
        corpus_prompt_name=corpus_prompt_name,
        corpus_prompt=corpus_prompt,
    )
    with (
        _pool(model, use_multi_process) as pool,
        _pool(cross_encoder if rescored else None, use_multi_process) as cross_encoder_pool,
    ):
        encodings = Encodings.from_config(config, batch_size)
        encodings = encodings.replace_both(normalize_embeddings=True, pool=pool)
        task = Task(
            pairs,
            numbered.corpus,
            extra_filters={"min_score": _nothing} if leave_nothing else {},
            cross_encoder=cross_encoder if rescored else None,
            cross_encoder_pool=cross_encoder_pool,
            make_searcher=partial(_make_searcher, use_faiss),
            batch_size=batch_size,
            query_chunk_size=min(faiss_batch_size, _MAX_QUERY_CHUNK),
            include_positives=include_positives,
            may_find_nothing=True,
            reserved=np.full(pairs.num_queries, max_positives, dtype=np.int64),
        )
        encoder = _encoder(model, encodings, cache_folder, say)
        mining = mine(task, encoder, config, show_progress_bar=True)
    say("Negative candidates mined, preparing dataset...")
    rows = _distinct_rows(pairs)
    result, _ = write_rows(
        output_format, (anchor_name, positive_name), pairs, numbered.corpus, mining, rows, output_scores=output_scores
    )
    if verbose:
        outcome = Outcome(pairs, mining, rows, output_format, len(result), {**config.to_dict(), "min_score": min_score})
        for line in outcome.lines():
            say(line)
    return result


def _nothing(candidates: Candidates, corpus: Corpus) -> Tensor:
    return torch.zeros(candidates.corpus_ids.shape, dtype=torch.bool)


def _distinct_rows(pairs: Pairs) -> Ids:
    """Return ST's rows: one per query and distinct positive, queries in order of appearance."""
    keys = pairs.row_query * (int(pairs.row_positive.max()) + 1) + pairs.row_positive
    first = np.sort(np.unique(keys, return_index=True)[1])
    rows: Ids = first[np.argsort(pairs.row_query[first], kind="stable")]
    return rows


def _check_arguments(dataset: Any, faiss_batch_size: int, use_faiss: bool) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(f"Expected a `datasets.Dataset`, got {type(dataset).__name__}. Mine each split by itself.")
    if dataset.format["type"] == "custom":
        raise ValueError(
            "The dataset has a transform (`with_transform` or `set_transform`), and mining would read the texts without "
            "it. Apply it with `dataset.with_format(None).map(...)` first, or take it off."
        )
    if len(dataset) == 0:
        raise ValueError("The dataset is empty. Please provide a non-empty dataset.")
    if faiss_batch_size <= 0:
        raise ValueError(f"faiss_batch_size must be a positive integer, got {faiss_batch_size}.")
    if use_faiss:
        require_extra("faiss", "faiss", "`use_faiss=True`")


def _say_nothing(*_: object) -> None:
    pass


def _columns(dataset: Dataset, anchor: str | None, positive: str | None) -> tuple[str, str]:
    """Return the two columns; as in ST, a name that is not there falls back to a place, but not silently."""
    columns = dataset.column_names
    if not positive or positive not in columns:
        if len(columns) < 2:
            raise ValueError("Dataset must contain at least two columns to select the positive column automatically.")
    for name, parameter, place in ((anchor, "anchor_column_name", 0), (positive, "positive_column_name", 1)):
        if name and name not in columns:
            logger.warning(
                f"`{parameter}={name!r}` is not a column of the dataset; the column {columns[place]!r} is used in its "
                f"place. Columns are {columns}."
            )
    anchor = anchor if anchor and anchor in columns else columns[0]
    positive = positive if positive and positive in columns else columns[1]
    if anchor == positive:
        raise ValueError(
            f"Expected different columns for anchor and positive, got {anchor!r} for both. Name both columns; they are "
            f"{columns}."
        )
    check_text_column(dataset, anchor, "anchor_column_name", allow_empty=True)
    check_text_column(dataset, positive, "positive_column_name", allow_empty=True)
    return anchor, positive


def _check_names(names: tuple[str, str], output_format: str, num_negatives: int, output_scores: bool) -> None:
    """Raise if the output has a column of the name of the anchors or the positives."""
    added = {
        "triplet": {"negative"},
        "n-tuple": {f"negative_{slot + 1}" for slot in range(num_negatives)},
        "labeled-pair": {"score" if output_scores else "label"},
        "labeled-list": {"labels"},
    }[output_format]
    added |= {"scores"} if output_scores and output_format != "labeled-pair" else set()
    if clash := sorted(added & set(names)):
        raise ValueError(
            f"The output has a column {clash[0]!r} of its own, which would take the place of yours. Rename yours first: "
            f"`dataset.rename_column({clash[0]!r}, 'text')`, for example."
        )


def _resolve_deprecated(
    output_format: Any,
    output_scores: bool,
    absolute_margin: float | None,
    as_triplets: bool | None,
    margin: float | None,
    include_positives: bool,
    is_default: bool,
) -> tuple[OutputFormat, bool, float | None]:
    if as_triplets is not None:
        output_format = "triplet" if as_triplets else "n-tuple"
        logger.warning(f"`as_triplets` is deprecated. Use `output_format={output_format!r}` instead.")
    if include_positives:
        if not is_default:
            logger.warning(
                "With `include_positives=True`, a rank window, a score bound, a margin or another sampling strategy "
                "than 'top' may still discard the positive values."
            )
        if output_format != "n-tuple":
            logger.warning("With `include_positives=True`, the output format is 'n-tuple', which keeps the ranking.")
            output_format = "n-tuple"
    if output_format == "n-tuple-scores":
        logger.warning("`output_format='n-tuple-scores'` is deprecated. Use 'n-tuple' with `output_scores=True`.")
        output_format, output_scores = "n-tuple", True
    if margin is not None:
        logger.warning(f"`margin` is deprecated. Use `absolute_margin={margin}` instead.")
        absolute_margin = margin
    return output_format, output_scores, absolute_margin


def _range_max(
    range_min: int,
    range_max: int | None,
    num_negatives: int,
    max_positives: int,
    *,
    deep: bool,
    use_faiss: bool,
    say: Callable[..., None],
) -> int:
    note = ""
    if range_max is None:
        range_max = range_min + num_negatives * (10 if deep else 1) + max_positives
        if use_faiss and range_max + max_positives > _MAX_GPU_DEPTH and _num_gpus() > 0:
            range_max = _MAX_GPU_DEPTH - max_positives
            note = (
                f" Note that range_max was capped to {range_max} because FAISS on GPU can only retrieve up to "
                f"{_MAX_GPU_DEPTH} documents per query, some of which are reserved for the positives. Use "
                "use_faiss=False to lift the cap."
            )
            say(f"FAISS on GPU retrieves at most {_MAX_GPU_DEPTH} documents per query.")
        say(f"Setting range_max to {range_max} based on the provided parameters.")
    if range_min < 0:
        raise ValueError(f"range_min must be non-negative, got range_min={range_min}.")
    if range_min >= range_max:
        raise ValueError(
            f"range_min must be smaller than range_max, got range_min={range_min} and range_max={range_max}.{note}"
        )
    if num_negatives > range_max - range_min:
        raise ValueError(
            f"Cannot mine {num_negatives} negatives per query: only {range_max - range_min} candidates remain after "
            f"skipping the first range_min={range_min} of range_max={range_max}. Decrease num_negatives or range_min, "
            f"or increase range_max.{note}"
        )
    return range_max


def _num_gpus() -> int:
    import faiss

    return int(getattr(faiss, "get_num_gpus", lambda: 0)())


@contextmanager
def _pool(model: Any, use_multi_process: Sequence[str] | bool) -> Iterator[Any]:
    """Start a multi-process pool if one is wanted, and stop it whatever happens."""
    if model is None or not use_multi_process:
        yield None
        return
    devices = None if isinstance(use_multi_process, bool) else list(use_multi_process)
    pool = model.start_multi_process_pool(target_devices=devices)
    try:
        yield pool
    finally:
        model.stop_multi_process_pool(pool)


def _make_searcher(use_faiss: bool, is_main: bool) -> Searcher:
    return FaissSearcher() if use_faiss else ExactSearcher()


def _encoder(model: Any, encodings: Encodings, cache_folder: str | None, say: Callable[..., None]) -> Encoder:
    """Return the model's encoder; it searches by the model's own callables, as ST does."""
    encoder = encoder_for(model, encodings)
    if isinstance(encoder, DenseEncoder) and hasattr(model, "similarity_pairwise"):
        encoder.pairwise = model.similarity_pairwise
        similarity = getattr(model, "similarity", None)
        # What is ST's own goes by its name, which is faster.
        named = (SentenceTransformer.similarity, SimilarityFunction.to_similarity_fn(encoder.similarity))
        if getattr(similarity, "__func__", similarity) not in named:
            encoder.score_function = similarity
    return cached(encoder, cache_folder, say)
