"""Bytes: as people write them, and as a card has them free."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from mdpo.errors import InputError

from .footprint import CONTEXT_BYTES, DRIVER_BYTES

GIB = 2**30
AUTO = "auto"
_UNITS = {
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": GIB,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}


class Memory(NamedTuple):
    """bytes: that a run may take of a card. driver_bytes: of these, what it takes beside PyTorch's allocator."""

    bytes: int
    driver_bytes: int = DRIVER_BYTES


def free_memory(device: torch.device) -> int:
    """Bytes that are free on ``device``, with this process's context on it. Raises InputError where it is not a GPU."""
    if device.type != "cuda":
        raise InputError(
            "there is no GPU here to read the free memory of; say for how much memory to plan, as in --memory 24GiB"
        )
    return torch.cuda.mem_get_info(device)[0]


def memory_of(text: str, free: Callable[[], int]) -> Memory:
    """What a run may take of a card.

    Args:
        text: a size, or ``AUTO``.
        free: gives the bytes that are free on the card, which then has the process's context already.

    Raises:
        InputError: as ``parse_size``, and as ``free``.
    """
    if text.strip().lower() == AUTO:
        return Memory(free(), DRIVER_BYTES - CONTEXT_BYTES)
    return Memory(parse_size(text))


def parse_size(text: str) -> int:
    """``"24GiB"``, ``"7.25 gib"`` or ``"8GB"`` in bytes.

    Raises:
        InputError: anything without a unit, less than a byte, or more than a computer counts.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", text.lower())
    count = 0.0 if match is None else float(match[1]) * _UNITS.get(match[2], 0)
    if not 1 <= count < 2**63:
        raise InputError(
            f"--memory is {text[:80]!r}; expected a size of at least a byte with its unit, as in 24GiB, or auto"
        )
    return int(count)


def gibibytes(count: float) -> str:
    """Bytes as GiB with two decimals."""
    return f"{count / GIB:.2f}"
