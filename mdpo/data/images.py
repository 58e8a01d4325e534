"""Opening images: RGB, upright, whole and within bounds, or an error that names the row.

An image file is somebody else's bytes. Only raster formats that Pillow decodes itself are opened (its EPS plugin, for
one, starts Ghostscript), and the size in the header is checked before a pixel is decoded.

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
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from .problem import RowError, clipped

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**26  # 8192 × 8192: 192 MiB as RGB, in every worker that holds one
MAX_BYTES = 2**26  # of the file

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

    Raises RowError where it is missing, damaged, truncated, larger than MAX_PIXELS or MAX_BYTES, or of a format that
    is not in FORMATS.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "in memory", where, field)
    if isinstance(source, Path):
        name, file, size = clipped(str(source)), source, _file_size(source, where, field)
    else:
        name, data = clipped(source.name), _read(source, where, field)
        file, size = io.BytesIO(data), len(data)
    if size > MAX_BYTES:
        problem = f"image {name} has {size / 2**20:.0f} MiB, above the limit of {MAX_BYTES / 2**20:.0f}"
        raise RowError.at(where, field, problem, "shrink it")
    try:
        image = Image.open(file, formats=FORMATS)
    except Exception as error:  # Pillow's plugins raise whatever damaged bytes lead them to
        raise _unreadable(name, error, where, field) from error
    with image:
        return _decode(image, name, where, field)


def _file_size(path: Path, where: str, field: str) -> int:
    name = clipped(str(path))
    try:
        status = path.stat()
    except OSError as error:  # missing, no permission, a name that is too long
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        problem = f"image {name} {'does not exist' if missing else f'cannot be read: {error.strerror}'}"
        remedy = "check the row and image_dir"
        if "\\" in path.name and os.sep == "/":
            problem, remedy = f"{problem}: its path is written with backslashes, as on Windows", "write / instead"
        raise RowError.at(where, field, problem, remedy) from error
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device would never end
        raise RowError.at(where, field, f"image {name} is not a file", "check the row and image_dir")
    return status.st_size


def _read(source: StoredImage, where: str, field: str) -> bytes:
    try:
        return source.read()
    except OSError as error:  # the file that a table names, or the table itself
        problem = f"image {clipped(source.name)} cannot be read: {error.strerror or error}"
        raise RowError.at(where, field, problem, "check where the data set keeps its images") from error


def _decode(image: Image.Image, name: str, where: str, field: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        problem = f"image {name} has {width} × {height} pixels, above the limit of {MAX_PIXELS}"
        raise RowError.at(where, field, problem, "shrink it")
    if not width * height:
        raise RowError.at(where, field, f"image {name} has no pixels", "replace it or drop the row")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or image.mode.startswith("I"):  # convert alone would clip to black and white
            image = Image.fromarray(_eight_bits(np.asarray(image)))
        elif image.mode in ("La", "RGBa"):  # Pillow converts these to their own kind alone
            image = image.convert(image.mode.upper())
        return image.convert("RGB")
    except Exception as error:  # as above
        raise _unreadable(name, error, where, field) from error


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
    """A ``PreferenceRow``'s images, and with ``own`` its ``rejected_images`` after them."""
    uses = [Use(image, row.where, "images") for image in row.images]
    return uses + [Use(image, row.where, "rejected_images") for image in row.rejected_images if own]


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
    """Decodes every image of ``PreferenceRow``s, so that a damaged one is found before training.

    own: their ``rejected_images`` as well.

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
