"""The short examples run as they are, offline; the README names every field and every public name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import st_hardneg
from st_hardneg import MiningConfig

ROOT = Path(__file__).parent.parent


# What takes longest is importing the host libraries and reading the docstrings: one process does it once and runs all
# examples, each as a script.
RUN_EACH = """
import functools, runpy, sys
sys.path.insert(0, "examples")
import docstring_pairs
docstring_pairs.standard_library_pairs = functools.cache(docstring_pairs.standard_library_pairs)
for command in sys.argv[1:]:
    sys.argv = command.split()
    print(f"\\n=== {command}")
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*commands: str) -> list[str]:
    """Run scripts with their arguments one after the other; return what each printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, *commands],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts = done.stdout.split("\n=== ")[1:]
    assert [part.splitlines()[0] for part in parts] == list(commands)
    return parts


@pytest.mark.training
def test_the_examples():
    """The short ones print a report each; the main one trains on every kind of negatives and prints a row for each."""
    on_few_pairs = "examples/train_with_refresh.py --epochs 2 --num-negatives 1 --limit 200"
    scripts = ("examples/mine_offline.py", "examples/custom_searcher.py", "examples/custom_source.py")
    *short, counted, out = run(*scripts, "examples/who_refreshes.py", on_few_pairs)
    for printed in short:
        assert "Hard negatives: first mining" in printed
    # Rows with a new negative, and rows whose new negative the loss got.
    lines = [
        line for line in counted.splitlines() if line.startswith(("a swapped", "a changed", "a cache", "this package"))
    ]
    ways = {line[:22].strip(): [int(number) for number in line[22:].split()] for line in lines}
    assert len(ways) == 4
    assert min(changed for changed, _ in ways.values()) > 100
    changed, arrived = ways.pop("this package")
    assert arrived == changed
    assert [arrived for _, arrived in ways.values()] == [0, 0, 0]
    for row in ("before training", "in-batch negatives", "mined once", "refreshed each epoch"):
        assert f"\n{row}" in out


@pytest.mark.training
def test_the_notebook():
    """Every cell runs, one after the other."""
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint(len(callback.reports))"],
        cwd=ROOT / "examples",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "2"


PAGES = [ROOT / "README.md", *sorted((ROOT / "examples" / "guides").glob("*.md"))]


def test_the_pages_name_every_field_and_every_public_name():
    """What can be configured stands in the guide to mining, what can be imported in the list of public names."""
    mining, reference = (
        (ROOT / "examples" / "guides" / f"{name}.md").read_text("utf-8") for name in ("mining", "reference")
    )
    for field in fields(MiningConfig):
        assert f"`{field.name}`" in mining, field.name
    for name in st_hardneg.__all__:
        assert f"`{name}`" in reference, name


def test_the_front_page_is_short_and_its_links_lead_somewhere():
    """Two hundred and twenty lines are read in five minutes."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 220
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
