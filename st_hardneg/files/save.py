"""A HardNegativeDataset on disk: plain Arrow and JSON, checked when it is read, without a look at every text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, load_from_disk

from st_hardneg.candidates import Mining
from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.pairs import Pairs
from st_hardneg.corpus.rows import Rows
from st_hardneg.corpus.texts import TEXT_TYPES, Ids, TextColumn, dataset_of
from st_hardneg.files.folders import settle, write_folder
from st_hardneg.files.limits import check_limits
from st_hardneg.files.minings import read_mining, write_mining
from st_hardneg.files.patterns import is_quick
from st_hardneg.files.pools import read_pool, write_pool
from st_hardneg.files.schema import (
    Key,
    check_seal,
    checked_keys,
    damaged,
    is_count,
    is_mapping,
    is_optional,
    is_string,
    is_strings,
    read_json,
    seal,
    warn_of_unknown,
    write_json,
)
from st_hardneg.files.tables import can_be_followed
from st_hardneg.files.values import Arrays, Builder, arrays_in, take_apart

_FORMAT = 1
_STATE_FILE = "st_hardneg.json"
_SAMPLE = 64
_QUERIES_AT_ONCE = 250_000

KEYS: dict[str, Key] = {
    "format": Key(is_count),
    "config": Key(is_mapping),
    "needs": Key(is_strings, default=[]),
    "options": Key(is_mapping, default={}),
    "num_minings": Key(is_count, default=0),
    "has_view": Key(lambda value: isinstance(value, bool), default=False),
    "source_names": Key(is_strings, default=[]),
    "report": Key(is_optional(is_mapping), default=None),
    "pool": Key(is_optional(is_mapping), default=None),
    "numbering": Key(is_mapping),
    "texts": Key(is_optional(is_string), default=None),
    "files": Key(is_mapping, default={}),
}
"""The keys of a save's ``st_hardneg.json``."""


@dataclass(frozen=True, eq=False)
class SavedState:
    """What is written of a HardNegativeDataset, and read back.

    Args:
        rows: The wrapped dataset and what its columns are.
        corpus: The corpus, with its numbering.
        pairs: The unique queries and what is known to be right for them.
        config: The recipe.
        needs: What was used and cannot be in files: a cross encoder, a searcher.
        num_minings: How often the dataset was mined.
        mining: The mining in force.
        live_rows: int64: the rows of the live view, or None if there is none.
        options: Further arguments of the dataset, as plain JSON values.
    """

    rows: Rows
    corpus: Corpus
    pairs: Pairs
    config: MiningConfig
    needs: list[str] = field(default_factory=list)
    num_minings: int = 0
    mining: Mining | None = None
    live_rows: Ids | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def save(path: str, state: SavedState) -> None:
    """Write a state to a folder; an earlier save there is replaced only once the new one is complete.

    Raises:
        FileExistsError: If the folder holds something else than an earlier save.
    """
    path = os.path.realpath(path)
    if os.path.isfile(path):
        raise FileExistsError(f"Expected {path!r} to be a folder, got a file.")
    if os.path.exists(path) and os.listdir(path) and not os.path.exists(os.path.join(path, _STATE_FILE)):
        raise FileExistsError(
            f"Expected {path!r} to be a new folder or an earlier save, got a folder with other content."
        )
    write_folder(path, lambda folder: _write(folder, state))


def _write(folder: str, state: SavedState) -> None:
    _write_part(folder, "pairs", state.rows.dataset)
    _write_part(folder, "wrong", state.rows.wrong)
    _write_part(folder, "corpus", state.corpus.given)
    _write_part(folder, "added", _added_texts(state.corpus))
    arrays = Arrays()
    numbering = {name: take_apart(getattr(state, name), name, arrays) for name in ("rows", "corpus", "pairs")}
    arrays.write(folder, "numbering")
    if state.mining is not None:
        write_mining(folder, state.mining, state.live_rows)
    content = {
        "format": _FORMAT,
        "config": state.config.to_dict(),
        "needs": state.needs,
        "options": dict(state.options),
        "num_minings": state.num_minings,
        "has_view": state.live_rows is not None,
        "source_names": [] if state.mining is None else list(state.mining.source_names),
        "report": None if state.mining is None else state.mining.report.to_dict(),
        "pool": write_pool(folder, state.mining.pool, state.mining.source_names) if state.mining else None,
        "numbering": numbering,
        "texts": _sample_of_texts(state.pairs.anchors, state.rows.positives, state.corpus.texts),
        "files": seal(folder),
    }
    write_json(folder, _STATE_FILE, content)


def _write_part(folder: str, name: str, dataset: Dataset | None) -> None:
    if dataset is not None:
        dataset.with_format(None).save_to_disk(os.path.join(folder, name))


