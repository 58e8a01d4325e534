"""A second signal ends a process at once; what only looks like a second one does not."""

import os
import select
import signal
import threading
import time

import pytest

from mdpo.trainer import signals as handlers

pytestmark = pytest.mark.slow

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def holding() -> tuple[int, int]:
    """A process that holds signals and waits in C. Returns its id, and the end of a pipe that closes with it."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        handlers._active = None
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)
        with handlers.Signals() as current:
            current.hold()
            os.write(write, b".")
            lock = threading.Lock()
            with lock:
                lock.acquire(timeout=60)
        os._exit(0)
    os.close(write)
    os.read(read, 1)
    return process, read


def exit_code(process: int, pipe: int) -> int:
    os.close(pipe)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_second_signal_ends_the_process_whatever_it_does():
    process, pipe = holding()
    began = time.monotonic()
    for _ in range(2):
        os.kill(process, signal.SIGTERM)
        time.sleep(1)
    assert exit_code(process, pipe) == 143
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])  # for SIGHUP the same holds for two seconds
def test_one_that_is_sent_twice_at_once_is_one(number):
    process, pipe = holding()
    for pause in (0.0, 0.02, 0.0):
        os.kill(process, number)
        time.sleep(pause)
    assert not select.select([pipe], [], [], 1.0)[0]  # it is still there
    os.kill(process, number)
    assert exit_code(process, pipe) == 128 + number


def test_another_one_at_once_is_a_second_one():
    process, pipe = holding()
    os.kill(process, signal.SIGINT)
    os.kill(process, signal.SIGTERM)
    assert exit_code(process, pipe) in (130, 143)  # whichever the system delivers last
