"""A picture's file, opened by the very path that was checked: no link, no pipe, no device."""

import errno
import os
from pathlib import Path
from typing import BinaryIO

from mdpo.reading import check_regular, open_regular

_WAITLESS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class BecameLink(OSError):
    """A part of the path is a symbolic link, which it was not when the row was read."""


def open_picture(path: Path) -> BinaryIO:
    """The file at ``path``, which rows hold with every link in it resolved.

    Every folder is opened in the one before it without following links, so that a link put in its place since then
    cannot lead elsewhere. A relative path is resolved first. (On Windows, which has no such calls, the path is opened
    as it is.)

    Raises OSError where the file is missing or not a regular file, and BecameLink.
    """
    if not path.is_absolute():
        path = Path(os.path.realpath(path))
    if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
        return open(open_regular(path), "rb")
    try:
        folder = os.open(path.anchor, os.O_RDONLY | os.O_DIRECTORY | _WAITLESS)
        try:
            for part in path.parts[1:-1]:
                inner = _folder(part, folder)
                os.close(folder)
                folder = inner
            handle = os.open(path.name or ".", os.O_RDONLY | os.O_NOFOLLOW | _WAITLESS, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.realpath(path) != os.path.normpath(path):
            raise BecameLink(f"{path} leads through a symbolic link") from error
        raise
    return open(check_regular(handle, path), "rb")


def _folder(name: str, parent: int) -> int:
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | _WAITLESS
    try:
        return os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    except PermissionError:  # a folder may be passed through that must not be listed
        return os.open(name, getattr(os, "O_PATH", os.O_RDONLY) | flags, dir_fd=parent)
