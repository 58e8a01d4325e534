"""Files that people bring and files that a run appends to: read with errors that name file and line."""

import ast
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from mdpo.errors import InputError
from mdpo.outputs import raise_unwritten, write_text
from mdpo.reading import parse_json, read_bytes
from mdpo.shown import shown

_log = logging.getLogger(__name__)
MAX_BYTES = 2**32  # COCO's annotations have hundreds of MiB

if sys.platform != "win32":
    import fcntl


def read_text(path: str | Path) -> str:
    """The file's text, line ends as "\\n". Raises InputError where it is missing or not UTF-8."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(path: str | Path, *, unique_keys: bool = False) -> Any:
    """The parsed file. Raises InputError where it is missing or not JSON, and with ``unique_keys`` where an object has
    a key twice; without it the last one counts."""
    text = read_text(path)  # an InputError is a ValueError
    try:
        return json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # an integer of too many digits; nested too deeply
        raise InputError(f"{path}: not usable JSON: {_said(error)}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key[:60])!r} appears twice; keep one of them")
        found[key] = value
    return found


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a ``.jsonl`` file, a line each, or of a ``.json`` file that holds a list of them.

    Raises InputError that names the line or the entry that is not an object.
    """
    if Path(path).suffix != ".jsonl":
        return records_in(read_json(path), path)
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [
        _object(_parse_line(line, path, number), f"{path}, line {number}") for number, line in lines if line.strip()
    ]


def records_in(content: Any, path: str | Path) -> list[dict[str, Any]]:
    """The objects of a list that ``read_json`` found in ``path``. Raises as ``read_records``."""
    if not isinstance(content, list):
        raise InputError(f"{path} is a {type(content).__name__}; expected a list of objects")
    return [_object(record, f"{path}, entry {index}") for index, record in enumerate(content)]


def _parse_line(line: str, path: str | Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: not usable JSON: {_said(error)}") from error


def _said(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{where} is a {type(record).__name__}; expected an object")
    return record


def write_json(path: str | Path, content: Any) -> None:
    """Writes the whole file or nothing. Raises OutputError where the disk is full or refuses."""
    write_text(path, as_json(content))


def as_json(content: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def read_literal(path: str | Path, name: str) -> str:
    """A prompt: the string literal ``name`` of a Python script, found by ``ast`` and never executed, or a text file.

    Raises InputError where the script does not parse or has no such literal at its top level.
    """
    text = read_text(path)
    if Path(path).suffix != ".py":
        return text
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"{path}: not a Python script: {error}; a text file with the prompt will do as well"
        ) from error
    for statement in module.body:
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        value = statement.value
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    raise InputError(f"{path} has no top-level string literal {name!r}; give the official script or a text file")


class InUse(InputError):
    """Another run holds the file open."""


class Journal:
    """An append-only JSONL file: what was written stays written, whatever happens to the run.

    Opening it reads what is there. A last line that an interruption tore is dropped; any other line that is not an
    object is an InputError, and a file that another run holds open an InUse. lenient: such lines are passed over too,
    and said. Where the disk is full or refuses, opening and appending raise OutputError, and the file ends with the
    last whole line.
    """

    def __init__(self, path: str | Path, *, lenient: bool = False) -> None:
        self.path, self._lenient = Path(path).expanduser(), lenient
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer, which would be written a second time, and could fail again, when the file is closed.
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise_unwritten(self.path, error)
            raise
        try:
            self._lock()
            self.records = self._recover()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(f"{self.path} is in use by another run; wait for it, or give another file") from error

    def _recover(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        content = self._file.readall()
        whole, newline, last = content.rpartition(b"\n")
        records = []
        for number, line in enumerate(whole.split(b"\n"), start=1):
            if not line.strip():
                continue
            if self._lenient and _torn(line) is None:
                _log.warning("%s, line %d: not a whole record, passed over", self.path, number)
                continue
            records.append(_object(self._line(line, number), f"{self.path}, line {number}"))
        if last:
            torn = _torn(last)
            if torn is None:
                self._file.truncate(len(whole) + len(newline))
            else:
                # Complete but for its line break: the write was cut between the two.
                records.append(torn)
                self._write(b"\n")
        return records

    def _line(self, line: bytes, number: int) -> Any:
        try:
            return parse_json(line)
        except ValueError as error:
            raise InputError(
                f"{self.path}, line {number}: not JSON ({error}); only a last line can be torn by an interruption. "
                "Delete the line, or move the file away"
            ) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one line, on the disk before this returns.

        Raises OutputError, with the file as it was, where it cannot.
        """
        # backslashreplace: half a surrogate pair becomes the escape that JSON has for it
        self._write(json.dumps(dict(record), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self.records.append(dict(record))

    def _write(self, line: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:  # a disk that is nearly full takes a part first
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise_unwritten(self.path, error, f"the {len(self.records)} lines before are kept")
            raise

    def fileno(self) -> int:
        """The open file's descriptor: a process that inherits it keeps the file in use until it ends."""
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _torn(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
