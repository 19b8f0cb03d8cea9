"""Which datasets a training refreshes: the live views that its dataloader reads, or an error that says why not."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset

from st_hardneg.corpus.known import KnownPositives
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.hosts import BatchSamplers, GroupByLabelBatchSampler
from st_hardneg.live.dataset import live_views
from st_hardneg.losses.masking import losses_with_known_positives
from st_hardneg.training.inputs import check_inputs

logger = logging.getLogger(__name__)

Given = HardNegativeDataset | Mapping[str, HardNegativeDataset] | None
"""What ``MiningCallback(hard_negatives=...)`` takes."""


@dataclass(frozen=True, eq=False)
class Target:
    """A dataset that the running training reads and a callback refreshes.

    Args:
        hard_negatives: The dataset.
        dataset_name: The trainer's name for it, as a member of a ``DatasetDict``; its arguments and losses go by it.
        name: What checkpoints and the log call it; None where there is only one.
        is_one_of_several: Whether the training reads other datasets that can be refreshed, too.
    """

    hard_negatives: HardNegativeDataset
    dataset_name: str | None = None
    name: str | None = None
    is_one_of_several: bool = False

    def logged(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return metrics under names that no other dataset of the training has."""
        if not self.is_one_of_several or self.name is None:
            return dict(metrics)
        return {key.replace("mining/", f"mining/{self.name}/", 1): value for key, value in metrics.items()}


def members_of(given: Any) -> list[HardNegativeDataset]:
    """Return the datasets that a callback was given.

    Raises:
        TypeError: If it was given something else.
    """
    members = [] if given is None else list(given.values()) if isinstance(given, Mapping) else [given]
    for member in members:
        if not isinstance(member, HardNegativeDataset):
            raise TypeError(
                f"Expected `hard_negatives` to be a HardNegativeDataset, a mapping of them by dataset name, or None, "
                f"got {type(member).__name__}. Pass what `as_dataset()` was called on."
            )
    return members


