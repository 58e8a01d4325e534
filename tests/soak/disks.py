"""A disk that is full on demand: a small one in memory where we may mount it, else a limit on the size of files."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from .launcher import Run

_KIB = 64 * 1024


class Limit:
    """For ordinary users: no file of a run grows beyond so many bytes (RLIMIT_FSIZE). The error is EFBIG."""

    name = "limit"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, run: Run, room: int) -> None:
        for member in run.members:
            member.limit_files(room)

    def empty(self) -> None:
        """The limit ended with the run."""

    def close(self) -> None:
        pass


class Small:
    """A file system of 64 MiB in memory, filled by one file up to so many bytes. The error is ENOSPC."""

    name = "mount"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "disk"
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_KIB}k", "tmpfs", str(self.folder)], check=True, capture_output=True
        )
        self._ballast = self.folder / "ballast"

    def fill(self, run: Run, room: int) -> None:
        free = shutil.disk_usage(self.folder).free
        with self._ballast.open("wb") as file, suppress(OSError):
            if free > room:
                os.posix_fallocate(file.fileno(), 0, free - room)

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False)


def small_disk(folder: Path) -> Small | None:
    """A disk of its own, where the system lets this user mount one."""
    try:
        return Small(folder) if os.geteuid() == 0 else None
    except (OSError, subprocess.CalledProcessError):
        return None
