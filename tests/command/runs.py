"""What the tests of the command line run: pairs in a file, a plain mining, and what must fail."""

from __future__ import annotations

import csv
import re

from st_hardneg.command.main import main

ROWS = [(f"{degrees}°", f"note {degrees + 5}°") for degrees in range(0, 340, 20)]
# A plain recipe, under which every row of these finds something.
PLAIN = [
    "--relative-margin",
    "null",
    "--max-relative-positive-similarity",
    "null",
    "--max-positive-similarity",
    "0.999",
]


def write_csv(path: str, rows: list[tuple[str, ...]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def mine(*words: str, source: str = "pairs.csv") -> int:
    return main(["mine", source, "--model", "model", *PLAIN, *words])


def error_of(capsys, *words: str) -> str:
    """Run what must fail, and return what it says; no traceback is among it."""
    capsys.readouterr()
    assert main(list(words)) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return re.split(r"^error: ", said, flags=re.MULTILINE)[1].strip()
