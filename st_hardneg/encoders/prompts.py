"""Prompts and routes of a training: what a trainer puts before the texts of a column, and what a model does by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from st_hardneg.config import MiningConfig
from st_hardneg.encoders.dense import Encoding, Encodings

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from st_hardneg.dataset import HardNegativeDataset

# Which of a model's own prompts `encode_query` and `encode_document` use where they are given none, the first there is.
_OWN_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}


def training_encodings(
    hard_negatives: HardNegativeDataset,
    args: TrainingArguments | SimpleNamespace,
    dataset_name: str | None = None,
    config: MiningConfig | None = None,
    *,
    keeps_own: bool = False,
) -> Encodings:
    """Return the prompts and routes that the trainer uses for this dataset, unless the config names its own.

    Args:
        hard_negatives: The dataset.
        args: The training arguments: ``prompts`` and ``router_mapping``.
        dataset_name: The trainer's name for the dataset, if it trains on several.
        config: The recipe in force; the dataset's own if None.
        keeps_own: Whether the model's own prompts hold where none are given. A trainer uses none of them.
    """
    config = config or hard_negatives.config
    encodings = Encodings.from_config(config, hard_negatives.batch_size)
    prompts = getattr(args, "prompts", None)
    routes = getattr(args, "router_mapping", None)

    def adapted(encoding: Encoding, column: str, is_set: bool) -> Encoding:
        if not is_set and not keeps_own:
            # Without prompts in the arguments, the trainer trains without any; the model's default must not creep in.
            encoding = replace(encoding, prompt=for_column(prompts, column, dataset_name) or "")
        return replace(encoding, task=for_column(routes, column, dataset_name) or encoding.task)

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


def check_settings(
    args: Any, settings: Mapping[str, Any], dataset_name: str | None, anchor: str, positive: str
) -> None:
    """Raise if settings that were given to a mining would not be used: beside training arguments, or for other columns.

    Args:
        args: The training arguments, if any.
        settings: ``prompts`` and ``router_mapping`` under these names.
        dataset_name: The trainer's name for the dataset, if it trains on several.
        anchor: The anchor column.
        positive: The positive column.

    Raises:
        TypeError: If settings come beside training arguments, or are of the wrong kind.
        ValueError: If they name other columns.
    """
    for parameter, setting in settings.items():
        if setting is None:
            continue
        if args is not None:
            raise TypeError(
                f"Expected `args` or `{parameter}`, got both. Leave `{parameter}` out to mine as these training arguments "
                f"say, or leave `args` out."
            )
        if isinstance(setting, Mapping) and dataset_name is not None and dataset_name in setting:
            setting, parameter = setting[dataset_name], f"{parameter}[{dataset_name!r}]"
        _check_columns(setting, parameter, anchor, positive)


def _check_columns(setting: Any, parameter: str, anchor: str, positive: str) -> None:
    """Raise unless a setting for one dataset is one string, or a string for each of its columns."""
    if isinstance(setting, str):
        return
    if not isinstance(setting, Mapping):
        raise TypeError(
            f"Expected `{parameter}` to be a string or a mapping from columns to strings, got {type(setting).__name__}. "
            f"Pass {{{anchor!r}: ..., {positive!r}: ...}}."
        )
    if unknown := [name for name in setting if name not in (anchor, positive) and not str(name).startswith("negative")]:
        hint = (
            " Name the dataset by `dataset_name`."
            if any(isinstance(setting[name], Mapping) for name in unknown)
            else ""
        )
        raise ValueError(
            f"Expected `{parameter}` to name the columns {anchor!r} and {positive!r}, got {unknown}.{hint}"
        )
    for name, value in setting.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"Expected `{parameter}[{name!r}]` to be a string, got {type(value).__name__}.")
        if name not in (anchor, positive) and (value or "") != (setting.get(positive) or ""):
            raise ValueError(
                f"Expected `{parameter}` to hold the same for {name!r} as for the positives, as the corpus is encoded but "
                f"once, got {value!r} and {setting.get(positive)!r}. Set `{parameter}[{positive!r}]`."
            )


def prompt_text(model: Any, encoding: Encoding) -> str:
    """Return the text that a model puts before what it encodes, as its ``encode_query`` and ``encode_document`` find it.

    Args:
        model: The model, with ``prompts`` and ``default_prompt_name`` where it has any.
        encoding: The task, and a prompt or its name, if any.
    """
    if encoding.prompt is not None:
        return encoding.prompt
    prompts = getattr(model, "prompts", None) or {}
    names = [encoding.prompt_name] if encoding.prompt_name is not None else _OWN_PROMPTS.get(encoding.task, ())
    name = next((name for name in names if name in prompts), getattr(model, "default_prompt_name", None))
    return prompts.get(name) or ""


def with_texts(model: Any, encodings: Encodings) -> Encodings:
    """Return the same with the texts of the prompts, as this model finds them, in place of their names."""

    def resolved(encoding: Encoding) -> Encoding:
        return replace(encoding, prompt=prompt_text(model, encoding), prompt_name=None)

    return Encodings(resolved(encodings.queries), resolved(encodings.corpus))


def for_column(setting: Any, column: str, dataset_name: str | None) -> str | None:
    """Look a column up in one of the trainer's settings: a string, by column, by dataset, or by dataset and column.

    Args:
        setting: ``prompts`` or ``router_mapping`` of the training arguments.
        column: The column's name.
        dataset_name: The trainer's name for the dataset, if it trains on several.
    """
    if isinstance(setting, Mapping) and dataset_name is not None and dataset_name in setting:
        setting = setting[dataset_name]
    if isinstance(setting, Mapping):
        setting = setting.get(column)
    return setting if isinstance(setting, str) else None
