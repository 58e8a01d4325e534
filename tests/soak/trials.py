"""One trial: a run that is disturbed once or more, at moments drawn from a seed, then resumed until it is done."""

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import checks
from .disks import Limit, Small
from .forks import HANGS, Member, wait
from .kinds import KINDS, Runs, Undisturbed
from .launcher import Run

MODES = ("kills", "signals", "disks")


@dataclass(frozen=True)
class Moment:
    """When: at the ``number``-th file event of process ``rank``, after that many logged steps, or so many seconds."""

    what: str  # event, step, clock
    number: float
    rank: int = 0


@dataclass(frozen=True)
class Disturbance:
    """What happens, and when. target: process 0, process 1, their groups, or the launcher.

    signal: the signal; times: 1 or 2, gap seconds apart. in_write: instead of at once, the process is killed by the
    first write from then on that passes ``room`` bytes. room: for a disk, what is left of it.
    """

    mode: str
    moment: Moment
    signal: int = 0
    target: str = "process 0"
    times: int = 1
    gap: float = 0.0
    in_write: bool = False
    room: int = 0
    disk: str = ""

    def __str__(self) -> str:
        when = f"{self.moment.what} {self.moment.number:g} of process {self.moment.rank}"
        if self.mode == "disks":
            return f"{self.disk}: {self.room} bytes of disk left at {when}"
        if self.in_write:
            return f"killed in a write past {self.room} bytes from {when}"
        return f"{signal.Signals(self.signal).name} x{self.times} ({self.gap:.2f} s) to {self.target} at {when}"


@dataclass
class Trial:
    mode: str
    kind: str
    processes: int
    seed: str
    disturbances: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    folder: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def draw(
    rng: random.Random, mode: str, whole: Undisturbed, processes: int, disk: str, *, shares_memory: bool
) -> Disturbance:
    """A disturbance of a run that takes as long and does as much as ``whole``.

    shares_memory: with data workers, whose shared memory a limit on the size of files would strike too.
    """
    rank = rng.randrange(processes)
    what = rng.choices(("event", "step", "clock"), (5, 2, 3))[0]
    number = {
        "event": lambda: rng.randint(1, max(whole.events[rank], 1)),
        "step": lambda: rng.randint(1, max(whole.steps - 1, 1)),
        "clock": lambda: round(rng.uniform(0, whole.seconds), 3),
    }[what]()
    moment = Moment(what, number, rank)
    if mode == "disks":
        return Disturbance(mode, moment, room=rng.choice((0, 2048, 20_000, 60_000, 200_000)), disk=disk)
    if mode == "kills":
        if rng.random() < 0.3 and processes == 1 and not shares_memory:
            at = Moment("event", rng.randint(1, max(whole.events[0], 1)))
            return Disturbance(mode, at, signal.SIGXFSZ, in_write=True, room=rng.choice((512, 2048, 9000, 30_000)))
        targets = ["process 0"] if processes == 1 else ["process 0", "process 1", "all"]
        return Disturbance(mode, moment, signal.SIGKILL, rng.choice(targets))
    number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    targets = ["process 0", "group 0"] + (["process 1", "all", "launcher", "launcher"] if processes > 1 else [])
    target = rng.choice(targets)
    times = 1 if target == "launcher" else rng.choice((1, 1, 2))
    return Disturbance(mode, moment, number, target, times, round(rng.choice((0.0, 0.02, 0.3)), 2) if times == 2 else 0)


