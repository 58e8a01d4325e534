"""The session's runner with stages of a second, and its archives there and back."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from bench import bring_home
from bench.session import archive, runner
from bench.session.stages import COMMAND_SECONDS, COMMANDS, SLOWER, STAGES, Stage
from bench.suite.shelf import Shelf
from mdpo.errors import OutputError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MEASURE = """
import sys
from pathlib import Path
from bench.suite.record import Record
from bench.suite.shelf import Shelf
device = {"device": "NVIDIA H100 80GB HBM3", "device_type": "cuda", "commit": "c" * 40, "python": "3.12"}
record = Record(part="kernels", op="o", shape={"N": 1}, dtype="float32", implementation="ours", role="ours",
                status="ok", median_ms=1.0, environment=device)
Shelf(Path(sys.argv[1])).add(record)
print("measured in", Path.cwd(), flush=True)
"""
PROBE = """
import json, sys
from pathlib import Path
from bench.suite.record import Record
from bench.suite.shelf import Shelf
device = {"device": "NVIDIA H100 80GB HBM3", "device_type": "cuda", "commit": "c" * 40, "python": "3.12"}
out = Path(sys.argv[1])
(out.parent / "device.json").write_text(json.dumps(device))
for name, status in (("device", sys.argv[2]), ("allocator", sys.argv[3])):
    record = Record(part="session", op="probe", shape={"on": "GPU"}, dtype="all", implementation=name, role="ours",
                    status=status, rates={"seconds": 0.1}, environment=device)
    Shelf(out).add(record)
