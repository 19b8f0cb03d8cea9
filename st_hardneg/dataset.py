"""HardNegativeDataset: computes a mining, applies it to the table, hands out views and copies."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, concatenate_datasets
from sentence_transformers import SimilarityFunction

from st_hardneg.candidates import ANCHORS, DENSE, find_in_row
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.given import (
    check_dataset,
    check_num_topics,
    check_parts,
    check_sources,
    checked_additions,
    checked_config,
    column_names,
    default_searcher,
    named_filters,
    row_weights,
    similarity_name,
)
from st_hardneg.corpus.numbering import Corpus, Predicate, TextWriter, number_texts
from st_hardneg.corpus.pairs import KnownPositives, pair_up
from st_hardneg.corpus.texts import Ids, TextColumn, check_text_column
from st_hardneg.encoders.dense import Encoding, Encodings
from st_hardneg.encoders.fingerprint import recipe_fingerprint, texts_fingerprint
from st_hardneg.errors import MiningError, NotMinedError
from st_hardneg.files import save as storage
from st_hardneg.formats.beir import BeirTable, read_beir
from st_hardneg.formats.sentence_transformers import OutputFormat, Tuples, build, check_output_format
from st_hardneg.hardness import hardness_shares
from st_hardneg.live.table import NegativeTable
from st_hardneg.live.view import LiveView
from st_hardneg.mining import slots as shortfall
from st_hardneg.mining.engine import Mined, Mining, Recipe, mine_negatives, require_any
from st_hardneg.mining.filters import ExtraFilter
from st_hardneg.mining.scoring import Embeddings, Scoring, embed
from st_hardneg.mining.slots import Previous
from st_hardneg.mining.topics import cluster
from st_hardneg.publish.hub import push_mined
from st_hardneg.report import MiningReport, peak_memory_mb, summarize
from st_hardneg.search import Searcher
from st_hardneg.sources import DenseSource, LexicalIndex, LexicalSource, RandomSource, Source, Space, WrittenSource
from st_hardneg.training.checkpoint import CheckpointState

logger = logging.getLogger(__name__)

# A live view that lacks more than this share of the rows is worth a warning.
_MANY_ROWS = 0.1
_ROWS_AT_ONCE = 1_000_000

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer


class HardNegativeDataset:
    """A ``datasets.Dataset`` of (anchor, positive) rows, and the hard negatives mined for it.

    Repeated anchors are one query with several positives. Nothing that is known to be right for a query is ever
    returned as its negative: not its positives over all rows, not the anchor, not a text that differs from one of these
    only in case, whitespace or Unicode form.

    Args:
        dataset: The rows. The first two columns are anchor and positive unless named. A column ``weight`` of numbers
            from 0 up, if there is one, is the rows' weight in the label of ``as_dataset(with_ids=True)``.
        corpus: Texts to search besides the positives: None, a list of texts, ``{id: text}``, or a Dataset with a column
            ``text``, in which other columns are kept as metadata (``_id``, ``id`` or ``corpus-id`` holds its own ids).
        config: How to mine; the defaults of :class:`MiningConfig` if None.
        anchor_column_name: The anchor column.
        positive_column_name: The positive column.
        cross_encoder: Rescores every candidate and positive; filters and order then go by its scores.
        searcher: A :class:`~st_hardneg.search.Searcher` to use in place of the config's.
        extra_filters: Callables ``(Candidates, Corpus) -> boolean (q, k)``, True where a candidate may stay: one, a
            sequence, or a mapping by name.
        cross_domain: Further corpora by name, lists of texts or Datasets. Each is a source that ``config.sources`` can
            name, searched by itself. A single corpus is called ``"cross_domain"``.
        metadata_filter: A function of a corpus row (a dictionary of its columns) that returns True where the text may be
            a negative. Positives that the corpus lacks have no metadata, and may not.
        metadata_sources: Such functions by name: each makes a source of the rows for which it returns True, searched by
            itself.
        synthetic: Writes wrong answers: a callable from a list of positives to a list of texts for each, such as those
            in :mod:`st_hardneg.sources.synthetic`. Needs a quota for ``"synthetic"``.
        guide: Another model, which vetoes candidates that it scores above the positive, less ``config.guide_margin``.

    Raises:
        ValueError: If a column is missing, a text is None or empty, the dataset or the corpus is empty, both
            ``searcher`` and ``use_faiss=True`` are given, the config names an unknown source, or a predicate removes
            everything.
        TypeError: If the dataset is of another kind, a column does not hold text, or a predicate cannot be called.
        MissingExtraError: If ``use_faiss=True`` and FAISS is not installed, or a source needs another extra.
        MiningError: If ``synthetic`` writes nothing.

    Example:
        >>> from datasets import Dataset
        >>> pairs = Dataset.from_dict({"anchor": ["a", "b"], "positive": ["first", "second"]})
        >>> HardNegativeDataset(pairs, config=MiningConfig(num_negatives=1))
        HardNegativeDataset('anchor' -> 'positive', 2 rows, 2 queries, 2 corpus texts, not mined yet)
    """

    def __init__(
        self,
        dataset: Dataset,
        corpus: Sequence[str] | Mapping[Any, str] | Dataset | None = None,
        config: MiningConfig | None = None,
        *,
        anchor_column_name: str | None = None,
        positive_column_name: str | None = None,
        cross_encoder: CrossEncoder | None = None,
        searcher: Searcher | None = None,
        extra_filters: Mapping[str, ExtraFilter] | Sequence[ExtraFilter] | ExtraFilter | None = None,
        cross_domain: Mapping[str, Sequence[str] | Dataset] | Sequence[str] | Dataset | None = None,
        metadata_filter: Predicate | None = None,
        metadata_sources: Mapping[str, Predicate] | None = None,
        synthetic: TextWriter | None = None,
        guide: SentenceTransformer | None = None,
    ) -> None:
        check_dataset(dataset)
        self.config = checked_config(config)
        additions = checked_additions(cross_domain, metadata_filter, metadata_sources, synthetic, guide)
        self.source_names = check_sources(self.config, additions)
        self.anchor_column_name, self.positive_column_name = column_names(
            dataset, anchor_column_name, positive_column_name
        )
        check_text_column(dataset, self.anchor_column_name, "anchor_column_name")
        check_text_column(dataset, self.positive_column_name, "positive_column_name")
        check_parts(searcher, cross_encoder)
        if searcher is not None and self.config.use_faiss:
            raise ValueError("Expected either a `searcher` or `use_faiss=True`, got both. Leave one of them out.")
        self.cross_encoder = cross_encoder
        self.extra_filters = named_filters(extra_filters)
        self._searcher = searcher
        if searcher is None:
            default_searcher(self.config)  # a missing extra is an error now, not after the encoding

        self._dataset = dataset
        self._row_weight = row_weights(dataset)
        anchors = TextColumn(dataset, self.anchor_column_name)
        if self.config.num_topics is not None:  # before texts are written, which may take long
            check_num_topics(self.config, len({text for texts in anchors.batches() for text in texts}))
        if "anchors" in self.config.search_spaces:
            additions = replace(additions, anchors=anchors)
        numbered = number_texts(TextColumn(dataset, self.positive_column_name), corpus, additions=additions)
        self._corpus = numbered.corpus
        self._pairs = pair_up(anchors, numbered)
        self._note_positives()
        for name, ids in self._corpus.parts.items():
            if len(ids) < (quota := self.config.quotas.get(name, 0)):
                logger.warning(
                    f"The source {name!r} has {len(ids):,} texts for a quota of {quota:,}: the other slots are left to "
                    f'`shortfall="{self.config.shortfall}"`. Lower the quota, or give it more texts.'
                )
        if guide is None and self.config.guide_margin:
            raise ValueError(
                f"`guide_margin={self.config.guide_margin}` has no effect without a guide. Pass `guide=`, another model."
            )
        self.guide = guide
        self._guide_embeddings: Embeddings | None = None
        self._lexical_index = LexicalIndex(self._corpus) if "lexical" in (self.config.sources or {}) else None

        self._mining: Mining | None = None
        self._base: tuple[Mining, int] | None = None
        self._previous_ids: Ids | None = None
        self._num_minings = 0
        self._table: NegativeTable | None = None
        self._live_rows: Ids | None = None
        self._view: LiveView | None = None
        self._handed_out: weakref.WeakSet[Dataset] = weakref.WeakSet()

    def _note_positives(self) -> None:
        """Count the positives that are texts of the given corpus, and warn if most of them are not."""
        identities = np.unique(self._corpus.identities[self._pairs.row_positive])
        self._num_distinct = len(identities)
        self._num_found = int((identities < self._corpus.num_given).sum())
        if self._corpus.num_given and 2 * self._num_found < self._num_distinct:
            logger.warning(
                f"{self._num_distinct - self._num_found:,} of {self._num_distinct:,} positives are not in the corpus, in "
                "whatever case, spacing or Unicode form, or with a title. If the corpus holds them in another form, they "
                "will be mined as negatives: give both the same form."
            )

    @classmethod
    def from_beir(
        cls,
        corpus: BeirTable,
        queries: BeirTable,
        qrels: BeirTable,
        config: MiningConfig | None = None,
        *,
        title_separator: str = ". ",
        **options: Any,
    ) -> HardNegativeDataset:
        """Wrap a labelled retrieval set in BEIR's layout.

        Args:
            corpus: ``corpus.jsonl``: rows of ``_id``, ``title``, ``text``; as a path (also ``.gz``), a list of
                dictionaries or a Dataset.
            queries: ``queries.jsonl``: rows of ``_id`` and ``text``.
            qrels: ``qrels/train.tsv``: rows of ``query-id``, ``corpus-id`` and ``score``. Grades are kept in the column
                ``score`` and, as a share of the highest, in ``weight``; judgements of 0 are no positives.
            config: How to mine.
            title_separator: What stands between title and text of a document.
            **options: Further arguments of :class:`HardNegativeDataset`.

        Raises:
            ValueError: If a table lacks a column or repeats an id, or no judgement names ids of both tables.
        """
        pairs, documents = read_beir(corpus, queries, qrels, title_separator=title_separator)
        return cls(pairs, documents, config, **options)

    def __len__(self) -> int:
        return self._pairs.num_rows

    def __getstate__(self) -> dict[str, Any]:
        # A copy has views of its own: mining it must not change what another one's training reads.
        state = {**self.__dict__, "_table": None, "_view": None, "_handed_out": None, "_guide_embeddings": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handed_out = weakref.WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> HardNegativeDataset:
        # Texts, ids and minings are never changed in place, so they can be shared.
        return copy.copy(self)

    def __repr__(self) -> str:
        state = "not mined yet" if self._mining is None else f"mined {self._num_minings}x"
        return (
            f"HardNegativeDataset({self.anchor_column_name!r} -> {self.positive_column_name!r}, "
            f"{self._pairs.num_rows:,} rows, {self._pairs.num_queries:,} queries, "
            f"{len(self._corpus):,} corpus texts, {self._found_in_corpus()}{state})"
        )

    def _found_in_corpus(self) -> str:
        if not self._corpus.num_given:
            return ""
        return f"{self._num_found:,} of {self._num_distinct:,} positives found in the corpus, "

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(Dataset, name):
            raise AttributeError(
                f"A HardNegativeDataset is not a `datasets.Dataset` and has no `{name}`. Pass `.as_dataset()` to a "
                "trainer, or take a copy with `.to_dataset()`."
            )
        raise AttributeError(f"'HardNegativeDataset' object has no attribute {name!r}")

    @property
    def corpus(self) -> Corpus:
        """All texts that can be a negative; ``negative_ids`` are its row numbers."""
        return self._corpus

    @property
    def known_positives(self) -> KnownPositives:
        """Which corpus texts are right for which query, for losses that mask by identity."""
        return self._pairs.known

    def known_pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the anchor and the positive of every row."""
        start = 0
        for anchors in self._pairs.anchors.batches():
            positives = self._corpus.texts.take(self._pairs.row_positive[start : start + len(anchors)])
            yield from zip(anchors, positives, strict=True)
            start += len(anchors)

    @property
    def report(self) -> MiningReport:
        """The report of the last mining.

        Raises:
            NotMinedError: If nothing was mined yet.
        """
        return self._mined("report").report

    @property
    def negative_ids(self) -> Ids:
        """Corpus ids of the negatives, int64 of shape ``(num_rows, num_negatives)``; -1 where a slot is empty.

        Raises:
            NotMinedError: If nothing was mined yet.
        """
        return self._mined("negative_ids").negative_ids.copy()

    @property
    def negative_scores(self) -> npt.NDArray[np.float32]:
        """The model's similarity of anchor and negative, of shape ``(num_rows, num_negatives)``; -inf where empty.

        Raises:
            NotMinedError: If nothing was mined yet.
        """
        return self._mined("negative_scores").negative_scores.copy()

    def _mined(self, wanted: str) -> Mining:
        if self._mining is None:
            raise NotMinedError(f"This dataset has no negatives yet. Call `.mine(model)` before `.{wanted}`.")
        return self._mining

    # --- mining ---------------------------------------------------------------------------------------------------

    def mine(self, model: SentenceTransformer, *, show_progress_bar: bool = True) -> MiningReport:
        """Mine negatives with the model as it is now, in place. Live views show them at once.

        Args:
            model: The model to search with.
            show_progress_bar: Whether to show progress.

        Returns:
            What was found, removed and left empty.

        Raises:
            MiningError: If not one negative is found, an embedding is not finite, or ``shortfall="error"`` and a
                query has too few. The earlier negatives stay as they were.
            ValueError: If the model's similarity cannot be searched by.
        """
        mining = self.compute_mining(model, show_progress_bar=show_progress_bar)
        self.apply_mining(mining)
        self.publish_topics()
        return mining.report

    def reset(self) -> None:
        """Go back to the negatives of the last mining before a training, as if no training had refreshed them.

        A training with a ``MiningCallback`` that starts at step 0 does so by itself. The counter of draws goes back, too.
        """
        if self._base is not None and self._mining is not self._base[0]:
            self._put_in_force(*self._base)

    def starting_state(self) -> tuple[Mining | None, int, Ids | None]:
        """Return what a training begins with on this rank: the mining, its number, and the rows of the live view."""
        return self._mining, self._num_minings, self._live_rows

    def start_from(self, state: tuple[Mining | None, int, Ids | None]) -> None:
        """Begin a training with another rank's state.

        Raises:
            ValueError: If this rank's live view has other rows.
        """
        mining, num_minings, live_rows = state
        if mining is None or self._mining is None:
            return
        ours, theirs = self._live_rows, live_rows
        if (ours is None) != (theirs is None) or (
            ours is not None and theirs is not None and not np.array_equal(ours, theirs)
        ):
            raise ValueError(
                "The ranks' live views have different rows: their minings left other slots empty. Mine on one rank, "
                '`save_to_disk`, and load on all of them; or set `shortfall="random"`, which keeps every row.'
            )
        if not np.array_equal(mining.negative_ids, self._mining.negative_ids):
            logger.warning("This rank had mined other negatives than rank 0; it goes on with those of rank 0.")
            self._put_in_force(mining, num_minings)

    def _put_in_force(self, mining: Mining, num_minings: int) -> None:
        if self._table is not None:
            self._table.write(mining.negative_ids)
        self._mining, self._num_minings, self._previous_ids = mining, num_minings, None
        self.publish_topics()
        self._mark_views()

    def compute_mining(
        self,
        model: SentenceTransformer,
        *,
        encodings: Encodings | None = None,
        step: int | None = None,
        config: MiningConfig | None = None,
        show_progress_bar: bool = True,
        between_chunks: Callable[[], None] | None = None,
    ) -> Mining:
        """Mine without changing anything; :meth:`apply_mining` puts the result in force. What the callback calls.

        Args:
            model: The model to search with.
            encodings: Prompts and routes; the config's if None.
            step: Optimizer step to note in the report and for every negative that is mined now.
            config: The recipe in force this time, as a schedule has it; the dataset's own if None.
            show_progress_bar: Whether to show progress.
            between_chunks: Called after every chunk of queries that was searched.

        Raises:
            MiningError: As for :meth:`mine`.
            ValueError: As for :meth:`mine`.
        """
        started = time.perf_counter()
        similarity = similarity_name(model)
        config = config or self.config
        pairwise = SimilarityFunction.to_similarity_pairwise_fn(similarity)
        scoring = Scoring(
            embed(
                self._pairs,
                self._corpus,
                model,
                encodings or Encodings.from_config(config),
                pairwise,
                show_progress_bar=show_progress_bar,
            ),
            self._pairs,
            self._corpus,
            self.cross_encoder,
            config.batch_size,
            with_positive_similarity=config.max_positive_similarity is not None,
            guide=self._guided(config, show_progress_bar),
        )
        encoded = time.perf_counter()
        sources = self._sources(scoring, config, similarity)
        indexed = time.perf_counter()
        recipe = Recipe(
            config,
            self.extra_filters,
            refresh=self._num_minings,
            step=-1 if step is None else step,
            random_spaces=self._spaces(config),
            source_names=self.source_names,
        )
        mined = mine_negatives(
            scoring,
            sources,
            recipe,
            previous=self._previous(),
            show_progress_bar=show_progress_bar,
            between_chunks=between_chunks,
        )
        require_any(mined)
        search = indexed - encoded + mined.search_seconds
        seconds = {
            "encoding": encoded - started,
            "search": search,
            "rest": time.perf_counter() - encoded - search,
        }
        mining = self._by_row(mined, seconds, similarity, recipe)
        if config.num_topics is None:
            return mining
        topics = cluster(scoring.embeddings.queries, config.num_topics, seed=config.seed)
        return replace(mining, topics=topics[self._pairs.row_query])

    def _guided(self, config: MiningConfig, show_progress_bar: bool) -> Embeddings | None:
        """Return the guide's embeddings; they are computed once, as the guide is not trained."""
        if self.guide is not None and self._guide_embeddings is None:
            name = similarity_name(self.guide)
            own = Encodings(
                Encoding("query", batch_size=config.batch_size), Encoding("document", batch_size=config.batch_size)
            )
            pairwise = SimilarityFunction.to_similarity_pairwise_fn(name)
            self._guide_embeddings = embed(
                self._pairs, self._corpus, self.guide, own, pairwise, show_progress_bar=show_progress_bar
            )
        return self._guide_embeddings

    def _spaces(self, config: MiningConfig) -> tuple[Ids, ...]:
        """Return the corpus ids of each space that the dense source searches."""
        if "anchors" in config.search_spaces:
            return self._corpus.searched, self._corpus.searched_anchors
        return (self._corpus.searched,)

    def _sources(self, scoring: Scoring, config: MiningConfig, similarity: str) -> dict[str, Source]:
        """Return the sources that the quotas name, with their texts indexed."""

        def space(corpus_ids: Ids, code: int) -> Space:
            # A searcher holds the embeddings: one of our own is made for each mining, and gone after it. A searcher of
            # the caller's is a single one, and serves the corpus.
            is_main = corpus_ids is self._corpus.searched
            searcher = self._searcher if self._searcher is not None and is_main else default_searcher(config)
            searcher.index(scoring.embeddings.of_texts(corpus_ids), similarity)
            return Space(searcher, corpus_ids, code)

        sources: dict[str, Source] = {}
        for name, quota in config.quotas.items():
            if name == "dense":
                spaces = zip(self._spaces(config), (DENSE, ANCHORS), strict=False)
                sources[name] = DenseSource(scoring, tuple(space(ids, code) for ids, code in spaces))
            elif name == "lexical":
                assert self._lexical_index is not None
                sources[name] = LexicalSource(scoring, self._lexical_index)
            elif name == "random":
                spaces_to_draw = self._spaces(config)
                sources[name] = RandomSource(scoring, spaces_to_draw, quota, config.seed, self._num_minings)
            elif name == "synthetic":
                sources[name] = WrittenSource(scoring, config.seed, self._num_minings)
            else:
                part = space(self._corpus.parts[name], self.source_names.index(name))
                sources[name] = DenseSource(scoring, (part,))
        return sources

    def _previous(self) -> Previous | None:
        if self._mining is None:
            return None
        must_fill = torch.zeros(self._pairs.num_queries, dtype=torch.bool)
        if self._live_rows is not None:
            must_fill[torch.from_numpy(self._pairs.row_query[self._live_rows])] = True
        first, mining = self._pairs.first_row, self._mining
        return Previous(
            torch.from_numpy(mining.negative_ids[first]),
            must_fill,
            torch.from_numpy(mining.sources[first]),
            torch.from_numpy(mining.source_scores[first]),
            torch.from_numpy(mining.steps[first]),
            torch.from_numpy(mining.first_scores[first]),
        )

    def _by_row(self, mined: Mined, seconds: Mapping[str, float], similarity: str, recipe: Recipe) -> Mining:
        rows = self._pairs.row_query
        negatives = mined.negatives
        negative_ids: Ids = negatives.corpus_ids.numpy()[rows]
        embeddings = mined.scoring.embeddings
        positive_scores = embeddings.similarity_of_pairs(
            torch.from_numpy(rows), torch.from_numpy(self._pairs.row_positive)[:, None]
        )
        report = self._make_report(mined, negative_ids, seconds, similarity, recipe)
        return Mining(
            negative_ids,
            negatives.similarities.numpy()[rows],
            negatives.scores.numpy()[rows],
            negatives.ranks.numpy()[rows],
            mined.origin.numpy()[rows],
            negatives.sources.numpy()[rows],
            negatives.source_scores.numpy()[rows],
            mined.steps.numpy()[rows],
            mined.first_similarities.numpy()[rows],
            positive_scores.squeeze(1).numpy(),
            report,
        )

    def _make_report(
        self,
        mined: Mined,
        negative_ids: Ids,
        seconds: Mapping[str, float],
        similarity: str,
        recipe: Recipe,
    ) -> MiningReport:
        scoring, negatives, tally, config = mined.scoring, mined.negatives, mined.tally, recipe.config
        by_source = torch.bincount(negatives.sources[negatives.is_present].long(), minlength=len(self.source_names))
        lowest = scoring.lowest_positive_scores[:, None]
        scores = negatives.scores.masked_fill(~negatives.is_present, torch.nan)
        slots = {how: int((mined.origin == how).sum()) for how in range(6)}
        return MiningReport(
            refresh=self._num_minings,
            step=None if recipe.step < 0 else recipe.step,
            num_rows=self._pairs.num_rows,
            num_queries=self._pairs.num_queries,
            num_corpus=len(self._corpus.searched),
            num_negatives=self.config.num_negatives,
            num_candidates=tally.num_candidates,
            num_kept=tally.num_kept,
            removed=tally.removed,
            removed_alone=tally.removed_alone,
            num_slots=mined.origin.numel(),
            num_mined=slots[shortfall.MINED],
            num_carried_over=slots[shortfall.CARRIED_OVER],
            num_last_resort=slots[shortfall.LAST_RESORT],
            num_random=slots[shortfall.RANDOM],
            num_repeated=slots[shortfall.REPEATED],
            num_missing=slots[shortfall.EMPTY],
            num_incomplete_rows=int((negative_ids < 0).any(axis=1).sum()),
            scores={
                "positive": summarize(scoring.positive_scores),
                "negative": summarize(scores),
                "difference": summarize(lowest - scores),
            },
            hardness=hardness_shares(lowest, scores, config.semi_hard_margin),
            semi_hard_margin=config.semi_hard_margin,
            churn=None if self._mining is None else churn(self._mining.negative_ids, negative_ids),
            seconds=dict(seconds),
            peak_memory_mb=peak_memory_mb(),
            similarity=similarity,
            config=config.to_dict(),
            sources={name: int(count) for name, count in zip(self.source_names, by_source, strict=True) if count},
        )

    def apply_mining(self, mining: Mining) -> None:
        """Put a computed mining in force, for the callback: ``negative_ids``, copies and live views follow it from now on.

        Raises:
            MiningError: If a row of a live view would get an empty slot; nothing is changed then.
        """
        shape = (self._pairs.num_rows, self.config.num_negatives)
        if mining.negative_ids.shape != shape:
            raise MiningError(
                f"Expected negatives of shape {shape}, got {mining.negative_ids.shape}. Apply a mining that this very "
                "dataset computed."
            )
        if self._live_rows is not None and bool((mining.negative_ids[self._live_rows] < 0).any()):
            raise MiningError(
                "Expected a negative in every slot of the live view's rows, got empty ones. Apply a mining that this "
                "very dataset computed after the view was made."
            )
        generation = 0 if self._table is None else self._table.generation
        try:
            if self._table is not None:
                self._table.write(mining.negative_ids)
        finally:
            # An interrupt may come at any moment: once the live views have changed, the rest has to follow.
            if self._table is None or self._table.generation != generation:
                self._previous_ids = None if self._mining is None else self._mining.negative_ids
                self._mining = mining
                self._num_minings += 1
                if mining.report.step is None:
                    # Not a refresh: this is what a training begins with.
                    self._base = (mining, self._num_minings)
        self._mark_views()

    def publish_topics(self) -> None:
        """Let batch samplers see the topics of the last mining; the callback does so between epochs only."""
        if self._view is not None and self._mining is not None:
            self._view.topics = self._mining.topics

    @property
    def num_active(self) -> int:
        """How many negatives of each row the live view shows."""
        return self.config.num_negatives if self._table is None else self._table.num_active

    @num_active.setter
    def num_active(self, number: int) -> None:
        if self._table is not None:
            self._table.num_active = number

    def check_in_force(self, config: MiningConfig) -> None:
        """Raise if this dataset cannot be mined with a config that a schedule has changed.

        Raises:
            ValueError: If the config needs what was not numbered or given when the dataset was made.
        """
        named = {"dense", "random", *(self.config.sources or {})}
        unknown = sorted(set(config.quotas) - named)
        if unknown:
            raise ValueError(
                f"Expected sources that the dataset's own config names, got {unknown}. Name them there with a quota of 0."
            )
        if not set(config.search_spaces) <= set(self.config.search_spaces):
            raise ValueError(
                "Expected the dataset's own config to search the anchors, too, got `search_spaces=('corpus',)` there. Set "
                "`search_spaces=('corpus', 'anchors')`."
            )
        check_num_topics(config, self._pairs.num_queries)
        if config.guide_margin and self.guide is None:
            raise ValueError("Expected a guide for `guide_margin`, got none. Pass `guide=` to the HardNegativeDataset.")
        default_searcher(config)

    def _mark_views(self) -> None:
        # What `datasets` derives from a view from now on must not be mistaken for what it derived before.
        for view in self._handed_out:
            view._fingerprint = self._view.fingerprint() if self._view is not None else view._fingerprint

    @cached_property
    def data_fingerprint(self) -> str:
        """What identifies the rows, the corpus and the order of both."""
        anchors = texts_fingerprint(text for texts in self._pairs.anchors.batches() for text in texts)
        positives = hashlib.blake2b(self._pairs.row_positive.tobytes(), digest_size=16).hexdigest()
        return recipe_fingerprint(storage.corpus_fingerprint(self._corpus), anchors, positives)

    def checkpoint_state(
        self, mined_at: int | None, reports: Sequence[MiningReport], schedule: Any = None
    ) -> CheckpointState:
        """Return what a trainer's checkpoint has to hold of this dataset.

        Args:
            mined_at: Step of the last refresh of the training, or None.
            reports: Reports of the training so far.
            schedule: What identifies the schedule of the training.
        """
        mining = self._mined("checkpoint_state()")
        return CheckpointState(
            mining,
            mining.negative_ids if self._previous_ids is None else self._previous_ids,
            np.arange(0) if self._live_rows is None else self._live_rows,
            self._num_minings,
            mined_at,
            [report.to_dict() for report in reports],
            self.config.to_dict(),
            self.data_fingerprint,
            schedule=schedule,
            epoch_topics=None if self._view is None else self._view.topics,
        )

    def restore(self, state: CheckpointState, *, old_batches: int = 0) -> None:
        """Put the negatives of a checkpoint in force.

        Args:
            state: What :func:`st_hardneg.training.checkpoint.read_checkpoint` returned.
            old_batches: How many batches the live view serves from the negatives before the last refresh: those that
                the interrupted run had fetched ahead of it.

        Raises:
            ValueError: If the live view has other rows than that of the checkpoint.
        """
        if self._live_rows is not None and not np.array_equal(self._live_rows, state.live_rows):
            raise ValueError(
                f"Expected a live view of the rows of the checkpoint, got {len(self._live_rows):,} rows where it has "
                f"{len(state.live_rows):,}, or others. In the resumed script, load what `save_to_disk` wrote before the "
                "training, or mine with the very model that it started from before `as_dataset()`."
            )
        if self._table is not None:
            self._table.write(state.previous_ids)
            self._table.write(state.mining.negative_ids)
        self.serve_previous(old_batches)
        self._previous_ids = state.previous_ids
        self._mining = state.mining
        self._num_minings = state.num_minings
        if self._view is not None:
            self._view.topics = state.epoch_topics
        self._mark_views()

    def serve_previous(self, batches: int) -> None:
        """Let the live view read the next so many batches from before the last refresh; 0 ends it."""
        if self._view is not None:
            self._view.serve_previous(batches)

    # --- views and copies -----------------------------------------------------------------------------------------

    def as_dataset(self, *, with_ids: bool = False) -> Dataset:
        """Return a live ``datasets.Dataset``: it shows the negatives of the last mining whenever a row is fetched.

        Columns are anchor and positive under their own names, then ``negative_1`` to ``negative_n``. Rows can be
        selected, shuffled, split and filtered, and stay live; for a copy that does not change, and to write to disk or
        to the Hub, use :meth:`to_dataset`. Rows with an empty slot are left out; which ones is settled by the first
        call. A part that is split off for evaluation moves with the refreshes, too, and is refused as ``eval_dataset``:
        evaluate on ``to_dataset()``.

        Args:
            with_ids: Add a column ``label`` of int64: row, query, positive, weight in millionths, negatives. Sentence
                Transformers hands it to the loss as labels.

        Raises:
            NotMinedError: If nothing was mined yet.
            MiningError: If no row has all of its negatives.
        """
        mining = self._mined("as_dataset()")
        if self._live_rows is None:
            complete = np.flatnonzero((mining.negative_ids >= 0).all(axis=1))
            if not len(complete):
                raise MiningError(
                    f"Expected rows with all of their {self.config.num_negatives} negatives, got none. Lower "
                    "`num_negatives`, loosen the filters, or set `shortfall` to 'random' or 'repeat'."
                )
            left_out = len(mining.negative_ids) - len(complete)
            if left_out > _MANY_ROWS * len(mining.negative_ids):
                logger.warning(
                    f"{left_out:,} of {len(mining.negative_ids):,} rows have an empty slot and are left out of the live "
                    'view. `shortfall="random"` keeps them; a smaller margin or a larger corpus fills them.'
                )
            self._live_rows = complete
        if self._table is None:
            self._table = NegativeTable(mining.negative_ids)
        if self._view is None:
            self._view = LiveView(
                self._pairs.anchors,
                TextColumn(self._dataset, self.positive_column_name),
                self._corpus.texts,
                self._table,
                self.anchor_column_name,
                self.positive_column_name,
                self._pairs.row_query,
                self._pairs.row_positive,
                self._row_weight,
                owner=self,
            )
            self.publish_topics()
        view = self._view.dataset(self._live_rows, self._dataset, with_ids=with_ids)
        self._handed_out.add(view)
        return view

    def to_dataset(
        self, output_format: OutputFormat = "triplet", output_scores: bool = False, keep_columns: bool = False
    ) -> Dataset:
        """Return a plain dataset with the negatives of now, in the row order of the input.

        Args:
            output_format: ``"triplet"``: anchor, positive, negative, a row per negative there is. ``"n-tuple"``: anchor,
                positive, negative_1 … negative_n; rows with an empty slot are left out. ``"labeled-pair"``: anchor,
                text, label 1 or 0; a query's negatives stand once, after its last row. ``"labeled-list"``: anchor,
                list of texts, list of labels.
            output_scores: Add ``scores``, or put ``score`` / ``scores`` in place of labels. Scores are the model's
                similarity.
            keep_columns: Add the other columns of the wrapped dataset. A trainer would embed them as texts.

        Raises:
            NotMinedError: If nothing was mined yet.
            ValueError: If the format is unknown.
        """
        check_output_format(output_format)
        mining = self._mined("to_dataset()")
        tuples = Tuples(
            self.anchor_column_name,
            self.positive_column_name,
            self._pairs.anchors,
            self._corpus.texts,
            self._pairs.row_query,
            np.arange(self._pairs.num_rows),
            self._pairs.row_positive,
            mining.positive_scores,
            mining.negative_ids,
            mining.negative_scores,
        )
        dataset, source = build(tuples, output_format, output_scores)
        if not keep_columns:
            return dataset
        ours = [
            name for name in dataset.column_names if name not in (self.anchor_column_name, self.positive_column_name)
        ]
        if clash := sorted(set(ours) & set(self._dataset.column_names)):
            raise ValueError(
                f"The dataset has columns {clash} of its own, and so has the output. Rename yours before the dataset is "
                "wrapped, with `dataset.rename_column`, or leave out `keep_columns` or `output_scores`."
            )
        names = [name for name in self._dataset.column_names if name not in dataset.column_names]
        others = self._dataset.with_format(None).select_columns(names).select(source)
        return concatenate_datasets([dataset, others], axis=1) if names else dataset

    def provenance(self) -> Dataset:
        """Return where every negative of every row comes from.

        Returns:
            A dataset with one row per row: ``row``, ``positive_id``, ``positive_score``, and for every negative
            ``negative_ids``, ``negative_scores`` (the model's similarity), ``negative_ranks`` (place in its source, from
            0; -1 where it has none), ``negative_sources``, ``negative_steps`` (the training step at which it was mined; -1
            before training) and ``negative_slots`` (how the slot was filled: mined, carried over, random, repeated, last
            resort). A cross encoder's and BM25's scores have columns of their own. Ids are the corpus's own if it has a
            column of them (a positive that it lacks is ``positive-`` and a number), and row numbers of ``corpus``
            otherwise.

        Raises:
            NotMinedError: If nothing was mined yet.
        """
        mining = self._mined("provenance()")
        return storage.provenance_dataset(mining, self._pairs.row_positive, self._corpus, self.source_names)

    # --- disk and Hub ---------------------------------------------------------------------------------------------

    def save_to_disk(self, dataset_path: str | os.PathLike[str]) -> None:
        """Write pairs, corpus, negatives, recipe and report to a folder, as plain Arrow and JSON.

        A cross encoder, a searcher and extra filters are not written; :meth:`load_from_disk` asks for them again.

        Raises:
            FileExistsError: If the folder holds something else than an earlier save.
        """
        storage.save(os.fspath(dataset_path), self._state())

    def _state(self) -> storage.SavedState:
        return storage.SavedState(
            pairs=self._dataset,
            corpus=self._corpus,
            anchor_column_name=self.anchor_column_name,
            positive_column_name=self.positive_column_name,
            config=self.config,
            needs=self._needs(),
            num_minings=self._num_minings,
            mining=self._mining,
            live_rows=self._live_rows,
        )

    def _needs(self) -> list[str]:
        needs = ["cross_encoder"] if self.cross_encoder is not None else []
        needs += ["searcher"] if self._searcher is not None else []
        needs += ["guide"] if self.guide is not None else []
        return needs + [f"extra_filters[{name!r}]" for name in self.extra_filters]

    @classmethod
    def load_from_disk(
        cls,
        dataset_path: str | os.PathLike[str],
        *,
        cross_encoder: CrossEncoder | None = None,
        searcher: Searcher | None = None,
        extra_filters: Mapping[str, ExtraFilter] | Sequence[ExtraFilter] | ExtraFilter | None = None,
        guide: SentenceTransformer | None = None,
    ) -> HardNegativeDataset:
        """Read what :meth:`save_to_disk` wrote.

        Args:
            dataset_path: The folder.
            cross_encoder: The cross encoder, if the recipe had one.
            searcher: The searcher, if the recipe had one of its own.
            extra_filters: The extra filters, if the recipe had some.
            guide: The guide, if the recipe had one.

        Raises:
            FileNotFoundError: If the folder is not there.
            ValueError: If the files are damaged or do not belong together, or the recipe needs what was not given.
        """
        saved = storage.read(os.fspath(dataset_path))
        try:
            loaded = cls(
                saved.pairs,
                saved.given_corpus,
                saved.config,
                anchor_column_name=saved.anchor_column_name,
                positive_column_name=saved.positive_column_name,
                cross_encoder=cross_encoder,
                searcher=searcher,
                extra_filters=extra_filters,
                guide=guide,
                **saved.additions,
            )
        except MiningError:
            # Synthetic texts are looked up by their positives, none of which is there.
            raise storage.damaged(saved.path, "the texts are not those that were saved") from None
        missing = sorted(set(saved.needs) - set(loaded._needs()))
        if missing:
            raise ValueError(
                f"The saved recipe was mined with {', '.join(missing)}, which files cannot hold. Pass "
                f"{'it' if len(missing) == 1 else 'them'} to `load_from_disk` again."
            )
        loaded._mining, loaded._live_rows = saved.mining_of(
            loaded._corpus, loaded._pairs.num_rows, len(loaded.source_names)
        )
        loaded._num_minings = saved.num_minings
        loaded._base = None if loaded._mining is None else (loaded._mining, loaded._num_minings)
        if loaded._mining is not None and loaded._holds_positives(loaded._mining):
            raise storage.damaged(saved.path, "a negative is a known positive of its anchor, or the anchor itself")
        return loaded

    def _holds_positives(self, mining: Mining) -> bool:
        """Tell whether any negative is known to be a right answer; a million rows at once take little memory."""
        ids, rows = torch.from_numpy(mining.negative_ids), torch.from_numpy(self._pairs.row_query)
        chunks = zip(rows.split(_ROWS_AT_ONCE), ids.split(_ROWS_AT_ONCE), strict=True)
        return any(bool(self._pairs.known.contains(some, theirs).any()) for some, theirs in chunks)

    def push_to_hub(
        self,
        repo_id: str,
        config_name: str = "default",
        *,
        split: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        output_format: OutputFormat = "n-tuple",
    ) -> Any:
        """Publish the negatives as a plain dataset: ``load_dataset(repo_id)`` reads it back, without this package.

        What is published under ``config_name`` can be trained on as it is; ids, scores, ranks and sources are in a
        second configuration named ``provenance`` (``{config_name}-provenance`` for another name than ``default``).

        Args:
            repo_id: The dataset repository, such as ``"me/nq-hard-negatives"``.
            config_name: Name of the configuration.
            split: Name of the split; the wrapped dataset's, or ``"train"``.
            private: Whether a new repository is private.
            token: An access token; the stored one if None.
            revision: Branch to push to.
            commit_message: Message of the commit.
            output_format: As for :meth:`to_dataset`.

        Returns:
            What ``datasets.Dataset.push_to_hub`` returns for the main configuration.

        Raises:
            NotMinedError: If nothing was mined yet.
        """
        self._mined("push_to_hub()")
        dataset = self.to_dataset(output_format)
        if output_format == "n-tuple" and len(dataset) < (1 - _MANY_ROWS) * len(self):
            logger.warning(
                f"{len(self) - len(dataset):,} of {len(self):,} rows have an empty slot and are not published as tuples. "
                '`shortfall="random"` fills them; `output_format="triplet"` has a row for every negative there is.'
            )
        return push_mined(
            dataset,
            self.provenance(),
            repo_id,
            config_name,
            split=split or str(self._dataset.split or "train"),
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )


def churn(before: Ids, after: Ids) -> float:
    """Return the share of filled slots whose negative was not among the row's negatives before.

    Args:
        before: int64 of shape ``(num_rows, n)``; -1 where empty.
        after: int64 of shape ``(num_rows, m)``; -1 where empty.
    """
    filled = after >= 0
    if not filled.any():
        return 0.0
    known, _ = find_in_row(torch.from_numpy(after), torch.from_numpy(before))
    return float((filled & ~known.numpy()).sum() / filled.sum())
