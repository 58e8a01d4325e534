"""The program before its command line is there."""

import os
import subprocess
import sys
from pathlib import Path

from mdpo import cli
from mdpo.program import outline

ROOT = Path(__file__).parent.parent


def test_a_torchvision_of_another_pytorch_is_one_line(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    info = tmp_path / "torchvision-0.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels")))
    ran = subprocess.run(
        [sys.executable, "-m", "mdpo", "train", "--help"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1 and not ran.stdout
    assert ran.stderr.splitlines() == [
        "error: torchvision does not go with the PyTorch that is installed (operator torchvision::nms does not "
        "exist); install both in one command from one index, or remove it: pip uninstall torchvision"
    ]


def test_the_programs_own_help_needs_no_pytorch():
    code = (
        "import sys; from mdpo.__main__ import main\ntry: main()\nexcept SystemExit: print(*sys.modules, "
        "file=sys.stderr)"
    )
    for word in ("--help", "--version"):
        ran = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, cwd=ROOT)
        assert ran.stdout.startswith(("usage: mdpo", "mdpo ")) and not {"torch", "transformers"} & set(
            ran.stderr.split()
        )


def test_the_help_is_that_of_the_command_line():
    assert outline().format_help() == cli._parser().format_help()
