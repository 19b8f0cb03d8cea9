"""The ranking loss with in-batch negatives, without the candidates that are probably right answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.model import SentenceTransformer
from sentence_transformers.util import cos_sim
from torch import Tensor

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.hardness import HardnessDefinition
from st_hardneg.losses.citations import FACENET
from st_hardneg.losses.diagnostics import MaskingDiagnostics
from st_hardneg.losses.in_batch import Direction, Negatives, RankedBatch, RankedRows
from st_hardneg.losses.labels import RowLabels
from st_hardneg.losses.masking import (
    NegativeFilter,
    SupportsKnownPositives,
    check_known_positives,
    ready_for,
    recommended_settings,
    rounding_tolerance,
)


class SemiHardMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """Multiple negatives ranking loss that leaves out candidates which are probably, or certainly, right answers.

    For each anchor, ``MultipleNegativesRankingLoss`` ranks the positive above every other candidate in a softmax: the
    anchor's own negatives and the texts of the other rows. This loss first gives a logit of minus infinity to

    * **hard** candidates (``mask_hard``), which score at least as high as the positive with the model as it is now.
      False negatives are among them. Easy ones cost next to nothing in a softmax, so they stay by default;
    * **easy** candidates, which score lower than the positive by more than ``margin``, if a margin is given;
    * near-copies of the positive (``max_positive_similarity``), if a limit is given;
    * **known positives** of the anchor, and texts equal to one, if ``known_positives`` is given. These are recognised
      by id, so exactly;
    * slots that could not be filled, whose id in the label is -1.

    :mod:`st_hardneg.hardness` defines hard and easy. The masks are computed in each call, from the scores of that call
    and without gradients. A candidate is masked, not removed, so shapes do not change. The positive of the row is
    never masked. A row whose negatives are all masked has a loss and a gradient of zero.

    In ``directions`` beyond the first, the masks are the same: every score is compared with the score of the row's
    anchor and positive, as ``GISTEmbedLoss`` compares its guide's, and an anchor or document of another row is masked
    by identity if the positive of one of the two rows is a right answer to the query of the other. When nothing is
    masked, value and gradient are those of ``MultipleNegativesRankingLoss``.

    Args:
        model: The model to train.
        scale: Factor on the similarities before the softmax, the inverse of a temperature.
        similarity_fct: Similarity of every vector of one matrix to every vector of another. ``margin`` is in its unit.
        gather_across_devices: Rank against the candidates of all devices. The ids in the label are gathered, too.
        directions: Which similarities compete: ``"query_to_doc"`` and any of ``"query_to_query"``,
            ``"doc_to_query"`` and ``"doc_to_doc"``.
        partition_mode: One softmax over all directions (``"joint"``) or the mean of one per direction
            (``"per_direction"``). As in Sentence Transformers, a joint softmax with ``"doc_to_query"`` counts the
            positive pair twice, so a row whose negatives are all masked has a constant loss of log 2 there.
        hardness_mode: Which negatives get a hardness penalty on their logit, see ``MultipleNegativesRankingLoss``.
        hardness_strength: The strength of that penalty. A masked candidate stays masked.
        mask_hard: Leave out negatives that score at least as high as the positive. A tie counts, up to rounding.
        margin: Leave out negatives that score lower than the positive by more than this. None keeps them.
        max_positive_similarity: Leave out negatives that are more similar than this to the row's positive, because
            they are copies or near-copies of a right answer. None keeps them.
        mask_mode: Which negatives the three parameters above apply to: ``"all_negatives"``; ``"hard_negatives"``, those
            in the row's own columns; or ``"in_batch_negatives"``, those of other rows. The names are those of
            ``hardness_mode``. Use ``"in_batch_negatives"`` if a cross encoder or a person has verified the columns: a
            verified negative that outranks the positive is the one to learn from.
        definition: Which outer edge ``margin`` means, see :mod:`st_hardneg.hardness`. ``"facenet"`` needs cosines.
        known_positives: The right answers to every query, ``hard_negatives.known_positives``. Needs a label with
            ids while training. Without it, -1 is the only id that matters.

    Raises:
        ValueError: If a parameter is out of its range; when called, if there are fewer than two columns, or if the
            label is none of the kinds below or has the ids of another dataset than ``known_positives``.

    Requirements:
        1. (anchor, positive) pairs, or (anchor, positive, negative_1, …, negative_n) tuples

    Inputs:
        +--------------------------------------------------+------------------------------------------------------+
        | Inputs                                           | Labels                                               |
        +==================================================+======================================================+
        | (anchor, positive)                               | none                                                 |
        +--------------------------------------------------+------------------------------------------------------+
        | (anchor, positive, negative_1, …, negative_n)    | none                                                 |
        +--------------------------------------------------+------------------------------------------------------+
        | either                                           | float: the weight of each row, such as a graded      |
        |                                                  | relevance of 0.7                                     |
        +--------------------------------------------------+------------------------------------------------------+
        | either                                           | int64, (batch, 4 + n): row, query, positive, weight  |
        |                                                  | in millionths, negatives (-1: leave out)             |
        +--------------------------------------------------+------------------------------------------------------+

        A row's weight multiplies its loss, and the mean is still over all rows: a row of weight 0.7 counts 0.7 on
        every device and in every accumulation step. If all weights are 0, so is the loss.

    Recommendations:
        - Start from :meth:`recommended`.
        - With ``known_positives`` you need no batch sampler that avoids duplicates, and the other right answers of a
          query are masked as well.
        - Under ``MatryoshkaLoss`` mine another number of negatives than the model's dimension minus 4, because it cuts
          labels that are as wide as the embeddings.
        - If the corpus has many near-duplicates, set ``max_positive_similarity`` to 0.7 to 0.9. A near-copy of the
          positive scores just below it as often as above, and ``mask_hard`` catches only those above.
        - Use ``mask_hard`` with a model that already ranks well. An untrained one puts many candidates above the
          positive, and all of them are masked. ``diagnostics`` has the share.

    Relations:
        - ``MultipleNegativesRankingLoss`` is this loss with ``mask_hard=False``.
        - :class:`SemiHardCachedMultipleNegativesRankingLoss` is this loss for batches that do not fit into memory.
        - ``GISTEmbedLoss`` masks by the scores of a second model, its guide.

    References:
        - FaceNet: A Unified Embedding for Face Recognition and Clustering: https://huggingface.co/papers/1503.03832
        - GISTEmbed: https://huggingface.co/papers/2402.16829

    Example:
        ::

            hard_negatives = HardNegativeDataset(pairs)
            hard_negatives.mine(model)
            trainer = SentenceTransformerTrainer(
                model=model,
                train_dataset=hard_negatives.as_dataset(with_ids=True),
                loss=SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives),
            )
            trainer.train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        gather_across_devices: bool = False,
        directions: tuple[Direction, ...] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
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
            scale=scale,
            similarity_fct=similarity_fct,
            gather_across_devices=gather_across_devices,
            directions=directions,
            partition_mode=partition_mode,
            hardness_mode=hardness_mode,
            hardness_strength=hardness_strength,
        )
        _check_masks(mask_mode, max_positive_similarity, definition, similarity_fct)
        NegativeFilter(mask_hard, margin, definition)
        check_known_positives(known_positives)
        self.mask_hard = mask_hard
        self.margin = margin
        self.max_positive_similarity = max_positive_similarity
        self.mask_mode = mask_mode
        self.definition: HardnessDefinition = definition
        self.known_positives = known_positives
        self.diagnostics = MaskingDiagnostics()

    @classmethod
    def recommended(
        cls, model: SentenceTransformer, hard_negatives: SupportsKnownPositives, **changes: Any
    ) -> SemiHardMultipleNegativesRankingLoss:
        """Build the loss of the recommended recipe, which leaves out known right answers and nothing else.

        No score decides what is left out: what the recipe mined has already passed its margins, and a hard negative is
        then worth training on.

        Args:
            model: The model to train.
            hard_negatives: The ``HardNegativeDataset`` to train on, through ``as_dataset(with_ids=True)``.
            **changes: Parameters of this loss that differ from the recipe.

        Raises:
            TypeError: If ``hard_negatives`` is not a ``HardNegativeDataset``.

        Example:
            ::

                loss = SemiHardMultipleNegativesRankingLoss.recommended(model, hard_negatives, scale=50.0)
        """
        return cls(model, **recommended_settings(hard_negatives, changes))

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the loss of embedded columns.

        Args:
            embeddings: Anchors, positives and negatives, each of shape ``(batch, dim)``.
            labels: A label of one of the kinds listed for this class.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If there are fewer than two columns or the label does not suit.
        """
        batch, weights = self.rank_batch(embeddings, labels)
        losses = self.row_losses(batch, 0, len(embeddings[0]))
        return losses.mean() if weights is None else (losses * weights.to(losses.dtype)).mean()

    def rank_batch(self, columns: list[Tensor], labels: Tensor | None) -> tuple[RankedBatch, Tensor | None]:
        """Collect what is ranked, from all devices with ``gather_across_devices``.

        Args:
            columns: Embeddings of this device: anchors, positives and negatives, each of shape ``(batch, dim)``.
            labels: The label of this device's batch.

        Returns:
            The batch to rank, and the weights of this device's rows, of shape ``(batch,)`` or None.

        Raises:
            ValueError: If there are fewer than two columns or the label does not suit.
        """
        if len(columns) < 2:
            raise ValueError(
                f"Expected at least 2 columns, anchor and positive. Got {len(columns)}. "
                "Pass (anchor, positive, negative_1, …, negative_n) columns in this order."
            )
        read = RowLabels.parse(labels, len(columns[0]), len(columns) - 2)
        self.known_positives = ready_for(self.known_positives, read, columns[0].device)
        if self.gather_across_devices:
            return RankedBatch.gathered(columns, read.text_ids, self.known_positives), read.weights
        return RankedBatch.from_columns(columns, read.text_ids), read.weights

    def row_losses(self, batch: RankedBatch, begin: int, end: int) -> Tensor:
        """Compute the loss of some rows of this device against all candidates.

        Args:
            batch: What is ranked.
            begin: First row of this device.
            end: The row after the last.

        Returns:
            float of shape ``(end - begin,)``.
        """
        rows = RankedRows(batch, begin, end)
        similarities = self._similarities(batch, rows.own)
        positive_scores = similarities["query_to_doc"].detach()[rows.rows, rows.own].unsqueeze(1)
        known = {} if self.known_positives is None else rows.right_answers(self.known_positives, self.directions)
        near = self._near_positives(batch, rows.own)
        logits: dict[Direction, Tensor] = {}
        for direction, similarity in similarities.items():
            logit = similarity * self.scale
            if direction == "query_to_doc" and self.hardness_mode is not None and self.hardness_strength > 0:
                penalised = rows.negatives(direction, self.hardness_mode)
                logit = logit + self.hardness_strength * similarity.detach() * penalised
            masked = self._masked(rows, direction, similarity.detach(), positive_scores, known.get(direction), near)
            logits[direction] = logit if masked is None else logit.masked_fill(masked, -torch.inf)
        pools = [torch.cat(list(logits.values()), dim=1)] if self.partition_mode == "joint" else logits.values()
        log_partition = torch.stack([pool.logsumexp(dim=1) for pool in pools]).mean(dim=0)
        return log_partition - logits["query_to_doc"][rows.rows, rows.own]

    def _similarities(self, batch: RankedBatch, own: Tensor) -> dict[Direction, Tensor]:
        anchors, positives = batch.queries[own], batch.documents[own]
        similarities: dict[Direction, Tensor] = {"query_to_doc": self.similarity_fct(anchors, batch.documents)}
        if "query_to_query" in self.directions:
            similarities["query_to_query"] = self.similarity_fct(anchors, batch.queries)
        # Transposed, not swapped: a similarity need not be symmetric, and an anchor always comes first.
        if "doc_to_query" in self.directions:
            similarities["doc_to_query"] = self.similarity_fct(batch.queries, positives).T
        if "doc_to_doc" in self.directions:
            similarities["doc_to_doc"] = self.similarity_fct(batch.documents, positives).T
        return similarities

    @torch.no_grad()
    def _near_positives(self, batch: RankedBatch, own: Tensor) -> Tensor | None:
        if self.max_positive_similarity is None:
            return None
        similarity: Tensor = self.similarity_fct(batch.documents[own], batch.documents)
        return similarity > self.max_positive_similarity

    def _masked(
        self,
        rows: RankedRows,
        direction: Direction,
        scores: Tensor,
        positive_scores: Tensor,
        known_positive: Tensor | None,
        near_documents: Tensor | None,
    ) -> Tensor | None:
        # In two directions the row itself is the pair of anchor and positive, which stays. In the others it goes.
        itself = None if direction in ("query_to_doc", "doc_to_query") else rows.itself(direction)
        unfilled = rows.unfilled(direction)
        by_score = self.mask_hard or self.margin is not None or near_documents is not None
        if not by_score and known_positive is None and unfilled is None:
            return itself
        left_out = NegativeFilter(self.mask_hard, self.margin, self.definition).leave_out(
            positive_scores,
            scores,
            unfilled=unfilled,
            known_positive=known_positive,
            near_positive=None if near_documents is None else rows.as_candidates(near_documents, direction),
            judged=rows.negatives(direction, self.mask_mode),
            tolerance=rounding_tolerance(scores.dtype),
        )
        self.diagnostics.add(left_out, rows.num_negatives(direction))
        return left_out.union if itself is None else left_out.union | itself

    def get_config_dict(self) -> dict[str, Any]:
        """Return the parameters, for the model card."""
        config: dict[str, Any] = super().get_config_dict()
        return config | {
            "mask_hard": self.mask_hard,
            "margin": self.margin,
            "max_positive_similarity": self.max_positive_similarity,
            "mask_mode": self.mask_mode,
            "definition": self.definition,
            "known_positives": self.known_positives is not None,
        }

    @property
    def citation(self) -> str:
        """The papers of the loss and of semi-hard negatives, for the model card."""
        return str(super().citation) + FACENET


def _check_masks(
    mask_mode: str,
    max_positive_similarity: float | None,
    definition: HardnessDefinition,
    similarity_fct: Callable[[Tensor, Tensor], Tensor],
) -> None:
    if mask_mode not in get_args(Negatives):
        raise ValueError(f"Expected `mask_mode` to be one of {list(get_args(Negatives))}. Got {mask_mode!r}.")
    if definition == "facenet" and similarity_fct is not cos_sim:
        raise ValueError(
            "`definition='facenet'` measures squared L2 distances of unit vectors, so it needs "
            f"`similarity_fct=cos_sim`. Got {similarity_fct!r}. Use `definition='half-open'`, which takes any similarity."
        )
    if max_positive_similarity is not None and not math.isfinite(max_positive_similarity):
        raise ValueError(
            "Expected `max_positive_similarity` to be a finite number, or None to keep near-copies of the positive. "
            f"Got {max_positive_similarity!r}."
        )
