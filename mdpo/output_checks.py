"""What can be said of a command's results before it reads anything: whether their places can be written to, are free,
and are not its own inputs."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdpo.errors import InputError

PICTURE_MARK = b"Software\0mdpo"  # in a PNG's text, as PIL and matplotlib write it
_MARKED_BYTES = 4096
# What a folder of data is read from: a result among them would be read as data from then on.
_DATA_SUFFIXES = {".json", ".jsonl", ".parquet", ".arrow"}


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a command is about to write.

    Attributes:
        setting: the option that says where.
        resumed: whether the command goes on with a file that is there already.
        mark: what a file has near its start that this command wrote earlier, and may replace because it can be made
            again from the same inputs in a moment: a report, a picture, a result.
    """

    setting: str
    path: Path
    resumed: bool = False
    mark: bytes | None = None


def check_outputs(outputs: Sequence[Output], inputs: Mapping[str, Iterable[Path]]) -> None:
    """Whether a command can write its results without destroying anything.

    Args:
        outputs: the files it writes.
        inputs: the files and folders it reads, by what they are called on the command line.

    Raises InputError, naming the option, where a file cannot be written, is one of the inputs, also through links, or
    is there already and is neither resumed nor replaced.
    """
    for output in outputs:
        check_output_file(output.path, output.setting)
        path = output.path.expanduser()
        for name, files in inputs.items():
            for file in files:
                _check_input(output.setting, path, name, file)
        if path.is_symlink() and not path.exists():
            raise InputError(f"{output.setting}: {path} is a link that leads nowhere; give another file, or remove it")
        if path.is_file() and not output.resumed and not _has_mark(path, output.mark):
            raise InputError(f"{output.setting}: {path} exists; give another file, or remove it")


def check_not_input(setting: str, folder: str | Path, inputs: Mapping[str, Path | None]) -> None:
    """Raises InputError, naming ``setting``, where ``folder``, which is about to be written, is one that is read."""
    for name, path in inputs.items():
        if path is not None and is_same(Path(folder), path):
            raise InputError(f"{setting}: {folder} is the folder that is read as {name}; give another folder")


def is_same(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to the same file or folder, which is there."""
    try:
        return os.path.samefile(Path(one).expanduser(), Path(other).expanduser())
    except (OSError, ValueError):
        return False


def _check_input(setting: str, path: Path, name: str, file: Path) -> None:
    if path.is_file() and is_same(path, file):
        raise InputError(f"{setting}: {path} is the file that is read as {name}; give another file")
    inside = file.expanduser().is_dir() and path.resolve().is_relative_to(file.expanduser().resolve())
    if name == "data" and inside and path.suffix in _DATA_SUFFIXES:
        raise InputError(
            f"{setting}: {path} lies in the folder that is read as data, and would be read with it the next time; "
            "give a file elsewhere"
        )


def _has_mark(path: Path, mark: bytes | None) -> bool:
    if mark is None:
        return False
    with path.open("rb") as file:
        return mark in file.read(_MARKED_BYTES)


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
