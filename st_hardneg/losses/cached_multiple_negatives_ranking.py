"""The semi-hard ranking loss for batches that do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.model import SentenceTransformer
from sentence_transformers.util import cos_sim
from torch import Tensor
from tqdm import trange

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.hardness import HardnessDefinition
from st_hardneg.hosts import delegated_attributes
from st_hardneg.losses.diagnostics import MaskingDiagnostics
from st_hardneg.losses.in_batch import Direction, Negatives
from st_hardneg.losses.masking import SupportsKnownPositives, recommended_settings
from st_hardneg.losses.multiple_negatives_ranking import SemiHardMultipleNegativesRankingLoss


class SemiHardCachedMultipleNegativesRankingLoss(CachedMultipleNegativesRankingLoss):
    """:class:`SemiHardMultipleNegativesRankingLoss` with a gradient cache: any batch size in bounded memory.

    The texts are embedded in mini-batches without gradients, the loss is computed and differentiated with respect to
    the embeddings, and the texts are embedded again to propagate those gradients to the model. Value and gradients are
    those of the loss without a cache. Each row is compared with all candidates of the batch, so what is masked does
    not depend on the mini-batches.

    Args:
        model: The model to train. A model that starts with a ``StaticEmbedding`` does not work, because its inputs
            cannot be split.
        scale: Factor on the similarities before the softmax, the inverse of a temperature.
        similarity_fct: Similarity of every vector of one matrix to every vector of another. ``margin`` is in its unit.
        mini_batch_size: Texts embedded, and rows ranked, at a time. It affects memory and speed, not the result.
        mini_batch_num_tokens: If given, texts are embedded this many tokens at a time instead.
        gather_across_devices: Rank against the candidates of all devices. The ids in the label are gathered, too.
        directions: Which similarities compete, see :class:`SemiHardMultipleNegativesRankingLoss`.
        partition_mode: One softmax over all directions (``"joint"``) or the mean of one per direction.
        show_progress_bar: Show a progress bar over the mini-batches.
        hardness_mode: Which negatives get a hardness penalty on their logit.
        hardness_strength: The strength of that penalty. A masked candidate stays masked.
        mask_hard: Leave out negatives that score at least as high as the positive.
        margin: Leave out negatives that score lower than the positive by more than this. None keeps them.
        max_positive_similarity: Leave out negatives that are more similar than this to the row's positive.
        mask_mode: Which negatives the three parameters above apply to: all, those of the row's own columns, or those
            of other rows.
        definition: Which outer edge ``margin`` means, see :mod:`st_hardneg.hardness`.
        known_positives: The right answers to every query, ``hard_negatives.known_positives``. Needs a label with ids
            while training.

    Raises:
        ValueError: If a parameter is out of its range; when called, if there are fewer than two columns, or if the
            label is none of the kinds below or has the ids of another dataset than ``known_positives``.

    Requirements:
        1. (anchor, positive) pairs, or (anchor, positive, negative_1, …, negative_n) tuples
        2. A large ``per_device_train_batch_size`` and a ``mini_batch_size`` that fits on the device

    Inputs:
        +--------------------------------------------------+------------------------------------------------------+
        | Inputs                                           | Labels                                               |
        +==================================================+======================================================+
        | (anchor, positive)                               | none, float row weights, or int64 ids: as for        |
        |                                                  | :class:`SemiHardMultipleNegativesRankingLoss`        |
        +--------------------------------------------------+------------------------------------------------------+
        | (anchor, positive, negative_1, …, negative_n)    | the same                                             |
        +--------------------------------------------------+------------------------------------------------------+

    Recommendations:
        - Start from :meth:`recommended`. The larger the batch, the more right answers are in it by chance, and
          ``known_positives`` masks them.

    Relations:
        - :class:`SemiHardMultipleNegativesRankingLoss` computes the same and embeds only once, so it is faster if the
          batch fits into memory.
        - ``CachedMultipleNegativesRankingLoss`` is this loss with ``mask_hard=False``.

    References:
        - Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup:
          https://huggingface.co/papers/2101.06983
        - FaceNet: https://huggingface.co/papers/1503.03832

    Example:
        ::

            loss = SemiHardCachedMultipleNegativesRankingLoss.recommended(model, hard_negatives, mini_batch_size=32)
            args = SentenceTransformerTrainingArguments(output_dir="out", per_device_train_batch_size=4096)
            trainer = SentenceTransformerTrainer(
                model=model, args=args, train_dataset=hard_negatives.as_dataset(with_ids=True), loss=loss
            )
            trainer.train()
    """

    loss: SemiHardMultipleNegativesRankingLoss
    _delegated_to_wrapped_loss = (
        *delegated_attributes(CachedMultipleNegativesRankingLoss),
        "mask_hard",
        "margin",
        "max_positive_similarity",
        "mask_mode",
        "definition",
        "known_positives",
    )

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: tuple[Direction, ...] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        show_progress_bar: bool = False,
        hardness_mode: Negatives | None = None,
        hardness_strength: float = 0.0,
        *,
        mask_hard: bool = True,
        margin: float | None = None,
        max_positive_similarity: float | None = None,
        mask_mode: Negatives = "all_negatives",
        definition: HardnessDefinition = "half-open",
        known_positives: KnownPositives | None = None,
    ) -> None:
        super().__init__(
            model,
            mini_batch_size=mini_batch_size,
            mini_batch_num_tokens=mini_batch_num_tokens,
            show_progress_bar=show_progress_bar,
        )
        self.loss = SemiHardMultipleNegativesRankingLoss(
            model,
            scale=scale,
            similarity_fct=similarity_fct,
            gather_across_devices=gather_across_devices,
            directions=directions,
            partition_mode=partition_mode,
            hardness_mode=hardness_mode,
            hardness_strength=hardness_strength,
            mask_hard=mask_hard,
            margin=margin,
            max_positive_similarity=max_positive_similarity,
            mask_mode=mask_mode,
            definition=definition,
            known_positives=known_positives,
        )

    @classmethod
    def recommended(
        cls, model: SentenceTransformer, hard_negatives: SupportsKnownPositives, **changes: Any
    ) -> SemiHardCachedMultipleNegativesRankingLoss:
        """Build the loss of the recommended recipe, which leaves out known right answers and nothing else.

        Args:
            model: The model to train.
            hard_negatives: The ``HardNegativeDataset`` to train on, through ``as_dataset(with_ids=True)``.
            **changes: Parameters of this loss that differ from the recipe, such as ``mini_batch_size``.

        Raises:
            TypeError: If ``hard_negatives`` is not a ``HardNegativeDataset``.
        """
        return cls(model, **recommended_settings(hard_negatives, changes))

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss of embedded mini-batches, some rows of the similarity matrix at a time.

        Args:
            reps: For each column, its mini-batches of embeddings.
            labels: The label of the whole batch.
            with_backward: Differentiate each part as soon as it is computed, and return a value without a graph.

        Returns:
            The loss, a scalar.
        """
        columns = [torch.cat(mini_batches) for mini_batches in reps]
        batch_size = len(columns[0])
        batch, weights = self.loss.rank_batch(columns, labels)
        parts = []
        for begin in trange(
            0, batch_size, self.mini_batch_size, desc="Calculating loss", disable=not self.show_progress_bar
        ):
            end = min(begin + self.mini_batch_size, batch_size)
            losses = self.loss.row_losses(batch, begin, end)
            if weights is not None:
                losses = losses * weights[begin:end].to(losses.dtype)
            # In half precision the sum of many rows would overflow.
            part = losses.sum(dtype=torch.promote_types(losses.dtype, torch.float32)) / batch_size
            if with_backward:
                torch.autograd.backward(part)
                part = part.detach()
            parts.append(part)
        return torch.stack(parts).sum().to(losses.dtype)

    @property
    def mask_hard(self) -> bool:
        """Whether hard negatives are left out."""
        return self.loss.mask_hard

    @property
    def margin(self) -> float | None:
        """How far below the positive a negative may score and still count; None for any distance."""
        return self.loss.margin

    @property
    def max_positive_similarity(self) -> float | None:
        """A negative that is more similar to the positive than this is left out; None for never."""
        return self.loss.max_positive_similarity

    @property
    def mask_mode(self) -> Negatives:
        """Which negatives can be left out because of a score."""
        return self.loss.mask_mode

    @property
    def definition(self) -> HardnessDefinition:
        """Which outer edge ``margin`` means."""
        return self.loss.definition

    @property
    def known_positives(self) -> KnownPositives | None:
        """The right answers to every query."""
        return self.loss.known_positives

    @property
    def diagnostics(self) -> MaskingDiagnostics:
        """How many negatives were left out."""
        return self.loss.diagnostics

    def get_config_dict(self) -> dict[str, Any]:
        """Return the parameters, for the model card."""
        config: dict[str, Any] = super().get_config_dict()
        return config | self.loss.get_config_dict()

    @property
    def citation(self) -> str:
        """The papers of the gradient cache and of the loss, for the model card."""
        return str(super().citation) + self.loss.citation
