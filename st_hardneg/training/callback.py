"""MiningCallback: what happens at which event of the stock trainer."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_hardneg.config import MiningConfig
from st_hardneg.encoders import Encodings, encoder_for
from st_hardneg.hosts import calling_trainer
from st_hardneg.live.batches import read_in_batches
from st_hardneg.losses.diagnostics import track_diagnostics
from st_hardneg.report import MiningReport
from st_hardneg.training import resume
from st_hardneg.training.background import maker_of_refreshers
from st_hardneg.training.curriculum import (
    Schedules,
    check_throughout,
    check_whole_training,
    checked_schedules,
    describe,
    points_of,
)
from st_hardneg.training.economy import Economy, RefreshScope
from st_hardneg.training.histograms import log_first_histograms, log_refresh
from st_hardneg.training.model_card import tell_card
from st_hardneg.training.prompts import (
    check_mined_as_refreshed,
    check_trained_as_mined,
    warn_of_unknown_columns,
)
from st_hardneg.training.ranks import refuse_unseen_outputs, start_from_first_rank
from st_hardneg.training.refresh import InlineRefresher, Refresher, Request, warn_of_idle_refreshes
from st_hardneg.training.rescoring import check_columns, check_retriever, rescorer_of
from st_hardneg.training.scheduled import ScheduledMining
from st_hardneg.training.searching import searched_with
from st_hardneg.training.targets import (
    Given,
    Target,
    check_losses,
    find_targets,
    members_of,
    refuse_groups_by_label,
    refuse_live_evaluation,
    refuse_two_for_one,
    warn_of_stale_hashes,
)
from st_hardneg.training.timing import MiningStrategy, Timing, check_numbers, first_step_seen

logger = logging.getLogger(__name__)


class MiningCallback(ScheduledMining, TrainerCallback):
    """Refreshes hard negatives while a trainer of Sentence Transformers trains.

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
            ``{"random_rate": Linear(0.8, 0.0)}`` (:mod:`st_hardneg.training.schedules`), or a curriculum, a list of
            stages (:mod:`st_hardneg.training.curriculum`). Each refresh mines with what is in force then. With a schedule,
            the training begins with a mining of its own if the dataset was mined otherwise, and every stage of a
            curriculum begins with one. ``num_shown`` is how many negatives of each row are shown, at most as many as are
            mined; it changes between epochs only.
        retriever: A model to mine with in place of the model in training: a SentenceTransformer, or an object with
            ``encode_query`` and ``encode_document``. It mines with its own prompts. ``CrossEncoderTrainer`` needs one; a
            MultiVectorEncoder compares what it finds token by token, and ``LateInteraction`` of both says how much.
        background: Mine in a second process, with the weights as they are when a refresh is due, while the training goes
            on; what was mined is put in force at the end of the first step after it is done, and the log says how many
            steps old it is (``mining/staleness``). True mines on the device of the training, ``"cuda:1"`` or ``"cpu"`` on
            that one. See :mod:`st_hardneg.training.background`.
        corpus_refresh_fraction: Encode only this share of the corpus at each refresh, by turns, and all queries and
            positives; the others' vectors move as these have moved (:class:`st_hardneg.encoders.drift.Drift`). The log has
            the mean age of the vectors in steps (``mining/vector_age``). They are kept in memory.
        refresh_scope: ``"queries"`` encodes queries only, and compares them with the vectors of the last full mining.
        refresh_when: Refresh only once the gap between the similarities of positives and negatives has grown by so much,
            such as 0.05, since the negatives were mined; a sample of 256 queries tells (``mining/gap_growth``).
        half_precision: Encode in bfloat16 at refreshes; None for where the hardware gains by it.
        refresher: Makes what mines, anew for each training; see :mod:`st_hardneg.training.refresh`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range; and when training starts, if the training dataset holds no live view
            of what is to be refreshed, so that a refresh would change nothing, or if something else cannot work: the
            evaluation data are live, a loss masks by the ids of another dataset, another callback refreshes the same
            dataset, or prompts or routes differ between positives and negatives, or between the first mining and the
            refreshes.
    """

    def __init__(
        self,
        hard_negatives: Given = None,
        mining_steps: float = 500,
        *,
        mining_strategy: MiningStrategy = "steps",
        mining_warmup_steps: int = 0,
        schedule: Schedules | None = None,
        retriever: Any = None,
        background: bool | str = False,
        corpus_refresh_fraction: float = 1.0,
        refresh_scope: RefreshScope = "all",
        refresh_when: float | None = None,
        half_precision: bool | None = None,
        refresher: Callable[[], Refresher] | None = None,
    ) -> None:
        members = members_of(hard_negatives)
        check_numbers(mining_steps, mining_strategy, mining_warmup_steps)
        if retriever is not None:
            encoder_for(retriever, Encodings.from_config(MiningConfig()))  # raises if it cannot search
        self.schedule = checked_schedules(schedule)
        for member in members:
            # What can be seen before the training is known; its very steps are checked when it begins.
            check_throughout(self.schedule, member.config, points_of(self.schedule), member.check_in_force)
        self.hard_negatives = hard_negatives
        self.mining_steps = mining_steps
        self.mining_strategy = mining_strategy
        self.mining_warmup_steps = mining_warmup_steps
        self.retriever = retriever
        self.economy = Economy(corpus_refresh_fraction, refresh_scope, refresh_when, half_precision)
        self._trainer: Callable[[], Trainer | None] = lambda: None
        self._make_refresher = maker_of_refreshers(background, refresher)
        self._refresher: Refresher = InlineRefresher()
        self._targets: list[Target] = []
        self._reported: list[tuple[Target, MiningReport]] = []
        self._timing: Timing
        self._mined_at: int | None = None
        self._asked_at: int | None = None
        self._is_to_be_begun_anew = False

    def __repr__(self) -> str:
        what = "every live view" if self.hard_negatives is None else "what it was given"
        when = "before every epoch" if self.mining_strategy == "epoch" else f"every {self.mining_steps:g} steps"
        return f"MiningCallback(refreshes {what} {when}, {len(self.reports)} refreshes so far)"

    @property
    def trainer(self) -> Trainer | None:
        """The trainer that called last, as long as it is there."""
        return self._trainer()

    @property
    def reports(self) -> list[MiningReport]:
        """The reports of the training's minings, in order."""
        return [report for _, report in self._reported]

    def first_step_seen(self, step: int, args: TrainingArguments) -> int:
        """Return the first optimizer step all of whose batches have the negatives mined at the end of ``step``.

        One micro-batch is fetched ahead by accelerate, and ``prefetch_factor`` batches by each worker.
        """
        return first_step_seen(step, args)

    # --- the trainer's events -------------------------------------------------------------------------------------

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse what would fail in foreign words before the training begins."""
        refuse_groups_by_label(args, getattr(calling_trainer(), "train_dataset", None))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the live views that are trained on, and refuse a setup in which a refresh would change nothing."""
        self._reported = []
        self._mined_at = self._asked_at = None
        self._refresher.close()
        self._refresher = self._make_refresher()
        trainer = calling_trainer()
        if trainer is not None:
            # Held weakly, because the trainer holds this callback: in a circle, both would outlive the training, and with
            # them the dataloader's persistent workers, until the garbage is collected.
            self._trainer = weakref.ref(trainer)
        loader = kwargs["train_dataloader"]
        train_dataset = getattr(trainer, "train_dataset", None)
        self._targets = find_targets(self.hard_negatives, loader.dataset, train_dataset)
        for other in _others_of(trainer, self):
            refuse_two_for_one(self._targets, find_targets(other.hard_negatives, loader.dataset, train_dataset))
        read_in_batches(loader.dataset)
        is_by_steps = self.mining_strategy == "steps"
        self._timing = Timing.of(args, state.max_steps, loader, self.mining_steps if is_by_steps else None)
        check_columns(kwargs.get("model"), args, self._targets)
        for target in self._targets:
            target.hard_negatives.live.serve_previous(0)
            check_trained_as_mined(target.hard_negatives, args, target.dataset_name)
            if state.global_step == 0:
                # A second training, or a trial of a search, begins with what `mine()` left, not with the last refresh.
                target.hard_negatives.reset()
        warn_of_unknown_columns(args, self._targets, train_dataset, getattr(trainer, "eval_dataset", None))
        self._check_model(kwargs.get("model"), args)
        refuse_live_evaluation(trainer)
        refuse_groups_by_label(args, loader.dataset)
        if trainer is not None:
            check_losses(trainer.loss, loader.dataset, train_dataset)
        if args.world_size > 1:
            refuse_unseen_outputs(trainer)
            start_from_first_rank(target.hard_negatives for target in self._targets)
        self._show_all()
        self._check_schedule()
        if state.global_step > 0:
            self._resume(args, state)
        self.economy.check(kwargs.get("model"), self.retriever)
        self._refresher.begin(self._targets, kwargs.get("model"), self.retriever, args, trainer)
        log_first_histograms(self._targets, trainer, state.global_step)
        tell_card(kwargs.get("model"), self._targets, self._reported)
        warn_of_stale_hashes(args)
        self._timing.say_when(self.mining_steps, self.mining_warmup_steps)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refresh at the boundary between two epochs; there, every batch of the new epoch has the new negatives."""
        step, timing = state.global_step, self._timing
        is_boundary = timing.is_boundary(step)
        if is_boundary and step > 0 and (self.mining_strategy == "epoch" or self._begins_stage(step)):
            self._refresh(args, state, control, kwargs["model"], waits=self._begins_stage(step))
        if step == 0 and self.schedule is not None:
            self._refresh(args, state, control, kwargs["model"], waits=True, only_if_changed=True)
        for target in self._targets:
            if is_boundary:
                target.hard_negatives.live.publish_topics()
            self._show(target, state, control)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let a snapshot of the weights be whole before they change."""
        self._refresher.before_weights_change()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put in force what was mined in the background, and refresh if it is time, except after the last step."""
        self._log_masked_shares(control)
        self._apply_finished(state, control)
        if self._timing.is_due(state.global_step) or self._is_to_be_begun_anew:
            self._refresh(args, state, control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the share of negatives that this package's losses left out into the log line of the epoch."""
        self._log_masked_shares(control)
        # Workers of the next epoch are copies of this process, which has not counted the batches that workers served.
        for target in self._targets:
            target.hard_negatives.live.serve_previous(0)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the negatives into the checkpoint, beside the model that they were mined with."""
        if state.is_world_process_zero:
            folder = resume.checkpoint_folder(self.trainer, args, state)
            for target in self._targets:
                reports = [report for of, report in self._reported if of is target]
                steps = {"mined_at": self._mined_at, "asked_at": self._asked_at}
                resume.save(folder, target, reports=reports, schedule=describe(self.schedule), **steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show all negatives again, as no schedule is in force any more, and end what mines in the background."""
        if self._refresher.under_way:
            logger.info(f"The training ends before the refresh of step {self._refresher.under_way[0]:,} is done.")
        self._refresher.close()
        self._show_all()

    # --- when a training begins -----------------------------------------------------------------------------------

    def _check_model(self, trained: Any, args: TrainingArguments) -> None:
        """Refuse a model that cannot search, and refreshes that would use other prompts than the first mining did."""
        if check_retriever(self._targets, trained, self.retriever) and self.schedule is None:
            warn_of_idle_refreshes(self._targets, trained)
        if self.retriever is not None:
            return
        if trained is None:
            return
        encoder_for(trained, Encodings.from_config(MiningConfig()))  # raises if it cannot search
        for target in self._targets:
            check_mined_as_refreshed(target.hard_negatives, trained, args, target.dataset_name)

    def _check_schedule(self) -> None:
        """Make sure that what the schedule will put in force is valid throughout this training."""
        if self.schedule is not None:
            members = [target.hard_negatives for target in self._targets]
            check_whole_training(self.schedule, members, self._timing.refresh_points())

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        """Go on with the negatives of the checkpoint that the training resumes from."""
        folder = resume.folder_to_resume(self.trainer, args, state)
        for target in self._targets:
            found = resume.read(folder, target, schedule=describe(self.schedule), state=state)
            if found is not None:
                old_batches = self._timing.num_old_batches(found.mined_at, state.global_step)
                target.hard_negatives.live.restore(found, old_batches=old_batches)
                self._mined_at, self._asked_at = found.mined_at, found.mined_at
                self._is_to_be_begun_anew = resume.say_what_is_in_force(found)
                self._reported += [(target, MiningReport.from_dict(report)) for report in found.reports]

    # --- while it goes on -----------------------------------------------------------------------------------------

    def _refresh(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        trained: Any,
        *,
        waits: bool = False,
        only_if_changed: bool = False,
    ) -> None:
        step = state.global_step
        if step < self.mining_warmup_steps:
            self._say_that_a_stage_waits(step)
            return
        if step >= state.max_steps or step == self._asked_at:
            return
        self._is_to_be_begun_anew = False
        for target in self._targets:
            now = self._in_force(target, step)
            if only_if_changed and target.hard_negatives.report.config == now.config.to_dict():
                continue
            model, encodings = searched_with(self.retriever, trained, target, args, now.config)
            rescorer, is_frozen = rescorer_of(trained, args, target.dataset_name), model is not trained
            request = Request(target, model, encodings, now, step, is_frozen=is_frozen, waits=waits, rescorer=rescorer)
            if self.economy.skips(request, self.trainer, state, control):
                continue
            self._refresher.start(self.economy.applied(request), args, self.trainer)
            self._asked_at = step
            self._apply_finished(state, control)

    def _apply_finished(self, state: TrainerState, control: TrainerControl) -> None:
        """Put in force what was mined since the last time."""
        step = state.global_step
        for request, mining in self._refresher.finished(step):
            report = request.put_in_force(mining)
            self._reported.append((request.target, report))
            tell_card(getattr(self.trainer, "model", None), self._targets, self._reported)
            log_refresh(report, request, self._timing, self.trainer, state, control)
            self._mined_at = step

    def _log_masked_shares(self, control: TrainerControl) -> None:
        if control.should_log and self.trainer is not None:
            track_diagnostics(self.trainer)


def _others_of(trainer: Trainer | None, callback: MiningCallback) -> list[MiningCallback]:
    """Return the other mining callbacks of a trainer."""
    handler = getattr(trainer, "callback_handler", None)
    callbacks = getattr(handler, "callbacks", [])
    return [other for other in callbacks if isinstance(other, MiningCallback) and other is not callback]
