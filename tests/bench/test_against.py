"""Two sides of a measurement: compared where nothing but the commit differs in the conditions."""

import subprocess
from dataclasses import replace

import pytest

from bench.render import __main__ as command
from bench.render import against
from bench.render.against import comparison
from bench.suite.record import Record
from bench.suite.shelf import Shelf

THEN = {"device": "AMD EPYC", "device_type": "cpu", "threads": 2, "versions": {"torch": "2.13"}, "commit": "a"}
NOW = THEN | {"commit": "b"}


def record(environment: dict, milliseconds: float | None, **changes) -> Record:
    made = Record(
        part="kernels",
        op="token_logps",
        shape={"head": "tiny", "N": 256},
        dtype="float32",
        implementation="ours",
        role="ours",
        status="ok" if milliseconds else "skipped",
        median_ms=milliseconds,
        environment=environment,
    )
    return replace(made, **changes)


def test_what_both_have_is_a_row():
    then = record(THEN, 3.0, peak_bytes=100, floor="a copy", floor_ms=1.0)
    now = record(NOW, 2.0, peak_bytes=50, floor="a copy", floor_ms=0.8)
    *_, row, blank, counts = comparison([now], [then])
    assert row == "| token_logps, head=tiny, N=256, float32: ours | 3 | 2 | 1.50 | 1.25 | 0.50 |" and not blank
    assert counts == "1 compared; 0 measured with other versions or on another device; 0 only here."
    assert comparison([now], [replace(then, floor="a product")])[2].endswith("| 1.50 |  | 0.50 |")


@pytest.mark.parametrize(
    "changes", [{"device": "AMD EPYC 2"}, {"threads": 1}, {"versions": {"torch": "2.14"}}, {"cuda": "13.0"}]
)
def test_other_conditions_are_not_compared(changes):
    assert comparison([record(NOW, 2.0)], [record(THEN | changes, 3.0)]) == [
        "0 compared; 1 measured with other versions or on another device; 0 only here."
    ]


def test_what_one_side_lacks_is_counted():
    records = [record(NOW, 2.0), record(NOW, 2.0, implementation="peer"), record(NOW, None, implementation="missing")]
    (counts,) = comparison(records, [record(THEN, None), record(THEN, 3.0, op="another")])
    assert counts == "0 compared; 0 measured with other versions or on another device; 2 only here."


def git(folder, *arguments: str) -> str:
    named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_folder_or_a_commit_is_the_other_side(tmp_path, capsys, monkeypatch):
    root = tmp_path / "repository"
    folder = root / "records"
    folder.mkdir(parents=True)
    git(root, "init", "-q")
    Shelf(folder).add(record(THEN, 3.0))
    Shelf(tmp_path / "other").add(record(THEN, 4.0))
    git(root, "add", "records")
    git(root, "commit", "-q", "-m", "then")
    then = git(root, "rev-parse", "HEAD")
    Shelf(folder).add(record(NOW, 2.0))
    monkeypatch.setattr(against, "ROOT", root)
    for other, row in ((then, "| 3 | 2 | 1.50 |"), (str(tmp_path / "other"), "| 4 | 2 | 2.00 |")):
        assert command.main([str(folder), "--against", other]) == 0
        assert row in capsys.readouterr().out
    assert not (folder / "RESULTS.md").exists()

    (folder / "old.json").write_text('{"schema": 1}')
    git(root, "add", "records")
    git(root, "commit", "-q", "-m", "of another form")
    old = git(root, "rev-parse", "HEAD")
    (folder / "old.json").unlink()
    (tmp_path / "empty").mkdir()
    for other, says in (
        (old, "another form"),
        ("no-commit", "is no folder, and no commit"),
        (str(tmp_path / "empty"), "holds no records"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command.main([str(folder), "--against", other])
        assert says in capsys.readouterr().err.splitlines()[-1]
