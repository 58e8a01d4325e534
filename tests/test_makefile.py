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
    for target in ("test", "test-oldest", "test-newest"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, env=inherited, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (file,) = re.findall(r"> (\S+) 2>&1 &", done.stdout)
        assert f"cat {file};" in done.stdout
        written[target] = file
    assert len(set(written.values())) == 3
