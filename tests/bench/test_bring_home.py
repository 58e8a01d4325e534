"""Archives of a session brought home: a stranger's are refused in one line each, and then nothing has changed."""

import dataclasses
import gzip
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
import torch

from bench import bring_home
from bench.render import report as render
from bench.session import archive
from bench.session.strangers import NotARecord, check_record
from bench.suite import cards
from bench.suite.record import Record, environment
from bench.suite.shelf import Contents, Shelf, text_of

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def good(tmp_path: Path, **changes) -> tuple[Path, Record]:
    """An archive of one stage, and its record."""
    record = Record(
        part="session",
        op="stages",
        shape={"on": "GPU"},
        dtype="all",
        implementation="step",
        role="ours",
        status="ok",
        rates={"seconds": 1.0},
        environment={"device": "NVIDIA H200", "device_type": "cuda", "commit": "c" * 40, "python": "3.12"},
    )
    record = dataclasses.replace(record, **changes)
    folder = tmp_path / "folder"
    Shelf(folder / "records").add(record)
    archive.pack(folder, tmp_path / "step.tgz")
    return tmp_path / "step.tgz", record


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = b"x", size: int | None = None
) -> tuple[tarfile.TarInfo, bytes]:
    """size: as the header has it, if that is not the content's."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
    if size is not None:
        info.size = size
    return info, content


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """As tarfile would, except that what a header says need not be so."""
    blocks = []
    for info, content in members:
        blocks += [
            info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"),
            content.ljust(-len(content) % 512 + len(content), b"\0"),
        ]
    path.write_bytes(gzip.compress(b"".join(blocks) + bytes(1024), compresslevel=1))


def document(records: object, runs: object = ({},)) -> bytes:
    """A file of records, whatever they are."""
    found = {"schema": 2, "device": "NVIDIA H200", "part": "session", "runs": runs, "records": records}
    return json.dumps(found).encode()


HOSTILE = {
    "climbs out": [member("../escaped.json")],
    "absolute": [member("/tmp/escaped-from-a-session.json")],
    "link": [member("records/link", tarfile.SYMTYPE, "/etc")],
    "hard link": [member("records/link", tarfile.LNKTYPE, "../../etc/passwd")],
    "through a link": [member("records", tarfile.SYMTYPE, "/tmp"), member("records/escaped-from-a-session.json")],
    "device": [member("records/null", tarfile.CHRTYPE)],
    "pipe": [member("records/pipe", tarfile.FIFOTYPE)],
    "not JSON": [member("records/a.json", content=b"{")],
    "deep": [member("records/a.json", content=b"[" * 100_000)],
    "another schema": [member("records/a.json", content=b'{"schema": 7}')],
    "unknown field": [member("records/a.json", content=b'{"schema": 2, "evil": 1}')],
    "a record that is none": [member("records/a.json", content=document([1]))],
    "an unknown field of a record": [member("records/a.json", content=document([{"run": 0, "evil": 1}]))],
    "a field that the file says": [member("records/a.json", content=document([{"run": 0, "part": "kernels"}]))],
    "a record of no run": [member("records/a.json", content=document([{"op": "stages"}]))],
    "a record of a run that is not there": [member("records/a.json", content=document([{"run": 1}]))],
    "a run from behind": [member("records/a.json", content=document([{"run": -1}]))],
    "a run that is none": [member("records/a.json", content=document([{"run": 0}], runs=[[]]))],
    "runs that are none": [member("records/a.json", content=document([{"run": "a"}], runs={"a": {}}))],
    "nothing": [],
    "another archive's depth": [member("a/" * 1500 + "b")],
    "a long name": [member("records/" + "a" * 450)],
    "a name of several lines": [member("records/a\nb.json")],
    "a name that is no text": [member("records/\udcff.json")],
    "one name twice": [member("log.txt"), member("log.txt")],
    "a log that is a folder": [member("log.txt/a")],
    "a file that is a folder": [member("records"), member("records/a.json")],
    "a size below 0": [member("records/a.json", content=b"", size=-512)],
    "a sparse file": [member("records/a.json", tarfile.GNUTYPE_SPARSE)],
    "a header without end": [member("x", tarfile.XHDTYPE, size=2**40)],
    "a name without end": [member("x", tarfile.GNUTYPE_LONGNAME, size=2**40)],
    "headers upon headers": [member("x", tarfile.GNUTYPE_LONGNAME, size=1)] * 3000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_one_line_and_nothing_is_written(name, tmp_path, capsys):
    bad = tmp_path / "bad.tgz"
    write_tar(bad, HOSTILE[name])
    good_one, _ = good(tmp_path)
    assert bring_home.main([str(good_one), str(bad), "--into", str(tmp_path / "home")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench.bring_home: {bad}: ") and len(line) < 600
    assert not (tmp_path / "home").exists() and not (tmp_path / "escaped.json").exists()
    assert not Path("/tmp/escaped-from-a-session.json").exists()


CONDITIONS = {"device": "NVIDIA H200", "device_type": "cuda", "commit": "c" * 40, "python": "3.12"}
NO_RECORDS = [
    {"environment": {"device": "NVIDIA H200", "device_type": "cuda"}},
    {"environment": []},
    {"implementation": "no such stage"},
    {"rates": {}},
    {"role": "judge"},
    {"status": "splendid"},
    {"shape": {"on": "CPU-rehearsal"}},
    *({name: "two\nlines"} for name in ("part", "op", "dtype")),
    *({"rates": {"seconds": value}} for value in ("long", True, None, [1.0], 10**400, float("nan"), float("inf"),
            -1.0)),
    *({name: value} for name in ("median_ms", "p20_ms", "peak_bytes", "floor_ms", "tflops_per_s", "ratio_to_floor",
            "runs")
      for value in (10**400, float("nan"), -1, True, "1")),
    {"extra": {"packed tokens": 10**400}},
    {"errors": {"logps": 10**400}},
    *({"shape": {"on": "GPU", "N": value}} for value in (10**400, -1, True, 1.5, None, "$x$", "../..")),
    *({"environment": CONDITIONS | {"device": device}} for device in (
        "", ".", "..", "/", "x" * 400, "study", "Digits", "HOST", "cpu", "plots", "---", "<script>", "$\\frac$", "a|b",
        "a\x1bb", 1, None,
    )),
    *({"environment": CONDITIONS | {"commit": commit}} for commit in ("", "main", "../..", "c" * 40 + "\n", 7)),
    {"environment": CONDITIONS | {"device_type": "cpu"}},
    {"environment": CONDITIONS | {"device_type": "tpu"}},
    {"environment": CONDITIONS | {"versions": ["torch"]}},
    {"environment": CONDITIONS | {"versions": {"torch": 2}}},
    {"environment": CONDITIONS | {"remark": "x"}},
]  # fmt: skip


@pytest.mark.parametrize("changes", NO_RECORDS, ids=lambda changes: str(changes)[:60])
def test_a_record_that_no_session_wrote_is_refused(changes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bring_home, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bring_home, "rendered", lambda *_: pytest.fail("it was taken for a record"))
    path = tmp_path / "step.tgz"
    written = dataclasses.asdict(good(tmp_path)[1]) | changes
    run, part = written.pop("environment"), written.pop("part")
    device = run.pop("device") if isinstance(run, dict) else "NVIDIA H200"
    found = {"schema": 2, "device": device, "part": part, "runs": [run], "records": [{"run": 0, **written}]}
    name = re.sub(r"[^a-z0-9]+", "-", str(device).removeprefix("NVIDIA ").lower()).strip("-")
    place = f"records/{name or 'cpu'}/{part.splitlines()[0]}.json"  # where it would lie
    write_tar(path, [member(place, content=json.dumps(found).encode())])
    assert bring_home.main([str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench.bring_home: {path}: ") and len(line) < 400
    assert not (tmp_path / "results").exists()


def test_every_torn_archive_is_named(tmp_path, capsys):
    path, _ = good(tmp_path)
    whole = path.read_bytes()
    torn = tmp_path / "torn.tgz"
    for length in range(0, len(whole), 7):
        torn.write_bytes(whole[:length])
        assert bring_home.main([str(torn), "--into", str(tmp_path / "home")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert bring_home.main([str(tmp_path / "missing.tgz"), "--into", str(tmp_path / "home")]) == 2
    assert not (tmp_path / "home").exists()


def test_an_archive_that_swells_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    good(tmp_path)
    write_tar(tmp_path / "bomb.tgz", [member("records/bomb", content=b"0" * 2000)])
    assert bring_home.main([str(tmp_path / "bomb.tgz"), "--into", str(tmp_path / "home")]) == 2
    assert "unpacks to more than" in capsys.readouterr().err


def test_two_devices_do_not_meet(tmp_path, capsys):
    path, record = good(tmp_path)
    other = dataclasses.replace(
        record, op="probe", implementation="device", environment=record.environment | {"device": "NVIDIA H100"}
    )
    Shelf(tmp_path / "folder" / "records").add(other)
    archive.pack(tmp_path / "folder", path)
    assert bring_home.main([str(path), "--into", str(tmp_path / "home")]) == 2
    assert "two devices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a header without end", "a header that is too long"),
        ("headers upon headers", "Recursion"),
        ("a size below 0", "unpacks to more than"),
    ],
)
def test_what_a_header_says_is_not_read_whole(name, says, tmp_path, capsys):
    write_tar(tmp_path / "bad.tgz", HOSTILE[name])
    assert bring_home.main([str(tmp_path / "bad.tgz"), "--into", str(tmp_path / "home")]) == 2
    assert says in capsys.readouterr().err


def test_what_goes_on_after_its_end_is_not_read_to_that(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    monkeypatch.setattr(archive, "MOST_FILES", 10)
    path, _ = good(tmp_path)
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(8 * 2**20)))
    assert bring_home.main([str(path), "--into", str(tmp_path / "home")]) == 2
    assert "goes on after its end" in capsys.readouterr().err


def test_a_session_on_any_card_writes_what_is_taken():
    """What this process would write, and every name that is committed."""
    record = Record(
        part="kernels",
        op="o",
        shape={"N": 1},
        dtype="float32",
        implementation="ours",
        role="ours",
        status="failed",
        reason="RuntimeError: CUDA error: <unknown>\n| a | b |",
        errors={"logps": float("nan")},
        environment=environment(torch.device("cpu")),
    )
    check_record(record)
    for committed in render.records_below(RESULTS):
        check_record(committed)
    with pytest.raises(NotARecord, match="model"):
        check_record(dataclasses.replace(record, op="train_step"))


def test_reasons_and_notes_are_text_in_the_report(tmp_path, capsys):
    """A failure quotes whatever a library says: lines, markup, a table's own marks."""
    path, _ = good(tmp_path, status="failed", reason="<script>alert(1)</script>\n| a |", note="[x](http://y)\x1b[2J")
    assert bring_home.main([str(path), "--into", str(tmp_path / "home")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.startswith("step: failed, <script>alert(1)</script>\\n| a |, 1 records to ")
    report = (tmp_path / "home" / "RESULTS.md").read_text()
    (row,) = [line for line in report.splitlines() if line.startswith("| step |")]
    assert row == r"| step | failed | 1 | \<script\>alert(1)\</script\> \| a \|; \[x\](http://y)\\x1b\[2J |"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_the_way_of_a_record(home: Path) -> None:
    (home / "h200/session.json").mkdir(parents=True)


def in_the_way_of_the_report(home: Path) -> None:
    (home / "RESULTS.md").mkdir(parents=True)


def another_devices_records(home: Path) -> None:
    record = Record(
        part="kernels",
        op="o",
        shape={"N": 1},
        dtype="float32",
        implementation="ours",
        role="ours",
        status="ok",
        environment={"device": "NVIDIA H200 NVL", "device_type": "cuda", "commit": "c" * 40},
    )
    (home / "h200").mkdir(parents=True)
    (home / "h200" / "kernels.json").write_text(text_of([record], Contents([], [])))


def something_else(home: Path) -> None:
    (home / "h200").mkdir(parents=True)
    (home / "h200" / "results.json").write_text("{}")


def pictures(home: Path) -> None:
    (home / "h200").mkdir(parents=True)
    (home / "h200" / "a.png").write_text("")


def a_file_for_a_folder(home: Path) -> None:
    home.mkdir()
    (home / "h200").write_text("")


def another_report(home: Path) -> None:
    home.mkdir()
    (home / "other.json").write_text('{"schema": 7}')


@pytest.mark.parametrize(
    "there",
    [
        in_the_way_of_a_record,
        in_the_way_of_the_report,
        another_devices_records,
        something_else,
        pictures,
        a_file_for_a_folder,
        another_report,
    ],
)
def test_what_is_there_already_stays(there, tmp_path, capsys):
    path, _ = good(tmp_path)
    home = tmp_path / "home"
    there(home)
    before = contents(home)
    assert bring_home.main([str(path), "--into", str(home)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(home) in line and contents(home) == before


@pytest.mark.parametrize("into", ["file", "file/below", "/proc/x", "/dev/null"])
def test_a_folder_that_cannot_be_is_named(into, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = good(tmp_path)
    Path("file").write_text("stays")
    assert bring_home.main([str(path), "--into", into]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert into.split("/")[-1] in line and Path("file").read_text() == "stays"


def test_a_report_that_fails_leaves_all_as_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(render, "write_report", lambda records, out: {}[len(records)])
    path, _ = good(tmp_path)
    assert bring_home.main([str(path), "--into", str(tmp_path / "home")]) == 2
    assert "no report can be made of it (KeyError: 1)" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_a_write_that_fails_leaves_all_as_it_was(tmp_path, capsys, monkeypatch):
    path, _ = good(tmp_path)
    home = tmp_path / "home"
    assert bring_home.main([str(path), "--into", str(home)]) == 0
    before = contents(home)
    capsys.readouterr()
    written = []

    def full(source, part):
        written.append(part)
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(part))
        Path(part).write_bytes(b"half")

    monkeypatch.setattr(bring_home.shutil, "copyfile", full)
    assert bring_home.main([str(path), "--into", str(home)]) == 2
    assert "the disk is full" in capsys.readouterr().err and contents(home) == before


def test_an_archive_given_twice_is_named(tmp_path, capsys):
    path, _ = good(tmp_path)
    (tmp_path / "link.tgz").symlink_to(path)
    for other in (path, tmp_path / "link.tgz"):
        assert bring_home.main([str(path), str(other), "--into", str(tmp_path / "home")]) == 2
        assert "is given twice" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_of_the_same_measurement_the_later_archive_stays(tmp_path):
    first, record = good(tmp_path)
    second = first.rename(tmp_path / "second.tgz")
    good(tmp_path, rates={"seconds": 7.0})
    home = tmp_path / "home"
    assert bring_home.main([str(second), str(first), "--into", str(home)]) == 0
    (kept,) = Shelf(home / "h200").records()
    assert kept.measurement == record.measurement and kept.rates == {"seconds": 7.0}


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_not_waited_for(kind, tmp_path, capsys):
    path = tmp_path / "a.tgz"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    assert bring_home.main([str(path), "--into", str(tmp_path / "home")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_link_is_not_packed(tmp_path):
    """Since no archive with one is brought home."""
    path, _ = good(tmp_path)
    (tmp_path / "folder" / "link").symlink_to("/etc/hostname")
    archive.pack(tmp_path / "folder", path)
    with tarfile.open(path) as tar:
        assert all(each.isreg() for each in tar)


def test_no_device_gets_the_folder_of_something_else():
    """Everything in bench/results that holds no device's records."""
    devices = {path.relative_to(RESULTS).parts[0] for path in render.record_paths(RESULTS)}
    others = {path.name for path in RESULTS.iterdir() if path.is_dir()} - devices
    assert {"scenes"} <= others
    for name in others | {"cpu", "digits", "host", "study"}:
        with pytest.raises(ValueError, match="is not the name of a GPU"):
            cards.folder_of(name, "cuda")
