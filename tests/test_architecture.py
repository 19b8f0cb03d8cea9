"""The house: who may import whom, how long rooms are, one place that composes a mining, what the front door costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import st_hardneg
from st_hardneg import HardNegativeDataset, MiningConfig
from tests.toys import Model, by_seed, random_pairs, rows_of

PACKAGE = Path(st_hardneg.__file__).parent
FLOORS = [
    {"errors", "memory"},
    {"pages"},
    {"hardness", "strategies", "hosts", "report", "draws", "evaluation"},
    {"config", "candidates"},
    {"corpus"},
    {"search"},
    {"encoders"},
    {"sources"},
    {"mining"},
    {"live", "files", "formats"},
    {"publish"},
    {"arguments", "layouts"},
    {"wrapping"},
    {"export", "exporting", "pooled", "publishing", "identified"},
    {"views"},
    {"reviewing"},
    {"evaluating"},
    {"dataset"},
    {"mapping", "drop_in"},
    {"training"},
    {"command"},
    {"__main__"},
]
"""Each floor may import from the floors above it only; within a floor, nothing imports anything of another room."""

SIDE_WINGS = {"losses": {"hardness", "corpus", "hosts"}, "samplers": {"corpus", "hosts", "live"}}
"""What stands beside the floors, and may be imported by training and commands only; what each may import."""

MOST_LINES, MOST_LINES_OF_A_CLASS, MOST_LINES_OF_A_FUNCTION = 400, 300, 60
# Its signature and its documentation are Sentence Transformers'; here its body counts.
ST_S_OWN = {"mine_hard_negatives": 90}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module with its dotted name below the package, but for the front door."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


@cache
def imported_by(path: Path, *, at_once: bool = False) -> set[str]:
    """Return the modules of this package that a file imports at run time, as dotted names below the package.

    Args:
        path: The file.
        at_once: Leave out what functions import when they are called.
    """
    tree = tree_of(path)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef) if at_once else ()
    left_out = {
        id(inner)
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING") or isinstance(node, kinds)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "st_hardneg":
            base = node.module.removeprefix("st_hardneg").lstrip(".")
            for alias in node.names:
                below = f"{base}.{alias.name}".lstrip(".")
                is_module = (PACKAGE / below.replace(".", "/")).with_suffix(".py").exists()
                found.add(below if is_module else base)
        elif isinstance(node, ast.Import):
            found |= {one.name.removeprefix("st_hardneg.") for one in node.names if one.name.startswith("st_hardneg.")}
    return found - {""}


def test_every_room_has_a_floor():
    """A new room is put somewhere on purpose."""
    rooms = {room_of(path) for _, path in modules()}
    assert rooms | {"__main__"} == set().union(*FLOORS) | set(SIDE_WINGS)


def test_imports_go_one_way():
    """No room imports from its own floor or one below it, and the side wings know values only."""
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    for name, path in modules():
        room = room_of(path)
        for other in {one.split(".")[0] for one in imported_by(path)} - {room}:
            if room in SIDE_WINGS:
                assert other in SIDE_WINGS[room], f"{name} imports {other}"
            elif other in SIDE_WINGS:
                assert room in ("training", "command"), f"{name} imports {other}"
            else:
                assert {room, other} <= set(floor_of), f"{room} or {other} has no floor: give it one in FLOORS"
                assert floor_of[other] < floor_of[room], f"{name} imports {other}"


def test_no_modules_import_each_other():
    """There is no circle of whatever length, also not within a room."""
    left = {name: imported_by(path, at_once=True) - {name} for name, path in modules()}
    # A room's own door is what others go through; a module inside may not.
    for name in left:
        assert name.rpartition(".")[0] not in left[name] or "." not in name, f"{name} imports its own room's door"
    while left:
        free = {name for name, others in left.items() if not others & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {name: others for name, others in left.items() if name not in free}


def test_no_module_class_or_function_is_too_long():
    """400 lines, 300 and 60, with documentation."""
    too_long = []
    for name, path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            too_long.append(f"{name}: {lines}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                length, most = node.end_lineno - node.lineno + 1, MOST_LINES_OF_A_FUNCTION
                if isinstance(node, ast.ClassDef):
                    most = MOST_LINES_OF_A_CLASS
                elif node.name in ST_S_OWN:
                    length, most = node.end_lineno - node.body[0].end_lineno, ST_S_OWN[node.name]
                if length > most:
                    too_long.append(f"{name}.{node.name}: {length}")
    assert not too_long


@cache
def called_in(path: Path) -> set[str]:
    """Return the names that a file calls."""
    calls = (node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))
    return {ast.unparse(func).rpartition(".")[2] for func in calls}


def test_one_place_composes_a_mining():
    """Only the engine builds sources, a story, a judge and vectors; the faces call the one verb."""
    parts = ("build_sources", "Story", "Judge", "Scoring", "Workshop", "embed", "summarize_mining", "fill")
    for part in parts:
        callers = {name for name, path in modules() if part in called_in(path)}
        assert callers == {"mining.engine"}, f"{part} is called by {callers}"
    imports_the_verb = {name for name, path in modules() if "mining.engine" in imported_by(path)}
    assert imports_the_verb == {"dataset", "mapping", "drop_in"}
    assert all("mine" in called_in(PACKAGE / f"{name}.py") for name in imports_the_verb)


def files_crossed(call) -> set[str]:
    """Return the files of the package in which a function runs while ``call`` does."""
    crossed = set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            crossed.add(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return crossed


def files_of_a_chunk(monkeypatch, config: MiningConfig) -> set[str]:
    """Mine twice, and return what the second mining's second chunk crosses."""
    texts = [f"d{i}" for i in range(200)]
    found = HardNegativeDataset(rows_of(random_pairs(40)), texts, config, query_chunk_size=20)
    found.mine(Model(by_seed(0)), show_progress_bar=False)
    from st_hardneg.mining.story import Story

    crossed: list[set[str]] = []
    real = Story.negatives_of

    def negatives_of(self, query_ids):
        result = []
        crossed.append(files_crossed(lambda: result.append(real(self, query_ids))))
        return result[0]

    monkeypatch.setattr(Story, "negatives_of", negatives_of)
    found.mine(Model(by_seed(1)), show_progress_bar=False)
    assert len(crossed) == 2
    return crossed[1] | {"mining/engine.py"}


