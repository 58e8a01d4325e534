"""The lock that a run holds on its output_dir, so that two at once cannot touch each other.

It is a hidden file with the process, host and start of the run that holds it. On one machine the system's own file
lock decides, which ends with its process, however that ends. A process of another machine, whose lock may not be seen
here, touches the file every 20 seconds: while the last touch is young the folder is in use, afterwards it is free.
"""

import errno
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mdpo.errors import InputError, TrainingError
from mdpo.outputs import make_folder, remove_empty

if sys.platform != "win32":
    import fcntl

LOCK_NAME = ".mdpo_run.lock"
TOUCH_EVERY_S = 20.0
STALE_AFTER_S = 120.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
_log = logging.getLogger(__name__)
_held: dict[Path, "RunLock"] = {}  # by this process, whose own file locks do not exclude each other


class RunLock:
    """Held on a folder from ``hold`` to ``release``. owner: who may hold it a second time."""

    def __init__(self, folder: Path, handle: int, owner: object, made: list[Path]) -> None:
        self._made = made
        self.folder, self.owner, self.record = folder, owner, _parse(handle)
        self._path, self._handle, self._times = folder / LOCK_NAME, handle, 1
        self._process = os.getpid()
        self._end = threading.Event()
        threading.Thread(target=self._touch, name="mdpo-run-lock", daemon=True).start()

    def check(self) -> None:
        """Raises TrainingError where another run has taken the folder over, because this one slept for too long."""
        if not _is_file(self._handle, self._path):
            raise TrainingError(
                f"{self.folder} belongs to another run by now ({_described(_read(self._path))}), which took it "
                "over while this one showed no sign of life; nothing more is written there"
            )

    def release(self) -> None:
        """The last of as many as there were of ``hold`` frees the folder."""
        self._times -= 1
        if self._times or os.getpid() != self._process:  # a forked worker has the object, not the lock
            return
        self._end.set()
        _held.pop(self.folder, None)
        if _is_file(self._handle, self._path):
            with suppress(OSError):
                self._path.unlink()
        os.close(self._handle)
        remove_empty(self._made)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _again(self) -> "RunLock":
        self._times += 1
        return self

    def _touch(self) -> None:
        while not self._end.wait(TOUCH_EVERY_S):
            with suppress(OSError):
                os.utime(self._handle)


def hold(folder: str | Path, owner: object) -> RunLock | None:
    """Takes the folder, which is made, for one run; if nothing is written there until its release, it is gone again.

    owner: whose run it is; the same may take it again, and releases it as often.

    Returns None, with a line, where the folder or its file system knows no locks. Raises InputError, naming the process
    and its host, where another run has it.
    """
    folder = Path(os.path.realpath(Path(folder).expanduser()))
    mine = _held.get(folder)
    if mine is not None and mine._process == os.getpid():
        if mine.owner is owner:
            return mine._again()
        raise _in_use(folder, mine.record)
    made: list[Path] = []
    try:
        made = make_folder(folder)
        handle = _take(folder)
    except OSError as error:
        _log.warning("%s cannot be locked (%s): take care that no other run uses it", folder, error.strerror or error)
        return None
    _held[folder] = RunLock(folder, handle, owner, made)
    return _held[folder]


def _take(folder: Path) -> int:
    """An open, locked lock file of ours. Raises InputError where another run's is alive, OSError where none can be."""
    path = folder / LOCK_NAME
    for _ in range(100):  # others may take and leave it meanwhile
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            _remove_stale(folder, path)
            continue
        try:
            if _lock(handle) is not False and _is_file(handle, path):
                os.write(handle, json.dumps(_record()).encode())
                return handle
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(handle)
            raise
        os.close(handle)
    raise _in_use(folder, _read(path))


def _remove_stale(folder: Path, path: Path) -> None:
    """Removes the lock file of a run that is gone. Raises InputError where it is alive."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        free = _lock(handle)
        record = _parse(handle)
        here = record.get("host") == socket.gethostname()
        if free is False or free is None and here and _runs(record.get("process")):
            raise _in_use(folder, record)
        age = _now(folder) - os.fstat(handle).st_mtime
        if record and age < STALE_AFTER_S and not (here and free):
            raise _in_use(folder, record, age)
        if _is_file(handle, path):
            path.unlink()
            _log.info("%s: the run of %s ended unexpectedly; its folder is free again", folder, _described(record))
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """True: locked. False: another process has it. None: this file system, or the system, knows no such locks."""
    if sys.platform == "win32":
        return None
    try:
        # POSIX's kind: data workers, which are forked, do not inherit it, and it ends with the process.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _record() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "start": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _read(path: Path) -> dict[str, Any]:
    """The record of a lock that this process does not hold: closing a second handle would end its own."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        return _parse(handle)
    finally:
        os.close(handle)


def _parse(handle: int) -> dict[str, Any]:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _described(record: dict[str, Any]) -> str:
    if not record:
        return "a process that is just starting"
    process, host, start = (str(record.get(name))[:64] for name in ("process", "host", "start"))
    said = f"process {process} on {host} since {start}"
    return "".join(character if character.isprintable() else "?" for character in said)


def _in_use(folder: Path, record: dict[str, Any], age: float | None = None) -> InputError:
    seen = (
        ""
        if age is None
        else f"; its last sign of life is {max(age, 0):.0f} s old, and counts for {STALE_AFTER_S:.0f} s"
    )
    return InputError(
        f"output_dir: {folder} is in use by another run ({_described(record)}{seen}); wait for its end, or give "
        "another --output_dir"
    )


def _is_file(handle: int, path: Path) -> bool:
    """Whether ``path`` is still the file that is open."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _now(folder: Path) -> float:
    """The time on the clock that dates the folder's files, which may be a server's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _runs(process: Any) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except OSError:  # another user's
        return True
    return process > 0
