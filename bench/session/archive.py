"""One archive a stage: packed so that a machine which lets few plain files out lets it out, unpacked as a stranger's."""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from mdpo.outputs import whole_file

MOST_LOG_BYTES = 4 * 2**20
MOST_BYTES, MOST_FILES = 256 * 2**20, 20_000  # of what an archive unpacks to
_CUT = b"\n[... cut ...]\n"


class BadArchive(ValueError):
    """An archive that is not a session's. The message names it and what is wrong, in one line."""


def pack(folder: Path, archive: Path) -> None:
    """The folder's files as a .tgz, there whole or not at all."""
    with whole_file(archive) as part, tarfile.open(part, "w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".part":  # a record on its way has another name
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
    """Into `folder`, plain files and folders alone. Raises BadArchive for anything else, torn ones among it."""
    if not hasattr(tarfile, "data_filter"):
        raise BadArchive("this Python cannot unpack a stranger's archive safely; take 3.12, or the newest 3.10 or 3.11")
    try:
        with gzip.open(archive) as whole, tarfile.open(fileobj=whole, mode="r:") as tar:
            for member in _checked(archive, tar):
                tar.extract(member, folder, filter="data")
            if len(whole.read(MOST_BYTES)) == MOST_BYTES:  # to gzip's checksum, which tar stops short of
                raise BadArchive(f"{archive}: goes on after its end; not a session's")
    except (tarfile.TarError, zlib.error, EOFError, OSError, UnicodeError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, BadArchive):
            raise
        raise BadArchive(f"{archive}: not a whole archive of a session ({_one_line(error)}); copy it again") from error


def _checked(archive: Path, tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    """The members one by one, as long as they are few, small and plain."""
    files = size = 0
    for member in tar:
        files, size = files + 1, size + member.size
        if not (member.isreg() or member.isdir()):
            raise BadArchive(f"{archive}: {_shown(member.name)} is neither file nor folder; a session packs nothing else")
        if files > MOST_FILES or size > MOST_BYTES:
            raise BadArchive(f"{archive}: unpacks to more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB; not a session's")
        yield member


def _shown(name: str) -> str:
    return ascii(name)[:100]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {ascii(str(error))[1:-1][:200]}"
