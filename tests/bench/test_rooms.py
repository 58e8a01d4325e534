"""The plan of bench/: its rooms import one another one way, and no module comes back to itself."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROUND = {"commit", "blocks"}
# What each room may import of the others, beside the ground that all stand on.
ALLOWED = {
    "inputs": set(),
    "suite": {"inputs"},
    "render": {"suite"},
    "session": {"suite", "render"},
    "bring_home": {"suite", "render", "session"},
    "scripts": {"suite", "inputs"},
    "test_operations": {"suite"},
    "digits": set(),
    "study": {"digits"},
    "scenes": {"digits", "study"},
}
SOURCES = sorted((ROOT / "bench").rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def imports(path: Path) -> set[str]:
    """Of bench's modules those that this one imports, also inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: bench's modules name one another whole"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below & MODULES.keys() or {node.module}
    return found & MODULES.keys()


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("room", [*ALLOWED, *GROUND])
def test_rooms_import_one_way(room):
    own = {name: imports(path) for name, path in MODULES.items() if room_of(name) == room}
    assert own, "no such room"
    read = {room_of(other) for others in own.values() for other in others}
    assert read <= ALLOWED.get(room, set()) | (GROUND if room in ALLOWED else set()) | {room}


def test_every_room_has_a_rule():
    rooms = {room_of(name) for name in MODULES} - {""}
    assert rooms == ALLOWED.keys() | GROUND
    assert "bench.suite.record" in imports(ROOT / "bench/render/report.py")  # imports are seen


def test_no_module_comes_back_to_itself():
    """Also by an import that waits inside a function."""
    TopologicalSorter({name: imports(path) for name, path in MODULES.items()}).prepare()  # raises CycleError
