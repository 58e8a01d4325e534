"""Prompts and responses, plain or conversational, as chat messages whose content is a list of parts."""

import json
from collections.abc import Mapping
from typing import Any

from .problem import RowError

IMAGE_TAG = "<image>"

Message = dict[str, Any]
Part = dict[str, str]

# Beside role and content: what chat templates know of a turn that calls a tool, answers one, or thinks.
_MESSAGE_KEYS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")


def row_text(columns: Mapping[str, Any], images: int, where: str) -> dict[str, Any]:
    """A PromptRow's ``prompt``, ``plain``, ``tools`` and ``template_kwargs``, from the columns ``prompt``, ``system``,
    ``tools`` and ``chat_template_kwargs``.

    images: as for ``parse_prompt``. Raises RowError as it does, and where a column is of another type, or a row with a
    ``system`` column has a system turn of its own.
    """
    prompt = parse_prompt(columns["prompt"], images, where)
    system = columns.get("system")
    if system is not None and not isinstance(system, str):
        raise RowError.at(where, "system", f"is {_kind(system)}; expected text", "give the system turn's text")
    if system and system.strip():
        if any(message["role"] == "system" for message in prompt):
            problem = "the row has a system column and a system turn in its prompt"
            raise RowError.at(where, "system", problem, "keep one of them")
        prompt = [{"role": "system", "content": _parts(system, where, "system", tags=False)}, *prompt]
    plain = columns["prompt"] if isinstance(columns["prompt"], str) else None
    tools = _without_none(_from_json(columns.get("tools"), where, "tools"))
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise RowError.at(where, "tools", f"is {_kind(tools)}; expected a list of objects", "give their JSON schemas")
    kwargs = _without_none(_from_json(columns.get("chat_template_kwargs"), where, "chat_template_kwargs"))
    if kwargs is not None and not isinstance(kwargs, dict):
        problem = f"is {_kind(kwargs)}; expected an object"
        raise RowError.at(where, "chat_template_kwargs", problem, "give the template's variables by name")
    return {"prompt": prompt, "plain": plain, "tools": tools or None, "template_kwargs": kwargs or None}


def text_columns(
    prompt: list[Message], plain: str | None, tools: list | None, template_kwargs: Mapping | None
) -> dict[str, Any]:
    """The columns that ``row_text`` reads back as these."""
    columns: dict[str, Any] = {"prompt": prompt}
    if plain is not None:  # it may be rendered already, which messages are not
        columns["prompt"] = plain
        if prompt[0]["role"] == "system":
            columns["system"] = "".join(part["text"] for part in prompt[0]["content"])
    given = {"tools": tools, "chat_template_kwargs": template_kwargs}
    return columns | {name: value for name, value in given.items() if value}


