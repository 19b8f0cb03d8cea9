"""``st-hardneg export``."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from typing import Any, get_args

from datasets import Dataset

from st_hardneg.command.inputs import saved
from st_hardneg.exporting import Layout, write_csv
from st_hardneg.formats.sentence_transformers import OutputFormat


def run(asked: argparse.Namespace) -> None:
    """Write a mined dataset in another format.

    Raises:
        ValueError: If there is no such format.
        OSError: If something cannot be read or written.
    """
    others = [name for name in get_args(Layout) if name not in get_args(OutputFormat)]
    known = [*get_args(OutputFormat), "provenance", *others]
    if asked.format not in known:
        raise ValueError(f"Expected `--format` to be one of {known}, got {asked.format!r}.")
    if asked.format not in get_args(OutputFormat) and (asked.scores or asked.keep_columns):
        raise ValueError(
            f"`--scores` and `--keep-columns` are for {list(get_args(OutputFormat))}; {asked.format!r} has scores where "
            "its readers expect them. Leave them out."
        )
    found: Any = saved(asked.dataset)
    if asked.format in others:
        print(f"{asked.format}: {found.export(asked.output, asked.format)}")
        return
    if asked.format == "provenance":
        dataset = found.provenance()
    else:
        dataset = found.to_dataset(asked.format, output_scores=asked.scores, keep_columns=asked.keep_columns)
    write(dataset, asked.output)
    print(f"{len(dataset):,} rows, columns {dataset.column_names}, in {asked.output}")


def write(dataset: Dataset, path: str) -> None:
    """Write a dataset to a file or a folder, so that what was there stays until the new one is complete.

    Raises:
        ValueError: If CSV cannot hold a column.
        OSError: If it cannot be written.
    """
    ending = os.path.splitext(path)[1].lower()
    path = os.path.abspath(path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix=".st-hardneg-") as folder:
            new = os.path.join(folder, "new")
            _writers(dataset)[ending if ending in _ENDINGS else ""](new)
            if os.path.isdir(path):
                _refuse_others(path)
                shutil.rmtree(path)
            os.replace(new, path)
    except OSError as error:
        raise OSError(f"Cannot write {path!r} ({error.strerror or error}).") from None


_ENDINGS = (".csv", ".jsonl", ".parquet")


def _writers(dataset: Dataset) -> dict[str, Any]:
    return {
        ".csv": lambda path: write_csv(dataset, path),
        ".jsonl": lambda path: dataset.to_json(path, force_ascii=False),
        ".parquet": lambda path: dataset.to_parquet(path),
        "": lambda path: dataset.save_to_disk(path),
    }


def _refuse_others(path: str) -> None:
    if os.listdir(path) and not os.path.isfile(os.path.join(path, "state.json")):
        raise FileExistsError(0, "the folder holds something else")
