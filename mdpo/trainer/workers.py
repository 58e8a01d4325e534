"""The dataloader's workers: what goes wrong in one is told in a line by the training, and none outlives it."""

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from torch.utils.data import get_worker_info

_GONE = 5.0  # seconds that the system may take to end a process
_ADVICE = "take fewer dataloader_num_workers, smaller images or a smaller token_budget"


class Unread(NamedTuple):
    """What a step is whose rows could not be read. problem: names row and file, and says what to do."""

    problem: str


def begin_worker(number: int) -> None:
    """A terminal or a job's end signals all processes of a run; its workers go when the training says so."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)


@contextmanager
def memory_bound() -> Iterator[None]:
    """A worker that is out of memory ends here: it could not even hand over the error, and would be waited for."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if get_worker_info() is not None and _out_of_memory(error):
            os._exit(errno.ENOMEM)
        raise


def _out_of_memory(error: BaseException) -> bool:
    """Also in torch's and the operating system's words, and behind an error that was made of it."""
    text = str(error)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if any(words in text for words in ("allocate memory", "shared memory", "unable to mmap")):
        return True
    return error.__cause__ is not None and _out_of_memory(error.__cause__)


def workers_of(iterator: object) -> Sequence[BaseProcess]:
    """The processes behind a dataloader's iterator; torch has no public name for them."""
    return getattr(iterator, "_workers", ())


def kill_workers(workers: Sequence[BaseProcess]) -> None:
    """Ends them whatever they hang on: at its exit Python would wait for a stopped one for ever.

    They are gone afterwards: torch's own handler, once it is back, takes one that ends then for a failure.
    """
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_GONE)


def how_one_died(workers: Sequence[BaseProcess]) -> str | None:
    """What became of a worker that is gone, with what to do about it; None where all live."""
    codes = [worker.exitcode for worker in workers]
    code = next((code for code in codes if code), None)
    if code is None:
        return None
    if code == errno.ENOMEM:
        return f"a dataloader worker ran out of memory; {_ADVICE}"
    if code == -signal.SIGKILL:
        return f"a dataloader worker was killed (out of memory?); {_ADVICE}"
    if code == -signal.SIGBUS:
        return f"a dataloader worker ran out of shared memory; enlarge /dev/shm, or {_ADVICE}"
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"gone with exit code {code}"
    return f"a dataloader worker was {how}"
