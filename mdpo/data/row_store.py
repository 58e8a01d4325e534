"""Checked rows outside of Python's objects: a line of JSON each, parsed again when a row is asked for.

A million rows as nested objects take gigabytes; here they take some 40 bytes of memory each, and their text stays on
the disk where it is long. An image is a number in a table, in which every file stands once.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .blob import Blob, Spool
from .cache import Cache
from .images import ImageSource, StoredImage
from .messages import without_images
from .row import PreferenceRow, PromptRow

_REMEMBERED = 2**15  # paths, which take half a KiB each
_CHUNK = 256  # rows that an iteration reads at a time
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode

# An entry of the table: a path, (name, start, end) of bytes that a row brought along, or what only memory holds.
Entry = Any


class Images:
    """Which images rows have: numbers in the table.

    ends: (N,) int64, of each row's stretch of ``numbers`` (M,) int32.
    """

    def __init__(self, numbers: np.ndarray, ends: np.ndarray) -> None:
        self.numbers, self.ends = numbers, ends

    def of(self, index: int) -> list[int]:
        return self.numbers[self.ends[index - 1] if index else 0 : self.ends[index]].tolist()

    def counts(self) -> np.ndarray:
        """(N,) int64."""
        return np.diff(self.ends, prepend=0)

    def taken(self, order: np.ndarray) -> "Images":
        counts = self.counts()[order]
        starts = np.repeat(self.ends[order] - counts - np.cumsum(counts) + counts, counts)
        return Images(self.numbers[starts + np.arange(len(starts))], np.cumsum(counts))


class Rows(Sequence):
    """Rows, each made anew when it is asked for; a slice is a ``Rows`` again.

    images, rejected: see ``Images``; their numbers are positions in ``table``.
    """

    def __init__(
        self,
        text: Blob,
        pictures: Blob,
        ends: np.ndarray,
        images: Images,
        rejected: Images,
        table: list[Entry],
        ids: np.ndarray,
        objects: dict[int, PromptRow] | None = None,
        cache: Cache | None = None,
    ) -> None:
        self._blobs, self._ends, self.table, self._ids = (text, pictures), ends, table, ids
        self.images, self.rejected = images, rejected
        self._objects = objects or {}
        self._paths: dict[int, Path] = {}
        self.cache = cache or Cache(None)
        self._order: np.ndarray | None = None
        self._blind = False

    @classmethod
    def of(cls, rows: Sequence[PromptRow]) -> "Rows":
        """The rows as a ``Rows``, if they are not one."""
        if isinstance(rows, Rows):
            return rows
        writer = RowWriter()
        for row in rows:
            writer.add(row)
        return writer.finish()

    def __len__(self) -> int:
        return len(self._ends if self._order is None else self._order)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return self.select(np.arange(len(self))[item])
        index = range(len(self))[item]
        return self._row(index, self._text(index, index + 1))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), _CHUNK):
            yield from self.chunk(start, start + _CHUNK)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, tuple, Rows)):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __add__(self, other: Any) -> list:
        return [*self, *other]

    def __radd__(self, other: Any) -> list:
        return [*other, *self]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"

    def select(self, order: np.ndarray) -> "Rows":
        """The rows at these positions, in this order, without reading them."""
        chosen = order if self._order is None else self._order[order]
        view = Rows(
            *self._blobs,
            self._ends,
            self.images.taken(order),
            self.rejected.taken(order),
            self.table,
            self._ids[order],
            self._objects,
            self.cache,
        )
        view._order, view._blind = np.asarray(chosen, dtype=np.int64), self._blind
        return view

    def without_images(self) -> "Rows":
        """The same rows without their images. ``plain`` stays: what of it stands for an image is the template's, which
        the encoder knows."""
        none = Images(np.zeros(0, np.int32), np.zeros(len(self), np.int64))
        view = Rows(*self._blobs, self._ends, none, none, self.table, self._ids, self._objects, self.cache)
        view._order, view._blind = self._order, True
        return view

    def chunk(self, start: int, stop: int) -> list[Any]:
        """The rows from ``start`` to ``stop``, read at once."""
        stop = min(stop, len(self))
        if self._order is not None:
            return [self[index] for index in range(start, stop)]
        data, base = self._text(start, stop), self._start(start)
        return [
            self._row(index, data[self._start(index) - base : self._ends[index] - base]) for index in range(start, stop)
        ]

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Where each row's text ends, digests of their ids, and their images and rejected ones: numbers and ends."""
        images, rejected = self.images, self.rejected
        return self._ends, self._ids, images.numbers, images.ends, rejected.numbers, rejected.ends

    def id_digests(self) -> np.ndarray:
        """(N,) uint64: the same for the same id, in every process."""
        return self._ids

    def digest(self) -> str:
        """Names what the rows say, how many images each has, and their order: what their tokens depend on, and no more.
        Which images they are, only this process may know: those of a table have no name of their own."""
        found = hashlib.blake2b(digest_size=16)
        for piece in self._blobs[0].pieces():
            found.update(piece)
        for values in (self._ends, self._ids, self.images.counts()):
            found.update(values.tobytes())
        found.update(b"" if self._order is None else self._order.tobytes())
        found.update(bytes([self._blind]))
        return found.hexdigest()

    def source(self, number: int) -> ImageSource:
        """The image with this number in the table."""
        entry = self.table[number]
        if isinstance(entry, str):
            path = self._paths.get(number)
            if path is None:
                if len(self._paths) >= _REMEMBERED:
                    self._paths.clear()
                path = self._paths[number] = Path(entry)
            return path
        if isinstance(entry, tuple):
            return StoredImage(entry[0], partial(self._blobs[1].read, *entry[1:]))
        return entry

    def first_with_images(self) -> int | None:
        """The position of the first row that has an image."""
        having = np.flatnonzero(self.images.counts() > 0)
        return int(having[0]) if len(having) else None

    def _start(self, index: int) -> int:
        return int(self._ends[index - 1]) if index else 0

    def _text(self, start: int, stop: int) -> bytes:
        if self._order is not None:
            start = int(self._order[start])
            stop = start + 1
        return self._blobs[0].read(self._start(start), int(self._ends[stop - 1]))

    def _row(self, index: int, line: bytes) -> Any:
        if line == _HELD:
            row = self._objects[index if self._order is None else int(self._order[index])]
            return (
                replace(row, images=(), rejected_images=(), prompt=without_images(row.prompt)) if self._blind else row
            )
        id, where, plain, prompt, tools, kwargs, *answers = json.loads(line.decode("utf-8", "surrogatepass"))
        if isinstance(prompt, int):  # how many images stand before the question
            prompt = [{"role": "user", "content": [{"type": "image"}] * prompt + [{"type": "text", "text": plain}]}]
        if self._blind:
            prompt = without_images(prompt)
        images = tuple([self.source(number) for number in self.images.of(index)])
        beside = {"plain": plain, "tools": tools, "template_kwargs": kwargs}
        if not answers:
            return PromptRow(id, where, images, prompt, **beside)
        rejected = tuple([self.source(number) for number in self.rejected.of(index)])
        chosen, other, *more = answers
        if more:
            contrast, *weights = more
            beside |= {"contrast": contrast}
            for name, spans in zip(("chosen_weights", "rejected_weights"), weights, strict=True):
                beside[name] = tuple(tuple(span) for span in spans)
        return PreferenceRow(id, where, images, prompt, chosen, other, rejected, **beside)


