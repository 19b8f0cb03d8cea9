"""A HardNegativeDataset on disk: plain Arrow and JSON, checked when it is read."""

from __future__ import annotations

import glob
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, load_from_disk

from st_hardneg.config import MiningConfig
from st_hardneg.corpus.numbering import Corpus
from st_hardneg.corpus.texts import Ids, dataset_of
from st_hardneg.encoders.fingerprint import texts_fingerprint
from st_hardneg.mining import slots as shortfall
from st_hardneg.mining.engine import Mining
from st_hardneg.report import MiningReport

_FORMAT = 1
_ABANDONED_SECONDS = 3600.0
# Folders of these names are deleted when they are left over, so they must be names that nobody else gives.
_PARTIAL, _RETIRED = ".st_hardneg-partial-", ".st_hardneg-retired-"
_STATE_FILE = "st_hardneg.json"
_ADDITIONS = ("cross_domain", "metadata_sources", "has_metadata_filter", "has_synthetic")
_ORIGINS = {
    shortfall.EMPTY: None,
    shortfall.MINED: "mined",
    shortfall.CARRIED_OVER: "carried over",
    shortfall.RANDOM: "random",
    shortfall.REPEATED: "repeated",
    shortfall.LAST_RESORT: "last resort",
}


@dataclass(frozen=True, eq=False)
class SavedState:
    """What is written of a HardNegativeDataset; see there for the meaning of each."""

    pairs: Dataset
    corpus: Corpus
    anchor_column_name: str
    positive_column_name: str
    config: MiningConfig
    needs: list[str]
    num_minings: int
    mining: Mining | None
    live_rows: Ids | None


def save(path: str, state: SavedState) -> None:
    """Write a state to a folder; an earlier save there is replaced only once the new one is complete.

    Raises:
        FileExistsError: If the folder holds something else than an earlier save.
    """
    path = os.path.realpath(path)
    if os.path.isfile(path):
        raise FileExistsError(f"Expected {path!r} to be a folder, got a file. Choose another path.")
    if os.path.exists(path) and os.listdir(path) and not os.path.exists(os.path.join(path, _STATE_FILE)):
        raise FileExistsError(
            f"Expected {path!r} to be a new folder or an earlier save, got a folder with other content. Choose "
            "another folder."
        )
    write_folder(path, lambda folder: _write(folder, state))


def write_folder(path: str, write: Callable[[str], None]) -> None:
    """Write a folder under another name first: under its own it is complete, or what it was before.

    Args:
        path: The folder.
        write: Writes the contents into the folder that it is given.
    """
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    _clean_up(parent, name)
    partial = tempfile.mkdtemp(prefix=f"{name}{_PARTIAL}", dir=parent)
    try:
        with _no_progress_bars():
            write(partial)
        os.chmod(partial, _usual_mode(partial))
        if os.path.exists(path):
            # Files that are still mapped into memory stay readable on POSIX; the name is free at once.
            retired = tempfile.mkdtemp(prefix=f"{name}{_RETIRED}", dir=parent)
            earlier = os.path.join(retired, "save")
            try:
                os.replace(path, earlier)
                try:
                    os.replace(partial, path)
                except BaseException:
                    os.replace(earlier, path)
                    raise
            except BaseException:
                # Only an empty folder goes: what could not be put back stays where it is.
                with suppress(OSError):
                    os.rmdir(retired)
                raise
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _clean_up(parent: str, name: str) -> None:
    """Put right what a process that was killed while it saved has left: nothing is lost, and nothing stays."""
    path = os.path.join(parent, name)
    for leftover in sorted(glob.glob(os.path.join(glob.escape(parent), glob.escape(name) + _RETIRED + "*"))):
        earlier = os.path.join(leftover, "save")
        if os.path.isdir(earlier) and not os.path.exists(path):
            os.replace(earlier, path)
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in glob.glob(os.path.join(glob.escape(parent), glob.escape(name) + _PARTIAL + "*")):
        # Another process may be writing one right now.
        with suppress(OSError):
            if time.time() - os.stat(leftover).st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    # Arrow files are written at every checkpoint of a training; two bars each time would be most of its output.
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _usual_mode(folder: str) -> int:
    """Return the permissions of a new folder here. Asking the system for the umask would change it for all threads."""
    probe = os.path.join(folder, ".mode")
    os.mkdir(probe)
    try:
        return stat.S_IMODE(os.stat(probe).st_mode)
    finally:
        os.rmdir(probe)


