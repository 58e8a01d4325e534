"""A checkpoint's list of its own files, so that a byte which is not as it was written is seen before anything is read.

It stands in the checkpoint's settings file, which is written last:

    {…the run's settings…, "step": 40, "files": {"optimizer.pt": {"bytes": 1234, "blake2b": "…"}, …}, "digest": "…"}
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

SETTINGS_NAME = "mdpo_settings.json"
# A file is read in pieces of this many bytes, each by a thread of its own: hashlib leaves Python's lock while it works.
_PIECE, _READ = 64 * 2**20, 4 * 2**20
_LARGEST_JSON = 64 * 2**20
# A file that was put into the folder afterwards matters where something would read it.
_READ_FROM_A_CHECKPOINT = {".safetensors", ".bin", ".pt", ".pth", ".json", ".distcp", ".metadata"}

_Stamps = tuple[tuple[str, int, int, int], ...]
_verified: dict[Path, _Stamps] = {}


class Unfit(Exception):
    """What is wrong with a checkpoint, as the end of a sentence that begins with its folder: "was changed after …"."""


def sign(folder: Path, settings: dict[str, Any], step: int) -> None:
    """Writes the settings file of a checkpoint whose other files are all there. Raises OSError."""
    names = _files(folder)
    content = settings | {"step": step, "files": _measured(folder, names)}
    content |= {"digest": _digest(content)}
    (folder / SETTINGS_NAME).write_text(json.dumps(content, indent=1), encoding="utf-8")


def check_signed(folder: Path, *, digests: bool = True) -> dict[str, Any]:
    """The content of the settings file of a checkpoint that is as it was written.

    digests: whether every file is read; else their sizes are compared. Files that were read before and have not been
        touched since are not read again.

    Raises Unfit.
    """
    if not folder.is_dir():
        raise Unfit("does not exist")
    content = _read_signed(folder)
    try:
        _check_sizes(folder, content["files"])
        if digests:
            _check_digests(folder, content["files"])
    except OSError as error:
        raise Unfit(f"cannot be read ({error.strerror or error})") from error
    return content


def _check_sizes(folder: Path, files: dict[str, Any]) -> None:
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise Unfit(f"was not written completely ({name} is missing)")
        if path.stat().st_size < expected["bytes"]:
            raise Unfit(
                f"was not written completely ({name} has {path.stat().st_size:,} bytes instead of "
                f"{expected['bytes']:,})"
            )
        if path.stat().st_size > expected["bytes"]:
            raise Unfit(f"was changed after it was written ({name} is longer than it was)")
    strange = [name for name in _files(folder) if name not in files and Path(name).suffix in _READ_FROM_A_CHECKPOINT]
    if strange:
        raise Unfit(f"was changed after it was written ({strange[0]} is not one of its files)")


def _check_digests(folder: Path, files: dict[str, Any]) -> None:
    stamps = _stamps(folder, [*files, SETTINGS_NAME])
    if _verified.get(folder.resolve()) == stamps:
        return
    found = _measured(folder, files)
    for name, expected in files.items():
        if found[name] != expected:
            raise Unfit(f"was changed after it was written ({name} has another digest)")
    _verified[folder.resolve()] = stamps


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a checkpoint's file. Raises Unfit."""
    try:
        if not path.is_file():
            raise Unfit(f"was not written completely ({path.name} is missing)")
        if path.stat().st_size > _LARGEST_JSON:
            raise Unfit(f"is damaged ({path.name} has {path.stat().st_size:,} bytes)")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unfit(f"cannot be read ({path.name}: {error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise Unfit(f"is damaged ({path.name} is damaged: not JSON)") from error
    if not isinstance(value, dict):
        raise Unfit(f"is damaged ({path.name} is a {type(value).__name__}; expected an object)")
    return value


def _read_signed(folder: Path) -> dict[str, Any]:
    if not (folder / SETTINGS_NAME).is_file():
        raise Unfit(f"has no {SETTINGS_NAME}: it was not written completely, or not by this trainer")
    content = read_json(folder / SETTINGS_NAME)
    if "files" not in content and "digest" not in content:
        raise Unfit(
            "was written by an older version, which did not note its files' digests; resume it with that version, or "
            "start a new run from its weights"
        )
    changed = Unfit(f"was changed after it was written ({SETTINGS_NAME} has another digest)")
    try:
        if content.pop("digest") != _digest(content):
            raise changed
    except (KeyError, ValueError, RecursionError) as error:
        raise changed from error
    step, files = content.get("step"), content.get("files")
    if type(step) is not int or step < 1 or not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        raise Unfit(f"is damaged ({SETTINGS_NAME} does not list its files)")
    return content


def _is_entry(item: tuple[str, Any]) -> bool:
    name, entry = item
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        return False
    keys = isinstance(entry, dict) and entry.keys() == {"bytes", "blake2b"}
    return keys and type(entry["bytes"]) is int and isinstance(entry["blake2b"], str)


def _files(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != SETTINGS_NAME)


def _stamps(folder: Path, names: Iterable[str]) -> _Stamps:
    found = ((name, (folder / name).stat()) for name in sorted(names))
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _measured(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Each file's size, and the digest of its pieces' digests."""
    sizes = {name: (folder / name).stat().st_size for name in names}
    pieces = [(folder / name, start) for name, size in sizes.items() for start in range(0, max(size, 1), _PIECE)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        digests = iter(threads.map(_digest_of_piece, pieces))
    return {
        name: {
            "bytes": size,
            "blake2b": hashlib.blake2b(
                b"".join(next(digests) for _ in range(0, max(size, 1), _PIECE)), digest_size=16
            ).hexdigest(),
        }
        for name, size in sizes.items()
    }


def _digest_of_piece(piece: tuple[Path, int]) -> bytes:
    path, start = piece
    digest, left = hashlib.blake2b(digest_size=16), _PIECE
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (data := file.read(min(_READ, left))):
            digest.update(data)
            left -= len(data)
    return digest.digest()
