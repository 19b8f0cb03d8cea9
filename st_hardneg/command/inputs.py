"""What can be mined: files, saved datasets, BEIR folders, datasets on the Hub; and models."""

from __future__ import annotations

import os
import re
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from st_hardneg.command.recipe import existing, make_config
from st_hardneg.command.tables import read_table
from st_hardneg.config import MiningConfig
from st_hardneg.dataset import HardNegativeDataset
from st_hardneg.formats.beir import read_beir
from st_hardneg.formats.beir_folder import with_what_lies_beside
from st_hardneg.layouts import beir_tables

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def saved(path: str) -> HardNegativeDataset:
    """Return what ``mine`` has written.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is damaged.
    """
    return HardNegativeDataset.load_from_disk(existing(path, "folder"))


def is_saved(path: str) -> bool:
    """Tell whether a folder is one that ``mine`` has written."""
    return os.path.isfile(os.path.join(path, "st_hardneg.json"))


def read_rows(path: str, run: dict[str, Any]) -> tuple[Dataset, Any]:
    """Return rows and the corpus that comes with them, or None.

    Args:
        path: What was named as input.
        run: The options of the run.

    Raises:
        ValueError: If it cannot be read.
        OSError: If it is not there.
    """
    split = run.get("split") or "train"
    if os.path.isfile(path):
        return read_table(path), None
    if os.path.isdir(path):
        names = set(os.listdir(path))
        if {"corpus.jsonl", "corpus.jsonl.gz"} & names:
            pairs, corpus = read_beir(*beir_tables(path, None, None, split))
            return with_what_lies_beside(pairs, corpus, path), corpus
        if {"state.json", "dataset_dict.json"} & names:
            return _split_of(load_from_disk(path), split), None
        raise ValueError(
            f"Expected {path!r} to be a saved dataset (state.json) or a BEIR folder (corpus.jsonl, queries.jsonl, qrels), "
            f"got {sorted(names)[:6] or 'an empty folder'}."
        )
    return _from_hub(path, run.get("subset"), split), None


def _split_of(found: Dataset | DatasetDict, split: str) -> Dataset:
    if isinstance(found, Dataset):
        return found
    if split not in found:
        raise ValueError(f"Expected a split named {split!r}, got {list(found)}. Name one with `--split`.")
    return found[split]


def _from_hub(name: str, subset: str | None, split: str) -> Dataset:
    from datasets import load_dataset

    if not _HUB_ID.fullmatch(name) or name.endswith((".csv", ".json", ".jsonl", ".parquet", ".tsv", ".gz")):
        raise FileNotFoundError(f"There is no file or folder {name!r}. Check the path.")
    try:
        return load_dataset(name, subset, split=split)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"There is no file or folder {name!r} here, and as a dataset of the Hub it cannot be loaded: {said} Check the "
            "name and the network, or download it first."
        ) from None


def wrapped(path: str, recipe: dict[str, Any], run: dict[str, Any]) -> HardNegativeDataset:
    """Return the dataset to mine, with its recipe.

    Raises:
        ValueError: If something cannot be read or does not fit.
        TypeError: If a field of the recipe is of the wrong type.
        OSError: If something is not there.
    """
    options: dict[str, Any] = {name: run[name] for name in ("batch_size", "cache_folder", "use_faiss") if name in run}
    if "cross_encoder" in run:
        options["cross_encoder"] = load_cross_encoder(run["cross_encoder"])
    _refuse_unused(path, run)
    if os.path.isdir(path) and is_saved(path):
        return _saved_with(path, recipe, options)
    config = make_config(recipe)
    rows, corpus = read_rows(path, run)
    if "corpus" in run:
        corpus = read_table(existing(run["corpus"], "corpus"))
    names: dict[str, Any] = {name: run.get(name) for name in ("anchor_column_name", "positive_column_name")}
    return HardNegativeDataset(rows, corpus, config, **names, **options)


def _refuse_unused(path: str, run: dict[str, Any]) -> None:
    """Raise if an option was given that this kind of input has no use for.

    Raises:
        ValueError: If so.
    """
    if os.path.isfile(path):
        what, unused = "a file", ["split", "subset"]
    elif os.path.isdir(path) and is_saved(path):
        what = "a dataset that `mine` has written"
        unused = ["corpus", "anchor_column_name", "positive_column_name", "split", "subset"]
    elif os.path.isdir(path):
        is_beir = any(os.path.exists(os.path.join(path, f"corpus.jsonl{ending}")) for ending in ("", ".gz"))
        what, unused = ("a BEIR folder", ["corpus", "subset"]) if is_beir else ("a saved dataset", ["subset"])
    else:
        return
    if given := [f"--{name.replace('_', '-')}" for name in unused if run.get(name) is not None]:
        raise ValueError(f"{path!r} is {what}, which has no use for {', '.join(given)}. Leave that out.")


def _saved_with(path: str, recipe: dict[str, Any], options: dict[str, Any]) -> HardNegativeDataset:
    """Return a saved dataset, with some fields of its recipe changed."""
    found = HardNegativeDataset.load_from_disk(path, **options)
    if not recipe:
        return found
    config = MiningConfig.from_dict({**found.config.to_dict(), **recipe})
    return HardNegativeDataset.load_from_disk(path, config=config, **options)


def load_model(name: str) -> Any:
    """Return a Sentence Transformer.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    return _loaded(SentenceTransformer, name, "model")


def load_cross_encoder(name: str) -> Any:
    """Return a cross encoder.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from sentence_transformers import CrossEncoder

    return _loaded(CrossEncoder, name, "cross encoder")


def _loaded(kind: Any, name: str, what: str) -> Any:
    try:
        return kind(name)
    except Exception as error:  # the hosts raise a dozen kinds for a model that is not there
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"The {what} {name!r} cannot be loaded: {said} Name a folder that holds one, or a model of the Hub, which "
            "takes a network once."
        ) from None
