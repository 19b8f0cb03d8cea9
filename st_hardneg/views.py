"""What a training reads of a mined dataset: live views in the layouts of Sentence Transformers' losses."""

from __future__ import annotations

from typing import Any, Literal, get_args

from datasets import Dataset

from st_hardneg.export import MinedDataset

ViewFormat = Literal["n-tuple", "labeled-pair", "labeled-list"]


class ViewedDataset(MinedDataset):
    """The part of :class:`~st_hardneg.HardNegativeDataset` that hands out live views."""

    @property
    def cross_encoder(self) -> Any:
        """The cross encoder that rescores candidates, or None."""
        return self._wrapped.task.cross_encoder

    @property
    def teacher(self) -> Any:
        """The model whose scores are given away, or None."""
        return self._wrapped.task.teacher

    def as_dataset(
        self, output_format: ViewFormat = "n-tuple", *, with_ids: bool = False, with_scores: bool = False
    ) -> Dataset:
        """Return a live ``datasets.Dataset``: it shows the negatives of the last mining whenever a row is fetched.

        Rows can be selected, shuffled, split and filtered, and stay live; for a copy that does not change, and to write to
        disk or to the Hub, use :meth:`to_dataset`. Rows with an empty slot are left out; which ones is settled by the
        first call. A part that is split off for evaluation moves with the refreshes, too, and is refused as
        ``eval_dataset``: evaluate on ``to_dataset()``.

        Args:
            output_format: ``"n-tuple"``: anchor and positive under their own names, then ``negative_1`` to
                ``negative_n``. For cross encoders, ``"labeled-pair"``: anchor, text, ``label`` 1 or 0, a query's negatives
                once, after its last row; ``"labeled-list"``: anchor, list of texts, list of ``labels``. The number of rows
                never changes. What only stands in is in n-tuples; in pairs another negative of the row takes its place.
            with_ids: Add a column ``label`` of int64 to n-tuples: row, query, positive, weight in millionths, negatives
                (-1 for a text that only stands in, which losses mask). Sentence Transformers hands it to the loss.
            with_scores: Add ``scores``, of the positive and the negatives that are beside them, or put ``score`` /
                ``scores`` in place of labels, for losses such as MarginMSELoss. They are the ``teacher``'s, or else the
                ``cross_encoder``'s, or else the similarity of the model that mined.

        Raises:
            NotMinedError: If nothing was mined yet.
            MiningError: If no row has all of its negatives, or scores are wanted that the mining has not got.
            ValueError: If the format is unknown, or both ids and scores are wanted: a loss gets one tensor of labels.
        """
        self._mined("as_dataset()")
        if output_format not in get_args(ViewFormat):
            raise ValueError(
                f"Expected `output_format` of a live view to be one of {list(get_args(ViewFormat))}, got "
                f"{output_format!r}. `to_dataset` writes copies in all formats; a live triplet is a tuple of one negative."
            )
        if with_ids and with_scores:
            raise ValueError(
                "Expected either `with_ids` or `with_scores`, got both: Sentence Transformers hands one tensor of labels "
                "to a loss. Leave out the one that your loss does not read."
            )
        if with_ids and output_format != "n-tuple":
            raise ValueError(
                f"A live view of {output_format!r} has labels already, which `with_ids` would replace. Leave it out; "
                "texts that only stand in are not in it."
            )
        return self.live.dataset(self._wrapped.rows, self, output_format, with_ids=with_ids, with_scores=with_scores)
