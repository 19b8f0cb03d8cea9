"""Task: what a mining works on, as one value beside the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from st_hardneg.candidates import BUILT_IN_SOURCES
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.dense import similarity_name
from st_hardneg.encoders.vectors import Limits
from st_hardneg.mining.filters import ExtraFilter
from st_hardneg.search import ExactSearcher, Searcher
from st_hardneg.sources.protocol import Source


@dataclass(frozen=True, eq=False)
class Guide:
    """Another model, which vetoes candidates that it scores above the positive.

    Source: GISTEmbed, https://huggingface.co/papers/2402.16829, with a margin as Sentence Transformers' losses have it.

    Args:
        model: The model.
        margin: By how much a candidate has to stay below the query's lowest positive score of the guide.

    Raises:
        TypeError: If the model cannot encode queries and documents.
    """

    model: Any
    margin: float = 0.0

    def __post_init__(self) -> None:
        similarity_name(self.model)
        if isinstance(self.margin, bool) or not isinstance(self.margin, (int, float)) or not math.isfinite(self.margin):
            raise TypeError(f"Expected the margin of a Guide to be a finite number, got {self.margin!r}.")


_SENT = ("tokens", "vectors")


def exact_searcher(is_main: bool) -> Searcher:
    """Return a searcher that compares everything with everything."""
    return ExactSearcher()


@dataclass(frozen=True, eq=False)
class Task:
    """What is mined, and with what help; the recipe says which negatives are wanted.

    Args:
        pairs: The queries and their positives.
        corpus: The texts that can be a negative.
        sources: Sources of the caller's own by name.
        source_names: What the numbers of sources stand for.
        extra_filters: The caller's own filters by name.
        cross_encoder: Rescores every candidate and positive, if given.
        is_cross_encoder_trained: Whether it is being trained, so that its scores are not kept for the next mining.
        rescoring_budget: How many pairs of a search and of positives the cross encoder scores in a mining at most; the
            nearest candidates of each query come first. None for no limit.
        teacher: Scores what was mined, if given, and decides nothing.
        cross_encoder_pool: A multi-process pool of the cross encoder's.
        guide: Another model, which vetoes candidates.
        make_searcher: Returns a searcher; its argument says whether it is for the whole corpus.
        batch_size: Texts encoded, and pairs rescored, at once.
        query_chunk_size: Queries searched and filtered at once; bounds memory.
        cache_folder: Folder to keep vectors in, of models that are not being trained; None for none.
        max_memory: GB of memory that the vectors of the corpus may take; what does not fit is kept in ``cache_folder``.
        num_topics: Cluster the queries into so many topics; None for none.
        include_positives: Let known positives through.
        may_find_nothing: Whether a mining that finds no negative at all is no error: ST's function returns no rows, and a
            batch of a ``map`` loses its own.
        doubt: Strength of adaptive bounds from 0 to 1, where it is settled already: the batches of a ``map`` share one.
        reserved: int64 of shape ``(num_queries,)``: how many places among what is retrieved are set aside for positives;
            each query's number of positives if None.
        with_pictures: Whether the report gets what it draws; a batch of a ``map`` has no use for it.
        columns: Names of the anchor and the positive column, for the report.
        kept: What outlives a mining, such as a BM25 index and a guide's vectors.
    """

    pairs: Pairs
    corpus: Corpus
    sources: Mapping[str, Source] = field(default_factory=dict)
    source_names: tuple[str, ...] = BUILT_IN_SOURCES
    extra_filters: Mapping[str, ExtraFilter] = field(default_factory=dict)
    cross_encoder: Any = None
    is_cross_encoder_trained: bool = False
    rescoring_budget: int | None = None
    teacher: Any = None
    cross_encoder_pool: Any = None
    guide: Guide | None = None
    make_searcher: Callable[[bool], Searcher] = exact_searcher
    batch_size: int = 32
    query_chunk_size: int = 512
    cache_folder: str | None = None
    max_memory: float | None = None
    num_topics: int | None = None
    include_positives: bool = False
    may_find_nothing: bool = False
    doubt: float | None = None
    reserved: Ids | None = None
    with_pictures: bool = False
    columns: tuple[str, ...] = ()
    kept: MutableMapping[str, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        # Indexes and vectors may be large, and not every index can be sent: another process makes its own.
        return {**self.__dict__, "kept": {name: self.kept[name] for name in _SENT if name in self.kept}}

    def limits(self, is_searched: bool) -> Limits:
        """Return what vectors may take, and, if they are searched, by what."""
        return Limits(self.max_memory, self.cache_folder, partial(self.make_searcher, True) if is_searched else None)

    def most_rescored(self, config: MiningConfig) -> int | None:
        """Return how many candidates of each query the cross encoder scores at most, or None for no limit.

        Raises:
            ValueError: If the budget does not reach for the negatives that are wanted.
        """
        if self.rescoring_budget is None:
            return None
        # Each is scored itself, and sets aside a place among the candidates, where another text stands if it ranks low.
        num_positives = 2 * len(self.pairs.positive_ids)
        most = (self.rescoring_budget - num_positives) // max(1, self.pairs.num_queries)
        if most < (least := config.range_min + config.num_negatives):
            needed = num_positives + least * self.pairs.num_queries
            raise ValueError(
                f"Expected `rescoring_budget` to reach for {least} candidates of each of {self.pairs.num_queries:,} "
                f"queries and for their positives, {needed:,} pairs, got {self.rescoring_budget:,}. Raise it, or lower "
                "`num_negatives`."
            )
        return most
