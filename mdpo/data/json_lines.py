"""JSON, and files with a row of it a line: read with a bound, whole or a stretch at a time."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mdpo.errors import InputError
from mdpo.reading import parse_json

from .limits import MAX_LINE, check_line
from .problem import RowError
from .tables import Record

_SKIPPED = 2**20  # bytes of a line that is too long, read at a time


class Stretch(NamedTuple):
    """A part of a file: from the byte ``start`` to ``stop`` (None: the end), which begin and end lines.

    line, row: how many lines and rows of the file come before it. position: how many rows of all files do.
    """

    path: Path
    start: int = 0
    stop: int | None = None
    line: int = 0
    row: int = 0
    position: int = 0


def json_lines(path: Path) -> Iterator[Record]:
    """``(where, record)`` for every row of a file."""
    return rows_of_stretch(Stretch(path))


def rows_of_stretch(stretch: Stretch) -> Iterator[Record]:
    """``(where, record)`` for the rows of a part of a file. Raises InputError where the file holds a list."""
    index = stretch.row
    for number, line in enumerate(_lines(stretch), start=stretch.line + 1):
        if not line.strip():
            continue
        where = f"{stretch.path.name}, row {index} (line {number})"
        try:
            if len(line) > MAX_LINE:
                problem = f"has more than {MAX_LINE:,} bytes, the limit of a row"
                raise RowError.at(where, "line", problem, "keep its images as files, shorten the row, or drop it")
            check_line(line, where)
            record = parse_json(line)
        except RowError as error:
            record = error
        except ValueError as error:
            record = RowError.at(where, "line", str(error), "fix or delete the line")
        if not index and _begins_a_list(line, record):
            raise InputError(f"{stretch.path}: a JSON list, not a row a line; name the file .json")
        index += 1
        yield where, record


def stretches(files: Sequence[Path], count: int) -> list[list[Stretch]]:
    """The files in ``count`` parts of about equally many bytes, in order; a part may be empty."""
    size = sum(file.stat().st_size for file in files)
    parts: list[list[Stretch]] = [[]]
    before = position = 0
    for file in files:
        start = Stretch(file, position=position)
        offset = line = row = 0
        for text in _lines(start):
            if before + offset >= size * len(parts) / count and len(parts) < count:
                parts[-1].append(start._replace(stop=offset))
                parts.append([])
                start = Stretch(file, offset, None, line, row, position)
            # What is left of a line that is too long has been skipped, and is counted by ``_lines``.
            offset += text.size if isinstance(text, _Long) else len(text)
            line += 1  # noqa: SIM113  (over all files)
            if text.strip():
                row += 1
                position += 1
        parts[-1].append(start)
        before += offset
    return parts + [[] for _ in range(count - len(parts))]


class _Long(bytes):
    """The beginning of a line that is longer than the limit. size: of the whole line."""

    size = 0


def _lines(stretch: Stretch) -> Iterator[bytes]:
    """The lines of a stretch, of one that is too long a little more than the limit."""
    with stretch.path.open("rb") as file:
        file.seek(stretch.start)
        left = None if stretch.stop is None else stretch.stop - stretch.start
        while left is None or left > 0:
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                line = _skipped(line, file)
            if left is not None:
                left -= line.size if isinstance(line, _Long) else len(line)
            yield line


def _skipped(line: bytes, file: BinaryIO) -> bytes:
    size = len(line)
    while piece := file.readline(_SKIPPED):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    long = _Long(line)
    long.size = size
    return long


def _begins_a_list(line: bytes, record: Any) -> bool:
    """Whether the first line is the whole, or the beginning, of a JSON list of rows."""
    if isinstance(record, list):
        return bool(record) and all(isinstance(row, Mapping) for row in record)
    start = line[:100].removeprefix(b"\xef\xbb\xbf").strip()
    return isinstance(record, RowError) and (start == b"[" or start[:1] == b"[" and start[1:].lstrip()[:1] == b"{")
