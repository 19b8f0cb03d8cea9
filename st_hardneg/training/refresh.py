"""A refresh: a mining with the weights of the moment, put in force, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from st_hardneg.candidates import Mining
from st_hardneg.encoders import Encodings, encoder_for
from st_hardneg.encoders.dense import as_found
from st_hardneg.encoders.multi_vector import is_multi_vector
from st_hardneg.encoders.precision import half_precision
from st_hardneg.encoders.ranks import KeepAlive, from_first_rank, shared_inference
from st_hardneg.encoders.reuse import Reuse
from st_hardneg.encoders.tokens import kept_tokens
from st_hardneg.hosts import is_sharded
from st_hardneg.report import MiningReport
from st_hardneg.training.curriculum import InForce
from st_hardneg.training.rescoring import TrainedCrossEncoder
from st_hardneg.training.searching import module_of
from st_hardneg.training.targets import Target

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

# A refresh that leaves more than this share of the slots as a last resort is worth a warning.
_MANY_LAST_RESORTS = 0.1


@dataclass(frozen=True, eq=False)
class Request:
    """A mining that is wanted.

    Args:
        target: The dataset to mine for.
        model: What to search with, with the weights of the moment.
        encodings: Prompts and routes.
        in_force: The recipe in force.
        step: The training's step.
        is_frozen: Whether the model is not trained, so that its vectors can be kept for the next mining.
        waits: Whether the training has to wait for it, as what comes next is another recipe.
        reuse: How much of the corpus is encoded anew; all of it if None.
        half_precision: Whether texts are encoded in bfloat16; None for where the hardware gains by it.
        rescorer: The cross encoder in training, which rescores what the model finds; None for none.
    """

    target: Target
    model: Any
    encodings: Encodings
    in_force: InForce
    step: int
    is_frozen: bool = False
    waits: bool = False
    reuse: Reuse | None = None
    half_precision: bool | None = None
    rescorer: TrainedCrossEncoder | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``compute_mining`` besides the model."""
        return {
            "encodings": self.encodings,
            "step": self.step,
            "config": self.in_force.config,
            "is_frozen": self.is_frozen,
            "reuse": self.reuse,
            "rescorer": self.rescorer,
        }

    def put_in_force(self, mining: Mining) -> MiningReport:
        """Let the training read what was mined, and return its report."""
        now = self.in_force
        report = replace(mining.report, stage=now.stage, stage_number=now.stage_number, in_force=dict(now.values))
        self.target.hard_negatives.live.apply(replace(mining, report=report))
        _warn_of_last_resorts(report)
        return report


class Refresher(Protocol):
    """Mines for a callback. Every method is called on all ranks, at the same steps."""

    def begin(
        self, targets: Sequence[Target], trained: Any, retriever: Any, args: TrainingArguments, trainer: Trainer | None
    ) -> None:
        """Get ready for a training, or raise if it cannot be served.

        Args:
            targets: What is refreshed.
            trained: The model in training.
            retriever: What mines in its place, or None.
            args: The training arguments.
            trainer: The trainer.
        """

    def start(self, request: Request, args: TrainingArguments, trainer: Trainer | None) -> None:
        """Begin a mining with the weights of the moment."""

    def before_weights_change(self) -> None:
        """Do what has to be done before an optimizer step."""

    def finished(self, step: int) -> Iterator[tuple[Request, Mining]]:
        """Yield what was mined since the last call, on every rank the same.

        Args:
            step: The training's step.
        """

    @property
    def under_way(self) -> list[int]:
        """The steps of the refreshes that were asked for and are not done."""

    def close(self) -> None:
        """End what goes on; the training has ended."""


