"""What a row gives as an image → where its bytes are read from: a path below the image folder, or the bytes themselves.

Nothing is fetched, nothing is decoded here: every picture goes through ``images.open_image``, with its list of formats
and its limits.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mdpo.errors import InputError

from .images import ImageSource, StoredImage
from .problem import RowError, clipped, names, shortened

# How the formats that are read begin in base64: PNG, JPEG, GIF, WebP, BMP, TIFF (both byte orders). No path of this
# length is made of base64's letters alone.
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AK")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_ALLOW = "allow it by --allow-outside (in Python, allow_outside of mdpo.data.read_rows)"
_DATA_URI = re.compile(r"data:(?P<kind>[^;,]*)(?P<rest>[^,]*),", re.IGNORECASE)


class ImageRoot(NamedTuple):
    """Where image paths lead. allow_outside: absolute paths, ``..`` and links may lead out of ``folder``."""

    folder: Path
    allow_outside: bool = False


def image_root(image_dir: str | Path, allow_outside: bool = False) -> ImageRoot:
    """Raises InputError where ``image_dir`` is no folder."""
    folder = Path(image_dir).expanduser().resolve()
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"image_dir: {clipped(str(folder))} {problem}; give the folder of the images")
    return ImageRoot(folder, allow_outside)


def image_source(value: Any, root: ImageRoot, where: str, field: str) -> ImageSource:
    """The source of one image.

    Args:
        value: A path; a PIL image; the file's bytes, plain, in base64, as a data URI or as ``datasets`` stores them,
            ``{"bytes", "path"}``.
        root: The folder that paths are below.
        where: File and row.
        field: The column.

    Raises RowError where the value is none of these, or leads out of the folder.
    """
    if isinstance(value, (Image.Image, StoredImage)):
        return value
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return _stored(data, str(path or field))
        value = path or value
    if isinstance(value, bytes):
        return _stored(value, field)
    if not isinstance(value, (str, Path)) or not str(value):
        problem = f"an image is {_kind(value)}; expected a path or a PIL image"
        raise RowError.at(where, field, problem, "give the path of its file")
    text = str(value)
    if text[:5].lower() == "data:":
        return _data_uri(text, where, field)
    if text.startswith(_BASE64_STARTS) and _BASE64.fullmatch(text):
        return _base64(text, text, where, field)
    return _path(text.removeprefix("file://"), root, where, field)


def _path(text: str, root: ImageRoot, where: str, field: str) -> Path:
    if not text.isprintable():
        problem = f"image {shortened(text)} is not a valid path: it contains control characters"
        raise RowError.at(where, field, problem, "fix the path")
    if "://" in text:
        raise RowError.at(where, field, f"image {shortened(text)} is a URL", "nothing is fetched: download it")
    try:
        resolved = Path(os.path.realpath(root.folder / text))
    except (OSError, ValueError) as error:  # a null byte, half a surrogate pair
        problem = f"image {shortened(text)} is not a valid path: {error}"
        raise RowError.at(where, field, problem, "fix the path") from error
    if root.allow_outside or resolved.is_relative_to(root.folder):
        return resolved
    if Path(os.path.normpath(root.folder / text)).is_relative_to(root.folder):
        problem = f"image {shortened(text)} is a link that leads outside the image folder {root.folder}"
        raise RowError.at(where, field, problem, f"copy it there, or {_ALLOW}")
    problem = f"image {shortened(text)} is outside the image folder {root.folder}"
    remedy = f"give a path below image_dir, or {_ALLOW}"
    raise RowError.at(where, field, problem, remedy)


def _data_uri(text: str, where: str, field: str) -> StoredImage:
    head = _DATA_URI.match(text)
    if head is None or not head["kind"].lower().startswith("image/") or not head["rest"].lower().endswith(";base64"):
        problem = f"image {shortened(text)} is not a data URI of an image in base64"
        raise RowError.at(where, field, problem, "write data:image/png;base64,..., or give the path of its file")
    return _base64(text[head.end() :], text, where, field)


def _base64(encoded: str, text: str, where: str, field: str) -> StoredImage:
    """encoded: the base64. text: the whole value, for messages."""
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: letters that are not ASCII
        problem = f"image {shortened(text)} is not valid base64: {error}"
        raise RowError.at(where, field, problem, "encode it again") from error
    return _stored(data, f"{text[:40]}…")


def _stored(data: bytes, name: str) -> StoredImage:
    return StoredImage(name, partial(bytes, data))


def _kind(value: Any) -> str:
    if isinstance(value, float) and value != value:
        return "NaN, as pandas writes a missing value"
    if isinstance(value, Mapping):
        return f"an object with {names(value)}"
    return "an empty text" if isinstance(value, str) and not value else f"a {type(value).__name__}"