class Disturbed:
    """Does what a ``Disturbance`` says to a run, and looks at what came of it."""

    def __init__(self, what: Disturbance, run: Run, out: Path, disk: Small | Limit) -> None:
        self.what, self.run, self.out, self.disk = what, run, out, disk
        self.happened = False
        self.steps_before = 0

    def go(self) -> list[str]:
        """Waits for the moment, disturbs, waits for the end. Returns what should not be so."""
        held = self.run.members[self.what.moment.rank]
        come = wait(lambda: self._has_come(held) or self.run.ended(), self.run.members, HANGS)
        if not come:
            return [f"hangs before the disturbance: {checks.last_line(held.text)!r}"]
        self.steps_before = max(member.steps for member in self.run.members)
        if not self.run.ended():
            self.happened = True
            self._disturb()
            held.gate.release()
            if self.what.times == 2:
                time.sleep(self.what.gap)
                self._send()
        if not self.run.wait():
            return [f"hangs: {HANGS:.0f} s after the disturbance it still runs; {checks.last_line(self.run.text)!r}"]
        return self._problems()

    def _has_come(self, member: Member) -> bool:
        moment = self.what.moment
        if moment.what == "event":
            return member.held
        if moment.what == "step":
            return member.steps >= moment.number
        return member.begun and time.monotonic() - self.run.started >= moment.number

    def _disturb(self) -> None:
        if self.what.mode == "disks":
            self.disk.fill(self.run, self.what.room)
        elif self.what.in_write:
            self.run.members[0].limit_files(self.what.room)
        else:
            self._send()

    def _send(self) -> None:
        name, _, number = self.what.target.partition(" ")
        members = [self.run.members[int(number)]] if number else self.run.members
        with suppress(ProcessLookupError):
            if name == "launcher":
                os.kill(self.run.launcher, self.what.signal)
                return
            for member in members:
                (os.kill if name == "process" else os.killpg)(member.pid, self.what.signal)

    def _problems(self) -> list[str]:
        texts = [member.text for member in self.run.members]
        # Who is killed prints nothing any more: it is a data worker, which Python tells in its own words that it is
        # alone.
        ended = ["" if member.code == -signal.SIGKILL else member.text for member in self.run.members]
        problems = checks.tracebacks(ended) + checks.torn(self.out)
        lines = checks.ways_on(texts)
        if len(lines) > 1:
            problems.append(f"{len(lines)} lines name the way on")
        codes = [member.code for member in self.run.members]
        problems += {"kills": self._after_kill, "signals": self._after_signal, "disks": self._after_disk}[
            self.what.mode
        ](codes)
        if self.what.mode == "signals" and self.happened and self.run.left_behind():
            problems.append("processes of the run are left behind")
        return problems

    def _after_kill(self, codes: list[int | None]) -> list[str]:
        if not self.happened:
            return []
        ended_by = {-self.what.signal, 0}  # 0: a write past the limit did not come any more, or it was as good as done
        others = {1, -signal.SIGTERM, *(128 + number for number in (signal.SIGTERM,))} | ended_by
        struck = [self.what.target.endswith(str(rank)) or self.what.target == "all" for rank in range(len(codes))]
        return [
            f"process {rank} ended with {code}"
            for rank, (code, hit) in enumerate(zip(codes, struck, strict=True))
            if code not in (ended_by if hit else others)
        ]

    def _after_signal(self, codes: list[int | None]) -> list[str]:
        if not self.happened:
            return []
        allowed = {128 + self.what.signal, 0}
        if len(codes) > 1:  # the launcher ends the others by SIGTERM; without their peer they may also give up
            allowed |= {128 + signal.SIGTERM}
        problems = [
            f"process {rank} ended with {code}"
            for rank, code in enumerate(codes)
            if code not in allowed and not (code == -self.what.signal and self._was_out_of_reach(rank))
        ]
        stopped = all(code not in (0, None) for code in codes)
        once = self.what.times == 1 or self.what.gap == 0  # as timeout sends one: to the process, and to its group
        if once and self.steps_before and stopped:
            if not checks.checkpoints(self.out):
                problems.append("stopped by one signal, and there is no checkpoint")
            if not checks.ways_on([member.text for member in self.run.members]):
                problems.append("stopped by one signal, and no line says how to go on")
        return problems

    def _was_out_of_reach(self, rank: int) -> bool:
        """Whether a process may have been struck before it set its handlers, or by a second signal after it put them
        back: then the signal ends it, as it does any program."""
        said = self.run.members[rank].text
        twice = self.what.times == 2 or len(self.run.members) > 1  # from the launcher, and from the process beside it
        return not said or (twice and (rank > 0 or "stopped by" in said))

    def _after_disk(self, codes: list[int | None]) -> list[str]:
        if not self.happened:
            return []
        allowed = {0, 1} if len(codes) == 1 else {0, 1, 128 + signal.SIGTERM, -signal.SIGTERM}
        problems = [f"process {rank} ended with {code}" for rank, code in enumerate(codes) if code not in allowed]
        lines = checks.errors([member.text for member in self.run.members])
        if 1 in codes and not lines:
            problems.append("the disk was full, and no line says so")
        if len(lines) > 1:
            problems.append(f"{len(lines)} error lines")
        return problems


