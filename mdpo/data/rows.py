"""Preference rows from a JSON or JSONL file, or from any iterable of dicts, in one canonical form.

Two formats are told apart by their columns: mDPO's (``img_path, prompt, chosen, rejected``) and TRL's (``images`` or
``image``, ``prompt``, ``chosen``, ``rejected``, plain or conversational).
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from mdpo.errors import InputError

IMAGE_TAG = "<image>"
_IMAGE_COLUMNS = ("img_path", "images", "image")

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A checked question about images.

    id: the row's own ``id`` column, else its position. where: file and row, for messages.
    images: resolved paths or PIL images, in the order of the prompt's image parts.
    prompt: chat messages whose content is a list of ``{"type": "image"}`` and ``{"type": "text", "text": …}`` parts.
    """

    id: str
    where: str
    images: tuple[Path | Image.Image, ...]
    prompt: list[Message]


@dataclass(frozen=True, slots=True)
class PreferenceRow(PromptRow):
    """A checked preference: the prompt, and the two responses' text."""

    chosen: str
    rejected: str


Row = TypeVar("Row", bound=PromptRow)


def read_rows(
    path: str | Path, image_dir: str | Path | None = None, *, kind: type[Row] = PreferenceRow
) -> list[Row]:
    """The rows of a ``.json`` or ``.jsonl`` file; image paths are taken below ``image_dir``, or the file's folder.

    kind: ``PreferenceRow``, or ``PromptRow`` where the responses are not needed.

    Raises InputError that names file, row and field.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"data file {path} does not exist")
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path}: unknown kind of file {path.suffix!r}; give .json or .jsonl")
    return parse_rows(_records(path), image_dir or path.parent, source=path.name, kind=kind)


def parse_rows(
    records: Iterable[Mapping],
    image_dir: str | Path,
    *,
    source: str = "dataset",
    kind: type[Row] = PreferenceRow,
) -> list[Row]:
    """Checks dicts of either format and brings them into canonical form.

    Raises InputError that names row and field: a missing column, an empty response, an image path that leaves
    ``image_dir``, a number of ``<image>`` tags that is not the number of images, or an id that two rows share.
    """
    root = Path(image_dir).expanduser().resolve()
    rows, seen = [], {}
    for index, record in enumerate(records):
        row = _parse(record, index, root, source, kind)
        if row.id in seen:
            raise InputError(f"{row.where}: id {row.id!r} is also that of {seen[row.id]}; ids name examples")
        seen[row.id] = row.where
        rows.append(row)
    if not rows:
        raise InputError(f"{source} holds no rows")
    return rows


def _records(path: Path) -> Iterable[Mapping]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if path.suffix == ".json":
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
        if not isinstance(records, list):
            raise InputError(f"{path}: expected a list of rows, found a {type(records).__name__}")
        return records
    return _json_lines(path, text)


def _json_lines(path: Path, text: str) -> Iterable[Mapping]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error.msg}") from error


def _parse(record: Any, index: int, root: Path, source: str, kind: type[Row]) -> Row:
    where = f"{source}, row {index}"
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: expected an object with columns, found a {type(record).__name__}")
    responses = ("chosen", "rejected") if kind is PreferenceRow else ()
    for column in ("prompt", *responses):
        if record.get(column) is None:
            raise InputError(
                f"{where}: column {column!r} is missing; found {', '.join(map(str, record))}. Rows need "
                f"{', '.join(('prompt', *responses))}, and img_path (mDPO) or images (TRL)"
            )
    images = tuple(_image(value, root, where) for value in _image_values(record, where))
    return kind(
        id=str(record["id"]) if record.get("id") is not None else str(index),
        where=where,
        images=images,
        prompt=_prompt(record["prompt"], len(images), where),
        **{column: _response(record[column], column, where) for column in responses},
    )


def _image_values(record: Mapping, where: str) -> list:
    present = [name for name in _IMAGE_COLUMNS if record.get(name) is not None]
    if len(present) > 1:
        raise InputError(f"{where}: columns {' and '.join(present)} both name images; keep one")
    if not present:
        return []
    value = record[present[0]]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _image(value: Any, root: Path, where: str) -> Path | Image.Image:
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, (str, Path)) or not str(value):
        raise InputError(f"{where}: an image must be a path or a PIL image, found {type(value).__name__}")
    path = (root / value).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{where}: image {str(value)!r} is outside the image folder {root}; set image_dir")
    return path


def _prompt(value: Any, images: int, where: str) -> list[Message]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{where}: prompt must be text or a list of messages, found {type(value).__name__}")
    messages = [
        {"role": _role(message, where), "content": _parts(message["content"], f"{where}: prompt")} for message in value
    ]
    if messages[-1]["role"] == "assistant":
        raise InputError(f"{where}: the prompt ends with an assistant message; it belongs to chosen and rejected")
    tags = sum(part["type"] == "image" for message in messages for part in message["content"])
    if tags == 0 and images:
        # Neither format requires tags: without any, the images stand in front of the first question.
        first = next((m for m in messages if m["role"] == "user"), messages[0])
        first["content"] = [{"type": "image"}] * images + first["content"]
    elif tags != images:
        raise InputError(f"{where}: the prompt has {tags} {IMAGE_TAG} but the row has {images} images")
    return messages


def _role(message: Any, where: str) -> str:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or message.get("content") is None:
        raise InputError(f"{where}: a message needs a role and a content, found {message!r:.80}")
    return message["role"]


def _parts(content: Any, where: str) -> list[dict[str, str]]:
    """Content as parts; ``<image>`` in a prompt's text stands for an image, with the line break that follows it."""
    if isinstance(content, str):
        parts = []
        for index, text in enumerate(re.split(rf"\n?{IMAGE_TAG}\n?", content)):
            parts += [{"type": "image"}] * (index > 0)
            parts += [{"type": "text", "text": text}] * bool(text)
        return parts
    if not isinstance(content, (list, tuple)):
        raise InputError(f"{where}: a message's content must be text or parts, found {type(content).__name__}")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            parts.append({"type": "image"})
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise InputError(f"{where}: a part must be an image or a text, found {part!r:.80}")
    return parts


def _response(value: Any, column: str, where: str) -> str:
    if isinstance(value, (list, tuple)):
        if len(value) != 1 or _role(value[0], where) != "assistant":
            raise InputError(f"{where}: {column} must be text or one assistant message, found {len(value)} messages")
        parts = value[0]["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else _parts(parts, f"{where}: {column}")
        if any(part["type"] != "text" for part in parts):
            raise InputError(f"{where}: {column} holds an image; responses are text")
        value = "".join(part["text"] for part in parts)
    if not isinstance(value, str):
        raise InputError(f"{where}: {column} must be text or one assistant message, found {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: {column} is empty; a response needs at least one word")
    return value