@pytest.mark.parametrize("config", [MiningConfig(), MiningConfig.recommended()], ids=["plain", "recommended"])
def test_a_chunk_of_a_refresh_crosses_few_files(monkeypatch, config):
    """At most 14 files of the package, and what fills slots is not among them where there is nothing to fill."""
    crossed = files_of_a_chunk(monkeypatch, config)
    assert len(crossed) <= 14, sorted(crossed)
    assert "mining/slots.py" not in crossed and "mining/story.py" in crossed


def test_every_room_has_a_name_that_says_what_it_holds():
    """No drawer for everything."""
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "core", "base", "misc"}


def test_every_module_says_what_it_is():
    """The first line of each is a sentence, and annotations are not evaluated."""
    for name, path in modules():
        tree = tree_of(path)
        assert (ast.get_docstring(tree) or "").splitlines(), name
        assert "from __future__ import annotations" in path.read_text(encoding="utf-8"), name


# --- the front door ---------------------------------------------------------------------------------------------------


def test_the_front_door():
    """What can be imported from the package is what it lists."""
    assert st_hardneg.__all__ == sorted(st_hardneg.__all__, key=lambda name: (name[0].islower(), name))
    for name in st_hardneg.__all__:
        assert getattr(st_hardneg, name).__doc__
    assert set(st_hardneg.__all__) <= set(dir(st_hardneg))
    with pytest.raises(AttributeError, match="module 'st_hardneg' has no attribute 'HardNegatives'"):
        st_hardneg.HardNegatives  # noqa: B018


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=True
    )


def test_importing_the_package_imports_no_torch():
    """The front door is lazy: names are imported when they are asked for."""
    heavy = ("torch", "datasets", "sentence_transformers", "transformers", "numpy", "pyarrow", "faiss", "scipy")
    code = f"import st_hardneg, sys; print([name for name in {heavy} if name in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"
    # Errors and the command line's first words need none either.
    code = f"from st_hardneg import MiningError; import sys; print([name for name in {heavy} if name in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


@pytest.mark.training
def test_the_dataset_costs_no_more_than_its_hosts():
    """``from st_hardneg import HardNegativeDataset`` imports nothing that its two largest hosts do not import.

    What it takes besides, our own modules, is a tenth of what they take at most; both are measured in one process, so that
    a busy machine slows down both alike.
    """
    code = "import sentence_transformers, datasets, sys; before = set(sys.modules); from st_hardneg import "
    code += "HardNegativeDataset; print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    done = python("-X", "importtime", "-c", code)
    assert done.stdout.strip() == "['st_hardneg']"
    ours = theirs = 0
    for line in done.stderr.splitlines():
        own_time, _, name = line.removeprefix("import time:").split("|")
        if own_time.strip().isdigit():
            is_ours = name.strip().split(".")[0] == "st_hardneg"
            ours, theirs = ours + is_ours * int(own_time), theirs + (not is_ours) * int(own_time)
    assert 0 < ours < 0.1 * theirs, f"{ours / theirs:.3f}"
