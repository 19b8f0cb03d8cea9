"""Whether all minings of a run use the same prompts and routes, and positives and negatives are trained alike."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from st_hardneg.encoders import Encodings
from st_hardneg.encoders.prompts import for_column, training_encodings, with_texts

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from st_hardneg.dataset import HardNegativeDataset
    from st_hardneg.training.targets import Target

__all__ = ["check_mined_as_refreshed", "check_trained_as_mined", "training_encodings", "warn_of_unknown_columns"]

logger = logging.getLogger(__name__)


def check_mined_as_refreshed(
    hard_negatives: HardNegativeDataset, model: Any, args: TrainingArguments, dataset_name: str | None
) -> None:
    """Raise if refreshes will use other prompts or routes than the first mining: negatives would change for this alone.

    Where it is not known how the dataset was mined (it was loaded from files, say), this is a warning.

    Args:
        hard_negatives: The dataset.
        model: The model in training, which refreshes mine with.
        args: The training arguments.
        dataset_name: The trainer's name for the dataset, if it trains on several.

    Raises:
        ValueError: If so; the error prints the arguments that mend it.
    """
    first = hard_negatives.live.encodings
    mined = first or with_texts(model, Encodings.from_config(hard_negatives.config, hard_negatives.batch_size))
    refreshed = with_texts(model, training_encodings(hard_negatives, args, dataset_name))
    message = _difference_of_prompts(hard_negatives, args, dataset_name, mined, refreshed)
    message = message or _difference_of_routes(mined, refreshed)
    if message is None:
        return
    if first is not None:
        raise ValueError(message)
    logger.warning(f"If the dataset was mined by `mine(model)`: {message}")


def _difference_of_prompts(
    hard_negatives: HardNegativeDataset,
    args: TrainingArguments,
    dataset_name: str | None,
    mined: Encodings,
    refreshed: Encodings,
) -> str | None:
    then, now = ((encodings.queries.prompt or "", encodings.corpus.prompt or "") for encodings in (mined, refreshed))
    if then == now:
        return None
    anchor, positive = hard_negatives.anchor_column_name, hard_negatives.positive_column_name
    wanted = {anchor: then[0], **dict.fromkeys([positive, *_negative_names(hard_negatives)], then[1])}
    prompts = _with_columns(getattr(args, "prompts", None), dataset_name, wanted)
    return (
        f"The first mining used the prompt {then[0]!r} for queries and {then[1]!r} for the corpus. Refreshes would use "
        f"{now[0]!r} and {now[1]!r}, as the training does, and find other negatives for this alone. Train with the "
        f"prompts of the first mining, `prompts={prompts}` in the training arguments, or mine with those of the training, "
        f"`MiningConfig(query_prompt={now[0]!r}, corpus_prompt={now[1]!r})`."
    )


def _difference_of_routes(mined: Encodings, refreshed: Encodings) -> str | None:
    then, now = ((encodings.queries.task, encodings.corpus.task) for encodings in (mined, refreshed))
    if then == now:
        return None
    return (
        f"The first mining encoded queries by the route {then[0]!r} and the corpus by {then[1]!r}. Refreshes would use "
        f"{now[0]!r} and {now[1]!r}, as `router_mapping` in the training arguments says. Mine with the same arguments, "
        "`hard_negatives.mine(model, args=args)`, or change `router_mapping`."
    )


def check_trained_as_mined(
    hard_negatives: HardNegativeDataset, args: TrainingArguments, dataset_name: str | None
) -> None:
    """Raise if positives are trained with a prompt or a route, and negatives with another: this alone would tell.

    Sentence Transformers gives prompts and routes to columns by their exact names, and users do not know ours.

    Args:
        hard_negatives: The dataset.
        args: The training arguments.
        dataset_name: The trainer's name for the dataset, if it trains on several.

    Raises:
        ValueError: If so; the error prints the argument that mends it.
    """
    column, names = hard_negatives.positive_column_name, _negative_names(hard_negatives)
    prompts = getattr(args, "prompts", None)
    positive, *others = [for_column(prompts, name, dataset_name) or "" for name in (column, *names)]
    if any(other != positive for other in others):
        wanted = _with_columns(prompts, dataset_name, dict.fromkeys(names, positive))
        raise ValueError(
            f"Positives (the column {column!r}) are trained with the prompt {positive!r}, but "
            f"not all of the negatives beside them, so the prompt alone would tell them apart. Set `prompts={wanted}` in "
            "the training arguments."
        )
    routes = getattr(args, "router_mapping", None)
    positive, *others = [for_column(routes, name, dataset_name) or "" for name in (column, *names)]
    if any(other != positive for other in others):
        # A column without a route may not be trained at all, so where positives have none, they get the negatives' route.
        route = positive or next(filter(None, others))
        wanted = _with_columns(routes, dataset_name, dict.fromkeys([column, *names], route))
        raise ValueError(
            f"Positives (the column {column!r}) go through {_route(positive)}, but not all of the negatives beside them, "
            f"so the route alone would tell them apart. Set `router_mapping={wanted}` in the training arguments."
        )


def _route(name: str) -> str:
    return f"the route {name!r}" if name else "no route of their own"


def warn_of_unknown_columns(args: TrainingArguments, targets: Iterable[Target], *given: Any) -> None:
    """Name the columns in the trainer's prompts that no dataset has: the trainer ignores them without a word.

    Args:
        args: The training arguments.
        targets: The datasets that are refreshed.
        *given: What the trainer was given to train and to evaluate on: each a dataset, several by name, or None.
    """
    prompts = getattr(args, "prompts", None)
    if not isinstance(prompts, Mapping):
        return
    columns, datasets = set(), set()
    for target in targets:
        owner = target.hard_negatives
        columns |= {owner.anchor_column_name, owner.positive_column_name, *_negative_names(owner)}
        datasets |= {target.dataset_name}
    for several in given:
        by_name = several if isinstance(several, Mapping) else {None: several}
        datasets |= set(by_name)
        columns |= {name for part in by_name.values() for name in getattr(part, "column_names", None) or []}
    inner = {name for prompt in prompts.values() if isinstance(prompt, Mapping) for name in prompt} - columns
    outer = {name for name in prompts if isinstance(prompts[name], Mapping) or name not in columns} - datasets
    if unknown := sorted(map(str, inner | outer)):
        names = sorted(name for name in columns | datasets if name is not None)
        logger.warning(
            f"`prompts` in the training arguments name {unknown}, which no dataset of the training has, so these prompts "
            f"are not used. Columns and datasets are {names}."
        )


def _negative_names(hard_negatives: HardNegativeDataset) -> list[str]:
    return [f"negative_{slot + 1}" for slot in range(hard_negatives.config.num_negatives)]


def _with_columns(setting: Any, dataset_name: str | None, wanted: Mapping[str, str]) -> dict[str, Any]:
    """Return the trainer's setting with these values by column; what it holds for other columns and datasets stays."""
    whole: Mapping[str, Any] = setting if isinstance(setting, Mapping) else {}
    is_by_dataset = not whole or any(isinstance(value, Mapping) for value in whole.values()) or dataset_name in whole
    group = dataset_name if is_by_dataset else None
    own = whole if group is None else whole.get(group)
    changed = {name: value for name, value in own.items() if name not in wanted} if isinstance(own, Mapping) else {}
    changed |= {name: value for name, value in wanted.items() if value}
    return changed if group is None else {**whole, group: changed}