class RowWriter:
    """Takes rows one by one.

    folder: where their text is written to; None: to memory, or to a temporary file where it is long.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._text, self._pictures = Spool(folder, "rows.jsonl"), Spool(folder, "pictures")
        self._ends, self._ids = array("q"), array("Q")
        self._images, self._rejected = (array("i"), array("q")), (array("i"), array("q"))
        self._table: list[Entry] = []
        self._numbers: dict[Any, int] = {}
        self._objects: dict[int, PromptRow] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, row: PromptRow) -> None:
        """Raises OSError where the disk is full."""
        self._add_images(self._images, row.images)
        fields: list[Any] = [row.id, row.where, row.plain, _short(row), row.tools, row.template_kwargs]
        rejected = ()
        if isinstance(row, PreferenceRow):
            fields += (row.chosen, row.rejected)
            if row.contrast is not None or row.chosen_weights or row.rejected_weights:
                fields += (row.contrast, row.chosen_weights, row.rejected_weights)
            rejected = row.rejected_images
        self._add_images(self._rejected, rejected)
        try:
            line = _ENCODE(fields).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError):  # what Python code puts into a tool's call may be anything
            self._objects[len(self)] = row
            line = _HELD
        self._text.write(line)
        self._ends.append(len(self._text))
        self._ids.append(_id_digest(row.id))

    def _add_images(self, column: tuple[array, array], sources: Sequence[ImageSource]) -> None:
        numbers, ends = column
        for source in sources:
            entry: Entry = str(source) if isinstance(source, Path) else source
            key = entry if isinstance(entry, str) else id(entry)
            number = self._numbers.get(key)
            if number is None:
                number = len(self._table)
                self._table.append(self._kept(entry))
                if self._table[-1] is entry:  # else it goes away, and another may come to have its id
                    self._numbers[key] = number
            numbers.append(number)
        ends.append(len(numbers))

    def _kept(self, entry: Entry) -> Entry:
        """The bytes of an image that a row brings along go where the text goes."""
        read = entry.read if isinstance(entry, StoredImage) else None
        if not isinstance(read, partial) or read.func is not bytes:
            return entry
        start = len(self._pictures)
        self._pictures.write(read())
        return (entry.name, start, len(self._pictures))

    def finish(self) -> Rows:
        """Everything that was added."""
        images, rejected = (
            Images(np.frombuffer(numbers, np.int32), np.frombuffer(ends, np.int64))
            for numbers, ends in (self._images, self._rejected)
        )
        ends, ids = np.frombuffer(self._ends, np.int64), np.frombuffer(self._ids, np.uint64)
        return Rows(
            self._text.finish(), self._pictures.finish(), ends, images, rejected, self._table, ids, self._objects
        )


_HELD = b"[]"  # stands for a row that is held as it is


def _short(row: PromptRow) -> list | int:
    """The prompt, or of a question that is all its text the number of images before it."""
    if row.plain is None or len(row.prompt) != 1:
        return row.prompt
    content = row.prompt[0]["content"]
    images = len(content) - 1
    if images < 0 or content[-1] != {"type": "text", "text": row.plain} or row.prompt[0]["role"] != "user":
        return row.prompt
    return images if all(part == {"type": "image"} for part in content[:images]) else row.prompt


def _id_digest(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
