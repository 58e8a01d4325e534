"""The moments of a run: its file events, counted by the process itself, which can be held at any one of them.

Python announces what it does to files to audit hooks. A hook in the child counts what is done below one folder; at the
event that was asked for it tells the parent and waits, so that a signal, a kill or a full disk comes exactly there, and
comes there again with the same seed.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.truncate",
    "shutil.copyfile",
    "shutil.rmtree",
}
HELD, COUNTED, BEGUN = b"h", b"c", b"b"


@dataclass(frozen=True, slots=True)
class Gate:
    """Two pipes between a run and who watches it. hold_at: the event, from 1 on, to stop at; 0: none."""

    folder: Path
    hold_at: int
    tell: int  # the run's end
    told: int  # the watcher's
    wait: int  # the run's end
    let_go: int  # the watcher's

    @classmethod
    def open(cls, folder: Path, hold_at: int) -> "Gate":
        told, tell = os.pipe()
        wait, let_go = os.pipe()
        os.set_blocking(told, False)
        return cls(folder, hold_at, tell, told, wait, let_go)

    def enter(self) -> "Counter":
        """In the run: counts from here on."""
        os.close(self.told)
        os.close(self.let_go)
        counter = Counter(self)
        sys.addaudithook(counter.see)
        os.write(self.tell, BEGUN)
        return counter

    def leave_run_s_ends(self) -> None:
        os.close(self.tell)
        os.close(self.wait)

    def release(self) -> None:
        """In the watcher: lets a held run go on."""
        try:
            os.write(self.let_go, b".")
        except BrokenPipeError:  # it was killed where it stood
            pass

    def close(self) -> None:
        os.close(self.told)
        os.close(self.let_go)


class Counter:
    def __init__(self, gate: Gate) -> None:
        self.gate, self.count = gate, 0
        self._process, self._folder = os.getpid(), str(gate.folder)

    def see(self, event: str, arguments: tuple) -> None:
        if event != "open" and event not in _CHANGES or os.getpid() != self._process:  # a data worker inherits the hook
            return
        if event == "open" and not (len(arguments) > 2 and isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        if not self._below(arguments):
            return
        self.count += 1
        if self.count == self.gate.hold_at:
            os.write(self.gate.tell, HELD)
            os.read(self.gate.wait, 1)

    def _below(self, arguments: tuple) -> bool:
        return any(
            isinstance(name, (str, os.PathLike)) and os.fspath(name).startswith(self._folder) for name in arguments
        )

    def say(self) -> None:
        """At the run's end: how many events there were."""
        os.write(self.gate.tell, COUNTED + str(self.count).encode() + b"\n")