def _added_texts(corpus: Corpus) -> Dataset | None:
    """Return the texts that are numbered and not in the given corpus, and where each comes from."""
    # Of the type of the given corpus, or joining the two would convert all of it.
    kind = corpus.texts.type if corpus.given is None else TextColumn(corpus.given, corpus.text_column).type
    texts = [part.cast(kind) for part in corpus.texts.after(corpus.num_given)]
    if not sum(map(len, texts)):
        return None
    added = [block for block in corpus.blocks if block.start >= corpus.num_given]
    names = np.repeat(np.arange(len(added)), [block.stop - block.start for block in added]).astype(np.int32)
    words = pa.array([block.name for block in added], pa.string())
    blocks = pa.DictionaryArray.from_arrays(pa.array(names), words).cast(pa.string())
    return dataset_of(pa.table({"text": pa.chunked_array(texts), "block": blocks}))


def _sample_of_texts(*columns: TextColumn) -> str:
    """Identify columns by a few of their texts, at even distances."""
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        rows = np.unique(np.linspace(0, len(column) - 1, min(_SAMPLE, len(column))).astype(np.int64))
        digest.update(json.dumps([len(column), column.take(rows)]).encode())
    return digest.hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: str, *, config: MiningConfig | None = None) -> SavedState:
    """Read a folder that :func:`save` wrote. No code in it is run, nothing in it is unpickled.

    Args:
        path: The folder.
        config: The recipe to go on with, in place of the one in the files.

    Raises:
        FileNotFoundError: If there is no save.
        ValueError: If it is damaged, of a later version of this package, or its recipe has a pattern that may take for
            ever.
    """
    settle(path)
    if not os.path.isfile(os.path.join(path, _STATE_FILE)):
        raise FileNotFoundError(
            f"Expected {path!r} to be a folder written by `HardNegativeDataset.save_to_disk`, got none with "
            f"{_STATE_FILE!r} in it. Check the path."
        )
    content = checked_keys(path, read_json(path, _STATE_FILE, _FORMAT), KEYS, _STATE_FILE)
    check_seal(path, content["files"])
    recipe = _recipe(path, content["config"], config)
    rows, corpus, pairs = _read_numbering(path, content)
    mining, live_rows = _read_mining(path, content, recipe, corpus, pairs)
    return SavedState(
        rows,
        corpus,
        pairs,
        recipe,
        content["needs"],
        content["num_minings"],
        mining,
        live_rows if content["has_view"] else None,
        content["options"],
    )


def _recipe(path: str, values: dict[str, Any], given: MiningConfig | None) -> MiningConfig:
    """Return the recipe to go on with.

    Raises:
        ValueError: If the saved one is not valid, its pattern cannot be trusted, or the given one does not fit.
    """
    names = {part.name for part in fields(MiningConfig)}
    warn_of_unknown(path, {f"config.{name}" for name in set(values) - names})
    pattern = values.get("exclude_pattern")
    try:
        saved = MiningConfig.from_dict({name: value for name, value in values.items() if name in names})
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(path, f"the config is not valid ({error})") from None
    if given is None:
        if pattern is not None and not is_quick(pattern):
            raise ValueError(
                f"The recipe in {path!r} has `exclude_pattern={pattern!r}`, which may take for ever on some texts. If you "
                f"know where the files come from, pass the recipe, whose fields are in {_STATE_FILE!r}, yourself: "
                "`load_from_disk(path, config=MiningConfig(...))`."
            )
        return saved
    for name in ("num_negatives", "identity"):
        if getattr(given, name) != getattr(saved, name):
            raise ValueError(
                f"Expected a `config` with `{name}={getattr(saved, name)!r}`, as {path!r} was saved with, got "
                f"{getattr(given, name)!r}. Change the recipe by making a new HardNegativeDataset."
            )
    return given


def _read_numbering(path: str, content: dict[str, Any]) -> tuple[Rows, Corpus, Pairs]:
    """Read the rows, the corpus and the pairs, and check that their numbers fit."""
    build, plain = Builder(path, Arrays.read(path, "numbering")).build, content["numbering"]
    dataset, wrong, given, added = (_read_part(path, name) for name in ("pairs", "wrong", "corpus", "added"))
    if dataset is None:
        raise damaged(path, "'pairs' is missing")
    rows: Rows = build(Rows, plain.get("rows"), "rows", dataset=dataset, wrong=wrong)
    anchors, positives = (_texts(path, dataset, "pairs", name) for name in (rows.anchor_name, rows.positive_name))
    columns = [] if added is None else [_texts(path, added, "added", "text")]
    corpus: Corpus = build(Corpus, plain.get("corpus"), "corpus", given=given, texts=anchors)
    if given is not None:
        columns.insert(0, _texts(path, given, "corpus", corpus.text_column))
    is_joined = bool(columns) and all(column.type == columns[0].type for column in columns)
    if not is_joined or corpus.num_given != (0 if given is None else len(given)):
        raise damaged(path, "the corpus is not the one that was numbered")
    corpus = replace(corpus, texts=columns[0] if len(columns) == 1 else columns[0].followed_by(columns[1]))
    pairs: Pairs = build(Pairs, plain.get("pairs"), "pairs", anchors=anchors)
    _check_numbers(path, rows, corpus, pairs)
    try:
        are_same = content["texts"] in (None, _sample_of_texts(anchors, positives, corpus.texts))
    except UnicodeDecodeError:
        are_same = False
    if not are_same:
        raise damaged(path, "the texts are not those that were saved")
    return rows, corpus, pairs


