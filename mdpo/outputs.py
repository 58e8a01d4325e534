"""Where results go: whether a place can be written to, asked before the work, and writes that are whole or not there.

A result is written beside its place, under a hidden name, brought to the disk and only then given its name: whoever looks,
at whatever moment the process or the machine ended, finds the old one or the new one, never a part.
"""

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdpo.errors import InputError, OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields the path of a new file to write; at the end of the block it takes the place of ``path``.

    Makes the folders above it. A symbolic link is followed; what is no regular file (``/dev/stdout``) is written to
    straight. Where the block raises, what was at ``path`` stays as it was.

    Raises OutputError where the disk is full or refuses.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    if target.exists() and not target.is_file():
        yield target
        return
    part = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target)
        yield part
        if target.exists():
            shutil.copymode(target, part)
        _sync(part)
        part.replace(target)
        _sync(target.parent)
    except Exception as error:
        raise_unwritten(path, error)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a new folder to fill; at the end of the block it takes the place of ``path``, which is not there yet, or is
    an empty folder.

    Where the block raises, nothing is left of it. Raises OutputError where the disk is full or refuses.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    part = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target)
        part.mkdir()
        yield part
        sync_folder(part)
        part.replace(target)
        _sync(target.parent)
    except Exception as error:
        raise_unwritten(path, error)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole file, UTF-8. Raises OutputError where the disk is full or refuses."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Brings every file below ``folder``, and their names, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def raise_unwritten(path: str | Path, error: Exception) -> None:
    """Raises OutputError where ``error`` is one of the disk's, also in the words of torch or safetensors."""
    reason = unwritten(error)
    if reason is not None:
        raise OutputError(
            f"{path} could not be written: {reason}; nothing that was there before is lost. Make room, or write elsewhere, "
            "and run the same command again"
        ) from error


def unwritten(error: BaseException) -> str | None:
    """Why a write failed, where ``error`` says that one did; None for any other error."""
    if isinstance(error, OSError):
        return "the disk is full" if error.errno in _FULL else error.strerror or str(error)
    text = str(error)  # torch and safetensors wrap the disk's errors in their own
    if "No space left" in text or "os error 28" in text or "os error 122" in text:
        return "the disk is full"
    if "PytorchStreamWriter" in text or ("unexpected pos" in text and "vs" in text):
        return "the disk is full or failed"
    return None


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}.part")


def _clear(target: Path) -> None:
    """Removes what a killed process of this machine left behind of an earlier write."""
    start = f".{target.name}.{socket.gethostname()}-"
    for path in target.parent.iterdir():
        if path.name.startswith(start) and path.suffix == ".part" and not _runs(path.stem.rpartition("-")[2]):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _runs(process: str) -> bool:
    with suppress(ProcessLookupError, ValueError):
        os.kill(int(process), 0)
        return True
    return False


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, where the system does not let one be opened
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that know no fsync here
            raise
    finally:
        os.close(handle)


def check_output_folder(path: str | Path, setting: str) -> None:
    """Raises InputError, naming ``setting``, where ``path`` is not a folder that files can be written to, nor can
    become one. Creates nothing."""
    folder = Path(path).expanduser()
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{setting}: {folder} is a file; give a folder")
        parent = _nearest(folder)
        if not parent.is_dir():
            raise InputError(f"{setting}: {folder} cannot be made, because {parent} is a file; give another folder")
        with tempfile.TemporaryFile(dir=parent):  # permissions alone do not tell of a read-only disk, nor bind root
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, InputError):
            raise
        raise InputError(f"{setting}: {folder} cannot be written to ({_reason(error)}); give another folder") from error


def check_output_file(path: str | Path, setting: str) -> None:
    """Raises InputError, naming ``setting``, where no file can be written at ``path``. Creates nothing."""
    file = Path(path).expanduser()
    try:
        if file.is_dir():
            raise InputError(f"{setting}: {file} is a folder; give a file")
        if file.exists() and not os.access(file, os.W_OK):
            raise InputError(f"{setting}: {file} is write-protected; give another file")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{setting}: {file} cannot be written to ({_reason(error)}); give another file") from error
    check_output_folder(file.parent, setting)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
