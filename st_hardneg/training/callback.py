"""MiningCallback: re-mines while the stock trainer trains."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from accelerate.utils import broadcast_object_list, gather_object
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from sentence_transformers.util.distributed import distributed_evaluation
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_hardneg.config import MiningConfig
from st_hardneg.corpus.given import similarity_name
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.encoders.dense import Encoding, Encodings, encode
from st_hardneg.files.save import damaged
from st_hardneg.live.view import live_views, read_in_batches
from st_hardneg.losses.diagnostics import track_diagnostics
from st_hardneg.mining.engine import Mining
from st_hardneg.report import MiningReport
from st_hardneg.training.checkpoint import CheckpointState, read_checkpoint, write_checkpoint
from st_hardneg.training.schedules import (
    Curriculum,
    InForce,
    Progress,
    Schedules,
    check_throughout,
    checked_schedules,
    describe,
    in_force,
    points_of,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# Well below the shortest default time-out of a backend, which is 10 minutes.
_KEEP_ALIVE_SECONDS = 60.0

# A refresh that leaves more than this share of the slots as a last resort is worth a warning.
_MANY_LAST_RESORTS = 0.1

MiningStrategy = Literal["steps", "epoch"]

# What `encode_query` and `encode_document` look for among a model's prompts.
_OWN_PROMPTS = ("query", "document", "passage", "corpus")
_CANNOT_SEARCH = ("SparseEncoder", "CrossEncoder", "MultiVectorEncoder")


@dataclass(frozen=True, eq=False)
class _Target:
    """A dataset that the running training reads, and the trainer's name for it."""

    name: str | None
    hard_negatives: HardNegativeDataset