class InlineRefresher:
    """Mines at once, while the training waits: on rank 0, with the encoding shared over all ranks."""

    def __init__(self) -> None:
        self._finished: list[tuple[Request, Mining]] = []
        self._kept: dict[str, Any] = {}  # token ids of what this rank encodes for another one
        self.under_way: list[int] = []

    def begin(
        self, targets: Sequence[Target], trained: Any, retriever: Any, args: TrainingArguments, trainer: Trainer | None
    ) -> None:
        """Nothing has to be got ready."""

    def before_weights_change(self) -> None:
        """Nothing is going on."""

    def close(self) -> None:
        """Nothing is going on."""

    def start(self, request: Request, args: TrainingArguments, trainer: Trainer | None) -> None:
        """Mine."""
        sharded = is_sharded(trainer)
        module, rescorer = module_of(request.model), request.rescorer
        models = [module]
        if rescorer is not None:
            models.append(rescorer.model)
        keep_alive = None
        if args.world_size > 1 and not sharded:
            keep_alive = KeepAlive(_ping_of(request))
        mining: Mining | None = None
        # Sharded models have to run on every rank, as in the trainer's own evaluation.
        is_served = args.process_index > 0
        with (
            half_precision(module, request.half_precision),
            kept_tokens(module if is_served else None, self._kept),
            as_found(models[-1]),
            shared_inference(models, enabled=not sharded) as is_mining,
        ):
            if is_mining:
                mining = request.target.hard_negatives.compute_mining(
                    request.model,
                    **request.arguments,
                    show_progress_bar=not args.disable_tqdm,
                    between_chunks=keep_alive,
                )
        received: Any = from_first_rank(mining)
        self._finished.append((request, received))

    def finished(self, step: int) -> Iterator[tuple[Request, Mining]]:
        """Yield what was mined."""
        while self._finished:
            yield self._finished.pop(0)


def _ping_of(request: Request) -> Callable[[], object]:
    """Return what runs a model that the ranks share on a short text."""
    rescorer = request.rescorer
    if rescorer is not None:
        return lambda: rescorer.predict([(".", ".")], show_progress_bar=False)
    encoder = encoder_for(request.model, request.encodings)
    return lambda: list(encoder.corpus(["."]))


def _warn_of_last_resorts(report: MiningReport) -> None:
    if report.num_last_resort > _MANY_LAST_RESORTS * report.num_slots:
        worst = max(report.removed, key=lambda rule: report.removed[rule] if rule not in ("anchor", "positive") else -1)
        logger.warning(
            f"{report.num_last_resort:,} of {report.num_slots:,} slots hold a text that a filter removes, because nothing "
            f"else was found for them; `{worst}` removes most. Loosen it, deepen the search with `range_max`, or set "
            '`shortfall="random"`.'
        )


def warn_of_idle_refreshes(targets: Sequence[Target], trained: Any = None) -> None:
    """Say so if refreshes with a frozen model will find the same negatives again and again.

    Args:
        targets: The datasets that are refreshed, none of whose fields are scheduled.
        trained: The model in training, which may compare what the frozen one finds.
    """
    if is_multi_vector(trained):
        return
    for target in targets:
        hard_negatives = target.hard_negatives
        config = hard_negatives.config
        is_drawn = (
            config.sampling_strategy != "top"
            or config.random_rate > 0
            or bool({"random", "synthetic"} & set(config.quotas))
            or (config.shortfall == "random" and hard_negatives.report.num_random > 0)
        )
        if not is_drawn:
            logger.warning(
                '`retriever` is not trained, and `sampling_strategy="top"` draws nothing, so that every refresh after the '
                "first finds the same negatives again. Draw from what the retriever finds, with "
                "`sampling_strategy=Softmax(0.05)` for example, schedule a field, or leave `retriever` out."
            )
            return


def log_metrics(
    metrics: dict[str, float], trainer: Trainer | None, state: TrainerState, control: TrainerControl
) -> None:
    """Put metrics into the trainer's log."""
    if trainer is None:
        state.log_history.append({**metrics, "step": state.global_step})
        return
    # Logging clears the flag, and with it the loss that is due to be logged at this very step.
    due = control.should_log
    trainer.log(metrics)
    control.should_log = due
