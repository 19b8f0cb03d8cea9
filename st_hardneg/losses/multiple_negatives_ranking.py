"""The ranking loss with in-batch negatives that leaves out what is probably right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.model import SentenceTransformer
from sentence_transformers.util import all_gather, all_gather_with_grad, cos_sim, get_rank
from torch import Tensor

from st_hardneg.hardness import HardnessDefinition
from st_hardneg.losses.citations import FACENET
from st_hardneg.losses.diagnostics import MaskingDiagnostics
from st_hardneg.losses.in_batch import Direction, Negatives, RankedBatch, RankedRows
from st_hardneg.losses.labels import RowLabels
from st_hardneg.losses.masking import (
    NegativeFilter,
    check_ids_present,
    check_known_positives,
    on_device_of,
    rounding_tolerance,
)
from st_hardneg.pairs import KnownPositives


class SemiHardMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """Multiple negatives ranking loss that leaves out the candidates which are probably, or surely, right answers.

    For each anchor the softmax of ``MultipleNegativesRankingLoss`` ranks the positive above every other candidate: the
    anchor's own negatives and the texts of the other rows. Here some candidates get a logit of minus infinity first:

    * **hard** ones (``mask_hard``): they score at least as high as the positive, with the model as it is now. Among
      them are the false negatives. Easy ones cost next to nothing in a softmax, so they stay by default;
    * **easy** ones, beyond ``margin`` below the positive, if a margin is given;
    * near-copies of the positive (``max_positive_similarity``), if a limit is given;
    * **known positives** of the anchor, and texts equal to one, if ``known_positives`` is given: by id, exactly.

    What is hard and easy is defined in :mod:`st_hardneg.hardness`. The masks are computed anew in each call, from the
    scores of that call and without gradients. A candidate is never removed, so shapes stay as they are; the positive
    of the row is never masked; a row whose negatives are all masked has a loss and a gradient of zero.

    With ``directions`` beyond the first, the same masks apply there: every score is held against the row's
    anchor-positive score, as GISTEmbed holds its guide's, and an anchor or document of another row is masked by
    identity if one of the two rows' positives is a right answer for the other's query. When nothing is masked, the
    value and gradient are those of ``MultipleNegativesRankingLoss``.

    Args:
        model: The model to train.
        scale: Factor on the similarities before the softmax, the inverse of a temperature.
        similarity_fct: Similarity of every vector of one matrix to every vector of another. ``margin`` is in its unit.
        gather_across_devices: Rank against the candidates of all devices. Ids in the label are gathered too.
        directions: Which similarities compete: ``"query_to_doc"`` and any of ``"query_to_query"``,
            ``"doc_to_query"`` and ``"doc_to_doc"``.
        partition_mode: One softmax over all directions (``"joint"``) or the mean of one per direction. A joint
            softmax with ``"doc_to_query"`` counts the positive pair twice, as it does in Sentence Transformers, so
            there a row whose negatives are all masked has a constant loss of log 2 and a gradient of zero.
        hardness_mode: Which negatives get a hardness penalty on their logit, see ``MultipleNegativesRankingLoss``.
        hardness_strength: The strength of that penalty. A masked candidate stays masked.
        mask_hard: Leave out negatives that score at least as high as the positive. A tie counts, up to rounding.
        margin: Leave out negatives that score lower than the positive by more than this. None keeps them.
        max_positive_similarity: Leave out negatives that are more similar than this to the row's positive: copies and
            near-copies of a right answer, as ``MiningConfig`` does under the same name. None keeps them.
        mask_mode: Which negatives the three parameters above look at, in the words of ``hardness_mode``:
            ``"all_negatives"``; ``"hard_negatives"``, those in the row's own columns; ``"in_batch_negatives"``, those
            of other rows. All of them by default, because a text that outranks the positive is as suspect in a
            column as in the batch. Take ``"in_batch_negatives"`` if the columns were verified, by a cross encoder or
            by people: then a negative that outranks the positive is the one to learn from.
        definition: Which outer edge ``margin`` means, see :mod:`st_hardneg.hardness`. ``"facenet"`` needs cosines.
        known_positives: The right answers of every query, ``hard_negatives.known_positives``. Needs a label with
            ids while training. Without it nothing is masked by id, whatever the label.

    Raises:
        ValueError: If a parameter is out of its range; when called, if there are fewer than two columns or the label
            is none of the kinds below.

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
        |                                                  | in millionths, negatives                             |
        +--------------------------------------------------+------------------------------------------------------+

        Row weights multiply the row's loss, and the mean is still over all rows: a row of weight 0.7 counts 0.7, on
        every device and in every accumulation step. All weights 0 give a loss of 0.

    Recommendations:
        - ``HardNegativeDataset.as_dataset(with_ids=True)`` with ``known_positives`` makes the batch sampler that
          avoids duplicates unnecessary, and also catches the other answers of a query.
        - The dimension of the model must not be ``4 + n`` under ``MatryoshkaLoss``, which cuts labels of that width.
          The loss then says so.
        - In a corpus with near-duplicates set ``max_positive_similarity`` to 0.7 to 0.9. A near-copy of the positive
          scores just below it as often as above, and ``mask_hard`` sees only the latter.
        - Train a model that ranks well enough for its scores to be believed; one that knows nothing yet puts many
          candidates above the positive, and what is masked teaches nothing. ``diagnostics`` tells the share.

    Relations:
        - ``MultipleNegativesRankingLoss`` is this loss with ``mask_hard=False``.
        - :class:`SemiHardCachedMultipleNegativesRankingLoss` is this loss for batches that do not fit into memory.
        - ``GISTEmbedLoss`` masks by the scores of a second model, its guide.

    References:
        - FaceNet: A Unified Embedding for Face Recognition and Clustering: https://huggingface.co/papers/1503.03832
        - GISTEmbed: https://huggingface.co/papers/2402.16829

    Example:
        ::

            hard_negatives = HardNegativeDataset(pairs, config=MiningConfig(num_negatives=4))
            hard_negatives.mine(model)
            loss = SemiHardMultipleNegativesRankingLoss(model, known_positives=hard_negatives.known_positives)
            trainer = SentenceTransformerTrainer(
                model=model,
                train_dataset=hard_negatives.as_dataset(with_ids=True),
                loss=loss,
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
        if mask_mode not in get_args(Negatives):
            raise ValueError(
                f"Expected `mask_mode` to be one of {list(get_args(Negatives))}. Got {mask_mode!r}. "
                "Use 'all_negatives' unless only some of the negatives are to be trusted."
            )
        if definition == "facenet" and similarity_fct is not cos_sim:
            raise ValueError(
                "Expected `similarity_fct=cos_sim`, because `definition='facenet'` measures squared L2 distances of "
                f"unit vectors. Got {similarity_fct!r}. Use `definition='half-open'`, which takes any similarity."
            )
        NegativeFilter(mask_hard, margin, definition)
        if max_positive_similarity is not None and not math.isfinite(max_positive_similarity):
            raise ValueError(
                f"Expected `max_positive_similarity` to be a finite number. Got {max_positive_similarity!r}. "
                "Pass a similarity such as 0.9, or None to keep near-copies of the positive."
            )
        self.mask_hard = mask_hard
        self.margin = margin
        self.max_positive_similarity = max_positive_similarity
        self.mask_mode = mask_mode
        self.definition: HardnessDefinition = definition
        check_known_positives(known_positives)
        self.known_positives = known_positives
        self.diagnostics = MaskingDiagnostics()

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the loss of embedded columns.

        Args:
            embeddings: Anchors, positives and negatives, each of shape ``(batch, dim)``.
            labels: One of the kinds in the class's text.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If there are fewer than two columns or the label is of another kind.
        """
        batch, weights = self.rank_batch(embeddings, labels)
        losses = self.row_losses(batch, 0, len(embeddings[0]))
        return losses.mean() if weights is None else (losses * weights.to(losses.dtype)).mean()

    def rank_batch(self, columns: list[Tensor], labels: Tensor | None) -> tuple[RankedBatch, Tensor | None]:
        """Put together what is ranked, from all devices if so configured.

        Args:
            columns: Embeddings of this device: anchors, positives and negatives, each of shape ``(batch, dim)``.
            labels: The label of this device's batch.

        Returns:
            The batch to rank, and the weights of this device's rows, of shape ``(batch,)`` or None.

        Raises:
            ValueError: If there are fewer than two columns or the label is of another kind.
        """
        if len(columns) < 2:
            raise ValueError(
                f"Expected at least 2 columns, anchor and positive. Got {len(columns)}. "
                "Pass (anchor, positive, negative_1, …, negative_n) columns in this order."
            )
        batch_size, num_negatives = len(columns[0]), len(columns) - 2
        own_labels = world_labels = RowLabels.parse(labels, batch_size, num_negatives)
        check_ids_present(self.known_positives, own_labels)
        offset = 0
        if self.gather_across_devices:
            offset = get_rank() * batch_size
            columns = [all_gather_with_grad(column) for column in columns]
            if self.known_positives is not None and labels is not None and own_labels.query_ids is not None:
                world_labels = RowLabels.parse(all_gather(labels), len(columns[0]), num_negatives)
        queries, *documents = columns
        if self.known_positives is None:
            return RankedBatch(queries, torch.cat(documents), offset), own_labels.weights
        return (
            RankedBatch(queries, torch.cat(documents), offset, world_labels.query_ids, world_labels.column_major_ids),
            own_labels.weights,
        )

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
        self.known_positives = on_device_of(self.known_positives, batch.queries)
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
        if self.partition_mode == "joint":
            log_partition = torch.cat(list(logits.values()), dim=1).logsumexp(dim=1)
        else:
            log_partition = torch.stack([logit.logsumexp(dim=1) for logit in logits.values()]).mean(dim=0)
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
        # Two directions hold the pair of anchor and positive, which must stay; in the others the row itself must go.
        itself = None if direction in ("query_to_doc", "doc_to_query") else rows.itself(direction)
        if not self.mask_hard and self.margin is None and known_positive is None and near_documents is None:
            return itself
        left_out = NegativeFilter(self.mask_hard, self.margin, self.definition).leave_out(
            positive_scores,
            scores,
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
