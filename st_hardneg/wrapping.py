"""From what a user hands in to what is mined: rows, corpus, pairs and task, and what is said of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from st_hardneg.arguments import (
    check_max_memory,
    check_num_topics,
    check_sizes,
    checked_cache_folder,
    checked_config,
    checked_cross_encoder,
    checked_guide,
    checked_teacher,
    named_filters,
    searcher_maker,
)
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Corpus, number_texts
from st_hardneg.corpus.pairs import Pairs, pair_up
from st_hardneg.corpus.rows import Rows, read_rows
from st_hardneg.corpus.texts import distinct_ids
from st_hardneg.encoders.shared import share
from st_hardneg.mining.task import Task
from st_hardneg.sources.build import NamedSources, name_sources
from st_hardneg.sources.synthetic import checked_synthetic

logger = logging.getLogger(__name__)

# Positives that the corpus lacks, as a share of all, that are worth a warning.
_MANY_MISSING = 0.01
_TITLE = re.compile(r"(title|heading|headline)s?", re.IGNORECASE)
_LOOKS_NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?(_\d+)?", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Help:
    """What a mining is helped by, and how fast it is: all that files cannot hold or need not.

    Args:
        cross_encoder: Rescores every candidate and positive.
        guide: Another model, or a Guide.
        searcher: A searcher for the corpus.
        use_faiss: Search with FAISS's flat index.
        extra_filters: Filters of the caller's.
        batch_size: Texts encoded at once.
        query_chunk_size: Queries searched and filtered at once.
        corpus_chunk_size: Corpus texts compared at once in exact search.
        num_topics: Cluster the anchors into so many topics.
        cache_folder: Folder to keep vectors in.
        max_memory: GB of memory that the vectors of the corpus may take.
        teacher: Scores what was mined.
        rescoring_budget: How many pairs the cross encoder scores in a mining at most.
    """

    cross_encoder: Any = None
    guide: Any = None
    searcher: Any = None
    use_faiss: bool = False
    extra_filters: Any = None
    batch_size: int = 32
    query_chunk_size: int = 512
    corpus_chunk_size: int = 100_000
    num_topics: int | None = None
    cache_folder: str | None = None
    max_memory: float | None = None
    teacher: Any = None
    rescoring_budget: int | None = None

    def arguments_of_task(self) -> dict[str, Any]:
        """Return these as arguments of a Task, checked.

        Raises:
            TypeError: If one is of the wrong kind.
            ValueError: If one is out of range, or two contradict each other.
            MissingExtraError: If one needs an extra that is not installed.
        """
        check_sizes(
            batch_size=self.batch_size,
            query_chunk_size=self.query_chunk_size,
            corpus_chunk_size=self.corpus_chunk_size,
        )
        check_max_memory(self.max_memory)
        if self.rescoring_budget is not None:
            check_sizes(rescoring_budget=self.rescoring_budget)
        return {
            "cross_encoder": checked_cross_encoder(self.cross_encoder),
            "teacher": checked_teacher(self.teacher),
            "rescoring_budget": self.rescoring_budget,
            "guide": checked_guide(self.guide),
            "extra_filters": named_filters(self.extra_filters),
            "make_searcher": searcher_maker(self.searcher, self.use_faiss, self.corpus_chunk_size),
            "batch_size": self.batch_size,
            "query_chunk_size": self.query_chunk_size,
            "num_topics": self.num_topics,
            "with_pictures": True,
            "max_memory": self.max_memory,
            "cache_folder": checked_cache_folder(self.cache_folder),
        }

    def needs(self, named: NamedSources) -> list[str]:
        """Name what a recipe was given that files cannot hold."""
        needs = [name for name in ("cross_encoder", "searcher", "guide", "teacher") if getattr(self, name) is not None]
        return [
            *needs,
            *(f"extra_filters[{name!r}]" for name in named_filters(self.extra_filters)),
            *(f"sources[{name!r}]" for name in named.own),
        ]


@dataclass(frozen=True, eq=False)
class Wrapped:
    """What is mined.

    Args:
        rows: The rows as they were handed in.
        corpus: The texts that can be a negative.
        pairs: The queries and their positives.
        config: Which negatives are wanted.
        task: All of it as a mining takes it.
        needs: What files cannot hold of it.
    """

    rows: Rows
    corpus: Corpus
    pairs: Pairs
    config: MiningConfig
    task: Task
    needs: list[str]

    @property
    def num_positives(self) -> int:
        """Distinct positives."""
        return len(distinct_ids(self.corpus.identities[self.pairs.row_positive]))

    @property
    def num_found(self) -> int:
        """How many of them the given corpus holds."""
        positives = distinct_ids(self.corpus.identities[self.pairs.row_positive])
        return int((positives < self.corpus.num_given).sum())

    def __str__(self) -> str:
        num_texts = len(self.corpus.searched)
        parts = [
            f"{self.rows.anchor_name!r} -> {self.rows.positive_name!r}, {self.pairs.num_rows:,} rows",
            f"{self.pairs.num_queries:,} queries",
            f"{num_texts:,} corpus texts",
        ]
        if self.corpus.num_given:
            parts.append(f"{self.num_found:,} of {self.num_positives:,} positives found in the corpus")
        if self.corpus.num_merged:
            parts.append(f"{self.corpus.num_merged:,} of the texts are copies of another one")
        if self.pairs.largest_cluster:
            parts.append(f"symmetric pairs, up to {self.pairs.largest_cluster:,} texts hang together")
        if self.rows.wrong is not None:
            parts.append(f"{len(self.rows.wrong):,} rows labelled wrong are given negatives")
        if self.rows.negative_names:
            parts.append(f"given negatives {list(self.rows.negative_names)}")
        if self.rows.unused:
            parts.append(f"not used: {list(self.rows.unused)}")
        if self.corpus.unused:
            parts.append(f"not used of the corpus: {self.corpus.unused}")
        return ", ".join(parts)


def wrap(
    dataset: Any,
    corpus: Any,
    config: MiningConfig | None,
    fields: Mapping[str, Any],
    helpers: Help,
    *,
    anchor_column_name: str | None,
    positive_column_name: str | None,
    sources: Mapping[str, Any] | None,
    metadata_filter: Any,
    symmetric: bool | None,
) -> Wrapped:
    """Check and number what a user hands in; see :class:`~st_hardneg.HardNegativeDataset` for the arguments."""
    recipe = checked_config(config, fields)
    is_open = config is None and "num_negatives" not in fields
    named = name_sources(sources, recipe, checked_synthetic, is_number_open=is_open)
    if symmetric is not None and not isinstance(symmetric, bool):
        raise TypeError(f"Expected `symmetric` to be True, False or None, got {symmetric!r}.")
    rows = read_rows(dataset, anchor_column_name, positive_column_name, use_given=named.uses_given)
    helping = helpers.arguments_of_task()
    if helpers.num_topics is not None:  # before texts are written, which may take long
        check_num_topics(helpers.num_topics, len({text for texts in rows.anchors.batches() for text in texts}))
    given = rows.given_negatives() if named.uses_given else []
    additions = named.additions(
        anchors=rows.anchors if "anchors" in named.config.search_spaces else None,
        given=[texts for _, texts in given],
        metadata_filter=metadata_filter,
    )
    numbered = number_texts(rows.positives, corpus, identity=named.config.identity, additions=additions)
    pairs = pair_up(rows.anchors, numbered, symmetric=symmetric, given_anchors=[anchors for anchors, _ in given])
    share(numbered.corpus)
    columns = (rows.anchor_name, rows.positive_name)
    task = Task(pairs, numbered.corpus, named.own, named.names, columns=columns, **helping)
    wrapped = Wrapped(rows, numbered.corpus, pairs, named.config, task, helpers.needs(named))
    _say_what_is_used(wrapped)
    return wrapped


def _say_what_is_used(wrapped: Wrapped) -> None:
    """Say in one line what is used and what is not, and warn of what a user would hardly mean."""
    rows, corpus, pairs, config = wrapped.rows, wrapped.corpus, wrapped.pairs, wrapped.config
    logger.info(f"{wrapped} ({rows}{f', {corpus.columns}' if corpus.num_given else ''})")
    if wasted := [name for name in rows.unused if _LOOKS_NEGATIVE.fullmatch(name)]:
        logger.warning(
            f'The given negatives in {wasted} are not used. Use them with `sources={{"dense": 2, "given": 1}}`, for '
            "example (columns of texts called 'negative' or 'negative_1', 'negative_2' …), or remove the columns."
        )
    if rows.looks_swapped:
        logger.warning(
            f"The columns {rows.anchor_name!r} and {rows.positive_name!r} are taken as anchor and positive by their "
            f"place, so that negatives are mined for {rows.anchor_name!r}. If it should be the other way round, pass "
            f"`anchor_column_name={rows.positive_name!r}`."
        )
    if rows.is_by_place and (others := [name for name in rows.unused_texts if name not in wasted]):
        logger.warning(
            f"The columns {rows.anchor_name!r} and {rows.positive_name!r} are taken as anchor and positive by their "
            f"place, and {others} are not used. If others are meant, name them with `anchor_column_name` and "
            "`positive_column_name`."
        )
    if pairs.num_unused_given:
        logger.warning(
            f"{pairs.num_unused_given:,} given negatives are not used, because their anchor has no positive."
        )
    if identical := pairs.num_identical(corpus):
        logger.warning(
            f"The positive of {identical:,} of {pairs.num_rows:,} rows is the anchor itself, in whatever case, spacing or "
            "Unicode form. It scores highest, so that margins keep nearly everything. Remove these rows, unless they are "
            "meant, as for SimCSE."
        )
    _warn_of_the_corpus(wrapped)
    for name, ids in corpus.parts.items():
        if len(ids) < (quota := config.quotas.get(name, 0)):
            logger.warning(
                f"The source {name!r} has {len(ids):,} texts for a quota of {quota:,}: the other slots are left to "
                f'`shortfall="{config.shortfall}"`. Lower the quota, or give it more texts.'
            )


def _warn_of_the_corpus(wrapped: Wrapped) -> None:
    """Warn of titles that are not read, and of right answers that the corpus has not got."""
    corpus = wrapped.corpus
    if titles := [name for name in corpus.unused if _TITLE.fullmatch(name)]:
        logger.warning(
            f"Of the corpus, the column {corpus.text_column!r} is read, and {titles} is not. If models should read "
            "titles, too, join both in one column with `corpus.map`, or use `HardNegativeDataset.from_beir`; give "
            "positives the same form."
        )
    missing = wrapped.num_positives - wrapped.num_found
    if corpus.num_given and missing > _MANY_MISSING * wrapped.num_positives:
        logger.warning(
            f"{missing:,} of {wrapped.num_positives:,} positives are not in the corpus, in "
            "whatever case, spacing or Unicode form, or with a title. If the corpus holds them in another form, they "
            "will be mined as negatives: give both the same form."
        )
