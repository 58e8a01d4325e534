"""The Makefile's ways of running the tests can be taken at once."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_each_way_of_testing_writes_a_file_of_its_own():
    """Else the report of one that runs beside another is torn, or the other's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    written = {}
    for target in ("test", "test-fast", "test-oldest", "test-newest"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, env=inherited, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (file,) = re.findall(r"> (\S+) 2>&1 &", done.stdout)
        assert f"cat {file};" in done.stdout
        written[target] = file
    assert len(set(written.values())) == 4


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["test", "test-fast"])
def test_two_processes_run_every_test_once(target):
    """What one is told to ignore, the other is told to run."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", target], cwd=ROOT, env=inherited, capture_output=True, text=True)
    kernels, beside, rest = re.findall(r'pytest -q -m "[^"]+" ([^;&)\\]+)', done.stdout)
    ignored = {word.removeprefix("--ignore=") for word in rest.split() if word.startswith("--ignore=")}
    assert rest.split()[0] == "tests" and ignored == {*kernels.split(), *beside.split()}
    assert all((ROOT / path).exists() for path in ignored)
