"""A folder that is a repository: data, recipe, report, figure and card."""

from __future__ import annotations

import json
import math
import os
import tempfile
from typing import Any

from datasets import Dataset
from huggingface_hub import DatasetCard

from st_hardneg.files.folders import write_folder
from st_hardneg.publish.card import Contents, Origin, card_of, yaml_of

CARD = "README.md"
# As large as those that `datasets` writes: a viewer and a stream read them one by one.
_SHARD_BYTES = 500_000_000
_MARK = "<!-- st_hardneg:"


def write_contents(
    folder: str, contents: Contents, figure: str, origin: Origin, earlier: DatasetCard | None = None
) -> str:
    """Write what is published into a new folder, or in the place of what was written there before.

    Args:
        folder: Where; complete when it is there.
        contents: What is published.
        figure: The figure of the card, as SVG.
        origin: What is to be said of the source.
        earlier: The card that the repository has.

    Returns:
        The folder.

    Raises:
        FileExistsError: If something else is there.
        OSError: If it cannot be written.
    """
    _check_free(folder)

    def write(partial: str) -> None:
        sizes = {name: _write_part(partial, contents, name, part) for name, part in contents.parts.items()}
        _write_text(partial, contents.file("recipe.yaml"), yaml_of(contents.recipe))
        _write_text(partial, contents.file("report.json"), json.dumps(contents.report.to_dict(), indent=2))
        _write_text(partial, contents.file("scores.svg"), figure)
        _write_text(partial, CARD, str(card_of(contents, origin, sizes, earlier)))

    write_folder(folder, write)
    return folder


def new_folder() -> str:
    """Return a folder of nobody's, in which others can write."""
    return os.path.join(tempfile.mkdtemp(prefix="st_hardneg-"), "dataset")


def _check_free(folder: str) -> None:
    """Raise unless a folder is missing, empty, or what was written here before.

    Raises:
        FileExistsError: If it is not.
    """
    if not os.path.exists(folder) or (os.path.isdir(folder) and not os.listdir(folder)):
        return
    try:
        with open(os.path.join(folder, CARD), encoding="utf-8") as file:
            is_ours = _MARK in file.read()
    except (OSError, UnicodeDecodeError):
        is_ours = False
    if not is_ours:
        raise FileExistsError(
            f"{os.fspath(folder)!r} holds something else than a dataset to be pushed. Name a new folder, or an empty one."
        )


def _write_part(folder: str, contents: Contents, name: str, part: Dataset) -> int:
    """Write one configuration in shards, and return its bytes on disk."""
    number = max(1, math.ceil(part.data.nbytes / _SHARD_BYTES))
    stem = os.path.join(folder, *contents.pattern(name).removesuffix("*").split("/"))
    os.makedirs(os.path.dirname(stem), exist_ok=True)
    size = 0
    for place in range(number):
        path = f"{stem}{place:05d}-of-{number:05d}.parquet"
        part.shard(number, place, contiguous=True).to_parquet(path)
        size += os.path.getsize(path)
    return size


def _write_text(folder: str, name: str, text: str) -> None:
    path = os.path.join(folder, *name.split("/"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def files_in(folder: str) -> dict[str, str]:
    """Return every file of a folder: its name there, with slashes, and its path."""
    found: dict[str, Any] = {}
    for inner, _, files in os.walk(folder):
        for file in sorted(files):
            path = os.path.join(inner, file)
            found[os.path.relpath(path, folder).replace(os.sep, "/")] = path
    return found