def run_trial(runs: Runs, disks: list[Small | Limit], mode: str, kind: str, processes: int, seed: str) -> Trial:
    """One trial from beginning to end. A folder of a trial without problems is removed."""
    began = time.monotonic()
    rng = random.Random(f"{seed} {mode} {kind} {processes}")
    trial = Trial(mode, kind, processes, seed)
    whole = runs.undisturbed(kind, processes)
    workers = "workers" in kind
    disk = rng.choice([disk for disk in disks if not (workers and isinstance(disk, Limit))] or disks)
    place = runs.folder / "trials" / "".join(letter if letter.isalnum() else "-" for letter in seed)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    out = (disk.folder if mode == "disks" else place) / "out"
    shutil.rmtree(out, ignore_errors=True)
    config = runs.config(kind, processes, out, place)
    log = place / "log"
    done, left = False, rng.choice((1, 1, 2, 3))
    while left and not done and not trial.problems:
        what = draw(rng, mode, whole, processes, disk.name, shares_memory=workers)
        trial.disturbances.append(str(what))
        done = _disturbed(runs, disk, what, config, out, processes, log, trial)
        left -= 1
    if not done and not trial.problems:
        _finish(runs, config, out, processes, log, trial)
    if not trial.problems:
        limit = next((int(line.split()[-1]) for line in KINDS[kind].splitlines() if "save_total_limit" in line), None)
        trial.problems = checks.final(out, whole, limit)
    trial.seconds = time.monotonic() - began
    if trial.problems:
        trial.folder = str(place)
        if out.parent != place and out.exists():
            shutil.copytree(out, place / "out", symlinks=True)
            shutil.rmtree(out)
    else:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(place)
    return trial


def _disturbed(
    runs: Runs, disk: Small | Limit, what: Disturbance, config: Path, out: Path, processes: int, log: Path, trial: Trial
) -> bool:
    """Starts or resumes, disturbs; whether the run was done before or in spite of it."""
    moment = what.moment
    run = runs.start(
        config,
        out,
        processes,
        _resume(out),
        hold_at=int(moment.number) if moment.what == "event" else 0,
        holds=moment.rank,
        die_in_write=what.in_write,
    )
    try:
        trial.problems += Disturbed(what, run, out, disk).go()
    finally:
        run.close()
        _write(log, f"{what}", run)
        disk.empty()
    if run.members[0].code == 2:
        trial.problems.append(f"refused: {checks.last_line(run.text)!r}")
    return all(member.code == 0 for member in run.members)


def _finish(runs: Runs, config: Path, out: Path, processes: int, log: Path, trial: Trial) -> None:
    """Resumes, undisturbed, until the run is done: once, since nothing is in its way any more."""
    run = runs.start(config, out, processes, _resume(out))
    ended = run.wait(2 * HANGS)
    run.close()
    _write(log, "resumed", run)
    trial.problems += checks.tracebacks([member.text for member in run.members])
    if not ended:
        trial.problems.append(f"the resumed run hangs: {checks.last_line(run.text)!r}")
    elif run.code != 0:
        trial.problems.append(f"the resumed run ended with {run.code}: {checks.last_line(run.text)!r}")


def _resume(out: Path) -> list[str]:
    if checks.checkpoints(out):
        return ["--resume_from_checkpoint", "true"]
    # A run without checkpoints that was ended while it saved has to be told to begin again, over what is there.
    return ["--overwrite_output_dir", "true"] if any((out / name).exists() for name in checks.WEIGHTS) else []


def _write(log: Path, title: str, run: Run) -> None:
    with log.open("a") as file:
        for rank, member in enumerate(run.members):
            file.write(f"\n=== {title}: process {rank}, exit code {member.code}\n{member.text}")