def _check_numbers(path: str, rows: Rows, corpus: Corpus, pairs: Pairs) -> None:
    counts = {
        "texts": len(corpus.texts),
        "given": corpus.num_given,
        "rows": len(rows.dataset),
        "queries": len(pairs.first_row),
        "groups": len(pairs.positive_offsets) - 1,
        "groups + 1": len(pairs.positive_offsets),
        "positives": len(pairs.positive_ids),
        "given ids": len(pairs.given_ids),
        "written": len(corpus.synthetic_ids),
    }
    for name, value in (("rows", rows), ("corpus", corpus), ("pairs", pairs)):
        check_limits(path, dict(arrays_in(value, name)), counts)
    for offsets, ids in ((pairs.positive_offsets, pairs.positive_ids), (pairs.given_offsets, pairs.given_ids)):
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(ids):
            raise damaged(path, "the offsets of pairs do not fit what they count")
    if bool((pairs.row_query[pairs.first_row] != np.arange(len(pairs.first_row))).any()):
        raise damaged(path, "the first rows of queries are not theirs")
    last = 0
    for block in corpus.blocks:
        if block.start != last or block.stop < block.start:
            raise damaged(path, "the blocks of the corpus do not follow each other")
        last = block.stop
    if last != len(corpus.texts):
        raise damaged(path, "the blocks of the corpus are not its texts")


def _read_mining(
    path: str, content: dict[str, Any], config: MiningConfig, corpus: Corpus, pairs: Pairs
) -> tuple[Mining | None, Ids | None]:
    if content["report"] is None:
        return None, None
    mining, live_rows, _ = read_mining(
        path,
        content["report"],
        num_rows=pairs.num_rows,
        num_queries=pairs.num_queries,
        num_negatives=config.num_negatives,
        num_corpus=len(corpus),
        source_names=content["source_names"],
    )
    ids = mining.negatives.ids
    live_queries = torch.from_numpy(pairs.row_query[live_rows])
    if bool((ids[live_queries] < 0).any()):
        raise damaged(path, "a row of the live view has an empty slot")
    chunks = zip(torch.arange(len(ids)).split(_QUERIES_AT_ONCE), ids.split(_QUERIES_AT_ONCE), strict=True)
    if any(bool(pairs.known.contains(queries, theirs).any()) for queries, theirs in chunks):
        raise damaged(path, "a negative is a known positive of its anchor, or the anchor itself")
    pool = read_pool(
        path,
        content["pool"],
        (mining.positive_similarities, mining.positive_cross_encoder_scores),
        num_queries=pairs.num_queries,
        num_corpus=len(corpus),
        source_names=mining.source_names,
    )
    return replace(mining, pool=pool), live_rows


def _texts(path: str, dataset: Dataset, part: str, name: str) -> TextColumn:
    """Return a column of texts.

    Raises:
        ValueError: If it is not there, does not hold texts, or lacks some.
    """
    if name not in dataset.column_names or getattr(dataset.features[name], "dtype", None) not in TEXT_TYPES:
        raise damaged(path, f"{part!r} has no column {name!r} of texts")
    if dataset.data.column(name).null_count:
        raise damaged(path, f"the column {name!r} of {part!r} has rows without a text")
    return TextColumn(dataset, name)


def _read_part(path: str, name: str) -> Dataset | None:
    """Read one of the datasets in a folder, if it is there.

    Raises:
        ValueError: If it cannot be read.
    """
    if not os.path.isdir(os.path.join(path, name)):
        return None
    _check_inside(path, name)
    try:
        part = load_from_disk(os.path.join(path, name))
    except Exception as error:  # every kind of damage that Arrow and JSON can have
        raise damaged(path, f"{name!r} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(part, Dataset):
        raise damaged(path, f"{name!r} is not a dataset")
    for column in part.column_names:
        if not all(can_be_followed(chunk) for chunk in part.data.column(column).chunks):
            raise damaged(path, f"the column {column!r} of {name!r} does not hold texts as Arrow writes them")
    return part.with_format(None)


def _check_inside(path: str, name: str) -> None:
    """Raise if a part names files outside of its folder: a stranger's save must not read what is not in it.

    Raises:
        ValueError: If so.
    """
    try:
        with open(os.path.join(path, name, "state.json"), encoding="utf-8") as file:
            files = [entry["filename"] for entry in json.load(file)["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # not even a dataset; reading it says so
    folder = os.path.realpath(os.path.join(path, name))
    for entry in files:
        inside = isinstance(entry, str) and entry == os.path.basename(entry)
        if not inside or os.path.dirname(os.path.realpath(os.path.join(folder, entry))) != folder:
            raise damaged(path, f"{name!r} names a file outside of its folder, {entry!r}")