def _write(folder: str, state: SavedState) -> None:
    state.pairs.with_format(None).save_to_disk(os.path.join(folder, "pairs"))
    if state.corpus.given is not None:
        state.corpus.given.with_format(None).save_to_disk(os.path.join(folder, "corpus"))
    _write_additions(folder, state.corpus)
    if state.mining is not None:
        negatives_dataset(state.mining, state.live_rows).save_to_disk(os.path.join(folder, "negatives"))
    content = {
        "format": _FORMAT,
        "anchor_column_name": state.anchor_column_name,
        "positive_column_name": state.positive_column_name,
        "config": state.config.to_dict(),
        "needs": state.needs,
        "num_minings": state.num_minings,
        "cross_domain": _names_of_further(state.corpus),
        "metadata_sources": _names_of_subsets(state.corpus),
        "has_metadata_filter": state.corpus.metadata_rows is not None,
        "has_synthetic": bool(len(state.corpus.synthetic_ids)),
        "has_view": state.live_rows is not None,
        "corpus_fingerprint": corpus_fingerprint(state.corpus),
        "report": None if state.mining is None else state.mining.report.to_dict(),
    }
    with open(os.path.join(folder, _STATE_FILE), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)


def _names_of_further(corpus: Corpus) -> list[str]:
    blocks = {block.name for block in corpus.blocks}
    return [name for name in corpus.parts if name in blocks]


def _names_of_subsets(corpus: Corpus) -> list[str]:
    further = _names_of_further(corpus)
    return [name for name in corpus.parts if name not in further]


def _write_additions(folder: str, corpus: Corpus) -> None:
    """Write what is searched besides corpus and positives. Names of the caller's stay out of the paths."""
    for number, name in enumerate(_names_of_further(corpus)):
        block = next(block for block in corpus.blocks if block.name == name)
        texts = corpus.texts.take(np.arange(block.start, block.stop))
        table = pa.table({"text": pa.array(texts, type=pa.large_string())})
        dataset_of(table).save_to_disk(os.path.join(folder, f"cross_domain_{number}"))
    for number, name in enumerate(_names_of_subsets(corpus)):
        _save_rows(os.path.join(folder, f"metadata_source_{number}"), corpus.parts[name])
    if corpus.metadata_rows is not None:
        _save_rows(os.path.join(folder, "metadata_filter"), corpus.metadata_rows)
    if len(corpus.synthetic_ids):
        texts = corpus.texts.take(corpus.synthetic_ids)
        positives = corpus.texts.take(corpus.synthetic_from)
        strings = {
            "positive": pa.array(positives, type=pa.large_string()),
            "text": pa.array(texts, type=pa.large_string()),
        }
        dataset_of(pa.table(strings)).save_to_disk(os.path.join(folder, "synthetic"))


def _save_rows(path: str, rows: Ids) -> None:
    dataset_of(pa.table({"row": pa.array(rows)})).save_to_disk(path)


@dataclass(frozen=True)
class WrittenTexts:
    """Synthetic texts that were written before, by the positive that they were made from."""

    by_positive: dict[str, list[str]]

    def __call__(self, positives: Sequence[str]) -> list[list[str]]:
        """Return the texts of each positive."""
        return [self.by_positive.get(text, []) for text in positives]


def _read_additions(path: str, content: dict[str, Any], given: Dataset | None) -> dict[str, Any]:
    """Return what is searched besides corpus and positives, as arguments of a HardNegativeDataset."""
    num_given = 0 if given is None else len(given)
    additions: dict[str, Any] = {
        "cross_domain": {
            name: _read_texts(path, f"cross_domain_{number}", ["text"])
            for number, name in enumerate(content["cross_domain"])
        },
        "metadata_sources": {
            name: _read_rows(path, f"metadata_source_{number}", num_given)
            for number, name in enumerate(content["metadata_sources"])
        },
    }
    if content["has_metadata_filter"]:
        additions["metadata_filter"] = _read_rows(path, "metadata_filter", num_given)
    if content["has_synthetic"]:
        by_positive: dict[str, list[str]] = {}
        for row in _read_texts(path, "synthetic", ["positive", "text"]):
            by_positive.setdefault(row["positive"], []).append(row["text"])
        additions["synthetic"] = WrittenTexts(by_positive)
    return {name: value for name, value in additions.items() if isinstance(value, WrittenTexts) or len(value)}


