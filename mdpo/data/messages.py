"""Prompts and responses, plain or conversational, as chat messages whose content is a list of parts."""

import re
from collections.abc import Mapping
from typing import Any

from .problem import RowError

IMAGE_TAG = "<image>"

Message = dict[str, Any]
Part = dict[str, str]


def parse_prompt(value: Any, images: int, where: str) -> list[Message]:
    """The prompt's messages; ``<image>`` in its text stands for an image.

    images: how many the row has. Without any tag they stand in front of the first question.

    Raises RowError where the prompt is not text or messages, ends with an answer, or has another number of tags.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, (list, tuple)) or not value:
        problem = f"expected text or a list of messages, found {_kind(value)}"
        raise RowError.at(where, "prompt", problem, "give the question")
    messages = []
    for message in value:
        role, content = _message(message, where, "prompt")
        # What an assistant said earlier quotes the tag, as a response does.
        messages.append({"role": role, "content": _parts(content, where, "prompt", tags=role != "assistant")})
    if messages[-1]["role"] == "assistant":
        problem = "ends with an assistant message"
        raise RowError.at(where, "prompt", problem, "an answer belongs to chosen and rejected")
    tags = sum(part["type"] == "image" for message in messages for part in message["content"])
    if tags == 0 and images:
        first = next((m for m in messages if m["role"] == "user"), messages[0])
        first["content"] = [{"type": "image"}] * images + first["content"]
    elif tags != images:
        problem = f"the prompt has {tags} {IMAGE_TAG} but the row has {images} images"
        raise RowError.at(where, "prompt", problem, f"give one {IMAGE_TAG} per image, or none at all")
    if not any(message["content"] for message in messages):
        raise RowError.at(where, "prompt", "is empty", "give the question")
    return messages


def parse_response(value: Any, column: str, where: str) -> str:
    """A response's text, from text or one assistant message. In it, ``<image>`` means its letters.

    Raises RowError where it is neither, holds an image or is empty.
    """
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            problem = f"expected text or one assistant message, found {len(value)} messages"
            raise RowError.at(where, column, problem, "earlier turns belong to the prompt")
        role, content = _message(value[0], where, column)
        if role != "assistant":
            problem = f"expected an assistant message, found one of role {role!r}"
            raise RowError.at(where, column, problem, "give the answer as text")
        parts = _parts(content, where, column, tags=False)
        if any(part["type"] != "text" for part in parts):
            raise RowError.at(where, column, "holds an image", "responses are text; put images into images")
        value = "".join(part["text"] for part in parts)
    if not isinstance(value, str):
        problem = f"expected text or one assistant message, found {_kind(value)}"
        raise RowError.at(where, column, problem, "give the answer as text")
    if not value.strip():
        raise RowError.at(where, column, "is empty", "a response needs at least one word")
    return _text(value, where, column)


def _message(message: Any, where: str, field: str) -> tuple[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or message.get("content") is None:
        raise RowError.at(where, field, "a message needs a role and a content", f"found {message!r:.80}")
    return message["role"], message["content"]


def _parts(content: Any, where: str, field: str, *, tags: bool) -> list[Part]:
    """tags: ``<image>`` in text stands for an image, with the line breaks around it."""
    if isinstance(content, str):
        pieces = re.split(rf"\n?{IMAGE_TAG}\n?", content) if tags else [content]
        parts = []
        for index, text in enumerate(pieces):
            parts += [{"type": "image"}] * (index > 0)
            parts += [{"type": "text", "text": _text(text, where, field)}] * bool(text)
        return parts
    if not isinstance(content, (list, tuple)):
        problem = f"a message's content must be text or parts, found {_kind(content)}"
        raise RowError.at(where, field, problem, 'give text, or [{"type": "text", "text": …}]')
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            parts.append({"type": "image"})
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": _text(part["text"], where, field)})
        else:
            raise RowError.at(where, field, "a part must be an image or a text", f"found {part!r:.80}")
    return parts


def _text(text: str, where: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"half a surrogate pair at character {error.start}: no Unicode text"
        raise RowError.at(where, field, problem, "mend the text") from error
    return text


def _kind(value: Any) -> str:
    return "nothing" if value in (None, "", [], ()) else type(value).__name__
