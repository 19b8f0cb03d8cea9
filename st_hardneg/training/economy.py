"""How refreshes save work: a share of the corpus, half the precision, none at all where it is not worth it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from st_hardneg.encoders import encoder_for
from st_hardneg.encoders.precision import gains_by_half_precision, half_precision
from st_hardneg.encoders.ranks import from_first_rank
from st_hardneg.encoders.reuse import Reuse
from st_hardneg.hosts import distributed_evaluation, is_sharded
from st_hardneg.training.refresh import Request, log_metrics

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState


logger = logging.getLogger(__name__)

RefreshScope = Literal["all", "queries"]


@dataclass(frozen=True)
class Economy:
    """How refreshes save work.

    Args:
        corpus_refresh_fraction: Share of the corpus that each refresh encodes anew, by turns.
        refresh_scope: ``"queries"`` encodes no text of the corpus again.
        refresh_when: A refresh is made once the gap between positives and negatives has grown by so much; None for always.
        half_precision: Whether refreshes encode in bfloat16; None for where the hardware gains by it.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If one is out of range, or two contradict each other.
    """

    corpus_refresh_fraction: float = 1.0
    refresh_scope: RefreshScope = "all"
    refresh_when: float | None = None
    half_precision: bool | None = None

    def __post_init__(self) -> None:
        fraction, growth = self.corpus_refresh_fraction, self.refresh_when
        if not _is_number(fraction) or not 0 < fraction <= 1:
            raise ValueError(
                f"Expected `corpus_refresh_fraction` to be a share above 0 and up to 1, got {fraction!r}. To encode "
                'queries only, set `refresh_scope="queries"`.'
            )
        if self.refresh_scope not in get_args(RefreshScope):
            raise ValueError(
                f"Expected `refresh_scope` to be one of {list(get_args(RefreshScope))}, got {self.refresh_scope!r}."
            )
        if self.refresh_scope == "queries" and fraction != 1:
            raise ValueError(
                '`refresh_scope="queries"` encodes no text of the corpus again, so that `corpus_refresh_fraction` has no '
                "effect. Leave one of them out."
            )
        if growth is not None and (not _is_number(growth) or growth <= 0):
            raise ValueError(
                "Expected `refresh_when` to be a number above 0, by which the similarity of anchor and positive has to "
                f"outgrow that of anchor and negative before a refresh is worth it, such as 0.05, got {growth!r}."
            )
        if self.half_precision is not None and not isinstance(self.half_precision, bool):
            raise TypeError(f"Expected `half_precision` to be True, False or None, got {self.half_precision!r}.")

    @property
    def reuse(self) -> Reuse | None:
        """How much of the corpus each refresh encodes anew; None for all, with no vector kept."""
        if self.refresh_scope == "queries":
            return Reuse(0.0, keeps_vectors=True)
        fraction = self.corpus_refresh_fraction
        return None if fraction == 1 else Reuse(float(fraction), keeps_vectors=True)

    def check(self, model: Any, retriever: Any) -> None:
        """Say what is used, and refuse what could have no effect.

        Args:
            model: The model in training.
            retriever: What mines in its place, or None.

        Raises:
            ValueError: If a frozen retriever is to be encoded by shares, or to be probed.
        """
        if retriever is not None and retriever is not model:
            asked = [name for name in ("refresh_when",) if getattr(self, name) is not None]
            asked += [] if self.reuse is None else ["corpus_refresh_fraction", "refresh_scope"]
            if asked:
                raise ValueError(
                    f"{' and '.join(f'`{name}`' for name in asked)}: a `retriever` is not trained, so that its vectors "
                    "are made once and never age. Leave these out."
                )
        elif self.half_precision is None and gains_by_half_precision(model):
            logger.info("Refreshes encode in bfloat16; `half_precision=False` keeps them in float32.")

    def applied(self, request: Request) -> Request:
        """Return a request that says how much of the corpus is encoded anew, and in which precision."""
        return replace(request, reuse=self.reuse, half_precision=self.half_precision)

    def skips(self, request: Request, trainer: Trainer | None, state: TrainerState, control: TrainerControl) -> bool:
        """Tell whether a refresh that is due is not worth it, and log what the probe has found; on every rank the same."""
        if self.refresh_when is None or request.waits:
            return False
        growth = self._growth(request, trainer)
        log_metrics(request.target.logged({"mining/gap_growth": growth}), trainer, state, control)
        return growth < self.refresh_when

    def _growth(self, request: Request, trainer: Trainer | None) -> float:
        """Return by how much the gap of positives and negatives has grown, on every rank the same.

        Args:
            request: The refresh that is due.
            trainer: The trainer.
        """
        from st_hardneg.live.probe import gap_growth

        growth = 0.0
        hard_negatives, model, sharded = request.target.hard_negatives, request.model, is_sharded(trainer)
        with (
            half_precision(model, self.half_precision),
            distributed_evaluation(model, enabled=not sharded) as is_probing,
        ):
            if is_probing:
                encoder = encoder_for(model, request.encodings)
                growth = hard_negatives.live.probed(partial(gap_growth, encoder))
        return from_first_rank(growth)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
