"""Opening images: RGB, upright, whole and within bounds, or an error that names the row.

An image file is somebody else's bytes. Only raster formats that Pillow decodes itself are opened (its EPS plugin, for
one, starts Ghostscript), and what decoding will take is told from the header before a pixel is decoded, and bounded:
for one image, and for all that are being decoded at once in the threads of a process.

Pixels of more than 8 bits are brought to 8 by scaling, never by clipping, with a scale that the image alone decides:

- whole numbers from 0 to 65535 (modes I;16 and I): from 0 to the full scale of the fewest of 8, 10, 12, 14 and 16 bits
  that hold the image's largest value, since 10 and 12 bits of a sensor are stored in 16;
- floats (mode F) from 0 to 1: from 0 to 1; up to 255: as they are;
- anything else, negative numbers among them: from the image's smallest value to its largest.

NaN and −∞ count as the smallest value, ∞ as the largest.
"""

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm.auto import tqdm

from .picture_files import BecameLink, open_picture
from .picture_memory import MAX_MEMORY, ROOM, decoding_bytes, webp_size
from .problem import RowError, clipped

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**26  # 8192 × 8192: 256 MiB as RGB, in every worker that holds one
MAX_BYTES = 2**26  # of the file

# What EXIF's orientation asks for; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

CHUNK = 256  # rows whose images are handed to the threads at a time


@dataclass(frozen=True, slots=True, eq=False)
class StoredImage:
    """An image inside a table, read when it is needed. name: for messages. read: returns the encoded bytes."""

    name: str
    read: Callable[[], bytes]


ImageSource = Path | Image.Image | StoredImage


class ImageFacts(NamedTuple):
    """height, width: in pixels, upright. key: the same for the same file or the same stored bytes."""

    height: int
    width: int
    key: object


def open_image(source: ImageSource, where: str, field: str = "images") -> Image.Image:
    """The image as RGB, turned as its EXIF orientation says; of an animation, the first frame.

    Transparency is left out as Pillow's ``convert`` and transformers' ``load_image`` do: the colour below it shows.

    Raises RowError where it is missing, damaged, truncated, larger than MAX_PIXELS or MAX_BYTES, takes more than
    MAX_MEMORY to decode, or is of a format that is not in FORMATS.
    """
    if isinstance(source, Image.Image):
        if source.format == "EPS" and hasattr(source, "tile"):  # decoding it would start Ghostscript
            raise _unreadable("in memory", UnidentifiedImageError(), where, field)
        _check_size(source.size, "in memory", where, field)
        size = decoding_bytes(source, 0)
        _check_memory(size, "in memory", where, field)
        with ROOM.taken(size):
            return _turned(*_decode(source, "in memory", where, field))
    name, file, size = _opened(source, where, field)
    with file, ExitStack() as room:
        if size > MAX_BYTES:
            problem = f"image {name} has {size / 2**20:.0f} MiB, above the limit of {MAX_BYTES / 2**20:.0f}"
            raise RowError.at(where, field, problem, "shrink it")
        claimed = webp_size(file.read(30))  # before Pillow opens it, which allocates as much as it claims
        file.seek(0)
        if claimed is not None:
            _take(room, _Header(claimed), size, name, where, field)
        return _turned(*_decode_file(file, size, room, claimed is not None, name, where, field))


class _Header(NamedTuple):
    """What a WebP claims to be, as far as its cost depends on it."""

    size: tuple[int, int]
    mode: str = "RGBA"
    format: str = "WEBP"
    info: Mapping = MappingProxyType({})


def _opened(source: Path | StoredImage, where: str, field: str) -> tuple[str, BinaryIO, int]:
    """A name for messages, the encoded bytes to read, and their number."""
    if isinstance(source, Path):
        name = clipped(str(source))
        file = _open_file(source, name, where, field)
        return name, file, os.fstat(file.fileno()).st_size
    data = _read(source, where, field)
    return clipped(source.name), io.BytesIO(data), len(data)


