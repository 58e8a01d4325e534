"""`python -m bench.session.runner OUT [COMMAND ...]`: what bench/gpu_session.sh runs once the machine is prepared.

Nothing here imports PyTorch: a process that waits must not hold the device. What is known of it, the probe has written.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.commit import ROOT, known_commit, require_commit
from bench.session.archive import pack, tidy_log
from bench.session.stages import COMMAND_SECONDS, COMMANDS, SLOWER, STAGES, Stage
from bench.suite.cards import folder_of
from bench.suite.record import Record, Status
from bench.suite.shelf import Shelf, read_records
from mdpo.errors import OutputError

GRACE = 10  # seconds from TERM to KILL
LEAST = 20  # seconds; a stage with less is not begun
WRAP_UP = 30  # seconds of a box in which nothing new is begun, so that what runs can end
EVERY = 30  # seconds between two archives of a stage that runs: whoever ends the session from outside gets the last
LEAST_MINUTES, MOST_MINUTES = 0.5, 10_000.0  # of a session: with less the probe is not begun, and a week is enough
WORKERS = 4  # of the kernels' tests
NO_DEVICE = "no device yet"
ALLOCATOR = "expandable_segments:True"  # packed rows differ in length, and blocks of a fixed size would leave holes


class Stopped(BaseException):
    """A signal to this process. The stage that runs is ended and packed first."""


@dataclass(slots=True, kw_only=True)
class Session:
    """out: where the archives go. work: the stages' folders. deadline: of time.monotonic()."""

    out: Path
    work: Path
    deadline: float
    rehearse: bool
    settings: dict[str, str]
    python: str = sys.executable

    def run(self, stages: Sequence[Stage]) -> int:
        """1 if a stage failed, 3 if there is no device."""
        failed = False
        for stage in stages:
            record = self._run(stage)
            failed |= record.status == "failed"
            print(line(record), flush=True)
            if stage.name == "probe" and not self._take_what_the_probe_says():
                print(self._why_nothing_is_begun(record), flush=True)
                return 3
        return int(failed)

    def _run(self, stage: Stage) -> Record:
        folder = self.work / stage.name
        if stage.name == "probe":  # a device may have gone since
            shutil.rmtree(folder, ignore_errors=True)
        for leftover in ("log.txt", "tests.xml"):
            (folder / leftover).unlink(missing_ok=True)
        (folder / "records").mkdir(parents=True, exist_ok=True)
        left = int(self.deadline - time.monotonic()) - GRACE
        box = min(stage.seconds * (SLOWER if self.rehearse else 1), left)
        if box < LEAST:
            return self._keep(stage, "skipped", f"not begun: {max(0, left)} s were left", 0.0)
        self._keep(stage, "failed", "cut off with the session", 0.0)
        started = time.monotonic()
        try:
            code = self._wait(stage, box)
        except Stopped:
            self._keep(stage, "failed", "stopped with the session", time.monotonic() - started)
            raise
        taken = time.monotonic() - started
        if code in (124, 137):
            return self._keep(stage, "failed", f"ended after its {box} s (exit {code}); what it had is kept", taken)
        return self._keep(stage, "failed" if code else "ok", f"exit {code}" if code else "", taken)

    def _wait(self, stage: Stage, box: int) -> int:
        """The exit code of the stage's command. What it writes is packed again and again while it runs."""
        folder = self.work / stage.name
        minutes = f"{max(box - WRAP_UP, box / 2) / 60:.2f}"
        filled = {"{folder}": str(folder), "{records}": str(folder / "records"), "{minutes}": minutes}
        arguments = []
        for argument in stage.rehearsal if self.rehearse else stage.command:
            for placeholder, value in filled.items():
                argument = argument.replace(placeholder, value)
            arguments += self._workers() if argument == "{workers}" else [argument]
        bounded = ["timeout", "-k", str(GRACE), str(box), self.python, *arguments]
        with (folder / "log.txt").open("wb") as log:
            child = subprocess.Popen(
                bounded,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment(stage),
            )
            try:
                while True:
                    try:
                        code = child.wait(EVERY)
                        return code if code >= 0 else 128 - code  # as a shell says it: timeout kills itself as well
                    except subprocess.TimeoutExpired:
                        self._pack(stage)
            finally:
                if child.poll() is None:
                    child.terminate()  # timeout hands it on, and kills after its grace what is deaf to it
                    try:
                        child.wait(GRACE + 2)
                    except subprocess.TimeoutExpired:
                        os.killpg(child.pid, signal.SIGKILL)  # timeout leads a group of its own

    def _workers(self) -> list[str]:
        """Kernels compile on the processor, and several processes share a GPU well; on a CPU they would share its
        cores.
        """
        if self.rehearse or importlib.util.find_spec("xdist") is None:
            return []
        return ["-n", str(min(WORKERS, os.cpu_count() or 1)), "--dist", "worksteal"]

    def _environment(self, stage: Stage) -> dict[str, str]:
        # Compiled kernels, whatever the caller's shell had in mind.
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        interpreted = {"TRITON_INTERPRET": "1"} if self.rehearse and stage.interpreted else {}
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.rehearse else {}
        return {**inherited, "PYTHONUNBUFFERED": "1", **self.settings, **interpreted, **hidden}

    def _take_what_the_probe_says(self) -> bool:
        """Whether there is a device. The allocator's setting is taken for the stages to come where it works."""
        probed = {r.implementation: r for r in Shelf(self.work / "probe" / "records").records() if r.op == "probe"}
        allocator = probed.get("allocator")
        if not self.rehearse:
            works = allocator is not None and allocator.status == "ok"
            self.settings = {"PYTORCH_ALLOC_CONF": ALLOCATOR if works else ALLOCATOR.replace("True", "False")}
            if not works:
                print(f"  {ALLOCATOR} does not work here and is switched off", flush=True)
        return "device" in probed and probed["device"].status == "ok"

    def _why_nothing_is_begun(self, probe: Record) -> str:
        if probe.status == "skipped":
            return "no time for the probe, so nothing is begun; give more with --minutes"
        if self.rehearse:
            return (
                f"the probe failed on this CPU, so nothing else is rehearsed; log.txt in {self.out / 'probe.tgz'} "
                "says why"
            )
        return "no device, no session; --rehearse runs the stages on a CPU with small shapes"

    def _keep(self, stage: Stage, status: Status, reason: str, seconds: float) -> Record:
        """Writes what became of the stage, and packs its folder."""
        folder = self.work / stage.name
        counts = counted(folder)
        record = Record(
            part="session",
            op="stages",
            shape={"on": "CPU-rehearsal" if self.rehearse else "GPU"},
            dtype="all",
            implementation=stage.name,
            role="ours",
            status=status,
            reason=reason,
            note=", ".join(f"{count} {what}" for what, count in counts.items()),
            rates={"seconds": round(seconds, 1)},
            environment=self._conditions(),
        )
        Shelf(folder / "records").add(record)
        if record.environment["device"] != NO_DEVICE:  # what was said before there was one
            shutil.rmtree(folder / "records" / folder_of(NO_DEVICE, ""), ignore_errors=True)
        log = folder / "log.txt"
        if log.exists():
            tidy_log(log, self._names())
        self._pack(stage)
        return record

    def _pack(self, stage: Stage) -> None:
        pack(self.work / stage.name, self.out / f"{stage.name}.tgz")

    def _conditions(self) -> dict[str, Any]:
        """As the probe found them; before it has, of the device there is nothing to say."""
        device = self.work / "probe" / "device.json"
        if device.exists():
            return json.loads(device.read_text(encoding="utf-8"))
        return {"device": NO_DEVICE, "commit": known_commit()}

    def _names(self) -> dict[str, str]:
        names = {
            str(self.work): "WORK",
            str(self.out): "OUT",
            str(ROOT): ".",
            sys.prefix: "PYTHON",
            sys.base_prefix: "PYTHON",
        }
        return {**names, tempfile.gettempdir() + "/": "TMP/", str(Path.home()) + "/": "HOME/"}


