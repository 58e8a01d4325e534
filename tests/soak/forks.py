"""A fork server: the libraries are imported once, and every run of ``mdpo`` is a forked child that can be disturbed.

A run's output goes through a pipe, not into a file: a limit on the size of files, which stands for a full disk, would
otherwise silence it.
"""

import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from .events import BEGUN, COUNTED, HELD, Gate

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

import torch  # after the environment that it reads

from mdpo import cli

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HANGS = 120.0  # seconds after which a tiny run, two of them beside other work included, will not end any more


class Member:
    """One process of a run: its output, its file events, its exit code (negative: the signal that ended it)."""

    def __init__(self, arguments: Sequence[str], folder: Path, *, hold_at: int = 0, die_in_write: bool = False) -> None:
        """folder: whose file events count. hold_at: the event to hold the process at. die_in_write: it is killed by
        the write that passes the limit on a file's size, where without it the write fails."""
        self.arguments, self.die_in_write = [str(word) for word in arguments], die_in_write
        self.gate = Gate.open(folder, hold_at)
        self._read, self._write = os.pipe()
        self.pid, self.code = 0, None
        self.output, self.held, self.begun, self.events = b"", False, False, 0
        self._told = b""

    def fork(self, environment: dict[str, str] | None = None) -> int:
        """Starts the process in a session of its own."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(environment or {})
        return self.pid

    def _run(self, environment: dict[str, str]) -> None:
        code = 1
        try:
            os.setsid()
            os.environ.update(environment)
            for stream in (1, 2):
                os.dup2(self._write, stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            defaults(die_in_write=self.die_in_write)
            random.seed()
            counter = self.gate.enter()
            try:
                code = cli.main(self.arguments)
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except KeyboardInterrupt:
                traceback.print_exc()
                code = 128 + signal.SIGINT
            counter.say()
        except BaseException:
            traceback.print_exc()
        finally:
            leave(code)

    def watch(self) -> None:
        """In the parent, once everybody who writes is forked."""
        os.close(self._write)
        self.gate.leave_run_s_ends()
        os.set_blocking(self._read, False)

    def streams(self) -> list[int]:
        return [self._read, self.gate.told]

    def drain(self) -> None:
        self.output += _all_of(self._read)
        self._told += _all_of(self.gate.told)
        self.begun = self.begun or BEGUN in self._told
        self.held = self.held or HELD in self._told
        if COUNTED in self._told and self._told.endswith(b"\n"):
            self.events = int(self._told.partition(COUNTED)[2])

    def reap(self) -> bool:
        """Whether the process has ended. Its own parent alone learns the code."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    @property
    def steps(self) -> int:
        """How many steps the run has logged."""
        return self.output.count(b"'grad_norm'")

    def limit_files(self, size: int) -> None:
        """From now on no file of the process grows beyond ``size`` bytes: its disk is full."""
        with suppress(ProcessLookupError):
            hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, hard))

    def close(self) -> None:
        """Ends what is left of the process's session, and lets its pipes go."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:
            with suppress(ChildProcessError):  # a launcher's
                self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.drain()
        os.close(self._read)
        self.gate.close()


def leave(code: int) -> NoReturn:
    """Ends a forked process as an interpreter ends, without what its parent registered to be done at the end."""
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def defaults(*, die_in_write: bool = False) -> None:
    """The signals as the program finds them: a shell leaves them so, and Ctrl-C is made to end it (``ctrl_c_ends``)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if die_in_write else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def alone(work: Callable[[], None]) -> None:
    """Does ``work`` in a child, so that it leaves no threads here for later forks to trip over."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the child that was to prepare the runs failed")


def wait(done: Callable[[], bool], members: Sequence[Member], seconds: float) -> bool:
    """Takes in what ``members`` say until ``done()``; whether it was done within ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        for member in members:
            member.drain()
        if done():
            return True
        left = end - time.monotonic()
        if left <= 0:
            return False
        streams = [stream for member in members for stream in member.streams()]
        ready, _, _ = select.select(streams, [], [], min(left, 0.005))
        if ready:  # a pipe that is closed at the other end is always ready
            time.sleep(0.0005)


def _all_of(stream: int) -> bytes:
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(stream, 65536):
            parts.append(part)
    return b"".join(parts)