def find_targets(given: Given, dataset: Any, train_dataset: Any = None) -> list[Target]:
    """Return what is to be refreshed, and make sure that the training reads it.

    Args:
        given: What the callback was given.
        dataset: What the train dataloader reads.
        train_dataset: What the trainer was given: one dataset, or several by name.

    Raises:
        ValueError: If a refresh would not reach the training.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "Expected a train dataset that is a live view (`hard_negatives.as_dataset()`), got an IterableDataset, "
            "which a refresh cannot reach. Train on the live view, or mine the stream with `HardNegativeMiner`."
        )
    trained = trained_datasets(dataset, train_dataset)
    if given is None:
        wanted: list[tuple[str | None, HardNegativeDataset]] = [(None, owner) for _, owner in trained]
    elif isinstance(given, HardNegativeDataset):
        wanted = [(None, given)]
    else:
        wanted = list(given.items())
    if not wanted:
        raise ValueError(
            "Expected the train dataset to be, or to hold, a live view of a HardNegativeDataset, got none, so that "
            "a refresh would change nothing. Pass `train_dataset=hard_negatives.as_dataset()` to the trainer."
            + _hint_of_fit(dataset)
        )
    targets = []
    for key, hard_negatives in wanted:
        place = next((place for place, (_, owner) in enumerate(trained) if owner is hard_negatives), None)
        if place is None:
            what = "`hard_negatives`" if key is None else f"`hard_negatives[{key!r}]`"
            raise ValueError(
                f"Expected the train dataset to be, or to hold, a live view of {what}, got another dataset, so "
                "that a refresh would change nothing. Pass `train_dataset=hard_negatives.as_dataset()` to the trainer "
                "(`to_dataset()` is a frozen copy, and so is a view whose negatives `map` has rewritten or that "
                f"were dropped).{_hint_of_fit(dataset)}"
            )
        dataset_name, several = trained[place][0], len(trained) > 1
        # Two callbacks may have one dataset each, so where a name can be found it does not depend on what this one has.
        name = dataset_name or key or (f"dataset_{place}" if several else None)
        targets.append(Target(hard_negatives, dataset_name, name, several))
    return targets


def refuse_two_for_one(targets: Iterable[Target], others: Iterable[Target]) -> None:
    """Raise if two callbacks of a trainer refresh the same dataset: each would undo what the other has mined.

    Args:
        targets: What one callback refreshes.
        others: What the other callbacks of the trainer refresh.

    Raises:
        ValueError: If so; the dataset is named if the training reads several.
    """
    taken = {id(other.hard_negatives) for other in others}
    for target in targets:
        if id(target.hard_negatives) in taken:
            which = "the same dataset" if target.name is None else f"the same dataset, {target.name!r}"
            raise ValueError(
                f"Expected one MiningCallback for each dataset, got two that refresh {which}, so that each would replace "
                "what the other has mined. Leave one out, or name to each what it refreshes, "
                "`MiningCallback(hard_negatives)`."
            )


def trained_datasets(dataset: Any, train_dataset: Any = None) -> list[tuple[str | None, HardNegativeDataset]]:
    """Return the datasets whose live views a dataloader reads, each once, with the trainer's names for them.

    The dataloader knows the names only where a loss or a prompt needs them; the trainer's own dataset always does.
    """
    by_name = train_dataset.items() if isinstance(train_dataset, Mapping) else []
    names = {id(view.owner): name for name, part in by_name for _, view in live_views(part)}
    found: dict[int, tuple[str | None, HardNegativeDataset]] = {}
    for name, view in live_views(dataset):
        if isinstance(view.owner, HardNegativeDataset):
            found.setdefault(id(view.owner), (names.get(id(view.owner), name), view.owner))
    return list(found.values())


def _hint_of_fit(dataset: Any) -> str:
    """Return what to say besides, if ``model.fit`` has made the dataset: it reads all rows before the training."""
    names = [name for part in getattr(dataset, "datasets", [dataset]) for name in getattr(part, "column_names", [])]
    if "sentence_0" not in names:
        return ""
    return " `model.fit` copies all rows before it trains; train with a `SentenceTransformerTrainer` instead."


def refuse_live_evaluation(trainer: Any) -> None:
    """Raise if the evaluation data are a live view: what is measured would change with every refresh."""
    for part in _parts(getattr(trainer, "eval_dataset", None)):
        if any(True for _ in live_views(part)):
            raise ValueError(
                "`eval_dataset` is a live view, whose negatives change with every refresh, so that losses of different "
                "steps could not be compared. Evaluate on a frozen copy: `hard_negatives.to_dataset('n-tuple')`."
            )


def refuse_groups_by_label(args: Any, dataset: Any) -> None:
    """Raise if batches of a live view are to be grouped by label: its label holds ids, which are no classes.

    Args:
        args: The training arguments.
        dataset: The train dataset, or several by name.
    """
    sampler = getattr(args, "batch_sampler", None)
    is_class = inspect.isclass(sampler) and issubclass(sampler, GroupByLabelBatchSampler)
    if not is_class and sampler != BatchSamplers.GROUP_BY_LABEL:
        return
    for part in _parts(dataset):
        if any(True for _ in live_views(part)):
            raise ValueError(
                "`batch_sampler=GROUP_BY_LABEL` makes batches of rows with equal labels, and a live view has no classes "
                "in its label: with `as_dataset(with_ids=True)` it holds ids, which differ from row to row. Leave "
                "`batch_sampler` out, or set it to `st_hardneg.samplers.NoDuplicatePairsBatchSampler`."
            )


def warn_of_stale_hashes(args: Any) -> None:
    """Say so if the trainer's batch sampler goes by negatives that refreshes replace."""
    if getattr(args, "batch_sampler", None) == BatchSamplers.NO_DUPLICATES_HASHED:
        logger.warning(
            "`batch_sampler=NO_DUPLICATES_HASHED` hashes the negatives once and keeps these hashes after every "
            "refresh, so that batches may hold duplicates of the new negatives. Use "
            "`batch_sampler=st_hardneg.samplers.NoDuplicatePairsBatchSampler`."
        )


def _parts(dataset: Any) -> Iterator[Any]:
    yield from dataset.values() if isinstance(dataset, Mapping) else [] if dataset is None else [dataset]


def check_losses(loss: Any, dataset: Any, train_dataset: Any = None) -> None:
    """Raise if a loss cannot read what it is trained on, or masks the known positives of another dataset.

    Args:
        loss: The trainer's loss, or losses by dataset name.
        dataset: What the train dataloader reads.
        train_dataset: What the trainer was given: one dataset, or several by name.

    Raises:
        ValueError: If so; what would work is named.
    """
    check_inputs(loss, dataset if train_dataset is None else train_dataset)
    trained = trained_datasets(dataset, train_dataset)
    for loss_name, module in losses_with_known_positives(loss):
        for dataset_name, hard_negatives in trained:
            is_for_it = not loss_name or dataset_name == loss_name
            if is_for_it and not _are_the_same(module.known_positives, hard_negatives.known_positives):
                where = "the training" if dataset_name is None else f"the dataset {dataset_name!r}"
                raise ValueError(
                    f"The {type(module).__name__} that is trained on {where} was given the `known_positives` of another "
                    "HardNegativeDataset, whose ids mean other texts. Give every dataset a loss of its own, each with the "
                    "`known_positives` of its dataset: `loss={'a': loss_a, 'b': loss_b}` with the names of the datasets."
                )


def _are_the_same(known: Any, other: KnownPositives) -> bool:
    """Tell whether two are one, or equal; a loss keeps them on its own device."""
    if known is other:
        return True
    names = ("identities", "keys", "groups")
    return all(torch.equal(getattr(known, name).cpu(), getattr(other, name).cpu()) for name in names)
