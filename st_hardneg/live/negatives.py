"""LiveNegatives: the negatives in force, the table that training reads, and what a training begins with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from st_hardneg.candidates import LAST_RESORT, Mining, Negatives
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.rows import Rows
from st_hardneg.corpus.texts import Ids
from st_hardneg.encoders.dense import Encodings
from st_hardneg.errors import MiningError
from st_hardneg.live.dataset import LiveDataset
from st_hardneg.live.labeled import LABELED, LabeledPairs, LabeledView
from st_hardneg.live.table import NegativeTable, Scores
from st_hardneg.live.view import LiveView

if TYPE_CHECKING:
    from st_hardneg.training.checkpoint import CheckpointState

logger = logging.getLogger(__name__)

MANY_ROWS = 0.1
"""A live view, or an output, that lacks more than this share of the rows is worth a warning."""


_MANY_STAND_INS = 0.01


def marked_ids(negatives: Negatives) -> Ids:
    """Return the ids of some negatives as tables hold them: a last resort of corpus id x is ``-x - 2``.

    Training reads its text, and losses, which see -1 in its place, mask it.
    """
    ids = negatives.ids
    return torch.where(negatives.origins == LAST_RESORT, -ids - 2, ids).numpy()


class LiveNegatives:
    """The negatives in force. A mining is applied here, and undone; live views follow.

    Args:
        pairs: The rows and their queries.
        corpus: The texts that ids count.
        num_negatives: Negatives per row.
    """

    def __init__(self, pairs: Pairs, corpus: Corpus, num_negatives: int) -> None:
        self._pairs, self._corpus, self._width = pairs, corpus, num_negatives
        self.mining: Mining | None = None
        self.num_minings = 0
        self.encodings: Encodings | None = None
        self.asked_encodings: Encodings | None = None
        self.rows: Ids | None = None
        self.view: LiveView | None = None
        self.epoch_topics: Tensor | None = None
        self._labeled: dict[tuple[str, bool], LabeledView] = {}
        self._previous: tuple[Ids, Tensor] | None = None
        self._base: tuple[Mining, int] | None = None
        self._table: NegativeTable | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy has views of its own: mining it must not change what another one's training reads.
        return {**self.__dict__, "_table": None, "view": None, "_labeled": {}}

    # --- a mining in force ----------------------------------------------------------------------------------------------

    @property
    def must_fill(self) -> Tensor:
        """Boolean of shape ``(num_queries,)``: True where a live view needs every slot."""
        needed = torch.zeros(self._pairs.num_queries, dtype=torch.bool)
        if self.rows is not None:
            needed[torch.from_numpy(self._pairs.row_query[self.rows])] = True
        return needed

    @property
    def previous_ids(self) -> Ids:
        """int64 of shape ``(num_queries, num_negatives)``: what was in force before, as :func:`marked_ids` has it."""
        if self._previous is not None:
            return self._previous[0]
        assert self.mining is not None
        return marked_ids(self.mining.negatives)

    @property
    def has_scores(self) -> bool:
        """Whether a live view shows scores."""
        return self._table is not None and self._table.has_scores

    @property
    def previous_scores(self) -> Tensor | None:
        """float32 of shape ``(num_queries, num_negatives)``: those of what was in force before, if read."""
        if not self.has_scores:
            return None
        if self._previous is not None:
            return self._previous[1]
        assert self.mining is not None
        return self.mining.given_scores[1]

    def load(self, mining: Mining | None, num_minings: int, rows: Ids | None) -> None:
        """Put in force what was read from files."""
        self.mining, self.num_minings, self.rows = mining, num_minings, rows
        self._base = None if mining is None else (mining, num_minings)

    def apply(self, mining: Mining) -> None:
        """Put a mining in force: copies and live views follow it from now on.

        Raises:
            MiningError: If it is another dataset's, or a row of a live view would get an empty slot; nothing is changed
                then.
        """
        shape = (self._pairs.num_queries, self._width)
        if tuple(mining.negatives.ids.shape) != shape:
            raise MiningError(
                f"Expected negatives of shape {shape}, got {tuple(mining.negatives.ids.shape)}. Apply a mining that this "
                "very dataset computed."
            )
        if bool((self.must_fill[:, None] & ~mining.negatives.is_present).any()):
            raise MiningError(
                "Expected a negative in every slot of the live view's rows, got empty ones. Apply a mining that this "
                "very dataset computed after the view was made."
            )
        generation = 0 if self._table is None else self._table.generation
        try:
            self._write(mining)
        finally:
            # An interrupt may come at any moment: once the live views have changed, the rest has to follow.
            if self._table is None or self._table.generation != generation:
                before = self.mining
                self._previous = None if before is None else (marked_ids(before.negatives), before.given_scores[1])
                self.mining = mining
                self.num_minings += 1
                if mining.report.step is None:
                    # Not a refresh: this is what a training begins with.
                    self._base = (mining, self.num_minings)

    def _write(self, mining: Mining, previous: tuple[Ids, Tensor] | None = None) -> None:
        """Let live views read a mining, or what was in force before it; the positives are the same."""
        if self._table is not None:
            marked, scores = previous or (marked_ids(mining.negatives), mining.given_scores[1])
            row_scores = self._scores_of_rows(mining, scores) if self._table.has_scores else None
            self._table.write(marked[self._pairs.row_query], row_scores)

    def _scores_of_rows(self, mining: Mining, of_negatives: Tensor) -> Scores:
        """Return what stands beside the table, float32 of shape ``(num_rows, 1 + num_negatives)``.

        Raises:
            MiningError: If a score of a row of a live view is missing.
        """
        positives = mining.given_scores[0]
        scores: Scores = torch.column_stack([positives, of_negatives[torch.from_numpy(self._pairs.row_query)]]).numpy()
        if not np.isfinite(scores if self.rows is None else scores[self.rows]).all():
            raise MiningError(
                "Expected a score for every text of the live view's rows, got some without one. Mine anew with the "
                "`teacher` or the `cross_encoder` in hand."
            )
        return scores

    def reset(self) -> None:
        """Go back to the last mining before a training, as if no training had refreshed it; the counter of draws, too."""
        if self._base is not None and self.mining is not self._base[0]:
            self._put_in_force(*self._base)

    def _put_in_force(self, mining: Mining, num_minings: int) -> None:
        self._write(mining)
        self.mining, self.num_minings, self._previous = mining, num_minings, None
        self.publish_topics()

    def starting_state(self) -> tuple[Mining | None, int, Ids | None]:
        """Return what a training begins with on this rank: the mining, its number, and the rows of the live view."""
        return self.mining, self.num_minings, self.rows

    def start_from(self, state: tuple[Mining | None, int, Ids | None]) -> None:
        """Begin a training with another rank's state.

        Raises:
            ValueError: If this rank's live view has other rows.
        """
        mining, num_minings, rows = state
        if mining is None or self.mining is None:
            return
        if (self.rows is None) != (rows is None) or (
            self.rows is not None and rows is not None and not np.array_equal(self.rows, rows)
        ):
            raise ValueError(
                "The ranks' live views have different rows: their minings left other slots empty. Mine on one rank, "
                '`save_to_disk`, and load on all of them; or set `shortfall="random"`, which keeps every row.'
            )
        if not np.array_equal(marked_ids(mining.negatives), marked_ids(self.mining.negatives)):
            logger.warning("This rank had mined other negatives than rank 0; it goes on with those of rank 0.")
            self._put_in_force(mining, num_minings)

    def restore(self, state: CheckpointState, *, old_batches: int = 0) -> None:
        """Put the negatives of a checkpoint in force.

        Args:
            state: What was read from the checkpoint.
            old_batches: How many batches the live view serves from the negatives before the last refresh: those that
                the interrupted run had fetched ahead of it.

        Raises:
            ValueError: If the live view has other rows than that of the checkpoint.
        """
        if self.rows is not None and not np.array_equal(self.rows, state.live_rows):
            raise ValueError(
                f"Expected a live view of the rows of the checkpoint, got {len(self.rows):,} rows where it has "
                f"{len(state.live_rows):,}, or others. In the resumed script, load what `save_to_disk` wrote before the "
                "training, or mine with the very model that it started from before `as_dataset()`."
            )
        scores = state.previous_scores
        previous = (state.previous_ids, state.mining.given_scores[1] if scores is None else scores)
        self._write(state.mining, previous)
        self._write(state.mining)
        self.serve_previous(old_batches)
        self._previous = previous
        self.mining = state.mining
        self.num_minings = state.num_minings
        self._show_topics(None if state.epoch_topics is None else torch.as_tensor(state.epoch_topics))

    def probed(self, probe: Callable[[Pairs, Corpus, Mining], float]) -> float:
        """Return what a probe finds in the negatives in force."""
        assert self.mining is not None
        return probe(self._pairs, self._corpus, self.mining)

    # --- views ----------------------------------------------------------------------------------------------------------

    @property
    def num_shown(self) -> int:
        """How many negatives of each row the live view shows."""
        return self._width if self._table is None else self._table.num_shown

    @num_shown.setter
    def num_shown(self, number: int) -> None:
        if self._table is not None:
            self._table.num_shown = number

    def publish_topics(self) -> None:
        """Let batch samplers see the topics of the last mining; the callback does so between epochs only."""
        self._show_topics(None if self.mining is None else self.mining.topics)

    def _views(self) -> list[LiveView]:
        return [*([] if self.view is None else [self.view]), *self._labeled.values()]

    def _show_topics(self, topics: Tensor | None) -> None:
        self.epoch_topics = topics
        for view in self._views():
            view.topics = None if topics is None else topics.numpy()[self._pairs.row_query]

    def serve_previous(self, batches: int) -> None:
        """Let the live views read the next so many batches from before the last refresh; 0 ends it."""
        for view in self._views():
            view.serve_previous(batches)

    def dataset(
        self, rows: Rows, owner: object, output_format: str = "n-tuple", *, with_ids: bool, with_scores: bool = False
    ) -> Dataset:
        """Return a live dataset of the rows that have all of their negatives; which ones is settled by the first call.

        Args:
            rows: The wrapped rows.
            owner: The HardNegativeDataset.
            output_format: ``"n-tuple"``, or one of :data:`~st_hardneg.live.labeled.LABELED`.
            with_ids: Whether the view has the label with ids.
            with_scores: Whether it has scores.

        Raises:
            MiningError: If no row has all of its negatives, or scores are wanted and missing.
        """
        assert self.mining is not None
        marked = marked_ids(self.mining.negatives)[self._pairs.row_query]
        if self.rows is None:
            self.rows = self._complete_rows(marked)
        stand_ins = float((marked[self.rows] < -1).mean())
        if not with_ids and stand_ins > _MANY_STAND_INS:
            logger.warning(
                f"{stand_ins:.1%} of the slots hold a text that only stands in, and without ids no loss can mask it. Use "
                "`as_dataset(with_ids=True)` and one of `st_hardneg.losses`, or loosen the recipe."
            )
        if self._table is None:
            self._table = NegativeTable(marked, num_texts=len(self._corpus.texts))
        if with_scores and not self._table.has_scores:
            self._table.add_scores(self._scores_of_rows(self.mining, self.mining.given_scores[1]))
        if self.view is None:
            self.view = self._make_view(rows, owner, self._table)
            self.publish_topics()
        view = self.view if output_format == "n-tuple" else self._labeled_view(self.view, output_format, with_scores)
        places = view.places(self.rows) if isinstance(view, LabeledPairs) else self.rows
        is_tuple = view is self.view
        return LiveDataset.of(view, places, rows.dataset, with_ids=with_ids, with_scores=with_scores and is_tuple)

    def _make_view(self, rows: Rows, owner: object, table: NegativeTable) -> LiveView:
        return LiveView(
            rows.anchors,
            rows.positives,
            self._corpus.texts,
            table,
            rows.anchor_name,
            rows.positive_name,
            self._pairs.row_query,
            self._pairs.row_positive,
            rows.weights,
            owner=owner,
        )

    def _labeled_view(self, view: LiveView, output_format: str, with_scores: bool) -> LabeledView:
        key = (output_format, with_scores)
        if key not in self._labeled:
            self._labeled[key] = LABELED[output_format].beside(view, with_scores=with_scores)
        return self._labeled[key]

    def _complete_rows(self, marked: Ids) -> Ids:
        complete = np.flatnonzero((marked != -1).all(axis=1))
        if not len(complete):
            raise MiningError(
                f"Expected rows with all of their {self._width} negatives, got none. Lower `num_negatives`, loosen the "
                "rules, or set `shortfall` to 'random' or 'repeat'."
            )
        if (left_out := len(marked) - len(complete)) > MANY_ROWS * len(marked):
            logger.warning(
                f"{left_out:,} of {len(marked):,} rows have an empty slot and are left out of the live "
                'view. `shortfall="random"` keeps them; a smaller margin or a larger corpus fills them.'
            )
        return complete