def _read_texts(path: str, name: str, columns: list[str]) -> Dataset:
    part = read_part(path, name)
    kinds = [getattr(part.features.get(column), "dtype", None) for column in columns]
    if part.column_names != columns or not all(kind in ("string", "large_string") for kind in kinds):
        raise damaged(path, f"{name!r} does not hold the columns of texts {columns}")
    if any(part.data.column(column).null_count for column in columns):
        raise damaged(path, f"{name!r} has rows without a text")
    return part


def _read_rows(path: str, name: str, num_given: int) -> Ids:
    part = read_part(path, name)
    if part.column_names != ["row"] or part.data.column("row").type != pa.int64() or part.data.column("row").null_count:
        raise damaged(path, f"{name!r} does not hold row numbers")
    rows: Ids = part.data.column("row").to_numpy()
    if not len(rows) or rows[0] < 0 or rows[-1] >= num_given or bool((np.diff(rows) <= 0).any()):
        raise damaged(path, f"{name!r} does not hold ascending row numbers of the corpus")
    return rows


def corpus_fingerprint(corpus: Corpus) -> str:
    """Identify the texts of a corpus, in their order."""
    return texts_fingerprint(text for texts in corpus.texts.batches() for text in texts)


def flat_lists(values: Any) -> pa.Array:
    """Return the rows of a matrix as lists."""
    offsets = np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def negatives_dataset(mining: Mining, live_rows: Ids | None) -> Dataset:
    """Return a mining and which rows a live view has, as a dataset of one row per row."""
    is_live = np.zeros(len(mining.negative_ids), dtype=bool)
    if live_rows is not None:
        is_live[live_rows] = True
    columns = {name: flat_lists(getattr(mining, name)) for name in _MATRICES}
    columns["positive_scores"] = pa.array(mining.positive_scores)
    columns["is_live"] = pa.array(is_live)
    if mining.topics is not None:
        columns["topics"] = pa.array(mining.topics)
    return dataset_of(pa.table(columns))


_MATRICES: dict[str, Any] = {
    "negative_ids": np.int64,
    "negative_scores": np.float32,
    "chosen_by": np.float32,
    "ranks": np.int64,
    "origin": np.int8,
    "sources": np.int8,
    "source_scores": np.float32,
    "steps": np.int64,
    "first_scores": np.float32,
}


@dataclass(frozen=True, eq=False)
class Loaded:
    """What was read from a folder; the negatives are checked against the corpus they count in."""

    path: str
    pairs: Dataset
    given_corpus: Dataset | None
    anchor_column_name: str
    positive_column_name: str
    config: MiningConfig
    needs: list[str]
    num_minings: int
    has_view: bool
    corpus_fingerprint: str
    report: dict[str, Any] | None
    additions: dict[str, Any]
    negatives: Dataset | None = field(default=None)

    def mining_of(self, corpus: Corpus, num_rows: int, num_sources: int) -> tuple[Mining | None, Ids | None]:
        """Return the mining and the rows of the live view, if there was one.

        Raises:
            ValueError: If the negatives do not fit the corpus and the rows.
        """
        if corpus_fingerprint(corpus) != self.corpus_fingerprint:
            raise damaged(self.path, "the texts are not those that were saved")
        if self.negatives is None or self.report is None:
            return None, None
        shape = (num_rows, self.config.num_negatives)
        mining, live_rows = mining_from(self.path, self.negatives, self.report, shape, len(corpus), num_sources)
        return mining, live_rows if self.has_view else None


