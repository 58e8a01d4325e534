"""Preference rows from a file, a dataset or any iterable of dicts, checked, in one canonical form."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from mdpo.errors import InputError

from .formats import to_canonical
from .images import ImageSource, StoredImage
from .messages import Message, parse_response, row_text
from .problem import Dropped, RowError
from .sources import Record, default_image_dir, open_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A checked question about images.

    id: the row's own ``id`` column, else its position. where: file and row, for messages.
    images: resolved paths, stored images or PIL images, in the order of the prompt's image parts.
    prompt: chat messages whose content is a list of ``{"type": "image"}`` and ``{"type": "text", "text": …}`` parts.
    plain: the prompt's text where the row gives it as text, which may be rendered already; see ``Encoder``.
    tools, template_kwargs: for the chat template, from the columns ``tools`` and ``chat_template_kwargs``.
    """

    id: str
    where: str
    images: tuple[ImageSource, ...]
    prompt: list[Message]
    plain: str | None = field(default=None, kw_only=True)
    tools: list[dict[str, Any]] | None = field(default=None, kw_only=True)
    template_kwargs: dict[str, Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class PreferenceRow(PromptRow):
    """A checked preference: the prompt, and the two responses' text.

    rejected_images: the row's own negatives, one per image; empty where it brings none.
    """

    chosen: str
    rejected: str
    rejected_images: tuple[ImageSource, ...] = ()


Row = TypeVar("Row", bound=PromptRow)


class ImageRoot(NamedTuple):
    """Where image paths lead. allow_outside: absolute paths, ``..`` and links may lead out of ``folder``."""

    folder: Path
    allow_outside: bool = False


class Checked(NamedTuple):
    """A row that is sound. format: its name in FORMATS."""

    row: Any
    format: str


def read_rows(
    path: str | Path,
    image_dir: str | Path | None = None,
    *,
    kind: type[Row] = PreferenceRow,
    allow_outside: bool = False,
) -> list[Row]:
    """The rows of a data file, folder or hub dataset (see ``open_source``), of any format in ``FORMATS``.

    image_dir: image paths are taken below it; without it, below the data file's folder.
    kind: ``PreferenceRow``, or ``PromptRow`` where the responses are not needed.
    allow_outside: see ``ImageRoot``.

    Raises InputError that names file, row and field at the first row that is broken. How many rows were dropped
    because they hold no preference is logged.
    """
    root = image_root(image_dir or default_image_dir(path), allow_outside)
    return _collect(check_rows(open_source(path), root, kind), str(path))


def parse_rows(
    records: Iterable[Mapping],
    image_dir: str | Path,
    *,
    source: str = "dataset",
    kind: type[Row] = PreferenceRow,
    allow_outside: bool = False,
) -> list[Row]:
    """Checks dicts of any format and brings them into canonical form. Raises InputError as ``read_rows``."""
    named = ((f"{source}, row {index}", record) for index, record in enumerate(records))
    return _collect(check_rows(named, image_root(image_dir, allow_outside), kind), source)


def image_root(image_dir: str | Path, allow_outside: bool = False) -> ImageRoot:
    return ImageRoot(Path(image_dir).expanduser().resolve(), allow_outside)


def check_rows(records: Iterable[Record], root: ImageRoot, kind: type[Row]) -> Iterator[Checked | Dropped | RowError]:
    """Yields for every record its row, why it was dropped, or what is wrong with it."""
    seen: dict[str, str] = {}
    for index, (where, record) in enumerate(records):
        try:
            checked = _check(record, index, where, root, kind)
            if isinstance(checked, Checked):
                _check_id(checked.row, seen)
            yield checked
        except RowError as error:
            yield error


def _collect(found: Iterable[Checked | Dropped | RowError], source: str) -> list:
    rows, dropped = [], Counter()
    for item in found:
        if isinstance(item, RowError):
            raise item
        if isinstance(item, Dropped):
            dropped[item.reason] += 1
        else:
            rows.append(item.row)
    for reason, count in dropped.items():
        logger.warning("%s: %d rows dropped: %s", source, count, reason)
    if not rows:
        raise InputError(f"{source} holds no rows" + (" that can be used" if dropped else ""))
    return rows


def _check(record: Any, index: int, where: str, root: ImageRoot, kind: type[Row]) -> Checked | Dropped:
    if isinstance(record, RowError):
        raise record
    name, columns = to_canonical(record, where)
    if isinstance(columns, Dropped):
        return columns
    responses = ("chosen", "rejected") if kind is PreferenceRow else ()
    for column in ("prompt", *responses):
        if column not in columns:
            remedy = f"rows need {', '.join(('prompt', *responses))}, and img_path (mDPO) or images (TRL)"
            problem = f"column {column!r} is missing; found {', '.join(map(str, record)) or 'none'}"
            raise RowError.at(where, column, problem, remedy)
    images = tuple(_image(value, root, where, "images") for value in columns["images"])
    fields: dict[str, Any] = {column: parse_response(columns[column], column, where) for column in responses}
    if kind is PreferenceRow:
        fields["rejected_images"] = _rejected_images(columns["rejected_images"], len(images), root, where)
    fields |= row_text(columns, len(images), where)
    return Checked(kind(id=_id(columns, index, where), where=where, images=images, **fields), name)


def _id(columns: Mapping, index: int, where: str) -> str:
    value = columns.get("id", index)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise RowError.at(where, "id", f"expected text or a whole number, found {value!r:.40}", "give each row its own")
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise RowError.at(where, "id", "half a surrogate pair: no Unicode text", "mend the text") from error
    return str(value)


def _check_id(row: PromptRow, seen: dict[str, str]) -> None:
    if row.id in seen:
        problem = f"id {row.id!r} is also that of {seen[row.id]}"
        raise RowError.at(row.where, "id", problem, "ids name examples: give each row its own, or none")
    seen[row.id] = row.where


def _rejected_images(values: list, images: int, root: ImageRoot, where: str) -> tuple[ImageSource, ...]:
    if values and len(values) != images:
        problem = f"{len(values)} for {images} images"
        raise RowError.at(where, "rejected_images", problem, "give one per image, or none")
    return tuple(_image(value, root, where, "rejected_images") for value in values)


def _image(value: Any, root: ImageRoot, where: str, field: str) -> ImageSource:
    if isinstance(value, (Image.Image, StoredImage)):
        return value
    if isinstance(value, Mapping):  # Hugging Face's {"bytes", "path"}
        data, value = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return StoredImage(str(value or field), partial(bytes, data))
    if not isinstance(value, (str, Path)) or not str(value):
        problem = f"an image must be a path or a PIL image, found {type(value).__name__ if value != '' else 'no text'}"
        raise RowError.at(where, field, problem, "give the path of its file")
    text = str(value)
    if not text.isprintable():
        raise RowError.at(where, field, f"image {text!r} is no path: it holds control characters", "mend the path")
    if "://" in text:
        raise RowError.at(where, field, f"image {text!r:.80} is a URL", "nothing is fetched: download it")
    if root.allow_outside:
        return _resolve(root.folder, text, where, field)
    path = Path(text)
    if path.is_absolute() or ".." in path.parts:
        problem = f"image {text!r} is outside the image folder {root.folder}, or might be"
        raise RowError.at(where, field, problem, "give a path below image_dir, without .., or set allow_outside")
    resolved = _resolve(root.folder, text, where, field)
    if not resolved.is_relative_to(root.folder):
        problem = f"image {text!r} is a link that leads outside the image folder {root.folder}"
        raise RowError.at(where, field, problem, "copy it there, or set allow_outside")
    return resolved


def _resolve(folder: Path, text: str, where: str, field: str) -> Path:
    try:
        return Path(os.path.realpath(folder / text))
    except (OSError, ValueError) as error:  # a null byte, half a surrogate pair
        raise RowError.at(where, field, f"image {text!r} is no path: {error}", "mend the path") from error
