"""Which code was measured is known, or nothing is measured; and the session's script where there is no git."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench import commit
from bench.session import wheels
from bench.session.archive import unpack
from bench.suite.shelf import Shelf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_commit_is_of_its_own_repository_and_carries_its_changes(tmp_path):
    assert commit.of_git(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit.of_git(tmp_path) == head
    (tmp_path / "inside").mkdir()
    assert commit.of_git(tmp_path / "inside") is None  # a copy inside somebody else's repository is not that commit
    (tmp_path / "a.py").write_text("2")
    changed = commit.of_git(tmp_path)
    assert changed is not None and changed.startswith(f"{head}+") and len(changed) == len(head) + 9


def test_a_sent_commit_holds_for_the_code_it_was_sent_with(tmp_path, monkeypatch):
    for part in ("bench", "kernels", "mdpo", "tests"):
        (tmp_path / part).mkdir()
    code = tmp_path / "mdpo" / "a.py"
    code.write_text("1")
    monkeypatch.setattr(commit, "ROOT", tmp_path)
    monkeypatch.setattr(commit, "code_digest", lambda digest=commit.code_digest: digest(tmp_path))
    monkeypatch.setattr(commit, "known_commit", lambda: "a" * 40 + "+0123abcd")
    file = tmp_path / "COMMIT"
    commit.write(file)
    assert commit.sent(file) == "a" * 40 + "+0123abcd"
    code.write_text("2")
    with pytest.raises(commit.UnknownCommit, match="the code here is not the one it was written for"):
        commit.sent(file)
    for content in ("", "commit unknown\ncode " + "0" * 32 + "\n", "commit " + "a" * 40):
        file.write_text(content)
        with pytest.raises(commit.UnknownCommit, match="not a file of bench.commit"):
            commit.sent(file)
    file.write_bytes(b"\xff")
    with pytest.raises(commit.UnknownCommit, match="cannot be read"):
        commit.sent(file)


NO_COMMITS = [
    "main",
    "HEAD",
    "../..",
    "a" * 40 + "\n",
    "a" * 40 + "\nb",
    "A" * 40,
    "a" * 6,
    "a" * 65,
    "a" * 40 + "+",
    "a" * 40 + "+dirty",
    " ",
]


@pytest.mark.parametrize("told", NO_COMMITS, ids=ascii)
def test_what_is_no_commit_is_not_believed(told, monkeypatch, capsys):
    """It becomes a folder's name and stands in every record."""
    commit.known_commit.cache_clear()
    monkeypatch.setenv("BENCH_COMMIT", told)
    with pytest.raises(commit.UnknownCommit, match="is not the name of a commit; set it to what git"):
        commit.known_commit()
    assert commit.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench.commit: BENCH_COMMIT='")
    assert not commit.is_commit(told)


