"""Writing a page: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Return a page of one of this room's templates; the style sheet is set into it."""
    return str(_environment().get_template(template).render(style=(_HERE / "style.css").read_text("utf-8"), **values))


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a file, so that what was there stays until the new one is complete.

    Args:
        path: The file; folders that are missing are made.
        text: What it is to hold; a lone surrogate, which no file can hold, becomes a question mark.

    Raises:
        OSError: If it cannot be written; what was there is as it was.
    """
    path = os.path.abspath(os.fspath(path))
    folder, temporary = os.path.dirname(path), None
    try:
        if os.path.isdir(path):
            raise IsADirectoryError("it is a folder")
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".st-hardneg-")
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"Cannot write {path!r} ({reason}). Name a file in a folder that you may write to.") from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
