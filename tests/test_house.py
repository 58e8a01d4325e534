"""The plan of the house: imports point one way, and kernels/ stays a source root."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("mdpo", "mdpo_kernels", "bench", "tests")

# What each part of the house may import of our own; these are everybody's.
EVERYBODYS = {
    "mdpo.errors",
    "mdpo.hub",
    "mdpo.outputs",
    "mdpo.output_checks",
    "mdpo.own_settings",
    "mdpo.typed",
    "mdpo.reading",
    "mdpo.run_folder",
    "mdpo.run_lock",
    "mdpo.shown",
}
ALLOWED = {
    "mdpo_kernels": {"mdpo_kernels"},
    "mdpo.errors": set(),
    "mdpo.hub": {"mdpo.hub", "mdpo.stops"},
    "mdpo.settings": {"mdpo.settings"},
    "mdpo.outputs": set(),
    "mdpo.output_checks": set(),
    "mdpo.own_settings": set(),
    "mdpo.typed": set(),
    "mdpo.commands": {"mdpo", "mdpo.commands"},
    "mdpo.reading": set(),
    "mdpo.run_folder": set(),
    "mdpo.run_lock": set(),
    "mdpo.shown": set(),
    "mdpo.stops": set(),
    "mdpo.launch": set(),
    "mdpo.config": {"mdpo.settings", "mdpo.objectives"},
    "mdpo.packing": {"mdpo.packing", "mdpo_kernels"},
    "mdpo.objectives": {"mdpo.objectives", "mdpo.packing", "mdpo_kernels"},
    "mdpo.data": {"mdpo.data", "mdpo.packing", "mdpo.stops"},
    "mdpo.models": {"mdpo.models", "mdpo.packing", "mdpo_kernels"},
    "mdpo.run_source": {"mdpo.config"},
    "mdpo.trainer": {
        "mdpo.trainer", "mdpo.config", "mdpo.objectives", "mdpo.settings", "mdpo.models", "mdpo.data",
        "mdpo.evaluation", "mdpo.packing",
        "mdpo_kernels",
    },
    "mdpo.evaluation": {
        "mdpo.evaluation", "mdpo.objectives", "mdpo.settings", "mdpo.data", "mdpo.models", "mdpo.packing",
    },
    "mdpo.answers": {"mdpo.answers", "mdpo.evaluation", "mdpo.data", "mdpo.models", "mdpo.packing", "mdpo.settings"},
    "mdpo.reports": {"mdpo.reports", "mdpo.evaluation"},
    "mdpo.memory": {
        "mdpo.memory", "mdpo.config", "mdpo.run_source", "mdpo.objectives", "mdpo.models", "mdpo.data", "mdpo.packing",
    },
    "mdpo": {"mdpo.config", "mdpo.trainer"},
    "mdpo.__main__": {"mdpo.cli", "mdpo.stops"},
    "mdpo.cli": {"mdpo.commands", "mdpo.running", "mdpo.stops"},
    "mdpo.running": {"mdpo.config", "mdpo.data", "mdpo.settings", "mdpo.stops", "mdpo.trainer"},
    "mdpo.training": {
        "mdpo.launch", "mdpo.config", "mdpo.objectives", "mdpo.data", "mdpo.models", "mdpo.memory", "mdpo.settings",
        "mdpo.stops", "mdpo.trainer", "mdpo.run_source",
    },
    "mdpo.loop": {
        "mdpo.loop", "mdpo.answers", "mdpo.config", "mdpo.settings", "mdpo.data", "mdpo.evaluation", "mdpo.reports",
        "mdpo.__main__",
    },
}  # fmt: skip
KERNEL_LIBRARIES = {"torch", "triton", "flash_attn"}


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "kernels" if "kernels" in path.relative_to(ROOT).parts[:1] else ROOT)
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
    return found


def part_of(module: str) -> str:
    """The part of the house that a module belongs to: mdpo.data.rows is mdpo.data's."""
    parts = module.split(".")
    return parts[0] if parts[0] != "mdpo" or len(parts) == 1 else ".".join(parts[:2])


SOURCES = sorted([*(ROOT / "mdpo").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = {part_of(name) for name in imports(path) if name.split(".")[0] in OURS}
    forbidden = own - ALLOWED[part_of(module_of(path))] - EVERYBODYS
    assert not forbidden, f"{path.name} imports {', '.join(sorted(forbidden))}"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: path.name)
def test_kernels_need_torch_and_triton_alone(path):
    import sys

    outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"mdpo_kernels"}
    assert outside <= KERNEL_LIBRARIES


def test_the_planner_does_without_torch():
    assert "torch" not in {name.split(".")[0] for name in imports(ROOT / "mdpo/packing/plan.py")}


def test_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's package of that name"


CONTENTS = sorted(
    page
    for page in [*(ROOT / "mdpo").rglob("__init__.py"), *(ROOT / "kernels").rglob("__init__.py")]
    if ".py " in (ast.get_docstring(ast.parse(page.read_text())) or "")
)


@pytest.mark.parametrize("page", CONTENTS, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_a_contents_page_has_a_line_for_each_file_and_no_other(page):
    docstring = ast.get_docstring(ast.parse(page.read_text())) or ""
    listed = [
        name
        for line in docstring.splitlines()
        for name in re.findall(r"[\w./]+\.py(?=,| )", line.partition("   ")[0] + " ")
    ]
    there = {path.name for path in page.parent.glob("*.py")} - {"__init__.py"}
    assert sorted(listed) == sorted(there)


def _said(tree: ast.AST) -> list[str]:
    """The texts of errors: what is raised, and the problem and remedy that a row's error is made of."""
    told = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        or isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id in ("problem", "remedy") for target in node.targets)
    ]
    parts = [part for node in told for part in ast.walk(node)]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_errors_are_ascii_and_of_one_grammar(path):
    """They are searched for, quoted and matched: no dash, dot or cross that a keyboard does not have; and a value that
    cannot be used is told as "X is V; expected E"."""
    for text in _said(ast.parse(path.read_text())):
        assert text.isascii(), text
        assert not text.rstrip().endswith((", got", ", found")) and ": expected " not in text, text
