"""Which texts came before, and where: some 80 bytes each, where a dictionary takes several hundred."""

import hashlib
from array import array

_START = 2**10


class FirstSeen:
    """A hash table of 64-bit digests in two flat arrays."""

    def __init__(self) -> None:
        self._where = bytearray()
        self._ends = array("q")
        self._digests = array("Q")
        self._slots = array("q", [-1]) * _START  # position among the digests, or -1

    def add(self, text: str, where: str) -> str | None:
        """Where the same text came first; None, and ``where`` is kept, if it is new."""
        data = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        digest = int.from_bytes(data, "little")
        slots, digests = self._slots, self._digests
        at = digest % len(slots)
        while (found := slots[at]) >= 0:
            if digests[found] == digest:
                start = self._ends[found - 1] if found else 0
                return self._where[start : self._ends[found]].decode("utf-8", "surrogatepass")
            at = (at + 1) % len(slots)
        slots[at] = len(digests)
        digests.append(digest)
        self._where += where.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._where))
        if 2 * len(digests) > len(slots):
            self._grow()
        return None

    def _grow(self) -> None:
        slots = array("q", [-1]) * (4 * len(self._slots))
        for position, digest in enumerate(self._digests):
            at = digest % len(slots)
            while slots[at] >= 0:
                at = (at + 1) % len(slots)
            slots[at] = position
        self._slots = slots