def _open_file(path: Path, name: str, where: str, field: str) -> BinaryIO:
    remedy = "check the row and image_dir"
    try:
        return open_picture(path)
    except BecameLink as error:
        problem, remedy = f"image {name} leads through a symbolic link", "give the path that it leads to"
        raise RowError.at(where, field, problem, remedy) from error
    except (OSError, ValueError) as error:  # missing, no permission, a name that is too long, a NUL
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        reason = getattr(error, "strerror", None)
        problem = f"image {name} {'does not exist' if missing else f'cannot be read: {reason}'}"
        if not missing and reason is None:  # a pipe or a device, which would never end
            problem = f"image {name} is not a file"
        if "\\" in path.name and os.sep == "/":
            problem, remedy = f"{problem}: its path is written with backslashes, as on Windows", "write / instead"
        raise RowError.at(where, field, problem, remedy) from error


def _read(source: StoredImage, where: str, field: str) -> bytes:
    try:
        return source.read()
    except OSError as error:  # the file that a table names, or the table itself
        problem = f"image {clipped(source.name)} cannot be read: {error.strerror or error}"
        raise RowError.at(where, field, problem, "check where the data set keeps its images") from error


def _take(room: ExitStack, image: Any, file_bytes: int, name: str, where: str, field: str) -> None:
    """Takes what decoding the image costs, for as long as ``room`` is open.

    image: a Pillow image, or what it claims.
    """
    _check_size(image.size, name, where, field)
    size = decoding_bytes(image, file_bytes)
    _check_memory(size, name, where, field)
    room.enter_context(ROOM.taken(size))


def _check_size(size: tuple[int, int], name: str, where: str, field: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        problem = f"image {name} has {width} x {height} pixels, above the limit of {MAX_PIXELS}"
        raise RowError.at(where, field, problem, "shrink it")
    if not width * height:
        raise RowError.at(where, field, f"image {name} has no pixels", "replace it or drop the row")


def _check_memory(size: int, name: str, where: str, field: str) -> None:
    if size > MAX_MEMORY:
        limit = f"above the limit of {MAX_MEMORY / 2**20:.0f}"
        raise RowError.at(where, field, f"image {name} takes {size / 2**20:.0f} MiB to decode, {limit}", "shrink it")


def _decode_file(
    file: BinaryIO, size: int, room: ExitStack, counted: bool, name: str, where: str, field: str
) -> tuple[Image.Image, Image.Transpose | None]:
    """As ``_decode``. counted: whether its cost has been taken from the room already."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Exception as error:  # Pillow's plugins raise whatever damaged bytes lead them to
        raise _unreadable(name, error, where, field) from error
    with image:
        if not counted:
            _take(room, image, size, name, where, field)
        return _decode(image, name, where, field)


def _decode(image: Image.Image, name: str, where: str, field: str) -> tuple[Image.Image, Image.Transpose | None]:
    """The image as RGB, and how it has to be turned: by the caller, once the original's pixels are gone."""
    try:
        image.load()
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if image.mode == "F" or image.mode.startswith("I"):  # convert alone would clip to black and white
            image = Image.fromarray(_eight_bits(np.asarray(image)))
        elif image.mode in ("La", "RGBa"):  # Pillow converts these to their own kind alone
            image = image.convert(image.mode.upper())
        return image.convert("RGB"), turn
    except Exception as error:  # as above
        raise _unreadable(name, error, where, field) from error


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """(H, W) numbers of any kind → (H, W) uint8, scaled as this module's docstring says."""
    if whole := np.issubdtype(pixels.dtype, np.integer):
        low, high = float(pixels.min()), float(pixels.max())
        values = pixels.astype(np.float64 if pixels.dtype.itemsize > 2 else np.float32)
    else:
        finite = pixels[np.isfinite(pixels)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(pixels.astype(np.float64), copy=False, nan=low, posinf=high, neginf=low)
    if whole and low >= 0 and high < 2**16:
        low, high = 0.0, float(next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits))
    elif not whole and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    values -= low
    values *= 255 / ((high - low) or 1.0)
    return np.rint(values).astype(np.uint8)


def _unreadable(name: str, error: Exception, where: str, field: str) -> RowError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):  # Pillow's own, higher limit
        problem = f"image {name} has more pixels than the limit of {MAX_PIXELS}"
        return RowError.at(where, field, problem, "shrink it")
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # whose text repeats the path and leaves out what would be read
        reason = f"cannot identify it as {', '.join(FORMATS)}"
    return RowError.at(where, field, f"image {name} does not decode: {reason}", "replace it or drop the row")


