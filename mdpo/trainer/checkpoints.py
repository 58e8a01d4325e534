"""Checkpoints as folders: which there are, which are whole, and how one comes to its name, or goes.

``checkpoint-N`` is a folder's name only while everything is in it. What is being written, replaced or removed is below
``.saving``, beside the checkpoints, so that a rename makes it one or none, at whatever moment the process ends.
"""

import logging
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mdpo.outputs import sync_folder

from .manifest import SETTINGS_NAME, Unfit, check_signed

__all__ = [
    "SETTINGS_NAME",
    "STAGING",
    "checkpoint_folder",
    "checkpoint_step",
    "checkpoints_newest_first",
    "last_whole_checkpoint",
    "put_in_place",
    "recover",
    "remove",
    "rotate",
]

_log = logging.getLogger(__name__)

STAGING = ".saving"
_REPLACED = "replaced"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(0|[1-9][0-9]{{0,17}})")


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    return Path(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def checkpoint_step(folder: str | Path) -> int | None:
    """The step in a checkpoint's name, None for another name."""
    found = _NAME.fullmatch(Path(folder).name)
    return int(found[1]) if found else None


def checkpoints_newest_first(output_dir: str | Path) -> list[Path]:
    """The folders below ``output_dir`` with a checkpoint's name, by their step; also one that was being replaced when
    its process was killed, which has its place back at the run's next start."""
    found = [path for path in _folders(Path(output_dir)) if checkpoint_step(path) is not None]
    there = {path.name for path in found}
    found += [path for path in _folders(Path(output_dir, STAGING, _REPLACED)) if path.name not in there]
    return sorted(found, key=lambda path: checkpoint_step(path) or 0, reverse=True)


def last_whole_checkpoint(output_dir: str | Path, *, digests: bool = True) -> Path | None:
    """The newest checkpoint below ``output_dir`` that is as it was written; others are passed over, by name and reason.

    digests: whether its files are read and compared with their digests, or only their sizes.
    """
    for folder in checkpoints_newest_first(output_dir):
        try:
            check_signed(folder, digests=digests)
        except Unfit as problem:
            _log.warning("%s %s: passed over", folder, problem)
        else:
            return folder
    return None


def put_in_place(staged: Path, folder: Path) -> None:
    """Gives a checkpoint that is written to its end its name. A checkpoint that has the name is whole until then.

    staged: below STAGING, beside ``folder``. Raises OSError.
    """
    sync_folder(staged)
    old = staged.parent / _REPLACED / folder.name
    if folder.exists():
        old.parent.mkdir(exist_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    staged.rename(folder)
    _sync_names(folder.parent)
    _clear(staged.parent)


def recover(output_dir: str | Path) -> None:
    """Clears what a killed process left behind; a checkpoint that it was about to replace has its place again.

    For the one process that writes to ``output_dir``.
    """
    staging = Path(output_dir, STAGING)
    for old in _folders(staging / _REPLACED):
        if checkpoint_step(old) is not None and not Path(output_dir, old.name).exists():
            old.rename(Path(output_dir, old.name))
    _clear(staging)


def rotate(output_dir: Path, limit: int | None, keep: Collection[Path]) -> None:
    """Removes the oldest checkpoints, by their step, until ``limit`` are left; those in ``keep`` stay."""
    if limit is None or limit < 1:
        return
    kept = {path.resolve() for path in keep}
    found = [path for path in checkpoints_newest_first(output_dir) if path.parent == output_dir]
    others = [path for path in found if path.resolve() not in kept]
    for path in others[max(limit - (len(found) - len(others)), 0) :]:
        remove(path)


def remove(folder: Path) -> None:
    """A checkpoint goes at once: one whose removal was begun has no checkpoint's name any more."""
    going = folder.parent / STAGING / f"removed-{folder.name}"
    going.parent.mkdir(exist_ok=True)
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    _clear(going.parent)


def _clear(staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in folder.iterdir() if path.is_dir()]
    return []


def _sync_names(folder: Path) -> None:
    """Brings the names in a folder to the disk, without the files below it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
