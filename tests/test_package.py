"""Wheel, editable install and checkout import the same modules, with Hugging Face's ``kernels`` beside them."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mdpo.launch import PROFILES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that the checkout keeps no build folder
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    subprocess.run(command, check=True)
    return next(folder.glob("multimodal_dpo-*.whl"))


def python(code: str, cwd: Path, *path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"mdpo", "mdpo_kernels"}
    assert {f"mdpo/profiles/{name}" for name in PROFILES.values()} <= set(names)
    assert "mdpo_kernels/py.typed" in names and "mdpo/py.typed" in names


def test_the_wheel_runs_from_another_folder(wheel, tmp_path):
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    code = "import mdpo, mdpo.cli, mdpo_kernels; print(mdpo.__file__, mdpo_kernels.__file__)"
    assert python(code, tmp_path, installed).split() == [
        str(installed / "mdpo" / "__init__.py"),
        str(installed / "mdpo_kernels" / "__init__.py"),
    ]


def test_hugging_faces_kernels_is_not_shadowed(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("name = 'the real one'")
    code = "import kernels, mdpo_kernels, mdpo; print(kernels.name)"
    assert python(code, ROOT, ROOT, ROOT / "kernels", tmp_path) == "the real one"


def bounds() -> dict[str, str]:
    """pyproject.toml's dependencies and their lower bounds, by name."""
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)[^"]*"', (ROOT / "pyproject.toml").read_text().replace("_", "-")))


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().lower().replace("_", "-").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


NOT_IN_TESTS = {"flash-attn", "nltk", "spacy"}
PEERS = {"trl", "liger-kernel", "cut-cross-entropy"}


def test_the_oldest_end_is_where_the_bounds_are():
    """A bound that is not tried is a guess. What `make test-oldest` does not install has none to try."""
    oldest, missing = pinned("constraints-oldest.txt"), NOT_IN_TESTS | PEERS
    expected = {name: bound for name, bound in bounds().items() if name not in missing}
    assert len(expected) >= 20
    # 2.11 is tried as 2.11.0
    wrong = {name: bound for name, bound in expected.items() if re.sub(r"(\.0)+$", "", oldest[name]) != bound}
    assert not wrong, "the lower bound in pyproject.toml is another than the version that is tested"


def test_every_end_pins_what_it_installs():
    for name, missing in (("constraints.txt", NOT_IN_TESTS | PEERS), ("constraints-newest.txt", NOT_IN_TESTS)):
        assert not bounds().keys() - missing - pinned(name).keys(), name
