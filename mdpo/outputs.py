"""Writes that are whole or not there.

A result is written beside its place, under a hidden name, brought to the disk and only then given its name: whoever
looks, at whatever moment the process or the machine ended, finds the old one or the new one, never a part.
"""

import errno
import hashlib
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdpo.errors import OutputError

# EFBIG: a limit on the size of files (ulimit -f), or of what the file system can hold.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}
_SUFFIX = ".part"
_LONGEST_NAME = 100  # bytes of a target's name that its hidden one repeats; file systems take 255, some of them 143
_FORGOTTEN_S = 24 * 3600  # age from which a part of another machine, whose processes cannot be asked for, is a leftover
_number = itertools.count()
_written_now: set[Path] = set()  # by this process


@contextmanager
def whole_files(*paths: str | Path) -> Iterator[tuple[Path, ...]]:
    """Yields the paths of new files to write; at the end of the block they take the places of ``paths``, all or none.

    Makes the folders above them. A symbolic link is followed; what is no regular file (a pipe, ``/dev/stdout``) is
    written to straight. Where the block raises, what was at ``paths`` stays as it was, and folders made for it go
    again.

    Raises OutputError where the disk is full or refuses.
    """
    targets = [_target(path) for path in paths]
    parts: list[Path] = []
    made: list[Path] = []
    try:
        for target in targets:
            if not _is_special(target):
                made += make_folder(target.parent)
                _clear(target)
            parts.append(target if _is_special(target) else _beside(target))
        yield tuple(parts)
        moves = [(part, target) for part, target in zip(parts, targets, strict=True) if part != target]
        for part, target in moves:
            with suppress(OSError):  # a new file, or a file system without modes
                shutil.copymode(target, part)
            _sync(part)
        for part, target in moves:
            part.replace(target)
        made.clear()
        for folder in {target.parent for _, target in moves}:
            _sync(folder)
    except Exception as error:
        _raise_own(paths[0], error, targets)
        raise
    finally:
        for part in set(parts) - set(targets):
            _remove(part)
        remove_empty(made)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """One of ``whole_files``."""
    with whole_files(path) as (part,):
        yield part


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a new folder to fill; at the end of the block it takes the place of ``path``, which is not there yet, or
    is an empty folder.

    Where the block raises, nothing is left of it. Raises OutputError where the disk is full or refuses, and where
    something else has been written to ``path`` meanwhile.
    """
    target = _target(path)
    part: Path | None = None
    made: list[Path] = []
    try:
        made += make_folder(target.parent)
        _clear(target)
        part = _beside(target)
        part.mkdir()
        yield part
        sync_folder(part)
        part.replace(target)
        made.clear()
        _sync(target.parent)
    except Exception as error:
        _raise_own(path, error, [target])
        raise
    finally:
        if part is not None:
            _remove(part)
        remove_empty(made)


@contextmanager
def whole_contents(folder: str | Path, *, last: Iterable[str] = (), instead_of: Iterable[str] = ()) -> Iterator[Path]:
    """Yields a new hidden folder below ``folder`` to fill; at the end of the block its files take their places in
    ``folder``, where others may lie that stay.

    last: names of files without which the others are nothing; an old one goes first and the new one comes last, so
        that ``folder`` never looks complete when it is not. instead_of: patterns of files that the new ones replace,
        also where they are called otherwise.

    Where the block raises, ``folder`` stays as it was. Raises OutputError where the disk is full or refuses.
    """
    target = _target(folder)
    part: Path | None = None
    made: list[Path] = []
    try:
        made += make_folder(target)
        hidden = target / "files"
        _clear(hidden)
        part = _beside(hidden)
        part.mkdir()
        yield part
        sync_folder(part)
        made.clear()
        _move_in(part, target, set(last), tuple(instead_of))
    except Exception as error:
        _raise_own(folder, error, [target])
        raise
    finally:
        if part is not None:
            _remove(part)
        remove_empty(made)


def _move_in(part: Path, target: Path, last: set[str], instead_of: tuple[str, ...]) -> None:
    new = sorted(path.relative_to(part) for path in part.rglob("*") if not path.is_dir())
    closing = [path for path in new if path.name in last]
    for path in closing:
        (target / path).unlink(missing_ok=True)
    for path in {path for pattern in instead_of for path in target.glob(pattern)} - {target / path for path in new}:
        path.unlink(missing_ok=True)
    for path in [*(path for path in new if path.name not in last), *closing]:
        (target / path).parent.mkdir(exist_ok=True, parents=True)
        (part / path).replace(target / path)
    for path in {(target / path).parent for path in new} | {target}:
        _sync(path)


@contextmanager
def scratch_folder(folder: str | Path) -> Iterator[Path]:
    """A hidden folder below ``folder`` that is gone at the end of the block, with ``folder`` if it was made for this.

    What killed processes have left of it is cleared up. Raises OSError where it cannot be made.
    """
    made = make_folder(Path(folder))
    target = Path(folder, "trial")
    _clear(target)
    part = _beside(target)
    try:
        part.mkdir()
        yield part
    finally:
        _remove(part)
        remove_empty(made)


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole file, UTF-8. Raises OutputError where the disk is full or refuses."""
    with whole_file(path) as part:
        write_part(part, text)


