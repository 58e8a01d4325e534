"""Files that somebody else wrote, read at a bounded cost: never a pipe that does not end, never more than a limit."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

MAX_JSON_BYTES = 2**28  # tokenizers with long vocabularies have tens of MiB


def open_regular(path: str | Path) -> int:
    """A descriptor to read the file from; it never waits, as opening a pipe would.

    Raises OSError where the file cannot be opened, and where it is a folder, a pipe or a device.
    """
    handle = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    return check_regular(handle, path)


def check_regular(handle: int, path: str | Path) -> int:
    """The open descriptor, which is closed again where it is not a regular file's. Raises OSError then."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is not a file")
    return handle


def read_bytes(path: str | Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The whole file. Raises InputError that names it where it cannot be read, is not a file or exceeds ``limit``
    bytes.
    """
    try:
        with open(open_regular(path), "rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > limit:
        raise InputError(f"{path} has more than {limit / 2**20:.0f} MiB, the limit for a file of its kind")
    return content


def parse_json(text: str | bytes) -> Any:
    """JSON from text or UTF-8 bytes, with or without a byte order mark.

    Raises ValueError, one line, for anything else, also for what is nested too deeply.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("not usable JSON: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, and an integer of too many digits
        raise ValueError(f"not JSON: {error}") from error
