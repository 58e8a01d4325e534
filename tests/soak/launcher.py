"""Runs of one process, or of two under a launcher that does what torchrun does, at the price of a fork.

torchrun's contract, as its subprocess handler and agent keep it: every rank has a session of its own; a signal to the
launcher goes to the groups of all ranks, which get 30 seconds; a rank that fails has the others ended by SIGTERM. The
store through which the ranks meet is the launcher's and outlives them.
"""

import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from types import FrameType

import torch.distributed as dist

from .forks import HANGS, SIGNALS, Member, wait

_GRACE = 30.0


class Run:
    """One start of ``mdpo`` over one or more processes."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.launcher = 0
        self.started = time.monotonic()
        if len(members) == 1:
            members[0].fork()
        else:
            self._launch()
        for member in members:
            member.watch()

    def _launch(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told, tell = os.pipe()
        sys.stdout.flush()
        self.launcher = os.fork()
        if self.launcher == 0:
            code = 1
            try:
                os.close(told)
                launcher = _Launcher(self.members, port)
                code = launcher.run(tell)
                for rank, member in enumerate(self.members):
                    if member.code is not None:
                        os.write(tell, f"{rank} {member.code}\n".encode())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(tell)
        self._lines = os.fdopen(told)
        for member in self.members:
            member.pid = int(self._lines.readline())
        self._code: int | None = None

    @property
    def code(self) -> int | None:
        """The exit code of what was started: the one process, or the launcher."""
        return self._code if self.launcher else self.members[0].code

    def ended(self) -> bool:
        if not self.launcher:
            return self.members[0].reap()
        if self._code is None:
            done, status = os.waitpid(self.launcher, os.WNOHANG)
            if done:
                self._learn(status)
        return self._code is not None

    def _learn(self, status: int) -> None:
        """The launcher's code, and those of the ranks, which it alone was told."""
        self._code = os.waitstatus_to_exitcode(status)
        with self._lines:
            for line in self._lines:
                rank, code = map(int, line.split())
                self.members[rank].code = code

    def wait(self, seconds: float = HANGS) -> bool:
        return wait(self.ended, self.members, seconds)

    @property
    def text(self) -> str:
        return "\n".join(member.text for member in self.members)

    def left_behind(self, seconds: float = 10.0) -> bool:
        """Whether processes of the run are still there ``seconds`` after its end."""
        return not wait(lambda: not any(map(_group_lives, self.members)), self.members, seconds)

    def close(self) -> None:
        for member in self.members:
            with suppress(ProcessLookupError):
                os.killpg(member.pid, signal.SIGKILL)
        if self.launcher and self._code is None:
            wait(self.ended, self.members, 5)
            if self._code is None:
                os.kill(self.launcher, signal.SIGKILL)
                self._learn(os.waitpid(self.launcher, 0)[1])
        for member in self.members:
            member.close()


def _group_lives(member: Member) -> bool:
    try:
        os.killpg(member.pid, 0)
    except ProcessLookupError:
        return False
    return True


class _Launcher:
    """What runs in the launcher's process."""

    def __init__(self, members: list[Member], port: int) -> None:
        self.members, self.port = members, port
        self.asked: int | None = None

    def run(self, tell: int) -> int:
        os.setsid()
        for rank, member in enumerate(self.members):
            member.fork({**self._environment(), "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"})
            os.write(tell, f"{member.pid}\n".encode())
        for member in self.members:  # or the parent would never see the ends of their pipes
            member.watch()
        for number in SIGNALS:
            signal.signal(number, self._ask)
        self.store = dist.TCPStore("127.0.0.1", self.port, is_master=True, wait_for_workers=False)
        while True:
            ended = [member for member in self.members if member.reap()]
            if self.asked is not None:
                return self._end(self.asked, 128 + self.asked)
            if any(member.code for member in ended):
                return self._end(signal.SIGTERM, 1)
            if len(ended) == len(self.members):
                return 0
            time.sleep(0.02)

    def _environment(self) -> dict[str, str]:
        size = str(len(self.members))
        return {
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": "soak",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
        }

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number

    def _end(self, number: int, code: int) -> int:
        self._send(number)
        end = time.monotonic() + _GRACE
        while time.monotonic() < end and not all(
            [member.reap() for member in self.members]  # noqa: C419  (each of them)
        ):
            time.sleep(0.02)
        if not all(
            [member.reap() for member in self.members]  # noqa: C419  (each of them)
        ):
            self._send(signal.SIGKILL)
            return code if code == 1 else 1
        return code

    def _send(self, number: int) -> None:
        for member in self.members:
            if not member.reap():
                with suppress(ProcessLookupError):
                    os.killpg(member.pid, number)
