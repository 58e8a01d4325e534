"""One archive a stage: packed so that a machine which lets few plain files out lets it out, unpacked as a
stranger's.
"""

import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from mdpo.outputs import unwritten, whole_file
from mdpo.reading import open_regular

MOST_LOG_BYTES = 4 * 2**20
MOST_BYTES, MOST_FILES = 256 * 2**20, 20_000  # of what an archive unpacks to
MOST_NAME, MOST_DEPTH = 400, 8  # characters of a file's name, and how deep it lies
_AT_A_TIME = 2**20  # bytes; no header of a session's is longer
_AROUND = 4096  # bytes of a tar file that belong to a file and are not its content, at most
_CUT = b"\n[... cut ...]\n"
# What tarfile and gzip raise for what is no archive, and for what somebody has made to look like one.
_TORN = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, LookupError, ArithmeticError, RecursionError)


class BadArchive(ValueError):
    """An archive that is not a session's. The message names it and what is wrong, in one line."""


def pack(folder: Path, archive: Path) -> None:
    """The folder's files as a .tgz, there whole or not at all."""
    with whole_file(archive) as part, tarfile.open(part, "w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            # A record on its way has another name, and a link is not brought home.
            if path.is_file() and not path.is_symlink() and path.suffix != ".part":
                tar.add(path, path.relative_to(folder).as_posix(), recursive=False)


def tidy_log(log: Path, names: Mapping[str, str]) -> None:
    """Shortens a log that would not travel, and writes `names` for the machine's own paths."""
    content = log.read_bytes()
    if len(content) > MOST_LOG_BYTES:
        half = MOST_LOG_BYTES // 2
        content = content[:half] + _CUT + content[-half:]
    for path in sorted(names, key=len, reverse=True):
        content = content.replace(path.encode(), names[path].encode())
    log.write_bytes(content)


def unpack(archive: Path, folder: Path) -> None:
    """Into `folder`, plain files alone.

    Raises BadArchive for anything else, torn ones among it; then nothing is left.
    """
    try:
        with open(open_regular(archive), "rb") as file, gzip.GzipFile(fileobj=file) as whole:
            bounded = _Bounded(archive, whole)
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                for member, place in _checked(archive, tar):
                    content = tar.extractfile(member)
                    assert content is not None  # a plain file has one
                    _write(archive, content, folder / place)
            while bounded.read(_AT_A_TIME):  # to gzip's checksum, which tar stops short of
                pass
    except _TORN as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, BadArchive):
            raise
        if unwritten(error) == "the disk is full":
            raise BadArchive(f"{archive}: the disk is full below {folder.parent}; make room, or set TMPDIR") from error
        raise BadArchive(f"{archive}: not a whole archive of a session ({_one_line(error)}); copy it again") from error


class _Bounded(io.RawIOBase):
    """What gzip makes of an archive, a little at a time and not without end: a header may say that it has gigabytes."""

    def __init__(self, archive: Path, whole: gzip.GzipFile) -> None:
        self._archive, self._whole = archive, whole

    def read(self, size: int = -1) -> bytes:
        self._check(size, _AT_A_TIME, "has a header that is too long")
        self._check(self.tell() + size, MOST_BYTES + MOST_FILES * _AROUND, "goes on after its end")
        return self._whole.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset, MOST_BYTES + MOST_FILES * _AROUND, "goes on after its end")
        return self._whole.seek(offset, whence)

    def tell(self) -> int:
        return self._whole.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def _check(self, size: int, most: int, fault: str) -> None:
        if not 0 <= size <= most:
            raise BadArchive(f"{self._archive}: {fault}; not a session's")


def _checked(archive: Path, tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    """The files one by one with their places, as long as they are few, small and plain."""
    files = size = 0
    for member in tar:
        name = _shown(member.name)
        files, size = files + 1, size + member.size
        if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or member.issparse():
            raise BadArchive(f"{archive}: {name} is neither file nor folder; a session packs nothing else")
        if files > MOST_FILES or size > MOST_BYTES or member.size < 0:
            raise BadArchive(
                f"{archive}: unpacks to more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB; not a session's"
            )
        parts = [part for part in member.name.split("/") if part != "."]
        plain = member.name.isprintable() and len(member.name) <= MOST_NAME and len(parts) <= MOST_DEPTH
        if not plain or ".." in parts or "" in parts:
            raise BadArchive(f"{archive}: {name} is not a name that a session gives a file")
        if not member.isdir():
            yield member, Path(*parts)


def _write(archive: Path, content: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            shutil.copyfileobj(content, file)
    except FileExistsError as error:
        raise BadArchive(f"{archive}: {_shown(path.name)} is in it twice; not a session's") from error


def _shown(name: str) -> str:
    return ascii(name)[:100]


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {ascii(str(error))[1:-1][:200]}"
