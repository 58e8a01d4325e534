"""What is prepared once and kept beside the data: folders named for a digest of everything they were made from.

An entry is written whole or is not there. Its files are named in ``manifest.json`` with their sizes and digests, and
one that does not agree is made again. One process makes an entry, and others that want it wait: the ranks of a run, or
two runs at once.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any

from mdpo.errors import OutputError
from mdpo.outputs import unwritten, whole_folder

from .blob import temporary_folder
from .workers import read_json, write_json

try:
    import fcntl
except ImportError:  # not on Windows, where two processes may both do the work
    fcntl = None

logger = logging.getLogger(__name__)

NAME = ".mdpo-cache"
SMALLEST = 2**24  # bytes of data: what is smaller is prepared in a second or two
_KEPT = 4  # entries of a kind; the oldest go
_MANIFEST = "manifest.json"
_READ_BYTES = 2**20  # at a time


class Cache:
    """The entries in one folder. folder: None keeps nothing. large: whether the data is worth it."""

    def __init__(self, folder: Path | None, *, large: bool = True) -> None:
        self.folder, self.large = folder, large

    @classmethod
    def beside(cls, files: Sequence[Path]) -> "Cache":
        """Beside the data files, or below the user's own cache folder where that cannot be written to; none for data
        that is small."""
        try:
            if not files or sum(file.stat().st_size for file in files) < SMALLEST:
                return cls(None, large=False)
        except OSError:
            return cls(None, large=False)
        for folder in (files[0].resolve().parent / NAME, _users_folder()):
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                if os.access(folder, os.W_OK):
                    return cls(folder)
        return cls(None)

    def entry(
        self, kind: str, key: str, make: Callable[[Path], None], check: Callable[[Path], Any], *, keep: bool = True
    ) -> Any:
        """What ``check`` reads from the entry's folder, which ``make`` fills where it is not there.

        kind: "rows" or "tokens". key: digest of all that the entry is made from. check: raises OSError or ValueError,
        TypeError and the like where the files are not what ``make`` leaves. keep: False for what no key can name.

        Where nothing can be kept, the folder is a temporary one.
        """
        if self.folder is not None and keep:
            folder = self.folder / f"{kind}-{key}"
            try:
                with _alone(self.folder):
                    found = self._found(folder, check)
                    if found is not None:
                        return found
                    with whole_folder(folder) as part:
                        make(part)
                        write_json(part / _MANIFEST, _digests(part))
                    self._tidy(kind)
                logger.info("prepared %s are kept in %s", kind, folder)
                return check(folder)
            except (OSError, OutputError) as error:
                cause = error.__cause__ if isinstance(error, OutputError) else error
                logger.warning(
                    "%s: prepared %s are not kept (%s); the next start prepares them again",
                    self.folder,
                    kind,
                    unwritten(cause or error) or error,
                )
                self.folder = None
        folder = temporary_folder()
        make(folder)
        return check(folder)

    def _found(self, folder: Path, check: Callable[[Path], Any]) -> Any:
        if not folder.is_dir():
            return None
        try:
            if read_json(folder / _MANIFEST) != _digests(folder):
                raise ValueError("its files are not those that were written")
            found = check(folder)
        except Exception as error:  # a torn file can lead to anything
            logger.warning("%s is damaged (%s); it is made again", folder, error)
            rmtree(folder)
            return None
        with suppress(OSError):
            os.utime(folder)
        return found

    def _tidy(self, kind: str) -> None:
        assert self.folder is not None
        entries = sorted(self.folder.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for folder in entries[_KEPT:]:
            rmtree(folder, ignore_errors=True)


def _users_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mdpo"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time is inside; the lock goes with a process that dies."""
    if fcntl is None:
        yield
        return
    with open(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is preparing data in %s: waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: two may do the same work, and either result is whole
            pass
        yield


def _digests(folder: Path) -> dict[str, list]:
    names = sorted(path.name for path in folder.iterdir() if path.name != _MANIFEST)
    return {name: [(folder / name).stat().st_size, file_digest(folder / name)] for name in names}


def file_digest(path: Path) -> str:
    """Of a file's content."""
    found = new_digest()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):  # hashlib.file_digest is Python 3.11's
            found.update(part)
    return found.hexdigest()


def new_digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def digest(*parts: Any) -> str:
    """Names what the parts' representations say."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@cache
def code_digest() -> str:
    """Of the code that prepares data: what another version of it prepared is not taken."""
    return digest(*((path.name, file_digest(path)) for path in sorted(Path(__file__).parent.glob("*.py"))))
