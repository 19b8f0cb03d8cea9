"""HardNegativeDataset: wraps pairs, mines, and hands out live views."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from st_hardneg.arguments import check_num_topics
from st_hardneg.candidates import Mining, Pool
from st_hardneg.config import MiningConfig
from st_hardneg.encoders import Encodings, encoder_for
from st_hardneg.encoders.described import describe_model
from st_hardneg.encoders.prompts import check_settings, training_encodings, with_texts
from st_hardneg.encoders.reuse import Reuse, reusing
from st_hardneg.evaluating import EvaluatedDataset
from st_hardneg.exporting import ExportedDataset
from st_hardneg.identified import IdentifiedDataset
from st_hardneg.layouts import FromLayouts
from st_hardneg.live.negatives import LiveNegatives
from st_hardneg.mining.engine import mine
from st_hardneg.pooled import PooledDataset
from st_hardneg.publishing import PublishedDataset
from st_hardneg.report import MiningReport
from st_hardneg.wrapping import Help, Wrapped, wrap

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from st_hardneg.mining.filters import ExtraFilter
    from st_hardneg.search import Searcher


class HardNegativeDataset(
    FromLayouts, ExportedDataset, PooledDataset, PublishedDataset, EvaluatedDataset, IdentifiedDataset
):
    """A ``datasets.Dataset`` of (anchor, positive) rows, and the hard negatives mined for it.

    Repeated anchors are one query with several positives. Nothing that is known to be right for a query is ever
    returned as its negative: not its positives over all rows, not the anchor, not a text that differs from one of these
    only in case, whitespace or Unicode form.

    Args:
        dataset: The rows. A column ``weight`` of numbers from 0 up is the rows' weight in the label of
            ``as_dataset(with_ids=True)``.
        corpus: Texts to search besides the positives: None, a list of texts, ``{id: text}``, a Dataset with a column
            ``text`` (other columns are kept as metadata; ``_id`` or ``id`` holds its own ids), or another dataset's
            ``corpus``.
        config: Which negatives are wanted; :meth:`MiningConfig.recommended` if None.
        anchor_column_name: The anchor column. Without names, the columns ``anchor`` and ``positive`` are meant, or else
            the first and the second one.
        positive_column_name: The positive column.
        sources: Where negatives come from, by name: a quota for ``"dense"`` (the search), ``"lexical"`` (BM25),
            ``"random"`` or ``"given"`` (the dataset's own columns ``negative``, ``negative_1`` … and rows with label 0);
            ``Where(predicate, quota)`` for a part of the corpus, ``Texts(corpus, quota)`` for another corpus,
            ``Written(writer, quota)`` as ``"synthetic"``; or any object with ``propose(queries, plan)``, or it and its
            quota. 0 is for a source that a schedule brings in later.
        metadata_filter: A function of a corpus row (a dictionary of its columns) that returns True where the text may be
            a negative. Positives that the corpus lacks have no metadata, and may not.
        cross_encoder: Rescores every candidate and positive; rules and order then go by its scores.
        teacher: A cross encoder, or any other model, whose scores of positives and negatives ``as_dataset`` and
            ``to_dataset`` give where scores are asked for. It decides nothing, and scores new pairs only.
        guide: Another model, or a ``Guide(model, margin)``, which vetoes candidates that it scores above the positive.
        searcher: A :class:`~st_hardneg.search.Searcher` for the corpus.
        use_faiss: Search with FAISS's flat index.
        extra_filters: Callables ``(Candidates, Corpus) -> boolean (q, k)``, True where a candidate may stay: one, a
            sequence, or a mapping by name.
        batch_size: Texts encoded at once.
        query_chunk_size: Queries searched and filtered at once; bounds memory.
        corpus_chunk_size: Corpus texts compared at once in exact search; bounds memory.
        cache_folder: Folder to keep vectors in, for models that are not being trained.
        max_memory: GB of memory that the vectors of the corpus may take; most of what is free if None. Vectors that do not
            fit stay in ``cache_folder`` and are searched shard by shard.
        rescoring_budget: How many pairs of positives and of what a search finds a cross encoder scores in a mining at
            most, the nearest candidates of each query first. None for no limit.
        num_topics: Cluster the anchors into so many topics at each mining, for
            :class:`~st_hardneg.samplers.TopicAwareBatchSampler`.
        symmetric: Whether both sides of a pair say the same, as duplicate questions do, so that what hangs together by
            pairs is never each other's negative. None finds out from the rows.
        **fields: Fields of :class:`MiningConfig`, laid over the recommended recipe; not together with ``config``.

    Raises:
        ValueError: If a column is missing or holds ids, a text is None or empty, labels say that rows are wrong answers,
            the dataset or the corpus is empty, or arguments contradict each other.
        TypeError: If an argument is of the wrong kind, or there is no such field.
        MissingExtraError: If something needs an extra that is not installed.
        MiningError: If a writer writes nothing.

    Example:
        >>> pairs = Dataset.from_dict({"anchor": ["a", "b"], "positive": ["first", "second"]})
        >>> HardNegativeDataset(pairs, num_negatives=1)
        HardNegativeDataset('anchor' -> 'positive', 2 rows, 2 queries, 2 corpus texts, not mined yet)
    """

    def __init__(
        self,
        dataset: Dataset,
        corpus: Any = None,
        config: MiningConfig | None = None,
        *,
        anchor_column_name: str | None = None,
        positive_column_name: str | None = None,
        sources: Mapping[str, Any] | None = None,
        metadata_filter: Any = None,
        cross_encoder: Any = None,
        teacher: Any = None,
        guide: Any = None,
        searcher: Searcher | None = None,
        use_faiss: bool = False,
        extra_filters: Mapping[str, ExtraFilter] | Sequence[ExtraFilter] | ExtraFilter | None = None,
        batch_size: int = 32,
        query_chunk_size: int = 512,
        corpus_chunk_size: int = 100_000,
        cache_folder: str | None = None,
        max_memory: float | None = None,
        rescoring_budget: int | None = None,
        num_topics: int | None = None,
        symmetric: bool | None = None,
        **fields: Any,
    ) -> None:
        sizes = (batch_size, query_chunk_size, corpus_chunk_size, num_topics, cache_folder, max_memory)
        helpers = Help(cross_encoder, guide, searcher, use_faiss, extra_filters, *sizes, teacher, rescoring_budget)
        self._wrapped: Wrapped = wrap(
            dataset,
            corpus,
            config,
            fields,
            helpers,
            anchor_column_name=anchor_column_name,
            positive_column_name=positive_column_name,
            sources=sources,
            metadata_filter=metadata_filter,
            symmetric=symmetric,
        )
        wrapped = self._wrapped
        self.live = LiveNegatives(wrapped.pairs, wrapped.corpus, wrapped.config.num_negatives)

    def __len__(self) -> int:
        return self._wrapped.pairs.num_rows

    def __getstate__(self) -> dict[str, Any]:
        # A copy has views and minings of its own; texts, ids and minings are never changed in place, so they are shared.
        return {**self.__dict__, "live": copy.copy(self.live)}

    def __deepcopy__(self, memo: dict[int, Any]) -> HardNegativeDataset:
        return copy.copy(self)

    def __repr__(self) -> str:
        state = "not mined yet" if self.live.mining is None else f"mined {self.live.num_minings}x"
        return f"HardNegativeDataset({self._wrapped}, {state})"

    def __getitem__(self, row: Any) -> Any:
        # Iterating ends here, too.
        raise TypeError(
            "A HardNegativeDataset has no rows to be read by itself. Read `hard_negatives.as_dataset()`, which shows the "
            "negatives of now, or take a copy with `.to_dataset()`."
        )

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(Dataset, name):
            raise AttributeError(
                f"A HardNegativeDataset is not a `datasets.Dataset` and has no `{name}`. Pass `.as_dataset()` to a "
                "trainer, or take a copy with `.to_dataset()`."
            )
        raise AttributeError(f"'HardNegativeDataset' object has no attribute {name!r}")

    @property
    def anchor_column_name(self) -> str:
        """The anchor column."""
        return self._wrapped.rows.anchor_name

    @property
    def positive_column_name(self) -> str:
        """The positive column."""
        return self._wrapped.rows.positive_name

    @property
    def num_queries(self) -> int:
        """Number of unique anchors."""
        return self._wrapped.pairs.num_queries

    @property
    def batch_size(self) -> int:
        """Texts encoded at once."""
        return self._wrapped.task.batch_size

    def known_pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the anchor and the positive of every row."""
        pairs, start = self._wrapped.pairs, 0
        for anchors in pairs.anchors.batches():
            positives = self.corpus.texts.take(pairs.row_positive[start : start + len(anchors)])
            yield from zip(anchors, positives, strict=True)
            start += len(anchors)

    # --- mining -------------------------------------------------------------------------------------------------------

    def mine(
        self,
        model: Any,
        *,
        args: TrainingArguments | None = None,
        dataset_name: str | None = None,
        prompts: Any = None,
        router_mapping: Any = None,
        over_ranks: bool = False,
        semi_hard_margin: float = 0.2,
        show_progress_bar: bool = True,
    ) -> MiningReport:
        """Mine negatives with the model as it is now, in place. Live views show them at once.

        Args:
            model: The model to search with: a SentenceTransformer, or an object with ``encode_query`` and
                ``encode_document``.
            args: Training arguments, whose prompts and routes are then used, as refreshes in that training use them;
                those of the recipe come first. Not together with ``prompts`` and ``router_mapping``.
            dataset_name: The trainer's name for this dataset, if ``args``, ``prompts`` or ``router_mapping`` go by name.
            prompts: Prompts of the columns, as training arguments have them. None: the recipe's, or else the model's own.
            router_mapping: Routes of a Router that the columns go through, as training arguments have them, such as
                ``{"question": "query", "answer": "document"}``.
            over_ranks: Whether all processes that ``accelerate launch`` or ``torchrun`` has started mine together. Each
                calls this, with the same rows and weights, and encodes its share of the texts; the first one searches, and
                writes to ``cache_folder``. All end with what one process finds, bit by bit.
            semi_hard_margin: Margin by which the report tells easy from semi-hard negatives; changes no result.
            show_progress_bar: Whether to show progress.

        Returns:
            What was found, removed and left empty.

        Raises:
            MiningError: If not one negative is found, an embedding is not finite, ``shortfall="error"`` and a query has
                too few, or another rank fails. The earlier negatives stay as they were.
            ValueError: If the model's similarity cannot be searched by, or prompts or routes name another column.
            TypeError: If prompts or routes are of the wrong kind, or given beside ``args``.
        """
        settings = {"prompts": prompts, "router_mapping": router_mapping}
        check_settings(args, settings, dataset_name, self.anchor_column_name, self.positive_column_name)
        given = args or SimpleNamespace(prompts=prompts, router_mapping=router_mapping)
        encodings = training_encodings(self, given, dataset_name, keeps_own=args is None and prompts is None)
        options: dict[str, Any] = {"semi_hard_margin": semi_hard_margin, "show_progress_bar": show_progress_bar}
        compute = partial(self.compute_mining, model, encodings=encodings, **options)
        if over_ranks:
            how = encodings or Encodings.from_config(self.config, self.batch_size)
            mining = self._mined_over_ranks(model, how, compute)
        else:
            mining = compute()
        self.live.apply(mining)
        self.live.encodings, self.live.asked_encodings = with_texts(model, encodings), encodings
        self.live.publish_topics()
        return mining.report

    def reset(self) -> None:
        """Go back to the negatives of the last mining before a training, as if no training had refreshed them.

        A training with a ``MiningCallback`` that starts at step 0 does so by itself. The counter of draws goes back, too.
        """
        self.live.reset()

    def compute_mining(
        self,
        model: Any,
        *,
        encodings: Encodings | None = None,
        step: int | None = None,
        config: MiningConfig | None = None,
        is_frozen: bool = False,
        reuse: Reuse | None = None,
        rescorer: Any = None,
        semi_hard_margin: float = 0.2,
        show_progress_bar: bool = True,
        between_chunks: Callable[[], None] | None = None,
    ) -> Mining:
        """Mine without changing anything; ``live.apply`` puts the result in force. What the callback calls.

        Args:
            model: The model to search with, or the candidates of an earlier mining.
            encodings: Prompts and routes; the recipe's if None.
            step: Optimizer step to note in the report and for every negative that is mined now.
            config: The recipe in force this time, as a schedule has it; the dataset's own if None.
            is_frozen: Whether the model is not trained, so that its vectors are kept for the next mining.
            reuse: How much of the corpus is encoded anew; all of it if None.
            rescorer: A cross encoder in training, which rescores what the model finds.
            semi_hard_margin: Margin by which the report tells easy from semi-hard negatives.
            show_progress_bar: Whether to show progress.
            between_chunks: Called after every chunk of queries that was searched.

        Raises:
            MiningError: As for :meth:`mine`.
            ValueError: As for :meth:`mine`.
        """
        config = config or self.config
        if isinstance(model, Pool):
            return mine(self._wrapped.task, model, config)
        encoder = encoder_for(model, encodings or Encodings.from_config(config, self.batch_size))
        task, positives = self._wrapped.task, lambda: self.corpus.texts.take(self._wrapped.pairs.positive_ids)
        if rescorer is not None:
            task = replace(task, cross_encoder=rescorer, is_cross_encoder_trained=True)
        with reusing(encoder, task.kept, reuse, step, positives, task.max_memory) as reusing_encoder:
            mining = mine(
                task,
                reusing_encoder,
                config,
                previous=self.live.mining,
                refresh=self.live.num_minings,
                step=-1 if step is None else step,
                must_fill=self.live.must_fill,
                keep_vectors=is_frozen,
                semi_hard_margin=semi_hard_margin,
                show_progress_bar=show_progress_bar,
                between_chunks=between_chunks,
            )
        num_encoded, age = reusing_encoder.num_encoded, reusing_encoder.age
        report = replace(mining.report, model=describe_model(model), num_encoded=num_encoded, vector_age=age)
        return replace(mining, report=report)

    def check_in_force(self, config: MiningConfig) -> None:
        """Raise if this dataset cannot be mined with a recipe that a schedule has changed.

        Raises:
            ValueError: If it needs what was not numbered or given when the dataset was made.
        """
        named = {"dense", "random", *(self.config.sources or {})}
        if unknown := sorted(set(config.quotas) - named):
            raise ValueError(
                f"Expected sources that the dataset's own config names, got {unknown}. Name them there with a quota of 0."
            )
        if not set(config.search_spaces) <= set(self.config.search_spaces):
            raise ValueError(
                "Expected the dataset's own config to search the anchors, too, got `search_spaces=('corpus',)` there. Set "
                "`search_spaces=('corpus', 'anchors')`."
            )
        if config.identity != self.config.identity:
            raise ValueError("`identity` decides how texts are numbered, so no schedule can change it.")
        check_num_topics(self._wrapped.task.num_topics, self.num_queries)
