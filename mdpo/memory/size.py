"""Bytes as people write them."""

import re

from mdpo.errors import InputError

GIB = 2**30
_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": GIB, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_size(text: str) -> int:
    """``"24GiB"``, ``"7.25 gib"`` or ``"8GB"`` in bytes. Raises InputError for anything without a unit, or not above 0."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise InputError(f"--memory {text!r}: expected a number above 0 with its unit, as in 24GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def gibibytes(count: float) -> str:
    """Bytes as GiB with two decimals."""
    return f"{count / GIB:.2f}"