def mining_from(
    path: str, negatives: Dataset, report: dict[str, Any], shape: tuple[int, int], num_corpus: int, num_sources: int
) -> tuple[Mining, Ids]:
    """Check what :func:`negatives_dataset` wrote, and return the mining and the rows of the live view.

    Args:
        path: Where it was read, for errors.
        negatives: What was read.
        report: The report, as a dictionary.
        shape: Rows and negatives per row that are expected.
        num_corpus: Texts in the corpus.
        num_sources: Sources that the dataset knows.

    Raises:
        ValueError: If the parts do not fit.
    """
    arrays = {name: matrix_from(path, negatives, name, shape, dtype) for name, dtype in _MATRICES.items()}
    ids, origin = arrays["negative_ids"], arrays["origin"]
    if ids.min(initial=0) < -1 or ids.max(initial=-1) >= num_corpus:
        raise damaged(path, "negative ids lie outside of the corpus")
    if origin.min(initial=0) < 0 or origin.max(initial=0) >= len(_ORIGINS):
        raise damaged(path, "there are slots filled in an unknown way")
    sources = arrays["sources"]
    if sources.min(initial=0) < -1 or sources.max(initial=-1) >= num_sources:
        raise damaged(path, "there are unknown sources")
    try:
        positive_scores = negatives.data.column("positive_scores").to_numpy().astype(np.float32)
        is_live = negatives.data.column("is_live")
        if is_live.type != pa.bool_() or is_live.null_count or np.isnan(positive_scores).any():
            raise ValueError("is_live or positive_scores")
        live_rows = np.flatnonzero(is_live.to_numpy())
        found = MiningReport(**report)
        found.metrics(), str(found)  # what cannot be printed is not what was written
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, pa.ArrowException) as error:
        raise damaged(path, f"the report or a column is not what was written ({error})") from None
    if len(positive_scores) != shape[0]:
        raise damaged(path, f"there are {len(positive_scores)} rows where {shape[0]} are expected")
    if bool((ids[live_rows] < 0).any()):
        raise damaged(path, "a row of the live view has an empty slot")
    topics = topics_from(path, negatives, "topics", shape[0]) if "topics" in negatives.column_names else None
    return Mining(**arrays, positive_scores=positive_scores, report=found, topics=topics), live_rows


def topics_from(path: str, part: Dataset, name: str, num_rows: int) -> npt.NDArray[np.int32]:
    """Return the topics in a column.

    Raises:
        ValueError: If it is not there, or does not hold a topic for each row; there are at most as many as rows.
    """
    column = part.data.column(name) if name in part.column_names else None
    if column is None or column.type != pa.int32() or column.null_count or len(column) != num_rows:
        raise damaged(path, f"{name!r} does not hold {num_rows} numbers")
    topics: npt.NDArray[np.int32] = column.to_numpy()
    if topics.min(initial=0) < 0 or topics.max(initial=0) >= max(1, num_rows):
        raise damaged(path, f"{name!r} holds unknown topics")
    return topics


def matrix_from(path: str, negatives: Dataset, name: str, shape: tuple[int, int], dtype: Any) -> Any:
    """Return a column of lists as an array of this shape.

    Raises:
        ValueError: If it is not there, or has another shape.
    """
    try:
        flat = negatives.data.column(name).combine_chunks()
        chunks = getattr(flat, "chunks", [flat])
        if any(set(chunk.value_lengths().to_pylist()) - {shape[1]} for chunk in chunks):
            raise ValueError("lists of other lengths")
        values = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])
        return values.reshape(shape).astype(dtype)
    except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise damaged(path, f"{name!r} is not {shape[0]} x {shape[1]} numbers ({error})") from None


def read(path: str) -> Loaded:
    """Read a folder that :func:`save` wrote. No code in it is run, nothing in it is unpickled.

    Raises:
        FileNotFoundError: If there is no save.
        ValueError: If it is damaged, or of a later version of this package.
    """
    state_file = os.path.join(path, _STATE_FILE)
    if not os.path.isfile(state_file):
        raise FileNotFoundError(
            f"Expected {path!r} to be a folder written by `HardNegativeDataset.save_to_disk`, got none with "
            f"{_STATE_FILE!r} in it. Check the path."
        )
    try:
        with open(state_file, encoding="utf-8") as file:
            content = json.load(file)
        version = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged(path, f"{_STATE_FILE} cannot be read") from None
    if version != _FORMAT:
        raise ValueError(
            f"Expected a save of format {_FORMAT} in {path!r}, got {version!r}. Read it with the version of this "
            "package that wrote it, or a later one."
        )
    checked = _checked_content(path, content)
    names = {name: checked.pop(name) for name in _ADDITIONS}
    given = read_part(path, "corpus") if os.path.isdir(os.path.join(path, "corpus")) else None
    return Loaded(
        path=path,
        pairs=read_part(path, "pairs"),
        given_corpus=given,
        additions=_read_additions(path, names, given),
        negatives=read_part(path, "negatives") if os.path.isdir(os.path.join(path, "negatives")) else None,
        **checked,
    )