"""


def stage(name: str, code: str, *arguments: str, seconds: int = 60) -> Stage:
    command = ("-c", code, "{records}", *arguments)
    return Stage(name=name, seconds=seconds, command=command, rehearsal=command)


def session(tmp_path: Path, seconds: float = 600) -> runner.Session:
    out, work = tmp_path / "out", tmp_path / "work"
    for folder in (out, work):
        folder.mkdir(exist_ok=True)
    return runner.Session(out=out, work=work, deadline=time.monotonic() + seconds, rehearse=False, settings={})


def members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def text(path: Path, name: str) -> str:
    with tarfile.open(path) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read().decode()


def test_each_stage_is_packed_and_brought_home(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # of the caller's shell; a session compiles
    here = session(tmp_path)
    seen = "import os; print(os.environ.get('PYTORCH_ALLOC_CONF'), os.environ.get('TRITON_INTERPRET'))"
    stages = [
        stage("probe", PROBE, "ok", "ok"),
        stage("kernels", MEASURE),
        stage("step", seen + "; raise SystemExit(4)"),
    ]
    assert here.run(stages) == 1  # one failed, and the others were run
    assert {path.name for path in here.out.iterdir()} == {"probe.tgz", "kernels.tgz", "step.tgz"}
    assert text(here.out / "kernels.tgz", "log.txt") == "measured in .\n"  # not the machine's own path
    assert text(here.out / "step.tgz", "log.txt") == "expandable_segments:True None\n"
    out = capsys.readouterr().out
    assert "kernels: ok after" in out and ": 1 records ok" in out and "step: failed after" in out and "exit 4" in out

    home = tmp_path / "home"
    assert (
        bring_home.main(
            [*(str(here.out / f"{name}.tgz") for name in ("probe", "kernels", "step")), "--into", str(home)]
        )
        == 0
    )
    assert (home / "h100" / "session" / "kernels.log").read_text() == "measured in .\n"
    records = {(record.op, record.implementation): record for record in Shelf(home / "h100").records()}
    assert records["o", "ours"].median_ms == 1.0
    assert all(record.environment["commit"] == "c" * 40 for record in records.values())
    assert (records["stages", "step"].status, records["stages", "step"].reason) == ("failed", "exit 4")
    report = (home / "RESULTS.md").read_text()
    assert "## NVIDIA H100 80GB HBM3" in report and "| kernels | ok |" in report and "| step | failed |" in report


def test_without_expandable_segments_they_are_off_and_it_is_said(tmp_path, capsys):
    here = session(tmp_path)
    seen = stage("step", "import os; print(os.environ['PYTORCH_ALLOC_CONF'])")
    assert here.run([stage("probe", PROBE, "ok", "failed"), seen]) == 0
    assert text(here.out / "step.tgz", "log.txt") == "expandable_segments:False\n"
    assert "does not work here" in capsys.readouterr().out


def test_without_a_device_nothing_else_is_begun(tmp_path, capsys):
    here = session(tmp_path)
    assert here.run([stage("probe", "raise SystemExit(3)"), stage("step", "1")]) == 3
    assert [path.name for path in here.out.iterdir()] == ["probe.tgz"]
    assert "no device, no session" in capsys.readouterr().out
    assert bring_home.main([str(here.out / "probe.tgz"), "--into", str(tmp_path / "home")]) == 2
    assert "the session found no device" in capsys.readouterr().err


def test_a_stage_that_outlasts_its_box_is_ended_and_what_it_had_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 1)
    monkeypatch.setattr(runner, "LEAST", 1)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    here = session(tmp_path)
    started = time.monotonic()
    slow = stage("step", MEASURE + "import time; time.sleep(60)", seconds=2)
    assert here.run([stage("probe", PROBE, "ok", "ok"), slow, stage("kernels", deaf, seconds=2)]) == 1
    assert time.monotonic() - started < 20
    assert "records/h100/kernels.json" in members(here.out / "step.tgz")
    for name, code in (("step", 124), ("kernels", 137)):
        (record,) = [each for each in Shelf(here.work / name / "records").records() if each.part == "session"]
        assert record.status == "failed" and f"exit {code}" in record.reason


def test_what_does_not_fit_is_not_begun(tmp_path, capsys):
    here = session(tmp_path, seconds=12)
    assert here.run([stage("probe", "1")]) == 3
    out = capsys.readouterr().out
    assert "probe: skipped after 0 s (not begun: 1 s were left)" in out
    assert "no time for the probe, so nothing is begun; give more with --minutes" in out


def test_a_rehearsal_whose_probe_fails_is_not_told_to_rehearse(tmp_path, capsys):
    here = dataclasses.replace(session(tmp_path), rehearse=True)
    assert here.run([stage("probe", "raise SystemExit(3)"), stage("step", "1")]) == 3
    out = capsys.readouterr().out
    assert "the probe failed on this CPU" in out and "--rehearse" not in out


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def full(folder, target):
        raise OutputError(f"{target} could not be written: the disk is full")

    monkeypatch.setattr(runner, "pack", full)
    monkeypatch.setattr(runner, "work_folder", lambda commit, rehearse: tmp_path / "work")
    monkeypatch.setattr(runner.signal, "signal", lambda *_: None)
    assert runner.main([str(tmp_path / "out"), "--only", "probe", "--rehearse"]) == 2
    assert "probe.tgz could not be written: the disk is full" in capsys.readouterr().err


def test_what_runs_is_packed_again_and_again(tmp_path, monkeypatch):
    """Whoever kills the session itself still has the last half minute's archive."""
    monkeypatch.setattr(runner, "EVERY", 0.2)
    packed = []
    monkeypatch.setattr(
        runner, "pack", lambda folder, target: packed.append((folder.name, archive.pack(folder, target)))
    )
    here = session(tmp_path)
    assert here.run([stage("probe", PROBE, "ok", "ok"), stage("step", "import time; time.sleep(1.5)")]) == 0
    assert packed.count(("step", None)) >= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stage_that_runs_and_packs_it(tmp_path, number):
    script = f"""
import signal, sys, time
from pathlib import Path
from bench.session import runner
from bench.session.stages import Stage
signal.signal(signal.{number.name}, runner._stop)
here = runner.Session(out=Path({str(tmp_path)!r}), work=Path({str(tmp_path / "work")!r}),
                      deadline=time.monotonic() + 600, rehearse=False, settings={{}})
runner.GRACE = 1
code = ("-c", "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('began', flush=True);"
        "open({str(tmp_path / "began")!r}, 'w').write(str(os.getpid())); time.sleep(60)")
here.run([Stage(name="step", seconds=60, command=code, rehearsal=code)])
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not ((tmp_path / "began").exists() and (tmp_path / "began").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) != 0
    assert text(tmp_path / "step.tgz", "log.txt") == "began\n"
    deadline = time.monotonic() + 5  # deaf to TERM, and gone all the same, once init has heard of it
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(int((tmp_path / "began").read_text()), 0)
            time.sleep(0.05)
    (record,) = Shelf(tmp_path / "work" / "step" / "records").records()
    assert (record.status, record.reason) == ("failed", "stopped with the session")


def test_every_command_fits_ten_minutes_and_brings_few_files():
    assert COMMAND_SECONDS + runner.GRACE <= 600
    for name, stages in COMMANDS.items():
        assert stages[0] == "probe" and len(stages) <= 8, name
        # The last one takes what is left, and that is worth beginning.
        assert sum(STAGES[each].seconds for each in stages[:-1]) <= COMMAND_SECONDS - 60, name
    assert {each for stages in COMMANDS.values() for each in stages} == set(STAGES)
    assert all(each.seconds + runner.GRACE < 600 for each in STAGES.values())


def test_the_kernels_are_tested_compiled_and_all_of_them():
    command = STAGES["kernel-tests"].command
    assert "tests/kernels" in command and "gpu" not in command  # marked ones are a tenth of them
    here = runner.Session(out=ROOT, work=ROOT, deadline=0, rehearse=False, settings={})
    assert "TRITON_INTERPRET" not in here._environment(STAGES["kernel-tests"])


def test_every_file_of_gpu_tests_is_taken():
    taken = {each for each in STAGES["gpu-tests"].command if each.startswith("tests/")}
    assert {"tests/bench/test_gpu_step.py", "tests/memory/test_gpu.py", "tests/trainer/test_memory_options.py"} <= taken
    assert not any("kernels" in each for each in taken)


def test_the_kernels_compile_in_several_processes_where_that_is_possible(tmp_path, monkeypatch):
    here = session(tmp_path)
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    assert here._workers() == []
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: name)
    assert here._workers()[0] == "-n"
    assert dataclasses.replace(here, rehearse=True)._workers() == []


def test_stages_are_run_once_each_and_after_the_probe():
    assert [each.name for each in runner.chosen((), ())][:2] == ["probe", "kernel-tests"]
    assert {each.name for each in runner.chosen((), ())} == set(STAGES)
    assert [each.name for each in runner.chosen(("first",), ("kernels", "step"))] == ["probe", "kernels", "step"]


def test_a_long_log_travels(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"first\n" + b"x" * 2 * archive.MOST_LOG_BYTES + b"\nlast")
    archive.tidy_log(log, {})
    content = log.read_bytes()
    assert len(content) < archive.MOST_LOG_BYTES + 100
    assert content.startswith(b"first\n") and content.endswith(b"\nlast") and b"[... cut ...]" in content


def test_the_log_names_no_path_of_the_machine(tmp_path):
    here = session(tmp_path)
    print_paths = (
        f"import sys; print({str(ROOT)!r} + '/bench/x.py', sys.prefix + '/lib', {str(Path.home())!r} + '/secret')"
    )
    here.run([stage("probe", PROBE, "ok", "ok"), stage("step", print_paths)])
    assert text(here.out / "step.tgz", "log.txt") == "./bench/x.py PYTHON/lib HOME/secret\n"


def test_device_and_commit_are_in_what_a_stage_leaves(tmp_path):
    here = session(tmp_path)
    here.run([stage("probe", PROBE, "ok", "ok")])
    found = json.loads(text(here.out / "probe.tgz", "records/h100/session.json"))
    assert found["device"] == "NVIDIA H100 80GB HBM3" and [run["commit"] for run in found["runs"]] == ["c" * 40]
    assert members(here.out / "probe.tgz") == ["device.json", "log.txt", "records/h100/session.json"]


def test_the_committed_rehearsal_went_through_every_stage():
    """In a folder without git and without a network; every stage ended well and in its box."""
    log = (ROOT / "bench/session/rehearsal.log").read_text(encoding="utf-8")
    for name, stage in STAGES.items():
        taken = re.findall(rf"^{name}: ok after (\d+) s: \d+ ", log, re.MULTILINE)
        assert taken and all(int(seconds) <= stage.seconds * SLOWER for seconds in taken), name
    assert "unshare -n" in log and "/tmp" not in log and "/work" not in log