@pytest.mark.parametrize("told", ["a" * 40, "a" * 64, "0123abc", "a" * 40 + "+0123abcd"])
def test_what_git_says_is_believed(told, monkeypatch, capsys):
    commit.known_commit.cache_clear()
    monkeypatch.setenv("BENCH_COMMIT", told)
    assert commit.known_commit() == told and commit.main([]) == 0 and capsys.readouterr().out == told + "\n"
    commit.known_commit.cache_clear()


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The code alone, as it is sent to a machine: no git, no records."""
    folder = tmp_path_factory.mktemp("bare") / "copy"
    folder.mkdir()
    for part in ("bench", "kernels", "mdpo", "tests"):
        ignore = shutil.ignore_patterns("__pycache__", "*.json", "*.jsonl", "*.png", "*.egg-info")
        shutil.copytree(ROOT / part, folder / part, ignore=ignore)
    return folder


def bash(
    copy: Path, *arguments: str, script: str = "bench/gpu_session.sh", **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("BENCH_COMMIT", "PYTHONPATH", "TRITON_INTERPRET")}
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=300,
        env={**inherited, "PYTHON": sys.executable, "GIT_CEILING_DIRECTORIES": str(copy.parent), **environment},
    )


KNOWN = {"BENCH_COMMIT": "a" * 40}


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("OUT",), {}, "the commit is not known: there is no git here; set BENCH_COMMIT"),
        (("OUT",), {"BENCH_COMMIT": "../.."}, "BENCH_COMMIT='../..' is not the name of a commit"),
        (("",), {}, "the folder of the archives has no name; give one"),
        (("OUT", "--wheels"), {}, "--wheels needs a folder; bash bench/wheels.sh makes it"),
        (("OUT", "--wheels", ""), {}, "--wheels needs a folder; bash bench/wheels.sh makes it"),
        (("OUT", "--wheels", "--rehearse"), {}, "--wheels needs a folder; bash bench/wheels.sh makes it"),
        (("OUT", "--wheels=DIR"), {}, "--wheels and its folder are two words: --wheels DIR"),
        (("--wheels", "bench"), {}, "the folder of the archives is missing; give it first"),
        (("OUT", "--wheels", "nowhere"), {}, "is no folder; bash bench/wheels.sh makes it"),
        (("OUT", "--wheels", "bench/commit.py"), {}, "is no folder; bash bench/wheels.sh makes it"),
        (("OUT", "--only", "probes"), KNOWN, "'probes' is none of probe, kernel-tests,"),
        (("OUT", "--only"), KNOWN, "argument --only: expected at least one argument"),
        (("OUT", "--only", "step", "probe", "step"), KNOWN, "'step' is given twice; give it once"),
        (("OUT", "sixth"), KNOWN, "'sixth' is none of first, second,"),
        (("OUT", "first", "first"), KNOWN, "'first' is given twice; give it once"),
        (("OUT", "first", "--only", "step"), KNOWN, "'first' and --only are two answers to one question"),
        (("OUT", "--reherse"), KNOWN, "unrecognized arguments: --reherse"),
        *(
            (("OUT", "--minutes", value), KNOWN, f"{value!r} is not a number from 0.5 to 10000")
            for value in ("nan", "inf", "0", "-3", "0.1", "1e308", "ten", "")
        ),
        (("OUT", "--minutes", "-3", "--rehearse"), KNOWN, "'-3' is not a number from 0.5 to 10000"),
        (("OUT", "--minutes"), KNOWN, "argument --minutes: expected one argument"),
        (("bench/commit.py",), KNOWN, "cannot be written (File exists); give another folder"),
        (("bench/commit.py/OUT",), KNOWN, "cannot be written (Not a directory); give another folder"),
        (("/proc/OUT",), KNOWN, "/proc/OUT: cannot be written"),
        (("TAKEN",), KNOWN, "TAKEN/probe.tgz: is a folder, where an archive goes"),
        (
            ("--rehearse", "OUT"),
            {},
            "the folder of the archives comes first: bash bench/gpu_session.sh OUT --rehearse OUT",
        ),
        (("OUT",), {"PYTHON": "no-such-python"}, "no-such-python is not here; PYTHON=... names another"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_with_a_session_is_one_line(copy, arguments, environment, says):
    (copy / "TAKEN/probe.tgz").mkdir(parents=True, exist_ok=True)
    done = bash(copy, *arguments, **environment)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert says in line
    assert not (copy / "OUT").exists()


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",), ("OUT", "--help")])
def test_help_is_the_head_of_the_script(copy, arguments):
    done = bash(copy, *arguments)
    assert (
        done.returncode == 0 and done.stdout.startswith("The first half hour on a GPU") and "set -" not in done.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give a folder: bash bench/wheels.sh DIR [PYTHON_VERSION]"),
        (("",), "give a folder: bash bench/wheels.sh DIR [PYTHON_VERSION]"),
        (("--help",), "give a folder: bash bench/wheels.sh DIR [PYTHON_VERSION]"),
        (("DIR", "3.12", "more"), "give a folder: bash bench/wheels.sh DIR [PYTHON_VERSION]"),
        (("DIR", "newest"), "newest is no version of Python; give one such as 3.12"),
        (("bench/commit.py",), "is a file; give a folder"),
        (("/proc/DIR",), "/proc/DIR cannot be written; give another folder"),
        (("MINE",), "holds wheels that were not gathered here, and would lose them; give another folder"),
        (("DIR",), "the commit is not known: there is no git here"),
    ],
)
def test_what_is_wrong_with_the_wheels_folder_is_one_line(copy, arguments, says):
    (copy / "MINE").mkdir(exist_ok=True)
    mine = wheel(copy / "MINE", "mine", "1.0")
    done = bash(copy, *arguments, script="bench/wheels.sh")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line and mine.exists()


def test_a_real_stage_in_a_copy_without_git(copy, tmp_path):
    """The probe, rehearsed: memory, a product, a Triton kernel, attention, with the commit that was sent along."""
    sent = tmp_path / "wheels"
    sent.mkdir()
    settings = {**os.environ, "BENCH_COMMIT": "b" * 40, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "bench.commit", "--write", sent / "COMMIT"],
        check=True,
        env=settings,
        capture_output=True,
    )
    done = bash(copy, str(tmp_path / "out"), "--only", "probe", "--rehearse", "--wheels", str(sent))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot be installed here" in done.stderr  # there are none: peers are skipped by name
    assert done.stdout.startswith("probe: ok after ") and "7 records ok" in done.stdout
    unpack(tmp_path / "out" / "probe.tgz", tmp_path / "unpacked")
    records = Shelf(tmp_path / "unpacked" / "records").records()
    assert {record.environment["commit"] for record in records} == {"b" * 40}
    assert {record.shape["on"] for record in records} == {"CPU-rehearsal"}
    assert str(copy) not in (tmp_path / "unpacked" / "log.txt").read_text()


def wheel(folder: Path, name: str, version: str, *needs: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        file.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\nAbout.\n")
    return path


def test_wheels_that_lack_something_are_named(tmp_path, capsys):
    wheel(
        tmp_path, "peer", "1.0", "torch>=2", "helper<2,>=1", 'colorama; sys_platform == "win32"', "rich; extra == 'all'"
    )
    wheel(tmp_path, "helper", "1.5")
    assert wheels.main([str(tmp_path)]) == 0
    assert "2 wheels, 0.0 MB" in capsys.readouterr().out
    wheel(tmp_path, "other", "1.0", "helper>=2", "absent")
    assert wheels.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "other-1.0-py3-none-any.whl needs helper>=2",
        "other-1.0-py3-none-any.whl needs absent",
    ]


def test_wheels_are_looked_at_with_the_machines_python(tmp_path, capsys):
    wheel(tmp_path, "peer", "1.0", 'backport; python_version < "3.12"')
    assert wheels.main([str(tmp_path)]) == 0
    assert wheels.main([str(tmp_path), "--python", "3.11"]) == 1
    assert "needs backport" in capsys.readouterr().err


def test_wheels_that_cannot_travel_are_named(tmp_path, capsys, monkeypatch):
    assert wheels.main([str(tmp_path)]) == 1 and "holds no wheels" in capsys.readouterr().err
    wheel(tmp_path, "peer", "1.0")
    monkeypatch.setattr(wheels, "MOST_BYTES", 10)
    assert wheels.main([str(tmp_path)]) == 1 and "do not travel" in capsys.readouterr().err
    wheel(tmp_path, "peer", "1.1")
    assert wheels.main([str(tmp_path)]) == 1 and "in two versions; keep one" in capsys.readouterr().err
    (tmp_path / "torn-1.0-py3-none-any.whl").write_bytes(b"PK")
    (tmp_path / "peer-1.1-py3-none-any.whl").unlink()
    assert wheels.main([str(tmp_path)]) == 1 and "not a wheel" in capsys.readouterr().err


def test_pins_are_exact_and_those_of_this_repository():
    """The versions that were tested here, where the constraints name them."""
    pins = dict(
        line.split("==") for line in (ROOT / "bench/session/wheels.txt").read_text().splitlines() if line[0] != "#"
    )
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {"trl", "liger-kernel", "cut-cross-entropy", "bitsandbytes"} <= set(pins)
    assert {name: tested[name] for name in pins if name in tested} == {
        name: pins[name] for name in pins if name in tested
    }
