"""Token ids of many rows in one flat file, or in memory where they are few: 2 or 4 bytes a token, and 4 for its weight
where it has one."""

import itertools
from array import array
from pathlib import Path

import numpy as np

from .blob import Blob, Spool
from .encode import EncodedRow

PARTS = ("prompt", "chosen", "rejected", "contrast", "imageless")
WEIGHTED = ("chosen", "rejected")
_SCANNED = 2**20  # tokens at a time


class Tokens:
    """Each row's ids, by PARTS, and weights of its answers, by WEIGHTED; some may be empty.

    ends: (5 N,) int64, in tokens. weight_ends: (2 N,) int64.
    """

    def __init__(self, ids: Blob, ends: np.ndarray, dtype: np.dtype, weights: Blob, weight_ends: np.ndarray) -> None:
        self.ids, self.ends, self.dtype = ids, ends, dtype
        self.weights, self.weight_ends = weights, weight_ends

    def __len__(self) -> int:
        return len(self.ends) // len(PARTS)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """The sequences of a row, by PARTS, as (length,) int32."""
        bounds = self._bounds(index, self.ends, len(PARTS))
        found = self._read(bounds[0], bounds[-1]).astype(np.int32)
        return [found[start - bounds[0] : stop - bounds[0]] for start, stop in itertools.pairwise(bounds)]

    def weights_of(self, index: int) -> list[np.ndarray]:
        """The weights of a row's answers, by WEIGHTED, as (length,) float32; empty for an answer without."""
        bounds = self._bounds(index, self.weight_ends, len(WEIGHTED))
        return [
            np.frombuffer(self.weights.read(start * 4, stop * 4), np.float32)
            for start, stop in itertools.pairwise(bounds)
        ]

    def weighted(self) -> np.ndarray:
        """(N,) bool: the rows that have weights."""
        return np.diff(self.weight_ends, prepend=0).reshape(-1, len(WEIGHTED)).sum(axis=1) > 0

    def lengths(self) -> np.ndarray:
        """(N, 5) int64."""
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

    def _bounds(self, index: int, ends: np.ndarray, count: int) -> list[int]:
        """Where a row's first sequence begins, and where each of its ``count`` sequences ends."""
        first = count * range(len(self))[index]  # negative indices, and IndexError past the end
        return [int(ends[first - 1]) if first else 0, *ends[first : first + count].tolist()]

    def _read(self, start: int, stop: int) -> np.ndarray:
        return np.frombuffer(self.ids.read(start * self.dtype.itemsize, stop * self.dtype.itemsize), self.dtype)


class TokenWriter:
    """Takes rows one by one. largest: the largest id that may come. folder: see ``RowWriter``."""

    def __init__(self, largest: int, folder: Path | None = None) -> None:
        self._kind = "H" if largest < 2**16 else "i"
        self._ids, self._ends, self._count = Spool(folder, "tokens"), array("q"), 0
        self._weights, self._weight_ends, self._weight_count = Spool(folder, "weights"), array("q"), 0

    def add(self, row: EncodedRow) -> None:
        """Raises OSError where the disk is full."""
        parts = (row.prompt_ids, row.chosen_ids, row.rejected_ids, row.contrast_ids, row.imageless_prompt_ids)
        for ids in parts:
            self._ids.write(array(self._kind, ids).tobytes())
            self._count += len(ids)
            self._ends.append(self._count)
        for weights in (row.chosen_weights, row.rejected_weights):
            self._weights.write(array("f", weights).tobytes())
            self._weight_count += len(weights)
            self._weight_ends.append(self._weight_count)

    def finish(self) -> Tokens:
        """Everything that was added."""
        return Tokens(
            self._ids.finish(),
            np.frombuffer(self._ends, np.int64),
            np.dtype(self._kind),
            self._weights.finish(),
            np.frombuffer(self._weight_ends, np.int64),
        )
