"""SIGINT, SIGTERM and SIGHUP: what has begun is finished first; a second one ends the process at once.

The same one again within a tenth of a second is no second one: nobody changes their mind that fast, but ``timeout``
sends its signal to its child and then to the whole group, and others do the same.

Three things can be interrupted. A command that has nothing to finish is left by an exception (``Stopped``). A training
``holds``: the signal is only remembered until the step and its checkpoint are done. And where a training waits for its
data, it waits for ten more seconds.

The handlers that Python runs come only between two of the main thread's bytecodes, so a second thread reads the signals
as they arrive: it ends the process at the second one and interrupts waits that take too long, whatever the main thread
does. It also tells the other processes of the run, which may wait for data that never comes and for nothing else.
"""

import multiprocessing
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from torch.utils.data._utils import signal_handling

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = (
    10.0  # seconds after a signal: for data that a training waits for, or for a start-up blocked outside of Python
)
_SAME = 2.0  # seconds in which one Ctrl-C may reach a process twice, from the terminal and from its launcher
_ECHO = 0.1  # seconds in which the same signal again is the first one's echo
_POLL = 0.5


class Stopped(KeyboardInterrupt):
    """A signal came and there is nothing to finish, or it has been waited for long enough. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(name_of(number))
        self.number = number


def name_of(number: int) -> str:
    """SIGTERM, for 15."""
    return signal.Signals(number).name


class Signals:
    """The handlers of the three signals, within a ``with`` block in the main thread; those before are put back.

    A signal that is ignored, as nohup does with SIGHUP, stays ignored.

    Attributes:
        received: The number of the first signal, None before it.
        holding: Whether a signal is only remembered. False at first: then it raises ``Stopped``.
        over: Whether the last word is said, and signals are of no more interest.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.holding = self.over = False
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE") or 1) > 1
        self._before: dict[int, Any] = {}
        self._child_handler: Any = None
        self._unraisable: Any = None
        self._wakeup = -1
        self._pipe = (-1, -1)
        self._door: socket.socket | None = None  # where other processes of the run knock, and the word they must know
        self._word = secrets.token_bytes(16)
        self._others: list[tuple[bytes, bytes]] = []
        self._first: float | None = None  # when the first one came, and which
        self._number = 0
        self._echoes_until: float | None = None  # while the same one again is an echo of the first
        self._seen = False  # whether the main thread knows of it
        self._waiting: float | None = None  # since when the main thread waits for data
        self._own = 0  # signals that the watching thread has sent itself
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)

    def __enter__(self) -> "Signals":
        global _active
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        if self._launched and sys.platform == "linux":  # which alone gives such a socket a name by itself
            self._door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._door.setblocking(False)
            self._door.bind("")
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN and before is not None:  # None: not set from Python, cannot be put back
                self._before[number] = before
                signal.signal(number, self._handle)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._unraised
        _active = self
        self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        global _active
        _active = None
        sys.unraisablehook = self._unraisable
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._child_handler is not None:
            signal.signal(signal.SIGCHLD, self._child_handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._pipe[1], b"\0")
        self._watcher.join()
        for end in self._pipe:
            os.close(end)
        if self._door is not None:
            self._door.close()

    @property
    def door(self) -> list[tuple[bytes, bytes]]:
        """Where this process can be told of a signal, for ``meet``: no entry where it cannot be."""
        return [] if self._door is None else [(self._door.getsockname(), self._word)]

    def meet(self, doors: list[tuple[bytes, bytes]]) -> None:
        """doors: of the run's processes. From now on those on this machine are told of the signals that come here."""
        self._others = [door for door in doors if door[1] != self._word]
        if self._first is not None:
            self._tell(self._number)

    def hold(self) -> None:
        """From here on a signal is only remembered: what is begun has to be finished."""
        self.holding = True
        self._keep_workers_deaths_out()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the block waits for data, ``Stopped`` is raised ``PATIENCE`` seconds after a signal."""
        self._waiting = time.monotonic()
        try:
            yield
        finally:
            self._waiting = None

    def _keep_workers_deaths_out(self) -> None:
        # torch's handler raises wherever the main thread is when a worker dies, in the middle of an optimizer's step
        # too. Without it torch finds out where it waits for the worker. It is set once in a process: now, to be taken
        # away.
        signal_handling._set_SIGCHLD_handler()
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", "") == signal_handling.__name__:
            self._child_handler = handler
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.over:
            return
        first, self._seen = not self._seen, True
        if first:
            self.received = number
        if number == signal.SIGHUP:
            _let_go_of_a_dead_terminal()
        if self._overdue if self.holding else first:
            raise Stopped(self.received or number)

    def _unraised(self, unraisable: Any) -> None:
        # It came in the middle of a callback whose errors Python only prints: it is remembered, and a training looks.
        if not isinstance(unraisable.exc_value, Stopped):
            self._unraisable(unraisable)

    @property
    def _overdue(self) -> bool:
        if self._first is None or self._waiting is None:
            return False
        return time.monotonic() - max(self._first, self._waiting) >= PATIENCE

    # The watching thread

    def _watch(self) -> None:
        ends = [self._pipe[0]] if self._door is None else [self._pipe[0], self._door]
        while True:
            # The system says whether an echo came in time, however long Python keeps this thread from looking.
            echoes = self._echoes_until
            wait = _POLL if echoes is None else max(0.0, echoes - time.monotonic())
            ready = select.select(ends, [], [], wait)[0]
            if self._door in ready:
                self._told()
            if self._pipe[0] in ready:
                for number in os.read(self._pipe[0], 4096):
                    if number == 0:
                        return
                    if number in self._before:
                        self._came(number)
            if echoes is not None and time.monotonic() >= echoes:
                self._echoes_until = None
            if self._overdue:
                self._interrupt()
            elif (
                self._first is not None
                and not self._seen
                and not self.holding
                and time.monotonic() - self._first >= PATIENCE
            ):
                self._leave(self._number)  # blocked outside of Python, where no exception reaches it

    def _came(self, number: int) -> None:
        now = time.monotonic()
        if self._own:
            self._own -= 1
        elif self.over:
            return
        elif self._first is None:
            self._first, self._number, self._echoes_until = now, number, now + _ECHO
            self._tell(number)
        elif number == self._number and self._echoes_until is not None:
            return
        elif now - self._first >= _SAME or not (self._launched or number == self._number == signal.SIGHUP):
            self._leave(number)  # (a shell and the terminal behind it both say that they hang up)

    def _tell(self, number: int, leaves: bool = False) -> None:
        """Another process of the run may be on another machine, or gone: then its launcher knows."""
        for address, word in self._others:
            if self._door is not None:
                with suppress(OSError):
                    self._door.sendto(word + bytes((number, leaves)), address)

    def _told(self) -> None:
        """Not by a signal, which could not be told from a second one."""
        message = b"" if self._door is None else self._door.recv(64)
        if message[:-2] != self._word or message[-2] not in self._before or self.over:
            return
        if message[-1]:
            self._leave(message[-2])
        elif self._first is None:
            self._first, self._number = time.monotonic(), message[-2]
            self._wake()

    def _wake(self) -> None:
        """Has the main thread's handler run, and what blocks it in the system interrupted."""
        self._own += 1
        signal.pthread_kill(threading.main_thread().ident or 0, self._number)

    def _interrupt(self) -> None:
        self._wake()
        time.sleep(5 * _POLL)

    def _leave(self, number: int) -> None:
        self._tell(number, leaves=True)
        for child in multiprocessing.active_children():  # a stopped one would outlive this process
            if child.daemon:
                child.kill()
        with suppress(OSError):
            os.write(2, f"ended at once by {name_of(number)}\n".encode())
        os._exit(128 + number)


_active: Signals | None = None


def active() -> Signals | None:
    """The handlers that are set now."""
    return _active


@contextmanager
def signals() -> Iterator[Signals | None]:
    """The handlers that are set now, or new ones for the block; None outside of the main thread, which alone
    has them.
    """
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active
    else:
        with Signals() as new:
            yield new


def _let_go_of_a_dead_terminal() -> None:
    """Output to a terminal that is gone raises; it goes nowhere instead. A terminal that lives is kept."""
    for handle in (1, 2):
        poll = select.poll()
        poll.register(handle, 0)
        if poll.poll(
            _POLL * 1000 if os.isatty(handle) else 0
        ):  # the shell may say so a moment before the terminal goes
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, handle)
            os.close(nowhere)


# A child must neither write into this process's pipe nor take its signals for its own: a terminal's Ctrl-C goes to all.


def _before_fork() -> None:
    if _active is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _in_parent() -> None:
    if _active is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _in_child() -> None:
    global _active
    if _active is None:
        return
    signal.set_wakeup_fd(-1)
    if _active._door is not None:
        _active._door.close()
    for number in _active._before:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    _active = None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


with suppress(AttributeError):  # where there is no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
