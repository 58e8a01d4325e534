"""Whether a place can be written to, asked before the work whose result goes there."""

import os
import tempfile
from pathlib import Path

from mdpo.errors import InputError


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