def counted(folder: Path) -> dict[str, int]:
    """Tests by outcome, and records by status, as far as a stage has come."""
    counts: Counter[str] = Counter()
    report = folder / "tests.xml"
    if report.exists():
        with _torn():
            for suite in ElementTree.parse(report).getroot().iter("testsuite"):
                found = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
                counts["tests passed"] += found["tests"] - found["failures"] - found["errors"] - found["skipped"]
                counts["failed"] += found["failures"] + found["errors"]
                counts["skipped"] += found["skipped"]
    for path in sorted((folder / "records").rglob("*.json")):
        with _torn():
            counts.update(f"records {record.status}" for record in read_records(path) if record.op != "stages")
    return {what: count for what, count in counts.items() if count}


@contextmanager
def _torn() -> Iterator[None]:
    """A stage that was killed may leave half a report: it counts for nothing."""
    try:
        yield
    except (ElementTree.ParseError, ValueError, OSError, TypeError):
        pass


def line(record: Record) -> str:
    """What became of a stage, for a terminal."""
    found = f": {record.note}" if record.note else ""
    reason = f" ({record.reason})" if record.reason else ""
    return f"{record.implementation}: {record.status} after {record.rates['seconds']:.0f} s{reason}{found}"


def chosen(commands: Sequence[str], only: Sequence[str]) -> list[Stage]:
    """The stages asked for, each once, the probe before all of them."""
    names = only or [name for command in commands or COMMANDS for name in COMMANDS[command]]
    return [STAGES[name] for name in dict.fromkeys(["probe", *names])]


