"""Whether all minings of a run use the same prompts and routes, and positives and negatives are trained with the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from st_hardneg.encoders import Encodings
from st_hardneg.encoders.prompts import for_column, training_encodings, with_texts

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from st_hardneg.dataset import HardNegativeDataset

__all__ = ["check_mined_as_refreshed", "check_trained_as_mined", "training_encodings"]

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
    prompts = _with_prompts(getattr(args, "prompts", None), dataset_name, wanted)
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
    """Raise if positives are trained with a prompt and negatives without: the prompt alone would tell them apart.

    Sentence Transformers gives prompts to columns by their exact names, and users do not know ours.

    Args:
        hard_negatives: The dataset.
        args: The training arguments.
        dataset_name: The trainer's name for the dataset, if it trains on several.

    Raises:
        ValueError: If so; the error prints the argument that mends it.
    """
    prompts = getattr(args, "prompts", None)
    if not isinstance(prompts, Mapping):
        return
    positive = for_column(prompts, hard_negatives.positive_column_name, dataset_name) or ""
    names = _negative_names(hard_negatives)
    if all((for_column(prompts, name, dataset_name) or "") == positive for name in names):
        return
    wanted = _with_prompts(prompts, dataset_name, dict.fromkeys(names, positive))
    raise ValueError(
        f"Positives (the column {hard_negatives.positive_column_name!r}) are trained with the prompt {positive!r}, but "
        f"not all of the negatives beside them, so the prompt alone would tell them apart. Set `prompts={wanted}` in the "
        "training arguments."
    )


def _negative_names(hard_negatives: HardNegativeDataset) -> list[str]:
    return [f"negative_{slot + 1}" for slot in range(hard_negatives.config.num_negatives)]


def _with_prompts(prompts: Any, dataset_name: str | None, wanted: Mapping[str, str]) -> dict[str, Any]:
    """Return the trainer's setting with these prompts by column; what it holds for other columns and datasets stays."""
    setting: Mapping[str, Any] = prompts if isinstance(prompts, Mapping) else {}
    group = dataset_name if dataset_name is not None and (dataset_name in setting or not setting) else None
    own = setting if group is None else setting.get(group)
    changed = {name: prompt for name, prompt in own.items() if name not in wanted} if isinstance(own, Mapping) else {}
    changed |= {name: prompt for name, prompt in wanted.items() if prompt}
    return changed if group is None else {**setting, group: changed}