class MiningCallback(TrainerCallback):
    """Refreshes hard negatives while ``SentenceTransformerTrainer`` trains.

    Mines with the model in training, with the prompts and routes that the trainer trains with unless the config names
    its own. The training dataset has to be a live view, ``hard_negatives.as_dataset()``. Metrics go to the trainer's
    log under ``mining/``, reports to ``callback.reports``.

    Batches are fetched ahead of time, so a refresh is not seen at once. After one at step ``s``, the first micro-batch
    with new negatives only is ``s * gradient_accumulation_steps + 1 + num_workers * prefetch_factor + 1``;
    :meth:`first_step_seen` says which step that is. At an epoch boundary there is no delay.

    Args:
        hard_negatives: What to refresh: one dataset, a mapping by dataset name for a training on a ``DatasetDict``, or
            None for every live view that the train dataloader holds.
        mining_steps: Refresh every so many optimizer steps; below 1, that share of all steps, as for ``eval_steps``.
        mining_strategy: ``"steps"``, or ``"epoch"`` to refresh before every epoch but the first.
        mining_warmup_steps: No refresh before this step.
        schedule: Fields of the config that change while the model trains: a mapping from field to schedule, such as
            ``{"random_rate": Linear(0.8, 0.0)}``, or a curriculum, a list of stages (:mod:`st_hardneg.training.schedules`). Each
            refresh mines with what is in force then. With a schedule, the training begins with a mining of its own if the
            dataset was mined otherwise, and every stage of a curriculum begins with one. A scheduled ``num_negatives`` is
            how many negatives of each row are shown, at most as many as the table is wide; it changes between epochs only.
        model: A teacher to mine with in place of the model in training.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range; and when training starts, if the training dataset holds no live view
            of what is to be refreshed, so that a refresh would change nothing.
    """

    def __init__(
        self,
        hard_negatives: HardNegativeDataset | Mapping[str, HardNegativeDataset] | None = None,
        mining_steps: float = 500,
        *,
        mining_strategy: MiningStrategy = "steps",
        mining_warmup_steps: int = 0,
        schedule: Schedules | None = None,
        model: SentenceTransformer | None = None,
    ) -> None:
        _check_hard_negatives(hard_negatives)
        if isinstance(mining_steps, bool) or not isinstance(mining_steps, (int, float)):
            raise TypeError(f"Expected `mining_steps` to be a number, got {mining_steps!r}. Pass steps, or a share.")
        is_whole = math.isfinite(mining_steps) and (mining_steps < 1 or mining_steps == int(mining_steps))
        if not is_whole or mining_steps <= 0:
            raise ValueError(
                f"Expected `mining_steps` to be a whole number from 1 up, or a share of all steps below 1, got "
                f"{mining_steps!r}. Choose another value."
            )
        if mining_strategy not in get_args(MiningStrategy):
            raise ValueError(
                f"Expected `mining_strategy` to be one of {list(get_args(MiningStrategy))}, got {mining_strategy!r}."
            )
        if isinstance(mining_warmup_steps, bool) or not isinstance(mining_warmup_steps, int) or mining_warmup_steps < 0:
            raise ValueError(
                f"Expected `mining_warmup_steps` to be a whole number from 0 up, got {mining_warmup_steps!r}."
            )
        if model is not None:
            similarity_name(model)
        self.schedule = checked_schedules(schedule)
        for member in _members(hard_negatives):
            # What can be seen before the training is known; its very steps are checked when it begins.
            check_throughout(self.schedule, member.config, points_of(self.schedule), member.check_in_force)
        self.hard_negatives = hard_negatives
        self.mining_steps = mining_steps
        self.mining_strategy = mining_strategy
        self.mining_warmup_steps = mining_warmup_steps
        self.model = model
        self.reports: list[MiningReport] = []
        self._report_names: list[tuple[MiningReport, str | None]] = []
        self._trainer: Callable[[], Trainer | None] = lambda: None
        self._targets: list[_Target] = []
        self._is_one_of_several = False
        self._steps_per_epoch = 0
        self._mined_at: int | None = None

    @property
    def trainer(self) -> Trainer | None:
        """The trainer that called last, as long as it is there."""
        return self._trainer()

    # --- the trainer's events -------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the live views that are trained on, and refuse a setup in which a refresh would change nothing."""
        self.reports = []
        self._report_names = []
        self._mined_at = None
        trainer = _calling_trainer()
        if trainer is not None:
            # Held weakly, for the trainer holds this callback: in a circle, both would outlive the training, and with
            # them the dataloader's persistent workers, until the garbage is collected.
            self._trainer = weakref.ref(trainer)
        loader = kwargs["train_dataloader"]
        self._targets = list(self._find_targets(loader.dataset))
        read_in_batches(loader.dataset)
        for target in self._targets:
            target.hard_negatives.serve_previous(0)
            check_trained_as_mined(target.hard_negatives, args, target.name)
            if state.global_step == 0:
                # A second training, or a trial of a search, begins with what `mine()` left, not with the last refresh.
                target.hard_negatives.reset()
        self._check_model(kwargs.get("model"), args)
        _refuse_live_evaluation(trainer)
        self._agree_over_ranks(args)
        self._show_all()
        self._steps_per_epoch = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
        self._check_schedule(state)
        if state.global_step > 0:
            self._restore(args, state)
        if getattr(args, "batch_sampler", None) == BatchSamplers.NO_DUPLICATES_HASHED:
            logger.warning(
                "`batch_sampler=NO_DUPLICATES_HASHED` hashes the negatives once and keeps these hashes after every "
                "refresh, so that batches may hold duplicates of the new negatives. Use "
                "`batch_sampler=st_hardneg.samplers.NoDuplicatePairsBatchSampler`."
            )
        if self.mining_strategy == "steps":
            every = self._every(state)
            logger.info(
                f"Mining every {every} steps. With {args.dataloader_num_workers} dataloader workers and "
                f"{args.gradient_accumulation_steps} gradient accumulation steps, negatives mined at step {every} fill "
                f"whole batches from step {self.first_step_seen(every, args)} on."
            )
            if every >= state.max_steps:
                logger.warning(
                    f"`mining_steps={self.mining_steps}` is not below the {state.max_steps} steps of this training: "
                    "nothing will be refreshed. Lower `mining_steps`."
                )

    def _check_model(self, trained: Any, args: TrainingArguments) -> None:
        """Refuse a model that cannot search, and warn where refreshes use other prompts than the first mining did."""
        if self.model is not None:
            return
        kind = next((one.__name__ for one in type(trained).__mro__ if one.__name__ in _CANNOT_SEARCH), None)
        if kind is not None:
            raise ValueError(
                f"A {kind} cannot search for negatives itself yet. Pass a SentenceTransformer that searches in its place: "
                "`MiningCallback(hard_negatives, model=SentenceTransformer(...))`."
            )
        if trained is not None:
            similarity_name(trained)
        self._warn_of_other_prompts(trained, args)

    def _warn_of_other_prompts(self, trained: Any, args: TrainingArguments) -> None:
        """Warn where the first mining used the model's own prompts, and refreshes will use none."""
        prompts = getattr(trained, "prompts", None) or {}
        names = {*_OWN_PROMPTS, getattr(trained, "default_prompt_name", None)}
        used = sorted(str(name) for name in names if prompts.get(name))
        if not used or getattr(args, "prompts", None):
            return
        for target in self._targets:
            config = target.hard_negatives.config
            own = (config.query_prompt, config.query_prompt_name, config.corpus_prompt, config.corpus_prompt_name)
            if not any(own):
                logger.warning(
                    f"`mine(model)` uses the model's own prompts for {used}. The training has none (`args.prompts`), and "
                    "refreshes mine as the model is trained, without them. Set `prompts` in the training arguments, or "
                    "the prompts of the MiningConfig, so that every mining uses the same."
                )

    def _agree_over_ranks(self, args: TrainingArguments) -> None:
        """Let every rank begin with the negatives of rank 0: weights that round differently mine differently."""
        if args.world_size <= 1:
            return
        for target in self._targets:
            first = broadcast_object_list([target.hard_negatives.starting_state()])[0]
            problem = None
            try:
                target.hard_negatives.start_from(first)
            except ValueError as error:
                problem = str(error)
            # If one rank raised alone, the others would wait for it until their time-out.
            if found := [one for one in gather_object([problem]) if one is not None]:
                raise ValueError(found[0])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refresh if it is time, except after the last step."""
        self._log_masked_shares(control)
        if self.mining_strategy == "steps" and state.global_step % self._every(state) == 0:
            self._refresh(args, state, control, kwargs["model"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refresh at the boundary between two epochs; there, every batch of the new epoch has the new negatives."""
        step = state.global_step
        is_boundary = step % self._steps_per_epoch == 0
        if is_boundary and step > 0 and (self.mining_strategy == "epoch" or self._begins_stage(state)):
            self._refresh(args, state, control, kwargs["model"])
        if step == 0 and self.schedule is not None:
            self._refresh(args, state, control, kwargs["model"], only_if_changed=True)
        for target in self._targets:
            if is_boundary:
                target.hard_negatives.publish_topics()
            self._show(target, state, control)

    def _begins_stage(self, state: TrainerState) -> bool:
        if not isinstance(self.schedule, Curriculum):
            return False
        epoch = state.global_step // self._steps_per_epoch
        return self.schedule.stage_at(epoch)[0] != self.schedule.stage_at(epoch - 1)[0]

    def _show_all(self) -> None:
        for target in self._targets:
            target.hard_negatives.num_active = target.hard_negatives.config.num_negatives

    def _show(self, target: _Target, state: TrainerState, control: TrainerControl) -> None:
        """Let the live view show as many negatives as are in force in this epoch."""
        if self.schedule is None:
            return
        hard_negatives = target.hard_negatives
        now = self._in_force(hard_negatives.config, state)
        if now.num_active != hard_negatives.num_active:
            hard_negatives.num_active = now.num_active
            self._log({"mining/num_negatives": now.num_active}, target.name, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the share of negatives that this package's losses left out into the log line of the epoch."""
        self._log_masked_shares(control)
        # Workers of the next epoch are copies of this process, which has not counted the batches that workers served.
        for target in self._targets:
            target.hard_negatives.serve_previous(0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show all negatives again, as no schedule is in force any more."""
        self._show_all()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the negatives into the checkpoint, beside the model that they were mined with."""
        if state.is_world_process_zero:
            for target in self._targets:
                reports = [report for report, name in self._report_names if name == target.name]
                kept = target.hard_negatives.checkpoint_state(self._mined_at, reports, describe(self.schedule))
                write_checkpoint(self._checkpoint(args, state), target.name, kept)

    def _log_masked_shares(self, control: TrainerControl) -> None:
        if control.should_log and self.trainer is not None:
            track_diagnostics(self.trainer)

    def first_step_seen(self, step: int, args: TrainingArguments) -> int:
        """Return the first optimizer step all of whose batches have the negatives mined at the end of ``step``.

        One micro-batch is fetched ahead by accelerate, and ``prefetch_factor`` batches by each worker.
        """
        accumulation = args.gradient_accumulation_steps
        ahead = args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
        old_micro_batches = step * accumulation + 1 + ahead
        return math.ceil(old_micro_batches / accumulation) + 1

    def _progress(self, step: int, state: TrainerState) -> Progress:
        # The end belongs to the last epoch, as none follows.
        epoch = min(step, max(0, state.max_steps - 1)) // self._steps_per_epoch
        return Progress(min(1.0, step / max(1, state.max_steps)), epoch)

    def _in_force(self, config: MiningConfig, state: TrainerState) -> InForce:
        """Return what holds at this step; how many negatives are shown is settled by the epoch's first step."""
        step = state.global_step
        now = in_force(self.schedule, config, self._progress(step, state))
        if "num_negatives" not in now.values:
            return now
        first_step = step // self._steps_per_epoch * self._steps_per_epoch
        shown = in_force(self.schedule, config, self._progress(first_step, state)).num_active
        return replace(now, values={**now.values, "num_negatives": shown}, num_active=shown)

    def _check_schedule(self, state: TrainerState) -> None:
        """Make sure that what the schedule will put in force is valid throughout this training."""
        if self.schedule is not None:
            steps = (step for step in range(state.max_steps + 1) if self._may_refresh_at(step, state))
            points = [self._progress(step, state) for step in steps]
            for target in self._targets:
                member = target.hard_negatives
                check_throughout(self.schedule, member.config, points, member.check_in_force)
            if isinstance(self.schedule, Curriculum):
                reached, _ = self.schedule.stage_at(points[-1].epoch)
                if left := [stage.name for stage in self.schedule.stages[reached:]]:
                    logger.warning(
                        f"The training ends after epoch {points[-1].epoch + 1}, before the stages {left} of the "
                        "curriculum begin. Train for more epochs, or shorten the earlier stages."
                    )

    def _may_refresh_at(self, step: int, state: TrainerState) -> bool:
        return step % self._steps_per_epoch == 0 or (self.mining_strategy == "steps" and step % self._every(state) == 0)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> str:
        folder = args.output_dir
        if self.trainer is not None:
            # A search for hyper-parameters gives every trial a folder of its own.
            folder = self.trainer._get_output_dir(getattr(self.trainer, "_trial", None))
        return os.path.join(folder, f"checkpoint-{state.global_step}")

    def _restore(self, args: TrainingArguments, state: TrainerState) -> None:
        """Go on with the negatives of the checkpoint that the training resumes from."""
        checkpoint = _resumed_checkpoint() or self._checkpoint(args, state)
        was_refreshed = any(key.startswith("mining/") for entry in state.log_history for key in entry)
        for target in self._targets:
            hard_negatives = target.hard_negatives
            found: CheckpointState | None = None
            if state.is_world_process_zero:
                found = read_checkpoint(
                    checkpoint,
                    target.name,
                    config=hard_negatives.config.to_dict(),
                    data_fingerprint=hard_negatives.data_fingerprint,
                    schedule=describe(self.schedule),
                    num_rows=len(hard_negatives),
                    num_corpus=len(hard_negatives.corpus),
                    num_sources=len(hard_negatives.source_names),
                    was_refreshed=was_refreshed,
                )
            found = broadcast_object_list([found])[0]
            if found is None:
                logger.warning(
                    f"The checkpoint {checkpoint!r} holds no negatives for this dataset (it was written without a "
                    "MiningCallback). Training goes on with the negatives that the dataset has now."
                )
                continue
            if found.mined_at is not None and found.mined_at > state.global_step:
                raise damaged(checkpoint, f"it was refreshed at step {found.mined_at}, after its own last step")
            hard_negatives.restore(found, old_batches=self._old_batches(found.mined_at, args, state))
            self._mined_at = found.mined_at
            for report in found.reports:
                self._add_report(MiningReport(**report), target.name)

    def _old_batches(self, mined_at: int | None, args: TrainingArguments, state: TrainerState) -> int:
        """Return how many batches after the checkpoint were fetched before the last refresh.

        With workers it is how many there were at most: how far they had got is not known.
        """
        if mined_at is None or mined_at % self._steps_per_epoch == 0:
            return 0
        accumulation = args.gradient_accumulation_steps
        ahead = args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
        return max(0, (mined_at - state.global_step) * accumulation + 1 + ahead)

    def _add_report(self, report: MiningReport, name: str | None) -> None:
        self.reports.append(report)
        self._report_names.append((report, name))

    # --- refreshing -----------------------------------------------------------------------------------------------

    def _every(self, state: TrainerState) -> int:
        if self.mining_steps >= 1:
            return int(self.mining_steps)
        return max(1, math.ceil(state.max_steps * self.mining_steps))

    def _refresh(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        trained: Any,
        *,
        only_if_changed: bool = False,
    ) -> None:
        step = state.global_step
        if step < self.mining_warmup_steps:
            if isinstance(self.schedule, Curriculum) and step % self._steps_per_epoch == 0:
                logger.warning(
                    f"The stage that begins at step {step} is not mined for, as "
                    f"`mining_warmup_steps={self.mining_warmup_steps}`. Lower it, or begin the curriculum later."
                )
            return
        if step >= state.max_steps or step == self._mined_at:
            return
        for target in self._targets:
            hard_negatives = target.hard_negatives
            now = self._in_force(hard_negatives.config, state)
            if only_if_changed and hard_negatives.report.config == now.config.to_dict():
                continue
            mining = self._compute(target, args, step, trained, now.config)
            report = replace(mining.report, stage=now.stage, stage_number=now.stage_number, in_force=dict(now.values))
            hard_negatives.apply_mining(replace(mining, report=report))
            _warn_of_last_resorts(report)
            self._add_report(report, target.name)
            # Nothing is fetched ahead over the boundary of an epoch.
            seen = step + 1 if step % self._steps_per_epoch == 0 else self.first_step_seen(step, args)
            self._log({**report.metrics(), "mining/seen_from_step": seen}, target.name, state, control)
            self._mined_at = step

    def _compute(
        self, target: _Target, args: TrainingArguments, step: int, trained: Any, config: MiningConfig
    ) -> Mining:
        """Mine on rank 0, with the encoding shared over all ranks, and bring the result to every rank."""
        model = self.model if self.model is not None else trained
        if self.model is None:
            encodings = training_encodings(target.hard_negatives, args, target.name, config)
        else:
            encodings = Encodings.from_config(config)  # a teacher has prompts of its own
        # Sharded models have to run on every rank, as in the trainer's own evaluation.
        is_sharded = bool(
            getattr(self.trainer, "is_fsdp_enabled", False) or getattr(self.trainer, "is_deepspeed_enabled", False)
        )
        mining: Mining | None = None
        with distributed_evaluation(model, enabled=not is_sharded) as is_mining:
            if is_mining:
                mining = target.hard_negatives.compute_mining(
                    model,
                    encodings=encodings,
                    step=step,
                    config=config,
                    show_progress_bar=not args.disable_tqdm,
                    between_chunks=_KeepAlive(model) if args.world_size > 1 and not is_sharded else None,
                )
        received: Mining = broadcast_object_list([mining])[0]
        return received

    def _log(self, metrics: dict[str, float], name: str | None, state: TrainerState, control: TrainerControl) -> None:
        if self._is_one_of_several and name is not None:
            metrics = {key.replace("mining/", f"mining/{name}/", 1): value for key, value in metrics.items()}
        if self.trainer is None:
            state.log_history.append({**metrics, "step": state.global_step})
            return
        # Logging clears the flag, and with it the loss that is due to be logged at this very step.
        due = control.should_log
        self.trainer.log(metrics)
        control.should_log = due

    def _find_targets(self, dataset: Any) -> Iterator[_Target]:
        """Yield what is to be refreshed, and make sure that the training reads it."""
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                "Expected a train dataset that is a live view (`hard_negatives.as_dataset()`), got an IterableDataset, "
                "which a refresh cannot reach. Train on the live view, or mine the stream with `HardNegativeMiner`."
            )
        names: dict[int, str | None] = {}
        owners: dict[int, HardNegativeDataset] = {}
        for name, view in live_views(dataset):
            if isinstance(view.owner, HardNegativeDataset):
                owners[id(view.owner)] = view.owner
                names.setdefault(id(view.owner), name)
        self._is_one_of_several = len(owners) > 1
        wanted: dict[str | None, HardNegativeDataset]
        if self.hard_negatives is None:
            wanted = {names[key]: owner for key, owner in owners.items()}
            if len(wanted) < len(owners):
                wanted = {f"dataset_{number}": owner for number, owner in enumerate(owners.values())}
        elif isinstance(self.hard_negatives, HardNegativeDataset):
            wanted = {names.get(id(self.hard_negatives)): self.hard_negatives}
        else:
            wanted = {name: member for name, member in self.hard_negatives.items()}
        if not wanted:
            raise ValueError(
                "Expected the train dataset to be, or to hold, a live view of a HardNegativeDataset, got none, so that "
                "a refresh would change nothing. Pass `train_dataset=hard_negatives.as_dataset()` to the trainer."
            )
        for name, hard_negatives in wanted.items():
            if id(hard_negatives) not in owners:
                what = "`hard_negatives`" if name is None else f"`hard_negatives[{name!r}]`"
                raise ValueError(
                    f"Expected the train dataset to be, or to hold, a live view of {what}, got another dataset, so "
                    "that a refresh would change nothing. Pass `train_dataset=hard_negatives.as_dataset()` to the trainer "
                    "(`to_dataset()` is a frozen copy, and so is a view whose negatives `map` has rewritten or that "
                    "were dropped)."
                )
            yield _Target(name, hard_negatives)


class _KeepAlive:
    """Lets the other ranks take part in something before they give up waiting for the one that searches.

    They wait in a collective operation of ``distributed_evaluation``, which fails after the backend's time-out. Encoding
    a text goes over all ranks, and so starts that time anew.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self.last > _KEEP_ALIVE_SECONDS:
            encode(self.model, ["."], Encoding("document"))
            self.last = time.monotonic()


def training_encodings(
    hard_negatives: HardNegativeDataset,
    args: TrainingArguments,
    dataset_name: str | None,
    config: MiningConfig | None = None,
) -> Encodings:
    """Return the prompts and routes that the trainer uses for this dataset, unless the config names its own.

    Args:
        hard_negatives: The dataset.
        args: The training arguments: ``prompts`` and ``router_mapping``.
        dataset_name: The trainer's name for the dataset, if it trains on several.
        config: The recipe in force; the dataset's own if None.
    """
    config = config or hard_negatives.config
    encodings = Encodings.from_config(config)
    prompts = getattr(args, "prompts", None)
    routes = getattr(args, "router_mapping", None)

    def adapted(encoding: Encoding, column: str, is_set: bool) -> Encoding:
        if not is_set:
            # Without prompts in the arguments, the trainer trains without any; the model's default must not creep in.
            encoding = replace(encoding, prompt=_for_column(prompts, column, dataset_name) or "")
        return replace(encoding, task=_for_column(routes, column, dataset_name) or encoding.task)

    return Encodings(
        adapted(
            encodings.queries,
            hard_negatives.anchor_column_name,
            config.query_prompt is not None or config.query_prompt_name is not None,
        ),
        adapted(
            encodings.corpus,
            hard_negatives.positive_column_name,
            config.corpus_prompt is not None or config.corpus_prompt_name is not None,
        ),
    )


def check_trained_as_mined(
    hard_negatives: HardNegativeDataset, args: TrainingArguments, dataset_name: str | None
) -> None:
    """Raise if positives are trained with a prompt and negatives without: the prompt alone would tell them apart.

    Sentence Transformers gives prompts to columns by their exact names, and users do not know ours.

    Raises:
        ValueError: If so; the error prints the argument that mends it.
    """
    prompts = getattr(args, "prompts", None)
    if not isinstance(prompts, Mapping):
        return
    positive = _for_column(prompts, hard_negatives.positive_column_name, dataset_name)
    names = [f"negative_{slot + 1}" for slot in range(hard_negatives.config.num_negatives)]
    if all(_for_column(prompts, name, dataset_name) == positive for name in names):
        return
    # What else the argument holds, for other columns and datasets, stays.
    is_by_dataset = dataset_name is not None and isinstance(prompts.get(dataset_name), Mapping)
    own = prompts[dataset_name] if is_by_dataset else prompts
    wanted: Any = {name: prompt for name, prompt in own.items() if name not in names}
    wanted |= {} if positive is None else dict.fromkeys(names, positive)
    wanted = {**prompts, dataset_name: wanted} if is_by_dataset else wanted
    raise ValueError(
        f"Positives (the column {hard_negatives.positive_column_name!r}) are trained with the prompt {positive!r}, but "
        f"not all of the negatives beside them, so the prompt alone would tell them apart. Set `prompts={wanted}` in the "
        "training arguments."
    )


def _refuse_live_evaluation(trainer: Trainer | None) -> None:
    """Raise if the evaluation data are a live view: what is measured would change with every refresh."""
    evaluation = getattr(trainer, "eval_dataset", None)
    parts = evaluation.values() if isinstance(evaluation, Mapping) else [evaluation]
    for part in parts:
        if part is not None and any(True for _ in live_views(part)):
            raise ValueError(
                "`eval_dataset` is a live view, whose negatives change with every refresh, so that losses of different "
                "steps could not be compared. Evaluate on a frozen copy: `hard_negatives.to_dataset('n-tuple')`."
            )


def _for_column(setting: Any, column: str, dataset_name: str | None) -> str | None:
    """Look a column up in one of the trainer's settings: a string, by column, by dataset, or by dataset and column."""
    if isinstance(setting, Mapping) and dataset_name is not None and dataset_name in setting:
        setting = setting[dataset_name]
    if isinstance(setting, Mapping):
        setting = setting.get(column)
    return setting if isinstance(setting, str) else None


def _warn_of_last_resorts(report: MiningReport) -> None:
    if report.num_last_resort > _MANY_LAST_RESORTS * report.num_slots:
        worst = max(report.removed, key=lambda rule: report.removed[rule] if rule not in ("anchor", "positive") else -1)
        logger.warning(
            f"{report.num_last_resort:,} of {report.num_slots:,} slots keep an earlier negative that a filter would "
            f"remove today, because nothing else was found for them; `{worst}` removes most. Loosen it, deepen the search "
            'with `range_max`, or set `shortfall="random"`.'
        )


def _members(hard_negatives: Any) -> list[Any]:
    if hard_negatives is None:
        return []
    return list(hard_negatives.values()) if isinstance(hard_negatives, Mapping) else [hard_negatives]


def _check_hard_negatives(hard_negatives: Any) -> None:
    for member in _members(hard_negatives):
        if not isinstance(member, HardNegativeDataset):
            raise TypeError(
                f"Expected `hard_negatives` to be a HardNegativeDataset, a mapping of them by dataset name, or None, "
                f"got {type(member).__name__}. Pass what `as_dataset()` was called on."
            )


def _resumed_checkpoint() -> str | None:
    """Return the checkpoint from which the calling training loop resumes; no callback is told."""
    frame = sys._getframe()
    while frame is not None:
        folder = frame.f_locals.get("resume_from_checkpoint")
        if isinstance(folder, str) and isinstance(frame.f_locals.get("self"), Trainer):
            return folder
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _calling_trainer() -> Trainer | None:
    """Return the trainer whose loop is calling.

    Callbacks are given everything but the trainer, and only its ``log`` reaches every reporter and the log history.
    """
    frame = sys._getframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer):
            return candidate
        frame = frame.f_back  # type: ignore[assignment]
    return None
