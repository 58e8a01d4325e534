"""The README's Python and shell snippets run, in order, as they stand."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The repository as the snippets see it, with a build folder of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("bench", "configs", "kernels", "mdpo", "tests", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: list[str], folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'kernels'}",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_shell_snippets_run_in_order(checkout):
    # mdpo is called through the interpreter at hand, so that the test does not depend on an installed script
    (checkout / "bin").mkdir()
    script = checkout / "bin" / "mdpo"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mdpo.cli "$@"\n')
    script.chmod(0o755)
    for code in snippets("bash"):
        run(["bash", "-euc", f'export PATH="{checkout / "bin"}:$PATH"\n{code}'], checkout)


@pytest.mark.parametrize("code", snippets("python"))
def test_python_snippets_run_after_them(code, checkout):
    run([sys.executable, "-c", code], checkout)


@pytest.mark.parametrize("target", ["demo", "study", "test", "test-oldest", "test-newest", "soak", "lint"])
def test_make_targets_exist(target):
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_table_overrides_are_valid_settings():
    from mdpo.config import load_config, parse_overrides

    overrides = re.findall(r"^\|[^|]*\|[^|]*\| `(--[^`]*)` *\|", README, re.MULTILINE)
    assert len(overrides) >= 9
    for line in overrides:
        load_config(ROOT / "configs" / "bunny-v1.0-3b.yaml", {**parse_overrides(line.split()), "use_cpu": True, "bf16": False})


@pytest.mark.parametrize("writer", ["bench.digits.readme", "bench.study.readme"])
def test_the_readme_shows_the_committed_numbers(writer):
    assert import_module(writer).updated(README) == README, f"run python -m {writer}"
