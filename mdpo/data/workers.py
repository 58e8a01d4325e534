"""Work shared among processes: forked ones, so that nothing has to be loaded twice."""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mdpo.errors import TrainingError

_MOST = 4  # each takes some 300 MiB of its own, with what Python touches of what it shares


def processes() -> int:
    """How many may work at once: as many as this process may use processors for, up to four; 1 where none can fork."""
    if not hasattr(os, "fork") or sys.platform == "darwin":  # whose own libraries do not survive a fork
        return 1
    return min(len(os.sched_getaffinity(0)), _MOST)


def share(work: Callable[[int], object], count: int) -> None:
    """Runs ``work(0)`` here and ``work(1)`` … ``work(count - 1)`` in processes of their own, and waits for all.

    What they find they write into files: nothing else comes back. Raises TrainingError where a process was killed.
    """
    gc.freeze()  # what is there stays: collecting would look through all of it, again and again, and copy it in each
    children = []
    try:
        children += [_fork(work, number) for number in range(1, count)]
        work(0)
        for child in children[:]:
            _, status = os.waitpid(child, 0)
            children.remove(child)
            code = os.waitstatus_to_exitcode(status)
            if code:
                how = (
                    f"was killed by signal {-code}, most often for want of memory"
                    if code < 0
                    else "failed, as said above"
                )
                raise TrainingError(f"a process that prepared part of the data {how}; run the same command again")
    finally:
        gc.unfreeze()
        for child in children:  # only after an error
            os.kill(child, 9)
            os.waitpid(child, 0)


def _fork(work: Callable[[int], object], number: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(number)
        code = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)  # no finalizers: they are the parent's


def write_json(path: Path, value: object) -> None:
    path.write_bytes(json.dumps(value).encode())


def read_json(path: Path) -> dict:
    return json.loads(path.read_bytes())
