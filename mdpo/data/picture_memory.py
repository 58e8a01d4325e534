"""What decoding a picture takes, told from its header, and a bound on it: for one picture and over all threads."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

MAX_MEMORY = 3 * 2**28  # bytes, of one picture and of all that are being decoded at once: 768 MiB

# What a decoder keeps beside the pixels, in bytes a pixel. WebP: two canvases and the frame it hands over.
_BESIDE = {"WEBP": 12, "GIF": 2}
_NUMBERS = 26  # bringing wide numbers to 8 bits: a copy in 64 bits, what is finite of it, the rounded one
_POINTERS = 24  # Pillow keeps an address a line, and up to three pictures at a time


def decoding_bytes(image: Image.Image, file_bytes: int) -> int:
    """The memory that opening ``image`` as RGB takes at its highest, in bytes. It may be undecoded yet."""
    width, height = image.size
    a_pixel = 8  # as decoded and as RGB, or as RGB and turned around; both at 4
    a_pixel += _BESIDE.get(image.format or "", 0)
    if image.mode == "F" or image.mode.startswith("I"):
        a_pixel += _NUMBERS
    if image.info.get("progressive"):  # JPEG: every coefficient in 16 bits, of up to four components
        a_pixel += 2 * (4 if image.mode == "CMYK" else 3)
    return width * height * a_pixel + _POINTERS * height + _tile_bytes(image) + file_bytes


def _tile_bytes(image: Image.Image) -> int:
    """What the decoder of a TIFF takes for one tile or strip, which may be larger than the picture."""
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is None:
        return 0
    width, height = (_whole(tags.get(number)) for number in (322, 323))  # TileWidth, TileLength
    if not width or not height:
        width, height = image.width, min(_whole(tags.get(278)) or image.height, image.height)  # RowsPerStrip
    return width * height * 8  # up to four samples of 16 bits


def _whole(value: object) -> int:
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) and value > 0 else 0


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height that the first 30 bytes of a WebP file claim; None for anything else.

    Pillow hands a WebP to libwebp as it opens it, and libwebp allocates what the header asks for.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


class _Room:
    """MAX_MEMORY, shared by the threads of the process: who would exceed it waits until others are done."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Holds ``size`` bytes; one picture always fits by itself."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= MAX_MEMORY)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


ROOM = _Room()
if hasattr(os, "register_at_fork"):  # a child has none of the threads that held some of it
    os.register_at_fork(after_in_child=ROOM.__init__)
