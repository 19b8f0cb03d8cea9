"""The ranking losses of multi-vector models, without the candidates that are probably right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args

import torch
from sentence_transformers.multi_vector_encoder.losses import (
    CachedMultiVectorMultipleNegativesRankingLoss,
    MultiVectorMultipleNegativesRankingLoss,
)
from sentence_transformers.multi_vector_encoder.scoring import colbert_scores
from torch import Tensor, nn

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.losses.citations import FACENET
from st_hardneg.losses.diagnostics import MaskingDiagnostics
from st_hardneg.losses.in_batch import Negatives, RankedBatch, RankedRows
from st_hardneg.losses.labels import RowLabels
from st_hardneg.losses.masking import (
    NegativeFilter,
    SupportsKnownPositives,
    check_known_positives,
    ready_for,
    recommended_settings,
    rounding_tolerance,
)


class _Masking(nn.Module):
    """What both losses add to Sentence Transformers': scores of what is left out are minus infinity."""

    similarity_fct: Callable[..., Tensor]
    gather_across_devices: bool

    def _set_up(
        self, mask_hard: bool, margin: float | None, mask_mode: Negatives, known_positives: KnownPositives | None
    ) -> None:
        if mask_mode not in get_args(Negatives):
            raise ValueError(f"Expected `mask_mode` to be one of {list(get_args(Negatives))}. Got {mask_mode!r}.")
        self._filter = NegativeFilter(mask_hard, margin)
        check_known_positives(known_positives)
        self.mask_hard, self.margin, self.mask_mode = mask_hard, margin, mask_mode
        self.known_positives = known_positives
        self.diagnostics = MaskingDiagnostics()

    @classmethod
    def recommended(cls, model: Any, hard_negatives: SupportsKnownPositives, **changes: Any) -> Any:
        """Build the loss of the recommended recipe, which leaves out known right answers and nothing else.

        Args:
            model: The model to train.
            hard_negatives: The ``HardNegativeDataset`` to train on, through ``as_dataset(with_ids=True)``.
            **changes: Parameters of this loss that differ from the recipe.

        Raises:
            TypeError: If ``hard_negatives`` is not a ``HardNegativeDataset``.
        """
        return cls(model, **recommended_settings(hard_negatives, changes))

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch.

        Args:
            sentence_features: Tokenized anchors, positives and negatives.
            labels: None, or the ids of ``as_dataset(with_ids=True)``.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If the label does not suit.
        """
        plain = self.similarity_fct
        # The host asks it for the scores of some rows after the other, and ranks what it returns.
        self.similarity_fct = _MaskedScores(self, plain, labels)
        try:
            loss: Tensor = super().forward(sentence_features, labels)
            return loss
        finally:
            self.similarity_fct = plain

    def get_config_dict(self) -> dict[str, Any]:
        """Return the parameters, for the model card."""
        config: dict[str, Any] = super().get_config_dict()  # type: ignore[misc]
        known = self.known_positives is not None
        return config | {
            "mask_hard": self.mask_hard,
            "margin": self.margin,
            "mask_mode": self.mask_mode,
            "known_positives": known,
        }

    @property
    def citation(self) -> str:
        """The papers of the loss and of semi-hard negatives, for the model card."""
        return str(super().citation) + FACENET  # type: ignore[misc]


class _MaskedScores:
    """The scores of one batch, some rows after the other, with minus infinity for what is left out.

    Args:
        loss: The loss.
        plain: Its similarity.
        labels: The label of the batch.
    """

    def __init__(self, loss: _Masking, plain: Callable[..., Tensor], labels: Tensor | None) -> None:
        self.loss, self.plain, self.labels = loss, plain, labels
        self.batch: RankedBatch | None = None
        self.begin = 0

    def __call__(self, queries: Tensor, documents: Tensor, *, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """Score some anchors, ``(rows, tokens, dim)``, and documents, ``(world, columns, tokens, dim)``.

        Returns:
            float of shape ``(rows, world * columns)``, all columns of a row beside each other.
        """
        scores = self.plain(queries, documents, queries_mask=queries_mask, documents_mask=documents_mask)
        world, columns = documents.shape[:2]
        if self.batch is None:
            self.batch = self._ranked(world, columns, scores.device)
        rows = RankedRows(self.batch, self.begin, self.begin + len(scores))
        self.begin += len(scores)
        by_column = scores.detach().view(len(scores), world, columns).transpose(1, 2).reshape(len(scores), -1)
        if self.plain is colbert_scores:
            # A margin means the same for short and long queries.
            by_column = by_column / queries_mask.sum(dim=1, keepdim=True).clamp(min=1)
        left_out = self._left_out(rows, by_column)
        masked = left_out.view(len(scores), columns, world).transpose(1, 2).reshape(len(scores), -1)
        return scores.masked_fill(masked, -torch.inf)

    def _ranked(self, world: int, columns: int, device: torch.device) -> RankedBatch:
        """Return which texts are ranked; of their vectors, only how many there are is asked for."""
        loss = self.loss
        num_rows = world
        if loss.gather_across_devices and torch.distributed.is_initialized():
            num_rows //= torch.distributed.get_world_size()
        read = RowLabels.parse(self.labels, num_rows, columns - 1)
        if read.weights is not None and bool((read.weights != 1.0).any()):
            raise ValueError(
                "Expected rows that all weigh 1, as this loss does not weigh the rows of a batch. Remove the column "
                "`weight` of the dataset."
            )
        loss.known_positives = ready_for(loss.known_positives, read, device)
        stand_ins = [torch.zeros(num_rows, 1, device=device)] * (columns + 1)
        if loss.gather_across_devices:
            return RankedBatch.gathered(stand_ins, read.text_ids, loss.known_positives)
        return RankedBatch.from_columns(stand_ins, read.text_ids)

    def _left_out(self, rows: RankedRows, scores: Tensor) -> Tensor:
        loss, known = self.loss, None
        if loss.known_positives is not None:
            known = rows.right_answers(loss.known_positives, ("query_to_doc",)).get("query_to_doc")
        left_out = loss._filter.leave_out(
            scores[rows.rows, rows.own].unsqueeze(1),
            scores,
            unfilled=rows.unfilled("query_to_doc"),
            known_positive=known,
            judged=rows.negatives("query_to_doc", loss.mask_mode),
            tolerance=rounding_tolerance(scores.dtype),
        )
        loss.diagnostics.add(left_out, rows.num_negatives("query_to_doc"))
        return left_out.union


class SemiHardMultiVectorMultipleNegativesRankingLoss(_Masking, MultiVectorMultipleNegativesRankingLoss):
    """The ranking loss of multi-vector models that leaves out candidates which are probably, or certainly, right answers.

    As :class:`~st_hardneg.losses.SemiHardMultipleNegativesRankingLoss` does, with MaxSim in place of a similarity of two
    vectors: hard candidates (``mask_hard``), easy ones (``margin``), known positives by id and slots that could not be
    filled get a score of minus infinity. The positive of the row is never masked. When nothing is masked, value and
    gradient are those of ``MultiVectorMultipleNegativesRankingLoss``.

    Args:
        model: The model to train.
        scale: Factor on the scores before the softmax, the inverse of a temperature.
        similarity_fct: How queries and documents are scored; MaxSim if None.
        mini_batch_size: Texts embedded at a time.
        score_mini_batch_size: Rows scored at a time.
        gather_across_devices: Rank against the documents of all devices.
        mask_hard: Leave out negatives that score at least as high as the positive. A tie counts, up to rounding.
        margin: Leave out negatives that score lower than the positive by more than this: for MaxSim, a sum, by more than
            this for every token of the query, so that it is in the unit of a cosine; for others in their unit.
        mask_mode: Which negatives ``mask_hard`` and ``margin`` apply to: all, those of the row's own columns, or those of
            other rows.
        known_positives: The right answers to every query, ``hard_negatives.known_positives``. Needs a label with ids
            while training.

    Raises:
        ValueError: If a parameter is out of its range; when called, if the label does not suit.

    Requirements:
        1. (anchor, positive) pairs, or (anchor, positive, negative_1, …, negative_n) tuples

    Inputs:
        +--------------------------------------------------+----------------------------------------------+
        | Inputs                                           | Labels                                       |
        +==================================================+==============================================+
        | (anchor, positive)                               | none, or int64 ids                           |
        +--------------------------------------------------+----------------------------------------------+
        | (anchor, positive, negative_1, …, negative_n)    | the same                                     |
        +--------------------------------------------------+----------------------------------------------+

    Example:
        ::

            loss = SemiHardMultiVectorMultipleNegativesRankingLoss.recommended(model, hard_negatives)
            trainer = MultiVectorEncoderTrainer(
                model=model, train_dataset=hard_negatives.as_dataset(with_ids=True), loss=loss
            )
            trainer.train()
    """

    def __init__(
        self,
        model: Any,
        *,
        scale: float = 1.0,
        similarity_fct: Callable[..., Tensor] | None = None,
        mini_batch_size: int | None = None,
        score_mini_batch_size: int | None = None,
        gather_across_devices: bool = False,
        mask_hard: bool = True,
        margin: float | None = None,
        mask_mode: Negatives = "all_negatives",
        known_positives: KnownPositives | None = None,
    ) -> None:
        super().__init__(
            model,
            scale=scale,
            similarity_fct=similarity_fct,
            mini_batch_size=mini_batch_size,
            score_mini_batch_size=score_mini_batch_size,
            gather_across_devices=gather_across_devices,
        )
        self._set_up(mask_hard, margin, mask_mode, known_positives)


class SemiHardCachedMultiVectorMultipleNegativesRankingLoss(_Masking, CachedMultiVectorMultipleNegativesRankingLoss):
    """:class:`SemiHardMultiVectorMultipleNegativesRankingLoss` with a gradient cache: any batch size in bounded memory.

    Args:
        model: The model to train.
        scale: Factor on the scores before the softmax, the inverse of a temperature.
        similarity_fct: How queries and documents are scored; MaxSim if None.
        mini_batch_size: Texts embedded at a time. It affects memory and speed, not the result.
        mini_batch_num_tokens: If given, texts are embedded this many tokens at a time instead.
        score_mini_batch_size: Rows scored at a time; ``mini_batch_size`` if None.
        gather_across_devices: Rank against the documents of all devices.
        show_progress_bar: Show a progress bar over the mini-batches.
        mask_hard: As for the loss without a cache, and so are the next three.
        margin: Leave out what scores lower than the positive by more than this.
        mask_mode: Which negatives the two apply to.
        known_positives: The right answers to every query.

    Raises:
        ValueError: If a parameter is out of its range; when called, if the label does not suit.
    """

    def __init__(
        self,
        model: Any,
        *,
        scale: float = 1.0,
        similarity_fct: Callable[..., Tensor] | None = None,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        score_mini_batch_size: int | None = None,
        gather_across_devices: bool = False,
        show_progress_bar: bool = False,
        mask_hard: bool = True,
        margin: float | None = None,
        mask_mode: Negatives = "all_negatives",
        known_positives: KnownPositives | None = None,
    ) -> None:
        super().__init__(
            model,
            scale=scale,
            similarity_fct=similarity_fct,
            mini_batch_size=mini_batch_size,
            mini_batch_num_tokens=mini_batch_num_tokens,
            score_mini_batch_size=score_mini_batch_size,
            gather_across_devices=gather_across_devices,
            show_progress_bar=show_progress_bar,
        )
        self._set_up(mask_hard, margin, mask_mode, known_positives)
