"""Token ids of many rows in one flat file, or in memory where they are few: 2 or 4 bytes a token."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .blob import Blob, Spool

PARTS = ("prompt", "chosen", "rejected")
_SCANNED = 2**20  # tokens at a time


class Tokens:
    """Each row's prompt_ids, chosen_ids and rejected_ids. ends: (3 N,) int64, in tokens."""

    def __init__(self, ids: Blob, ends: np.ndarray, dtype: np.dtype) -> None:
        self.ids, self.ends, self.dtype = ids, ends, dtype

    def __len__(self) -> int:
        return len(self.ends) // len(PARTS)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """The three sequences of a row, as (length,) int32."""
        first = len(PARTS) * range(len(self))[index]  # negative indices, and IndexError past the end
        bounds = [int(self.ends[first - 1]) if first else 0, *self.ends[first : first + len(PARTS)].tolist()]
        found = self._read(bounds[0], bounds[-1]).astype(np.int32)
        return [found[start - bounds[0] : stop - bounds[0]] for start, stop in zip(bounds, bounds[1:], strict=False)]

    def lengths(self) -> np.ndarray:
        """(N, 3) int64."""
        return np.diff(self.ends, prepend=0).reshape(-1, len(PARTS))

    def largest(self) -> tuple[int, int]:
        """The largest id and the index of a row that has it; (-1, 0) where there are no ids."""
        largest, place = -1, 0
        total = int(self.ends[-1]) if len(self.ends) else 0
        for start in range(0, total, _SCANNED):
            ids = self._read(start, min(start + _SCANNED, total))
            at = int(ids.argmax())
            if ids[at] > largest:
                largest, place = int(ids[at]), start + at
        return largest, int(np.searchsorted(self.ends, place, side="right")) // len(PARTS)

    def _read(self, start: int, stop: int) -> np.ndarray:
        return np.frombuffer(self.ids.read(start * self.dtype.itemsize, stop * self.dtype.itemsize), self.dtype)


class TokenWriter:
    """Takes rows one by one. largest: the largest id that may come. folder: see ``RowWriter``."""

    def __init__(self, largest: int, folder: Path | None = None) -> None:
        self._kind = "H" if largest < 2**16 else "i"
        self._ids, self._ends, self._count = Spool(folder, "tokens"), array("q"), 0

    def add(self, *sequences: Sequence[int]) -> None:
        """prompt_ids, chosen_ids and rejected_ids of a row. Raises OSError where the disk is full."""
        for ids in sequences:
            self._ids.write(array(self._kind, ids).tobytes())
            self._count += len(ids)
            self._ends.append(self._count)

    def finish(self) -> Tokens:
        return Tokens(self._ids.finish(), np.frombuffer(self._ends, np.int64), np.dtype(self._kind))