def _from_json(value: Any, where: str, field: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise RowError.at(where, field, f"not JSON: {error}", "give JSON, or the value itself") from error


def _without_none(value: Any) -> Any:
    """``datasets`` gives every object of a column the keys of all others, with None where it had none itself."""
    if isinstance(value, Mapping):
        return {str(key): _without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(entry) for entry in value]
    return value


def parse_prompt(value: Any, images: int, where: str) -> list[Message]:
    """The prompt's messages; ``<image>`` in its text stands for an image.

    images: how many the row has. Without any tag they stand in front of the first question.

    Raises RowError where the prompt is not text or messages, ends with an answer, or has another number of tags.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, (list, tuple)) or not value:
        problem = f"is {_kind(value)}; expected text or a list of messages"
        raise RowError.at(where, "prompt", problem, "give the question")
    messages = []
    for message in value:
        role, content, beside = _message(message, where, "prompt")
        # What an assistant said earlier quotes the tag, as a response does.
        parts = _parts(content, where, "prompt", tags=role != "assistant")
        messages.append({"role": role, "content": parts, **beside})
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
            problem = f"has {len(value)} messages; expected text or one assistant message"
            raise RowError.at(where, column, problem, "earlier turns belong to the prompt")
        role, content, beside = _message(value[0], where, column)
        if beside:
            problem = f"contains {', '.join(beside)} beside its text"
            raise RowError.at(where, column, problem, "a response is scored as text: write it into the content")
        if role != "assistant":
            problem = f"is a message of role {role!r}; expected an assistant message"
            raise RowError.at(where, column, problem, "give the answer as text")
        parts = _parts(content, where, column, tags=False)
        if any(part["type"] != "text" for part in parts):
            raise RowError.at(where, column, "contains an image", "responses are text; put images into images")
        value = "".join(part["text"] for part in parts)
    if not isinstance(value, str):
        problem = f"is {_kind(value)}; expected text or one assistant message"
        raise RowError.at(where, column, problem, "give the answer as text")
    if not value.strip():
        raise RowError.at(where, column, "is empty", "a response needs at least one word")
    return _text(value, where, column)


def _message(message: Any, where: str, field: str) -> tuple[str, Any, dict[str, Any]]:
    """Role, content, and what else a template may read of it."""
    if isinstance(message, Mapping) and isinstance(message.get("role"), str):
        beside = {str(key): _without_none(value) for key, value in message.items() if value not in (None, "", [], {})}
        content = message.get("content")
        if content is None and "tool_calls" in beside:
            content = []
        if content is not None:
            unknown = [key for key in beside if key not in ("role", "content", *_MESSAGE_KEYS)]
            if unknown:
                problem = (
                    f"a message's {unknown[0][:40]!r} is not read; known are role, content, {', '.join(_MESSAGE_KEYS)}"
                )
                raise RowError.at(where, field, problem, "delete it, or write it into the content")
            return message["role"], content, {key: beside[key] for key in _MESSAGE_KEYS if key in beside}
    raise RowError.at(where, field, "a message needs a role and a content", f"found {message!r:.80}")


def _parts(content: Any, where: str, field: str, *, tags: bool) -> list[Part]:
    """tags: ``<image>`` in text stands for an image."""
    if isinstance(content, str):
        pieces = _around_tags(content) if tags else [content]
        parts = []
        for index, text in enumerate(pieces):
            parts += [{"type": "image"}] * (index > 0)
            parts += [{"type": "text", "text": _text(text, where, field)}] * bool(text)
        return parts
    if not isinstance(content, (list, tuple)):
        problem = f"has a message whose content is {_kind(content)}; expected text or parts"
        raise RowError.at(where, field, problem, 'give text, or [{"type": "text", "text": ...}]')
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


def _around_tags(text: str) -> list[str]:
    """The text before, between and behind the tags. A line break beside a tag goes with it, unless text stands on both
    sides: between two lines it is the text's own."""
    pieces = text.split(IMAGE_TAG)
    told = [bool(piece.strip()) for piece in pieces]
    for at in range(len(pieces)):
        if at > 0 and not (told[at] and any(told[:at])):
            pieces[at] = pieces[at].removeprefix("\n")
        if at + 1 < len(pieces) and not (told[at] and any(told[at + 1 :])):
            pieces[at] = pieces[at].removesuffix("\n")
    return pieces


def without_images(messages: list[Message]) -> list[Message]:
    """The messages without their images; the texts around one do not run into each other."""
    return [{**message, "content": _texts(message["content"])} for message in messages]


def _texts(parts: list[Part]) -> list[Part]:
    texts: list[Part] = []
    cut = False
    for part in parts:
        if part["type"] != "text":
            cut = True
            continue
        text = part["text"]
        if cut and texts:
            text = joint(texts[-1]["text"], text) + text.removeprefix("\n" if texts[-1]["text"].endswith("\n") else "")
        texts.append({"type": "text", "text": text})
        cut = False
    return texts


def joint(before: str, after: str) -> str:
    """What has to stand between two texts if the image between them is taken out: a blank between two words."""
    return " " if before[-1:].isalnum() and after[:1].isalnum() else ""


def _text(text: str, where: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"half a surrogate pair at character {error.start}: no Unicode text"
        raise RowError.at(where, field, problem, "fix the text") from error
    return text


def _kind(value: Any) -> str:
    return "empty" if value in (None, "", [], ()) else f"a {type(value).__name__}"
