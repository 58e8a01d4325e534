"""Token ids of many sequences in one flat array: 4 bytes a token, where a list of Python ints takes 36."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


class TokenStore:
    """Grows by ``append``; ``store[index]`` is a sequence again, as (length,) int32."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._ends = array("q")

    def append(self, ids: Sequence[int]) -> None:
        self._ids.extend(ids)
        self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]  # negative indices, and IndexError past the end
        start = self._ends[index - 1] if index else 0
        return np.array(self._ids[start : self._ends[index]], dtype=np.int32)

    def length(self, index: int) -> int:
        index = range(len(self))[index]
        return self._ends[index] - (self._ends[index - 1] if index else 0)

    def largest(self) -> tuple[int, int]:
        """The largest id and the index of a sequence that has it; (-1, 0) where there are no ids."""
        if not len(self._ids):
            return -1, 0
        at = int(np.argmax(np.frombuffer(self._ids, dtype=np.int32)))
        return self._ids[at], bisect_right(self._ends, at)
