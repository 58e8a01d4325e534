"""Preference rows from a file, a dataset or any iterable of dicts, checked, in one canonical form."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mdpo.errors import InputError

from .columns import missing
from .conversations import check_messages
from .formats import PROMPT_INSIDE, to_canonical
from .image_sources import ImageRoot, image_root, image_source
from .images import ImageSource
from .messages import Message, parse_response, row_text
from .part_images import take_images
from .problem import Dropped, RowError, shortened
from .sources import Record, default_image_dir, open_source, records_of

logger = logging.getLogger(__name__)

_MEDIA_TAGS = ("<video>", "<audio>")


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


class Checked(NamedTuple):
    """A row that is sound. format: its name in FORMATS."""

    row: Any
    format: str


def read_rows(
    path: str | Path | Iterable[Mapping],
    image_dir: str | Path | None = None,
    *,
    kind: type[Row] = PreferenceRow,
    allow_outside: bool = False,
    ignore_columns: Sequence[str] = (),
) -> list[Row]:
    """The rows of a data file, folder or hub dataset (see ``open_source``), of any format in ``FORMATS``.

    path: where they are; what is in memory already, such as a ``datasets.Dataset``, goes to ``parse_rows``.

    image_dir: image paths are taken below it; without it, below the data file's folder.
    kind: ``PreferenceRow``, or ``PromptRow`` where the responses are not needed.
    allow_outside: see ``ImageRoot``.
    ignore_columns: columns that the rows are read without; any other that is not known is an error.

    Raises InputError that names file, row and field at the first row that is broken. How many rows were dropped
    because they hold no preference is logged.
    """
    if not isinstance(path, (str, Path)):
        where = Path.cwd() if image_dir is None else image_dir
        return parse_rows(path, where, kind=kind, allow_outside=allow_outside, ignore_columns=ignore_columns)
    root = source_root(path, image_dir, allow_outside)
    return _collect(check_rows(open_source(path), root, kind, ignore_columns), str(path))


def parse_rows(
    records: Iterable[Mapping | PromptRow],
    image_dir: str | Path,
    *,
    source: str = "dataset",
    kind: type[Row] = PreferenceRow,
    allow_outside: bool = False,
    ignore_columns: Sequence[str] = (),
) -> list[Row]:
    """Checks dicts of any format and brings them into canonical form. Raises InputError as ``read_rows``.

    records: dicts, or rows that are checked already; a ``datasets.Dataset`` keeps its images encoded until they are
    read. source: what the rows are called in messages.
    """
    root = image_root(image_dir, allow_outside)
    return _collect(check_rows(records_of(records, source), root, kind, ignore_columns), source)


def source_root(path: str | Path, image_dir: str | Path | None, allow_outside: bool = False) -> ImageRoot:
    """Where the image paths of a data file lead. Raises InputError where ``image_dir`` is given and no folder."""
    if image_dir is not None:
        return image_root(image_dir, allow_outside)
    return ImageRoot(default_image_dir(path).resolve(), allow_outside)  # of a hub name there is no folder


def check_rows(
    records: Iterable[Record], root: ImageRoot, kind: type[Row], ignore_columns: Sequence[str] = ()
) -> Iterator[Checked | Dropped | RowError]:
    """Yields for every record its row, why it was dropped, or what is wrong with it."""
    seen: dict[str, str] = {}
    for index, (where, record) in enumerate(records):
        if isinstance(record, kind):  # checked before, when it got its id
            yield Checked(record, "checked")
            continue
        try:
            checked = _check(record, index, where, root, kind, ignore_columns)
            if isinstance(checked, Checked):
                _check_id(checked.row, seen)
            yield checked
        except RowError as error:
            yield error


def _collect(found: Iterable[Checked | Dropped | RowError], source: str) -> list:
    rows, dropped, inside = [], Counter(), 0
    for item in found:
        if isinstance(item, RowError):
            raise item
        if isinstance(item, Dropped):
            dropped[item.reason] += 1
        else:
            rows.append(item.row)
            inside += item.format == PROMPT_INSIDE
    if inside:
        logger.warning("%s: %d rows have no prompt; it is what chosen and rejected both start with", source, inside)
    for reason, count in dropped.items():
        logger.warning("%s: %d rows dropped: %s", source, count, reason)
    if not rows:
        raise InputError(f"{source} holds no rows" + (" that can be used" if dropped else "") + "; give at least one")
    return rows


def _check(
    record: Any, index: int, where: str, root: ImageRoot, kind: type[Row], ignore_columns: Sequence[str]
) -> Checked | Dropped:
    if isinstance(record, RowError):
        raise record
    responses = ("chosen", "rejected") if kind is PreferenceRow else ()
    name, columns = to_canonical(record, where, ignore=ignore_columns, answers=bool(responses))
    if isinstance(columns, Dropped):
        return columns
    for column in ("prompt", *responses):
        if column not in columns:
            raise missing(column, record, ("prompt", *responses), where)
        check_messages(columns[column], where, column)
    question, values = take_images(columns["prompt"], columns["images"], where)
    images = tuple(image_source(value, root, where, "images") for value in values)
    fields: dict[str, Any] = {column: parse_response(columns[column], column, where) for column in responses}
    if kind is PreferenceRow:
        fields["rejected_images"] = _rejected_images(columns["rejected_images"], len(images), root, where)
    fields |= row_text({**columns, "prompt": question}, len(images), where)
    _check_media_tags(fields["prompt"], where)
    return Checked(kind(id=_id(columns, index, where), where=where, images=images, **fields), name)


def _id(columns: Mapping, index: int, where: str) -> str:
    value = columns.get("id", index)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise RowError.at(
            where, "id", f"expected text or a whole number, found {shortened(value, 40)}", "give each row its own"
        )
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise RowError.at(where, "id", "half a surrogate pair: no Unicode text", "fix the text") from error
    return str(value)


def _check_id(row: PromptRow, seen: dict[str, str]) -> None:
    if row.id in seen:
        problem = f"id {shortened(row.id)} is also that of {seen[row.id]}"
        raise RowError.at(row.where, "id", problem, "ids name examples: give each row its own, or none")
    seen[row.id] = row.where


def _rejected_images(values: list, images: int, root: ImageRoot, where: str) -> tuple[ImageSource, ...]:
    if values and len(values) != images:
        problem = f"{len(values)} for {images} images"
        raise RowError.at(where, "rejected_images", problem, "give one per image, or none")
    return tuple(image_source(value, root, where, "rejected_images") for value in values)


def _check_media_tags(prompt: list[Message], where: str) -> None:
    """What the user shows under these tags is not read, so that the question would be about nothing."""
    for message in prompt:
        for part in message["content"] if message["role"] != "assistant" else ():
            tag = next((tag for tag in _MEDIA_TAGS if tag in part.get("text", "")), None)
            if tag is not None:
                problem = f"the prompt has {tag}, which stands for what is not read: images and text are"
                raise RowError.at(
                    where, "prompt", problem, "drop the row; where its letters are meant, spell it otherwise"
                )