def read_part(path: str, name: str) -> Dataset:
    """Read one of the datasets in a folder.

    Raises:
        ValueError: If it cannot be read.
    """
    _check_inside(path, name)
    try:
        part = load_from_disk(os.path.join(path, name))
    except Exception as error:  # every kind of damage that Arrow and JSON can have
        raise damaged(path, f"{name!r} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(part, Dataset):
        raise damaged(path, f"{name!r} is not a dataset")
    return part


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


def _checked_content(path: str, content: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Callable[[Any], bool]] = {
        "anchor_column_name": lambda value: isinstance(value, str),
        "positive_column_name": lambda value: isinstance(value, str),
        "config": lambda value: isinstance(value, dict),
        "needs": lambda value: isinstance(value, list) and all(isinstance(need, str) for need in value),
        "num_minings": lambda value: type(value) is int and 0 <= value < 2**31,
        "cross_domain": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "metadata_sources": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "has_metadata_filter": lambda value: isinstance(value, bool),
        "has_synthetic": lambda value: isinstance(value, bool),
        "has_view": lambda value: isinstance(value, bool),
        "corpus_fingerprint": lambda value: isinstance(value, str),
        "report": lambda value: value is None or isinstance(value, dict),
    }
    for name, is_good in kinds.items():
        if name not in content or not is_good(content[name]):
            raise damaged(path, f"{name!r} is missing or of the wrong kind in {_STATE_FILE}")
    checked = {name: content[name] for name in kinds}
    try:
        checked["config"] = MiningConfig.from_dict(content["config"])
    except (ValueError, TypeError) as error:
        raise damaged(path, f"the config is not valid ({error})") from None
    return checked


def damaged(path: str, why: str) -> ValueError:
    """Return the error for files that are not what was written."""
    return ValueError(f"Expected a complete save in {path!r}, got a damaged one: {why}. Save the dataset anew.")


def provenance_dataset(mining: Mining, row_positive: Ids, corpus: Corpus, source_names: Sequence[str]) -> Dataset:
    """Return one row per row with ids, scores, ranks and sources; see ``HardNegativeDataset.provenance``."""
    if corpus.id_column is None:
        positive_id, negative_ids = pa.array(row_positive), flat_lists(mining.negative_ids)
    else:
        positive_id = pa.array(corpus.external_ids(row_positive), type=pa.string())
        negative_ids = _lists_of_names(corpus.external_ids(mining.negative_ids.reshape(-1)), mining.negative_ids)
    columns = {
        "row": pa.array(np.arange(len(row_positive))),
        "positive_id": positive_id,
        "positive_score": pa.array(mining.positive_scores),
        "negative_ids": negative_ids,
        "negative_scores": flat_lists(mining.negative_scores),
        "negative_ranks": flat_lists(mining.ranks),
        "negative_sources": _names_of(mining.sources, [*source_names, None]),
        "negative_steps": flat_lists(mining.steps),
        "negative_slots": _names_of(mining.origin, list(_ORIGINS.values())),
    }
    if bool((mining.chosen_by != mining.negative_scores).any()):
        columns["cross_encoder_scores"] = flat_lists(mining.chosen_by)
    if bool(np.isfinite(mining.source_scores).any()):
        columns["bm25_scores"] = flat_lists(mining.source_scores)
    return dataset_of(pa.table(columns))


def _names_of(numbers: Any, names: list[str | None]) -> pa.Array:
    """Return the rows of a matrix of numbers as lists of names; -1 is the last name."""
    places = numbers.reshape(-1).astype(np.int16)
    places[places < 0] = len(names) - 1
    flat = pa.DictionaryArray.from_arrays(pa.array(places), pa.array(names, type=pa.string())).cast(pa.string())
    return _lists(flat, numbers)


def _lists_of_names(names: list[str | None], like: Any) -> pa.Array:
    return _lists(pa.array(names, type=pa.string()), like)


def _lists(flat: pa.Array, like: Any) -> pa.Array:
    offsets = np.arange(len(like) + 1, dtype=np.int64) * like.shape[1]
    return pa.LargeListArray.from_arrays(pa.array(offsets), flat)