def work_folder(commit: str, rehearse: bool) -> Path:
    """Ignored by git, and of one state of the code: what was measured there is not measured again."""
    return ROOT / "build" / "session" / (commit + ("-rehearsal" if rehearse else ""))


def minutes(text: str) -> float:
    """The value of --minutes. Raises ArgumentTypeError, of which argparse makes one line."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not LEAST_MINUTES <= found <= MOST_MINUTES:  # NaN is not
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {LEAST_MINUTES:g} to {MOST_MINUTES:g}")
    return found


def asked_for(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line; what is wrong with it ends the process with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="bash bench/gpu_session.sh",
        description="See the head of bench/gpu_session.sh.",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, help="folder of the archives, one a stage")
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"{', '.join(COMMANDS)} (default: all, one after the other)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="STAGE", help=f"these stages alone: {', '.join(STAGES)}"
    )
    parser.add_argument("--minutes", type=minutes, help="of all stages together (default: 9.5 a command)")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help=f"the same stages on a CPU, with small shapes and {SLOWER} times the minutes",
    )
    args = parser.parse_args(arguments)
    for asked, known in ((args.commands, COMMANDS), (args.only, STAGES)):
        if unknown := sorted(set(asked) - set(known)):
            parser.error(f"{unknown[0]!r} is none of {', '.join(known)}")
        if twice := [name for name, count in Counter(asked).items() if count > 1]:
            parser.error(f"{twice[0]!r} is given twice; give it once")
    if args.commands and args.only:
        parser.error(f"{args.commands[0]!r} and --only are two answers to one question; give one of them")
    require_commit(parser)
    return parser, args


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if every stage that was begun went well."""
    parser, args = asked_for(arguments)
    stages = chosen(args.commands, args.only)
    seconds = (
        60 * args.minutes if args.minutes else COMMAND_SECONDS * (1 if args.only else len(args.commands or COMMANDS))
    )
    seconds *= SLOWER if args.rehearse else 1
    os.environ["BENCH_COMMIT"] = known_commit()  # of all that is measured, and asked once
    work = work_folder(known_commit(), args.rehearse)
    for folder in (args.out, work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            parser.error(f"{folder}: cannot be written ({error.strerror}); give another folder")
    for stage in stages:
        if (args.out / f"{stage.name}.tgz").is_dir():
            parser.error(
                f"{args.out / stage.name}.tgz: is a folder, where an archive goes; give another folder, or remove it"
            )
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, _stop)
    session = Session(
        out=args.out.resolve(), work=work, deadline=time.monotonic() + seconds, rehearse=args.rehearse, settings={}
    )
    try:
        return session.run(stages)
    except Stopped as stopped:
        print(f"stopped by signal {stopped}; what there is lies in {args.out}", flush=True)
        return 128 + int(str(stopped))
    except OutputError as error:
        print(f"bash bench/gpu_session.sh: {error}", file=sys.stderr)
        return 2


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main())
