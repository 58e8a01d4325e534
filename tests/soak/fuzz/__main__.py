"""``python -m tests.soak.fuzz --minutes 20 --seed 0``: any input ends in a result or in one line, never in a traceback.

Each case is a command of ``mdpo`` in a forked child, in a copy of a folder where every command has what it needs. It
must return 0, 1 or 2 within its time, with one line that begins with "error:" where it is not 0, and without a
traceback or an escape sequence. Failures of one kind are counted together; the first of each is shown and its folder
kept.
"""

import argparse
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ..forks import alone, cli, defaults, leave  # first: it sets the environment that the libraries read
from .cases import FUZZERS, Case
from .scene import build, stand_in

_MEMORY = 24 * 2**30  # of address space, most of which the libraries map and never touch
_FRAME = re.compile(r'File "(.*?)", line (\d+), in (\S+)')


@dataclass
class Failure:
    fuzzer: str
    number: int
    said: str
    problem: str
    tail: str
    folder: Path

    @property
    def kind(self) -> str:
        return f"{self.fuzzer}: {re.sub(r'0x[0-9a-f]+|[0-9]+', 'N', self.problem)[:160]}"


def main() -> int:
    options = _options()
    root = Path(options.folder or tempfile.mkdtemp(prefix="mdpo-fuzz-"))
    scene = root / "scene"
    if not scene.exists():
        log = root / "scene.log"
        root.mkdir(parents=True, exist_ok=True)
        alone(lambda: _build(scene, log))
    names = options.only.split(",")
    print(f"fuzzing {', '.join(names)} in {root}, seed {options.seed}", flush=True)
    tried, failed = Counter[str](), Counter[str]()
    seen: dict[str, tuple[Failure, int]] = {}
    end = time.monotonic() + options.minutes * 60
    number = options.start
    while time.monotonic() < end and (options.cases is None or number < options.start + options.cases):
        for name in names:
            case = FUZZERS[name](Random(f"{options.seed} {name} {number}"), number, scene)
            failure = run(name, number, case, root, scene)
            tried[name] += 1
            if failure is not None:
                failed[name] += 1
                first, times = seen.get(failure.kind, (failure, 0))
                seen[failure.kind] = first, times + 1
                if times == 0:
                    _say(failure, options.seed)
                else:
                    shutil.rmtree(failure.folder, ignore_errors=True)
        number += 1
    for name in names:
        print(f"{name:<10} {tried[name] - failed[name]} of {tried[name]} ended as they should")
    for kind, (_, times) in sorted(seen.items(), key=lambda entry: -entry[1][1]):
        print(f"  {times} x {kind}")
    return 1 if seen or not tried else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--cases", type=int, help="of each fuzzer; as many as there is time for without it")
    parser.add_argument("--start", type=int, default=0, help="the first case's number: one that failed, with --cases 1")
    parser.add_argument("--only", default=",".join(FUZZERS), help=f"of {', '.join(FUZZERS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="to work in; its scene is used again. A temporary one without it")
    return parser.parse_args()


def _build(scene: Path, log: Path) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    build(scene)


def run(name: str, number: int, case: Case, root: Path, scene: Path) -> Failure | None:
    """Runs one case; its folder is kept where it fails."""
    folder = root / f"{name}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scene, folder, ignore=shutil.ignore_patterns("fifo"))
    os.mkfifo(folder / "fifo")
    for path, content in case.files.items():
        (folder / path).write_bytes(content)
    output = folder / "output.txt"
    pipe = os.open(folder / "fifo", os.O_RDWR)  # so that writing to it is fine, and reading from it never ends
    code = _forked(case, folder, output)
    os.close(pipe)
    problem = judge(code, output.read_bytes().decode(errors="replace"))
    if problem is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    text = output.read_bytes().decode(errors="replace")
    (folder / "case.txt").write_text(f"{case.arguments!r}\n{case.said}\n{problem}\n", errors="replace")
    return Failure(name, number, case.said, problem, "\n".join(text.splitlines()[-4:])[-900:], folder)


def _forked(case: Case, folder: Path, output: Path) -> int | None:
    """The exit code; negative for a signal, None where it did not end in its time and was not training either."""
    child = os.fork()
    if child == 0:
        _child(case, folder, output)
    end, code, turns = time.monotonic() + case.seconds, None, 0
    while code is None and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        elif turns % 500 == 499 and output.read_bytes().count(b"'grad_norm'") > 3:
            break  # a run that was asked to be long
        time.sleep(0.002)
        turns += 1
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
        if output.exists() and output.read_bytes().count(b"'grad_norm'") > 3:
            return 0
    return code


def _child(case: Case, folder: Path, output: Path) -> None:
    code: object = 70
    try:
        os.setsid()
        os.chdir(folder)
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(stream, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        defaults()
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
        stand_in()
        code = cli.main(case.arguments)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code if isinstance(code, int) else 0 if code is None else 1)


def judge(code: int | None, text: str) -> str | None:
    """What is wrong with how a case ended, in one line; None where nothing is."""
    if "Traceback (most recent call last)" in text:
        return _signature(text)
    if code is None:
        return "did not end in its time"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    errors = [line for line in text.splitlines() if re.match(r"(mdpo[\w -]*: )?error: ", line)]
    if code != 0 and len(errors) != 1:
        return f"exit code {code} with {len(errors)} error lines"
    if code != 0 and len(errors[0]) > 3000:
        return f"an error line of {len(errors[0])} characters"
    if "\x1b" in text:
        return "an escape sequence in the output"
    return None


def _signature(text: str) -> str:
    """A traceback's last line, and the last place in our code that it went through."""
    trace = text[text.rindex("Traceback (most recent call last)") :]
    ours = [found for found in _FRAME.findall(trace) if "/mdpo/" in found[0] or "mdpo_kernels" in found[0]]
    place = f"{ours[-1][0].rpartition('/mdpo')[2]}:{ours[-1][2]}" if ours else "outside"
    lines = [line for line in trace.splitlines() if line and not line.startswith(" ")]
    return f"{lines[-1][:120]} (mdpo{place})"


def _say(failure: Failure, seed: int) -> None:
    print(f"FAILED {failure.fuzzer} {failure.number}: {failure.said!r:.400}")
    print(f"  ! {failure.problem}".encode("utf-8", "replace").decode())
    for line in failure.tail.splitlines():
        print(f"    {line[:220]}".encode("utf-8", "replace").decode())
    print(
        f"    {failure.folder}; again: --only {failure.fuzzer} --seed {seed} --start {failure.number} --cases 1",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
