"""How much one row may hold, so that an absurd one costs its own error and not the memory of the machine.

The limits are far above what a model reads in one sequence. They are looked at before anything is made of the row.
"""

from collections.abc import Mapping
from typing import Any

from .problem import RowError

MAX_LINE = 2**26  # bytes of one row in a JSONL file: 64 MiB, an image in base64 included
MAX_VALUES = 500_000  # values in one such line: each takes up to a hundred bytes once it is parsed
MAX_TEXT = 2**22  # characters of a row's prompt and answers together: 4 MiB of English
MAX_TURNS = 1_000  # turns of a conversation
MAX_PARTS = 10_000  # texts and images in the contents of all its turns
MAX_IMAGES = 64

# Columns that hold what a model reads, and the keys of their turns and parts that hold it.
_TEXT = (
    "prompt", "chosen", "rejected", "question", "text", "conversations", "messages", "rejected_conversations",
    "rejected_messages", "rejected_response", "contrast", "resp_1_w", "resp_1_l", "resp_2_w", "completions", "system",
    "tools",
)  # fmt: skip
_INSIDE = ("content", "value", "text", "response")
_REMEDY = "shorten the row, or drop it"


def check_size(record: Mapping, where: str) -> None:
    """Raises RowError where a row has more characters, turns or parts than the limits. The limit on images is
    ``check_images``'s."""
    characters = 0
    for name in _TEXT:
        value = record.get(name)
        if isinstance(value, str):
            characters += len(value)
        elif value:
            characters += _inside(value, where, name)
        if characters > MAX_TEXT:
            problem = f"the row has {characters:,} characters or more, above the limit of {MAX_TEXT:,}"
            raise RowError.at(where, name, problem, _REMEDY)


def check_images(images: list, where: str, field: str) -> None:
    """Raises RowError where a row has more images than the limit."""
    if len(images) > MAX_IMAGES:
        problem = f"{len(images):,} images, above the limit of {MAX_IMAGES}"
        raise RowError.at(where, field, problem, "give fewer, or drop the row")


def check_line(line: bytes, where: str) -> None:
    """Raises RowError where a line of JSON would take much more memory than its bytes."""
    if len(line) < MAX_VALUES:
        return
    values = line.count(b",") + line.count(b"[") + line.count(b"{")
    if values > MAX_VALUES and values * 32 > len(line):  # commas of a text, too, are counted, but are not that dense
        raise RowError.at(where, "line", f"contains some {values:,} values, above the limit of {MAX_VALUES:,}", _REMEDY)


def _inside(value: Any, where: str, field: str) -> int:
    """The characters in a list of turns, or in one."""
    turns = value if isinstance(value, (list, tuple)) else [value]
    if len(turns) > MAX_TURNS:
        problem = f"{len(turns):,} turns, above the limit of {MAX_TURNS:,}"
        raise RowError.at(where, field, problem, _REMEDY)
    characters = parts = 0
    for turn in turns:
        for content in (turn.get(key) for key in _INSIDE) if isinstance(turn, Mapping) else [turn]:
            if isinstance(content, str):
                characters += len(content)
            elif isinstance(content, (list, tuple)):
                parts += len(content)
                if parts > MAX_PARTS:
                    problem = f"{parts:,} parts or more in its turns, above the limit of {MAX_PARTS:,}"
                    raise RowError.at(where, field, problem, _REMEDY)
                texts = (part.get("text") for part in content if isinstance(part, Mapping))
                characters += sum(len(text) for text in texts if isinstance(text, str))
    return characters
