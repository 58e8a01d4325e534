"""What the images of rows are: every file decoded once, and looked at again only when it has changed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from tqdm.auto import tqdm

from .cache import code_digest, digest
from .images import CHUNK, ImageFacts, Inspector, Use
from .problem import RowError
from .row_store import Rows

_MANY = 1_000  # files, below which what they are is not kept


class RowFacts(Sequence):
    """The facts of each row's images. sizes: (T, 2) int32, height and width by number in the rows' table.

    keys: by number, of what is no file.
    """

    def __init__(self, rows: Rows, sizes: np.ndarray, keys: dict[int, object]) -> None:
        self.rows, self.sizes, self.keys = rows, sizes, keys

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> tuple[ImageFacts, ...]:
        return tuple(self._fact(number) for number in self.rows.images.of(index))

    def _fact(self, number: int) -> ImageFacts:
        height, width = self.sizes[number].tolist()
        return ImageFacts(height, width, self.keys.get(number, self.rows.table[number]))


def look_at_images(rows: Rows, *, own: bool) -> RowFacts:
    """Decodes every image of the rows. own: their ``rejected_images`` as well.

    Raises RowError for the first row, in order, whose image is bad.
    """
    uses = _first_uses(rows, own=own)
    files = all(isinstance(rows.table[number], str) for number, _, _ in uses)
    keys: dict[int, object] = {}
    if len(uses) < _MANY or not files:
        return RowFacts(rows, _inspected(rows, uses, keys), keys)
    key = digest(code_digest(), PIL.__version__, [(number, *_state(rows.table[number])) for number, _, _ in uses])

    def make(folder: Path) -> None:
        np.save(folder / "sizes.npy", _inspected(rows, uses, keys))

    def load(folder: Path) -> np.ndarray:
        sizes = np.load(folder / "sizes.npy", allow_pickle=False)
        if sizes.shape != (len(rows.table), 2) or len(uses) and sizes[[number for number, _, _ in uses]].min() < 1:
            raise ValueError("sizes that no image has")
        return sizes

    return RowFacts(rows, rows.cache.entry("images", key, make, load), keys)


def _first_uses(rows: Rows, *, own: bool) -> list[tuple[int, int, str]]:
    """Each image's number, the first row that has it, and the column it stands in there: in the rows' order."""
    found: dict[int, tuple[int, str]] = {}
    for images, field in ((rows.images, "images"), *([(rows.rejected, "rejected_images")] if own else [])):
        numbers, places = np.unique(images.numbers, return_index=True)
        first = np.searchsorted(images.ends, places, side="right")
        for number, row in zip(numbers.tolist(), first.tolist(), strict=True):
            if number not in found or row < found[number][0]:
                found[number] = (row, field)
    return sorted(((number, *use) for number, use in found.items()), key=lambda use: use[1:])


def _state(path: str) -> tuple:
    try:
        status = os.stat(path)
    except OSError:
        return (path, None)
    # A copy may bring its size and time along, but not when the file was put in place, and as which.
    return (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _inspected(rows: Rows, uses: Sequence[tuple[int, int, str]], keys: dict[int, object]) -> np.ndarray:
    sizes = np.zeros((len(rows.table), 2), np.int32)
    with Inspector() as inspector:
        for start in tqdm(range(0, len(uses), CHUNK), "checking images", leave=False, disable=None):
            chunk = uses[start : start + CHUNK]
            facts = inspector.inspect([Use(rows.source(number), "", field) for number, _, field in chunk])
            for (number, row, field), fact in zip(chunk, facts, strict=True):
                if isinstance(fact, RowError):
                    raise RowError.at(rows[row].where, field, fact.problem, fact.remedy)
                sizes[number] = fact.height, fact.width
                if not isinstance(rows.table[number], str):
                    keys[number] = fact.key
    return sizes
