"""Bytes that are read piece by piece: from memory where they are few, from a file where they are many."""

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

_PIECE = 2**20
IN_MEMORY = 2**24  # bytes: what is smaller is not worth a file


class Blob:
    """Bytes in memory, or in a file, which every process opens for itself."""

    def __init__(self, data: bytes | Path) -> None:
        self._data = data
        self._handle: tuple[int, int] | None = None  # process, descriptor

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``. Raises OSError where the file is gone or shorter."""
        if isinstance(self._data, bytes):
            return self._data[start:stop]
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), os.open(self._data, os.O_RDONLY | os.O_CLOEXEC))
        pieces = []
        while start < stop:
            piece = os.pread(self._handle[1], stop - start, start)
            if not piece:
                raise OSError(f"{self._data} is shorter than it was")
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        """Everything, a MiB at a time."""
        end = len(self._data) if isinstance(self._data, bytes) else self._data.stat().st_size
        for start in range(0, end, _PIECE):
            yield self.read(start, min(start + _PIECE, end))

    def __getstate__(self) -> bytes | Path:
        return self._data

    def __setstate__(self, state: bytes | Path) -> None:
        self.__init__(state)

    def __del__(self) -> None:
        if self._handle is not None and self._handle[0] == os.getpid():
            os.close(self._handle[1])


class Spool:
    """Bytes as they come, in memory until they are many, then in a file of the folder, or else of a temporary one.

    folder: where a file of this name is written from the start; None: a temporary file, once there is more than
    IN_MEMORY.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self._memory = bytearray()
        self._path = None if folder is None else folder / name
        self._file = None if self._path is None else self._path.open("wb")
        self._written = 0

    def __len__(self) -> int:
        return self._written + len(self._memory)

    def write(self, data: bytes) -> None:
        """Raises OSError where the disk is full."""
        self._memory += data
        if len(self._memory) >= IN_MEMORY:
            self._flush()

    def _flush(self) -> None:
        if self._file is None:
            self._path = temporary_folder() / "data"
            self._file = self._path.open("wb")
        self._file.write(self._memory)
        self._written += len(self._memory)
        self._memory.clear()

    def finish(self) -> Blob:
        """Everything that was written, to be read."""
        if self._file is None:
            return Blob(bytes(self._memory))
        self._flush()
        self._file.close()
        assert self._path is not None
        return Blob(self._path)


def temporary_folder() -> Path:
    """A folder that goes away when this process ends, and not when one that it forks does."""
    folder = Path(tempfile.mkdtemp(prefix="mdpo-"))
    weakref.finalize(_KEEPER, _remove, folder, os.getpid())
    return folder


class _Keeper:
    """Lives as long as the process: finalizers run at its end, also after an error."""


_KEEPER = _Keeper()


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        rmtree(folder, ignore_errors=True)
