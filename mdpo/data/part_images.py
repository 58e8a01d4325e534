"""Images that stand inside a message's parts, as Qwen, transformers and OpenAI write them, taken out into a list.

``{"type": "image", "image": X}`` (Qwen; also ``url``, ``path``, ``base64``, as transformers' chat templates read them)
and ``{"type": "image_url", "image_url": {"url": X}}`` (OpenAI) become ``{"type": "image"}`` and an entry X of images.
"""

from collections.abc import Mapping
from typing import Any

from .columns import is_empty
from .problem import RowError, shortened

_SOURCES = ("image", "url", "path", "base64", "image_url")
_SIZES = {"min_pixels", "max_pixels", "resized_height", "resized_width", "detail", "size"}


def take_images(prompt: Any, images: list, where: str) -> tuple[Any, list]:
    """The prompt with bare image parts, and the images: those of the parts, else those of the column.

    Args:
        prompt: As the row has it; text and anything malformed is returned as it is, for ``parse_prompt`` to judge.
        images: The values of the row's images column.
        where: File and row.

    Raises RowError where both name images, only some parts do, or a part has a key that nothing reads.
    """
    if not isinstance(prompt, (list, tuple)):
        return prompt, images
    found: list = []
    bare = 0
    messages = []
    for message in prompt:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            parts = [_part(part, found, where) for part in content]
            bare += sum(part == {"type": "image"} for part in parts)
            message = {**message, "content": parts}
        messages.append(message)
    if not found:
        return messages, images
    if images:
        problem = "images stand both inside the prompt's parts and in a column"
        raise RowError.at(where, "images", problem, "keep one of the two")
    if bare != len(found):
        problem = f"{len(found)} of {bare} image parts name their image"
        raise RowError.at(where, "prompt", problem, "name all of them, or list the images in the column images")
    return messages, found


def _part(part: Any, found: list, where: str) -> Any:
    """The part without its image, which is added to ``found``."""
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    says = {key: value for key, value in part.items() if key != "type" and not is_empty(value)}
    if kind == "text":
        says.pop("text", None)
        _check_rest(says, where)
        return {"type": "text", "text": part.get("text")}
    if kind not in ("image", "image_url"):
        if isinstance(kind, str) and not is_empty(part):
            problem = f"a part is of type {shortened(kind, 40)}: a part must be an image or a text"
            raise RowError.at(where, "prompt", problem, "drop the row, or the part")
        return part
    sources = [key for key in _SOURCES if key in says]
    for key in sources:
        value = says.pop(key)
        if key == "image_url" and isinstance(value, Mapping):
            inner = {name: cell for name, cell in value.items() if not is_empty(cell)}
            value = inner.pop("url", None)
            if inner.get("detail") == "auto":
                del inner["detail"]
            says |= inner
        found.append(f"data:image/*;base64,{value}" if key == "base64" and isinstance(value, str) else value)
    if len(sources) > 1:
        problem = f"a part names its image twice, as {' and '.join(sources)}"
        raise RowError.at(where, "prompt", problem, "keep one")
    _check_rest(says, where)
    return {"type": "image"}


def _check_rest(says: Mapping[str, Any], where: str) -> None:
    for key in says:
        if key in _SIZES:
            problem = f"a part sets {key} for its image, but images are prepared by the processor's own settings"
            raise RowError.at(where, "prompt", problem, "set it in the processor, and leave it out of the rows")
        problem = f"a part has {shortened(str(key), 40)}, which is not read"
        raise RowError.at(where, "prompt", problem, "leave it out, or write what it says into a text part")
