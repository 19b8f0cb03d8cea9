"""The house: who may import whom, and what the front door shows."""

from __future__ import annotations

import ast
from pathlib import Path

import st_hardneg

PACKAGE = Path(st_hardneg.__file__).parent
# Each floor may import from the floors above it only (and, within a floor, without a circle).
FLOORS = [
    {"errors", "config", "texts", "corpus", "pairs", "candidates", "table", "fingerprint", "hardness"},
    {
        "encoding",
        "search",
        "rescoring",
        "filters",
        "sampling",
        "report",
        "scoring",
        "formats",
        "hub",
        "view",
        "sources",
        "topics",
    },
    {"shortfall", "mining"},
    {"inputs", "storage", "checkpoint", "dataset", "drop_in"},
    {"mapping", "samplers", "losses", "schedules"},
    {"callback"},
]
SIDE_WINGS = {"losses": {"hardness", "pairs", "errors", "losses"}, "samplers": {"texts", "view"}}


def imports_of(path: Path) -> set[str]:
    """Return the rooms that a file imports at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    rooms = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and id(node) not in typing_only
            and (node.module or "").startswith("st_hardneg")
        ):
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return rooms


def test_imports_go_one_way():
    """No room imports from a floor below its own, and the side wings know the values only."""
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imports_of(path) - {room}:
            allowed = SIDE_WINGS.get(room)
            if allowed is not None:
                assert other in allowed, f"{path.name} imports {other}"
            assert floor_of[other] <= floor_of[room], f"{path.name} imports {other}"


def test_no_two_rooms_import_each_other():
    """There is no circle, of whatever length."""
    imports: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        imports.setdefault(room, set()).update(imports_of(path) - {room})
    left = dict(imports)
    while left:
        free = {room for room, others in left.items() if not others & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {room: others for room, others in left.items() if room not in free}


def test_every_room_has_a_name_that_says_what_it_holds():
    """No drawer for everything."""
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "core", "base", "misc"}


def test_the_front_door():
    """What can be imported from the package is what it lists."""
    assert st_hardneg.__all__ == sorted(st_hardneg.__all__, key=lambda name: (name[0].islower(), name))
    for name in st_hardneg.__all__:
        assert getattr(st_hardneg, name).__doc__
