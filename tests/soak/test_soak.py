"""The soak in short, in every test run; at length where it is asked for: pytest -m long tests/soak.

Both start a process of their own: a fork server may have no threads, and this one has had torch's.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def soak(module: str, *arguments: object, minutes: float) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments), "--minutes", str(minutes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=minutes * 60 + 600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def trials(folder: Path, *arguments: object, minutes: float) -> list[dict]:
    soak("tests.soak", "--folder", folder / "soak", "--out", folder / "soak.json", *arguments, minutes=minutes)
    return json.loads((folder / "soak.json").read_text())["trials"]


def test_a_few_trials(tmp_path):
    """One of each mode and of the kinds that ask the most of a checkpoint, one process; minutes for a busy machine."""
    held = trials(tmp_path, "--trials", 1, "--processes", 1, "--kinds", "full, best", "--seed", 3, minutes=5)
    assert {trial["mode"] for trial in held} == {"kills", "signals", "disks"}
    assert not any(trial["problems"] for trial in held)


def test_a_few_cases_of_every_fuzzer(tmp_path):
    said = soak("tests.soak.fuzz", "--folder", tmp_path, "--cases", 5, "--seed", 11, minutes=1)
    assert "5 of 5 ended as they should" in said


@pytest.mark.long
def test_kills_signals_and_full_disks(tmp_path):
    held = trials(tmp_path, "--trials", 100, minutes=60)
    assert len(held) == 300


@pytest.mark.long
def test_every_fuzzer(tmp_path):
    soak("tests.soak.fuzz", "--folder", tmp_path, minutes=20)