class Use(NamedTuple):
    """One image of one row. where, field: for messages."""

    source: ImageSource
    where: str
    field: str


def image_uses(row, *, own: bool) -> list[Use]:
    """A row's images, and with ``own`` the ``rejected_images`` of a ``PreferenceRow`` after them."""
    uses = [Use(image, row.where, "images") for image in row.images]
    return uses + [Use(image, row.where, "rejected_images") for image in (row.rejected_images if own else ())]


def content_digest(use: Use) -> str:
    """Of the encoded bytes, or of the pixels of an image in memory. Raises RowError where it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(use.source, Image.Image):
        image = open_image(use.source, use.where, use.field)
        digest.update(f"{image.size}".encode() + image.tobytes())
        return digest.hexdigest()
    _, file, _ = _opened(use.source, use.where, use.field)
    with file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


class Inspector:
    """Decodes images in threads, a file that comes again once. Use as a context manager.

    Threads are enough: Pillow decodes outside the interpreter's lock.
    """

    def __init__(self) -> None:
        self._known: dict[str, ImageFacts | RowError] = {}
        self._pool = ThreadPoolExecutor()

    def __enter__(self) -> "Inspector":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def inspect(self, uses: Sequence[Use]) -> list[ImageFacts | RowError]:
        """What the images are, in order. A damaged one is its error, so that all of them can be listed."""
        keys = [str(use.source) if isinstance(use.source, Path) else at for at, use in enumerate(uses)]
        fresh = {key: use for key, use in zip(keys, uses, strict=True) if key not in self._known}
        found = dict(zip(fresh, self._pool.map(_inspect, fresh.values()), strict=True))
        self._known.update((key, facts) for key, facts in found.items() if isinstance(key, str))
        return [self._facts(found, key, use) for key, use in zip(keys, uses, strict=True)]

    def _facts(self, found: dict, key: str | int, use: Use) -> ImageFacts | RowError:
        facts = self._known[key] if isinstance(key, str) else found[key]
        if isinstance(facts, RowError):  # the same file may be bad in several rows
            return RowError.at(use.where, use.field, facts.problem, facts.remedy)
        return facts


def _inspect(use: Use) -> ImageFacts | RowError:
    source, key = use.source, id(use.source)
    try:
        if isinstance(source, StoredImage):
            data = _read(source, use.where, use.field)
            source, key = StoredImage(source.name, partial(bytes, data)), hashlib.blake2b(data, digest_size=16).digest()
        elif isinstance(source, Path):
            key = str(source)
        image = open_image(source, use.where, use.field)
    except RowError as error:
        return error
    return ImageFacts(image.height, image.width, key)


def check_images(rows: Sequence, *, own: bool = False) -> list[tuple[ImageFacts, ...]]:
    """Decodes every image of the rows, so that a damaged one is found before training, or before it is paid for.

    own: the ``rejected_images`` of ``PreferenceRow``s as well.

    Returns the facts of each row's ``images``. Raises RowError for the first row, in order, whose image is bad.
    """
    result = []
    with Inspector() as inspector:
        for start in tqdm(range(0, len(rows), CHUNK), "checking images", leave=False, disable=None):
            chunk = rows[start : start + CHUNK]
            facts = iter(inspector.inspect([use for row in chunk for use in image_uses(row, own=own)]))
            for row in chunk:
                found = []
                for fact in islice(facts, len(image_uses(row, own=own))):
                    if isinstance(fact, RowError):
                        raise fact
                    found.append(fact)
                result.append(tuple(found[: len(row.images)]))
    return result
