"""The pages for users: their Python and shell snippets run as they stand, and their tables show what is committed."""

import os
import re
import subprocess
import sys
import venv
from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# In the order in which they are read: what the first leaves behind, the others use.
PAGES = {
    name: (ROOT / name).read_text() for name in ("README.md", "mdpo/README.md", "kernels/README.md", "bench/README.md")
}


def snippets(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The repository as the snippets see it, with a build folder of its own.

    `make` stands for itself: .venv is there, without a download, and the demo is a small one.
    """
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("bench", "configs", "kernels", "mdpo", "tests", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    venv.create(folder / ".venv", symlinks=True, with_pip=False)
    installed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages,) = folder.glob(".venv/lib/python*/site-packages")
    (packages / "installed.pth").write_text("\n".join(map(str, (folder, folder / "kernels", *installed))))
    write_script(folder / ".venv/bin/mdpo", f'exec {folder}/.venv/bin/python -m mdpo.cli "$@"')
    write_script(
        folder / "bin/make",
        f'test "$*" = demo && exec {folder}/.venv/bin/python -m bench.scenes.demo --pairs 48 --scenes 20 '
        "--out build/demo",
    )
    return folder


def write_script(path: Path, line: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for name in ("PYTHONPATH", "TRITON_INTERPRET"):
        environment.pop(name, None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_shell_snippets_run_in_order(checkout):
    """A page's in one shell of its own."""
    for page in PAGES:
        run(["bash", "-ec", "\n".join(snippets("bash", page))], checkout)
    assert (checkout / "build/demo/report.html").is_file() and (checkout / "build/captions.jsonl").is_file()


@pytest.mark.parametrize("code", [code for page in PAGES for code in snippets("python", page)])
def test_python_snippets_run_after_them(code, checkout):
    run([f"{checkout}/.venv/bin/python", "-c", code], checkout)


@pytest.mark.parametrize("target", ["demo", "study", "test", "test-oldest", "test-newest", "soak", "lint"])
def test_make_targets_exist(target):
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_table_overrides_are_valid_settings():
    from mdpo.config import load_config, parse_overrides

    overrides = re.findall(r"^\| (?:Table|Figure)[^|]*\|[^|]*\| `(--[^`]*)` *\|", PAGES["mdpo/README.md"], re.MULTILINE)
    assert len(overrides) >= 9
    for line in overrides:
        load_config(
            ROOT / "configs" / "bunny-v1.0-3b.yaml", {**parse_overrides(line.split()), "use_cpu": True, "bf16": False}
        )


@pytest.mark.parametrize(
    "writer",
    [
        "bench.render.settings_table",
        "bench.study.own_answers",
        "bench.digits.readme",
        "bench.scenes.readme",
        "bench.study.readme",
    ],
)
def test_the_pages_show_the_committed_numbers(writer):
    module = import_module(writer)
    assert module.updated(PAGES[module.PAGE]) == PAGES[module.PAGE], f"run python -m {writer}"


def test_the_first_page_can_be_read_in_five_minutes():
    assert len(PAGES["README.md"].splitlines()) <= 120