def write_part(part: Path, text: str) -> None:
    """Writes one of the new files that ``whole_files`` yields, UTF-8."""
    # half a surrogate pair, which is no text, becomes an escape
    part.write_text(text, encoding="utf-8", errors="backslashreplace")


def sync_folder(folder: Path) -> None:
    """Brings every file below ``folder``, and their names, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def raise_unwritten(path: str | Path, error: Exception, kept: str = "nothing that was there before is lost") -> None:
    """Raises OutputError where ``error`` is one of the disk's, also in the words of torch or safetensors."""
    reason = unwritten(error)
    if reason is not None:
        way = "Make room, or write elsewhere," if reason.startswith("the disk is full") else "Write elsewhere,"
        raise OutputError(
            f"{path} could not be written: {reason}; {kept}. {way} and run the same command again"
        ) from error


def unwritten(error: BaseException) -> str | None:
    """Why a write failed, where ``error`` says that one did; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _TAKEN:
            return "something else has been written there meanwhile"
        return "the disk is full" if error.errno in _FULL else error.strerror or str(error)
    text = str(error)  # torch, safetensors and tokenizers wrap the disk's errors in their own
    if "No space left" in text or any(f"os error {number})" in text for number in _FULL):
        return "the disk is full"
    if any(words in text for words in ("PytorchStreamWriter", "iostream error")) or (
        "unexpected pos" in text and "vs" in text
    ):
        return "the disk is full or failed"
    return None


def _raise_own(path: str | Path, error: Exception, targets: list[Path]) -> None:
    """As ``raise_unwritten``, but not for a file elsewhere that the block read or missed."""
    name = getattr(error, "filename", None)
    elsewhere = isinstance(name, (str, bytes)) and not any(
        Path(os.fsdecode(name)).absolute().is_relative_to(target.parent) for target in targets
    )
    if not elsewhere or getattr(error, "errno", None) in _FULL:
        raise_unwritten(path, error)


def _target(path: str | Path) -> Path:
    """Where ``path`` leads: links are followed, but not those that the system makes up for pipes and terminals."""
    path = Path(path).expanduser()
    return path if _is_special(path) else Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    system = path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",)) and not path.is_relative_to("/dev/shm")
    return path.exists() and (system or not path.is_file() and not path.is_dir())


def _beside(target: Path) -> Path:
    part = target.with_name(f"{_hidden(target)}{socket.gethostname()}-{os.getpid()}-{next(_number)}{_SUFFIX}")
    _written_now.add(part)
    return part


def _hidden(target: Path) -> str:
    """How the hidden name begins: with the target's, as far as that is not so long that nothing could be added."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_NAME:
        return f".{target.name}."
    return f".{target.name[:16]}-{hashlib.blake2b(name, digest_size=8).hexdigest()}."


def _clear(target: Path) -> None:
    """Removes what killed processes left behind of earlier writes."""
    start = _hidden(target)
    with suppress(OSError):  # a folder that may be written to but not listed
        for path in list(target.parent.iterdir()):
            if path.name.startswith(start) and path.name.endswith(_SUFFIX) and _is_left(path, start):
                _remove(path)


def clear_parts(folder: Path) -> None:
    """Removes all that killed processes left behind of writes to a folder, whatever it was to become."""
    here = f".{socket.gethostname()}-"
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(".") and path.name.endswith(_SUFFIX):
                at = path.name.find(here)
                if _is_left(path, path.name[: at + 1] if at > 0 else "."):
                    _remove(path)


def _is_left(part: Path, start: str) -> bool:
    host, process, number = ("", "", "")
    with suppress(ValueError):
        host, process, number = part.name[len(start) : -len(_SUFFIX)].rsplit("-", 2)
    if not (process.isdecimal() and number.isdecimal()):
        return False  # not a name of ours
    if host == socket.gethostname():
        if int(process) == os.getpid():  # also after a restart in a container, where numbers come again
            return part not in _written_now
        if not _runs(int(process)):
            return True
    with suppress(OSError):
        return time.time() - part.stat().st_mtime > _FORGOTTEN_S
    return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return process > 0


def _remove(part: Path) -> None:
    _written_now.discard(part)
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def make_folder(folder: Path) -> list[Path]:
    """Makes a folder and those above it. Returns the ones that were not there."""
    missing = []
    above = folder
    while not above.exists() and above != above.parent:
        missing.append(above)
        above = above.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing[::-1])
        raise
    return missing[::-1]


def remove_empty(folders: list[Path]) -> None:
    """Takes back what ``make_folder`` returned, as far as nothing has been written there."""
    for folder in reversed(folders):
        with suppress(OSError):  # something lies in it by now
            folder.rmdir()


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, where the system does not let one be opened
        if path.exists():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FSYNC:  # file systems that know no fsync here
            raise
    finally:
        os.close(handle)
