"""What a mined dataset gives away: copies, provenance, and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from st_hardneg.arguments import check_num_topics
from st_hardneg.candidates import Mining
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.known import KnownPositives
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.texts import Ids
from st_hardneg.errors import MiningError, NotMinedError
from st_hardneg.files.save import SavedState, read, save
from st_hardneg.files.schema import damaged
from st_hardneg.formats.sentence_transformers import OutputFormat, with_other_columns, write_rows
from st_hardneg.live.negatives import LiveNegatives
from st_hardneg.mining.risk import most_doubtful
from st_hardneg.mining.task import Task
from st_hardneg.publish.hub import keep_info
from st_hardneg.publish.provenance import provenance_dataset
from st_hardneg.report import MiningReport
from st_hardneg.sources.build import name_sources
from st_hardneg.sources.synthetic import checked_synthetic
from st_hardneg.wrapping import Help, Wrapped

if TYPE_CHECKING:
    from st_hardneg.mining.filters import ExtraFilter
    from st_hardneg.search import Searcher

Self = TypeVar("Self", bound="MinedDataset")


class MinedDataset:
    """The half of :class:`~st_hardneg.HardNegativeDataset` that hands out what was mined."""

    _wrapped: Wrapped
    live: LiveNegatives

    @property
    def config(self) -> MiningConfig:
        """Which negatives are wanted."""
        return self._wrapped.config

    @property
    def corpus(self) -> Corpus:
        """All texts that can be a negative; ``negative_ids`` are its row numbers."""
        return self._wrapped.corpus

    @property
    def known_positives(self) -> KnownPositives:
        """Which corpus texts are right for which query, for losses that mask by identity."""
        return self._wrapped.pairs.known

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
        return self._mined("negative_ids").negatives.ids.numpy()[self._wrapped.pairs.row_query]

    @property
    def negative_scores(self) -> npt.NDArray[np.float32]:
        """The model's similarity of anchor and negative, of shape ``(num_rows, num_negatives)``; -inf where empty.

        Raises:
            NotMinedError: If nothing was mined yet.
        """
        return self._mined("negative_scores").negatives.similarities.numpy()[self._wrapped.pairs.row_query]

    def _mined(self, wanted: str) -> Mining:
        if self.live.mining is None:
            raise NotMinedError(f"This dataset has no negatives yet. Call `.mine(model)` before `.{wanted}`.")
        return self.live.mining

    def to_dataset(
        self, output_format: OutputFormat = "triplet", output_scores: bool = False, keep_columns: bool = False
    ) -> Dataset:
        """Return a plain dataset with the negatives of now, in the row order of the input.

        Args:
            output_format: ``"triplet"``: anchor, positive, negative, a row per negative there is. ``"n-tuple"``: anchor,
                positive, negative_1 … negative_n; rows with an empty slot are left out. ``"labeled-pair"``: anchor,
                text, label 1 or 0; a query's negatives stand once, after its last row. ``"labeled-list"``: anchor,
                list of texts, list of labels. What stands in as a last resort is in n-tuples only.
            output_scores: Add ``scores``, or put ``score`` / ``scores`` in place of labels: the cross encoder's of the
                positive and the negatives if there is one, and else the model's similarity.
            keep_columns: Add the other columns of the wrapped dataset. A trainer would embed them as texts.

        Raises:
            NotMinedError: If nothing was mined yet.
            ValueError: If the format is unknown, or a column of the wrapped dataset has the name of one of the output.
        """
        wrapped, mining = self._wrapped, self._mined("to_dataset()")
        rows = np.arange(wrapped.pairs.num_rows)
        names = (wrapped.rows.anchor_name, wrapped.rows.positive_name)
        dataset, source = write_rows(
            output_format, names, wrapped.pairs, wrapped.corpus, mining, rows, output_scores=output_scores
        )
        if keep_columns:
            dataset = with_other_columns(dataset, wrapped.rows.dataset, names, source)
        return keep_info(dataset, wrapped.rows.dataset)

    def provenance(self) -> Dataset:
        """Return where every negative of every row comes from.

        Returns:
            A dataset with one row per row: ``row``, ``positive_id``, ``positive_score``, and for every negative
            ``negative_ids``, ``negative_scores`` (the model's similarity), ``negative_ranks`` (place in its source, from
            0; -1 where it has none), ``negative_sources``, ``negative_steps`` (the training step at which it was mined; -1
            before training) and ``negative_slots`` (how the slot was filled: mined, carried over, random, repeated, last
            resort). A cross encoder's and a source's own scores have columns of their own. Ids are the corpus's own if it
            has a column of them (a positive that it lacks is ``positive-`` and a number), and row numbers of ``corpus``
            otherwise.

        Raises:
            NotMinedError: If nothing was mined yet.
        """
        mining, pairs = self._mined("provenance()"), self._wrapped.pairs
        return provenance_dataset(mining, pairs.row_query, pairs.row_positive, self._wrapped.corpus)

    def suspects(self, n: int = 50) -> Dataset:
        """Return the texts that are most likely right answers nobody has labelled, the most doubtful first.

        They come from all candidates of the last mining, whether or not a rule has removed them, and are ranked by how
        much they share with a known right answer of their query, in vectors and in words.

        Args:
            n: How many.

        Returns:
            A dataset of ``anchor``, ``positive`` (the first known one), ``suspect``, ``row`` (the first of the anchor),
            ``corpus_id`` and ``closeness`` (the model's similarity of the suspect and the nearest positive).

        Raises:
            ValueError: If ``n`` is no number of texts.
            NotMinedError: If nothing was mined yet.
            MiningError: If the recipe compares no candidates with positives, or was read from files without them.
        """
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise ValueError(f"Expected `n` to be a whole number from 1 up, got {n!r}.")
        found, pairs, texts = self._mined("suspects()").suspects, self._wrapped.pairs, self.corpus.texts
        if found is None:
            raise MiningError("The files of this mining hold no suspects. Mine again to get them.")
        if not len(found[0]):
            raise MiningError(
                "This recipe compares no candidates with the right answers. Mine with `max_positive_similarity` or "
                "`max_relative_positive_similarity`, as the recommended recipe does."
            )
        queries, ids, closeness = (values.numpy() for values in found)
        anchors = pairs.anchors.take(pairs.first_row[queries])
        positives = [texts.take(pairs.positives_of(query)) for query in queries.tolist()]
        described = list(zip(anchors, positives, texts.take(ids), closeness.tolist(), strict=True))
        places = most_doubtful(described, n)
        return Dataset.from_dict(
            {
                "anchor": [described[place][0] for place in places],
                "positive": [described[place][1][0] for place in places],
                "suspect": [described[place][2] for place in places],
                "row": pairs.first_row[queries[places]],
                "corpus_id": ids[places],
                "closeness": closeness[places],
            }
        )

    def save_to_disk(self, dataset_path: str | os.PathLike[str]) -> None:
        """Write pairs, corpus, negatives, recipe and report to a folder, as plain Arrow and JSON.

        A cross encoder, a searcher, extra filters and sources of your own are not written; :meth:`load_from_disk` asks for
        them again.

        Raises:
            FileExistsError: If the folder holds something else than an earlier save.
        """
        wrapped = self._wrapped
        state = SavedState(
            rows=wrapped.rows,
            corpus=wrapped.corpus,
            pairs=wrapped.pairs,
            config=wrapped.config,
            needs=wrapped.needs,
            num_minings=self.live.num_minings,
            mining=self.live.mining,
            live_rows=self.live.rows,
            options={"num_topics": wrapped.task.num_topics},
        )
        save(os.fspath(dataset_path), state)

    @classmethod
    def load_from_disk(
        cls: type[Self],
        dataset_path: str | os.PathLike[str],
        *,
        config: MiningConfig | None = None,
        sources: Mapping[str, Any] | None = None,
        cross_encoder: Any = None,
        teacher: Any = None,
        searcher: Searcher | None = None,
        use_faiss: bool = False,
        extra_filters: Mapping[str, ExtraFilter] | Sequence[ExtraFilter] | ExtraFilter | None = None,
        guide: Any = None,
        batch_size: int = 32,
        query_chunk_size: int = 512,
        corpus_chunk_size: int = 100_000,
        cache_folder: str | None = None,
        rescoring_budget: int | None = None,
    ) -> Self:
        """Read what :meth:`save_to_disk` wrote.

        Args:
            dataset_path: The folder.
            config: A recipe in place of the saved one, for a save whose ``exclude_pattern`` you do not trust.
            sources: Sources of your own, if the recipe had some.
            cross_encoder: The cross encoder, if the recipe had one.
            teacher: The teacher, if there was one.
            searcher: The searcher, if the recipe had one of its own.
            use_faiss: Search with FAISS's flat index.
            extra_filters: The extra filters, if the recipe had some.
            guide: The guide, if the recipe had one.
            batch_size: Texts encoded at once.
            query_chunk_size: Queries searched and filtered at once.
            corpus_chunk_size: Corpus texts compared at once in exact search.
            cache_folder: Folder to keep vectors in.
            rescoring_budget: How many pairs a cross encoder scores in a mining at most.

        Raises:
            FileNotFoundError: If the folder is not there.
            ValueError: If the files are damaged or do not belong together, or the recipe needs what was not given.
        """
        saved = read(os.fspath(dataset_path), config=config)
        sizes = (batch_size, query_chunk_size, corpus_chunk_size, _num_topics(dataset_path, saved), cache_folder)
        helpers = Help(cross_encoder, guide, searcher, use_faiss, extra_filters, *sizes)
        helpers = replace(helpers, teacher=teacher, rescoring_budget=rescoring_budget)
        in_corpus = [*saved.corpus.parts, *(["synthetic"] if len(saved.corpus.synthetic_ids) else [])]
        named = name_sources(sources, saved.config, checked_synthetic, in_corpus=in_corpus)
        if missing := sorted(set(saved.needs) - set(helpers.needs(named))):
            those = "it" if len(missing) == 1 else "them"
            raise ValueError(
                f"The saved recipe was mined with {', '.join(missing)}, which files cannot hold. Pass {those} to "
                "`load_from_disk` again."
            )
        columns = (saved.rows.anchor_name, saved.rows.positive_name)
        task = Task(saved.pairs, saved.corpus, named.own, named.names, columns=columns, **helpers.arguments_of_task())
        loaded = cls.__new__(cls)
        loaded._wrapped = Wrapped(saved.rows, saved.corpus, saved.pairs, saved.config, task, helpers.needs(named))
        loaded.live = LiveNegatives(saved.pairs, saved.corpus, saved.config.num_negatives)
        loaded.live.load(saved.mining and saved.mining.recoded(named.names), saved.num_minings, saved.live_rows)
        return loaded


def _num_topics(path: str | os.PathLike[str], saved: SavedState) -> int | None:
    num_topics: int | None = saved.options.get("num_topics")
    try:
        check_num_topics(num_topics, saved.pairs.num_queries)
    except (TypeError, ValueError) as error:
        raise damaged(os.fspath(path), f"`num_topics` cannot be ({error})") from None
    return num_topics
