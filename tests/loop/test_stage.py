"""A stage's process: it gets the loop's signals, and does not outlive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdpo.evaluation.files import InUse, Journal
from mdpo.loop import run
from mdpo.trainer.signals import Stopped

pytestmark = pytest.mark.slow

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about processes")


def stands_in(tmp_path, monkeypatch, script):
    """Has a shell script run where a stage would."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(program))


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 2", 2), ("kill -TERM $$", 143)])
def test_a_stages_exit_code_is_the_loops(tmp_path, monkeypatch, script, code):
    stands_in(tmp_path, monkeypatch, script)
    with Journal(tmp_path / "loop.jsonl") as journal:
        assert run.in_process(["sample"], journal) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_handed_on_and_waited_for(tmp_path, monkeypatch, number):
    name = number.name.removeprefix("SIG")
    stands_in(
        tmp_path,
        monkeypatch,
        f"trap 'sleep 0.3; echo {name} > {tmp_path}/got; exit 1' {name}; touch {tmp_path}/on; for _ in $(seq "
        "400); do sleep 0.05; done",
    )

    def stop(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Stopped(number)

    def look(*_):
        if (tmp_path / "on").exists():
            stop()

    before = signal.signal(signal.SIGALRM, look)
    # What is ignored here, as in a shell's background, a shell script cannot trap.
    heeded = signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with Journal(tmp_path / "loop.jsonl") as journal, pytest.raises(Stopped):
            run.in_process(["sample"], journal)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(number, heeded)
    assert (tmp_path / "got").read_text().strip() == name


def test_a_loop_waits_for_the_stage_that_another_has_left(tmp_path, monkeypatch, capsys):
    """What an earlier loop has started holds the journal as long as it runs."""
    path = tmp_path / "loop.jsonl"
    with Journal(path) as journal:
        left = subprocess.Popen(["sleep", "1"], pass_fds=(journal.fileno(),))
    with pytest.raises(InUse):
        Journal(path)
    run._journal(path).close()
    assert capsys.readouterr().out.count("waiting") == 1
    assert left.poll() is not None or left.wait(5) == 0
    monkeypatch.setattr(run, "_PATIENCE_S", 0.0)
    with Journal(path), pytest.raises(InUse, match="give another output_dir"):
        run._journal(path)


@LINUX
def test_a_stage_ends_with_its_loop():
    code = (
        "import os, subprocess, sys; subprocess.run([sys.executable, '-m', 'mdpo.loop.stage', str(os.getpid()), "
        "'train', 'nowhere', 'nowhere.jsonl'])"
    )
    loop = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, start_new_session=True)

    def stage():
        found = Path(f"/proc/{loop.pid}/task/{loop.pid}/children").read_text().split()
        return int(found[0]) if found else None

    until(stage)
    child = stage()
    assert child is not None
    until(
        lambda: "libtorch" in Path(f"/proc/{child}/maps").read_text()
    )  # so it has asked to be told of its parent's end
    loop.kill()
    loop.wait()
    until(
        lambda: (
            not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1][:3]
        )
    )


@LINUX
def test_a_stage_whose_loop_is_gone_does_not_begin():
    done = subprocess.run(
        [sys.executable, "-m", "mdpo.loop.stage", str(os.getppid()), "train", "--help"], capture_output=True
    )
    assert done.returncode == 143 and not done.stdout
