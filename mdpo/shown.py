"""Text that somebody else wrote, on its way to a terminal, a page, a model card or a stored record.

File names, ids, answers, configs and other libraries' messages can contain whatever their author liked: escape
sequences that repaint a terminal, characters that reverse the reading direction, line breaks that forge a line of ours,
markup, and credentials inside an address. Here each of them loses its effect.
"""

import html
import logging
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# Format characters without which words and emoji fall apart: the joiners. All other ones are spelled out, among them
# those that turn the reading direction around.
_JOINERS = "\u200c\u200d"
_ODD = re.compile(r"[^\x20-\x7e]")

_LOGIN = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s?#@]*(?:@[^/\s?#@]*)*@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:key|token|secret|password|passwd|pwd|signature|credential|auth|sig)[\w.-]*=)[^&;#\s\"']+",
    re.IGNORECASE,
)
# Keys that say what they are: Hugging Face, OpenAI and its relatives, GitHub, AWS; and what follows "Bearer".
_KEY = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16})\b|"
    r"(?<=\bBearer )[\w.~+/=-]{8,}"
)
# What Markdown and the HTML in it give a meaning; "_" inside a word and "#" inside a line have none.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[#+=-]")


def shown(text: object) -> str:
    """The text on one line for a terminal: control characters, line breaks among them, as escapes such as ``\\x1b``."""
    return _ODD.sub(_spelled, str(text))


def shown_text(text: str, length: int) -> str:
    """At most ``length`` characters of a text, in one line, with those that move a terminal's cursor spelled out."""
    text = shown(text)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def shown_lines(text: object) -> str:
    """As ``shown``, but the lines stay lines; those after the first are indented, so that none looks like a line of
    ours.
    """
    first, *rest = str(text).replace("\r\n", "\n").split("\n")
    return "\n".join([shown(first), *(f"  {shown(line)}" if line else "" for line in rest)])


def _spelled(match: re.Match[str]) -> str:
    character = match.group()
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cs", "Zl", "Zp") or kind == "Cf" and character not in _JOINERS:
        return character.encode("unicode_escape").decode()
    return character


def redacted(value: Any) -> Any:
    """The value with the credentials taken out of every text in it: logins and keys in addresses, and bare keys."""
    if isinstance(value, str):
        text = _LOGIN.sub(r"\g<scheme>[redacted]@", value)
        return _KEY.sub("[redacted]", _PARAMETER.sub(r"\g<name>[redacted]", text))
    if isinstance(value, Mapping):
        return {redacted(key): redacted(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(entry) for entry in value]
    return value


def markdown(text: object) -> str:
    """The text as Markdown shows it unchanged, on one line, also inside a table: no markup, no HTML, no link."""
    return _MARKDOWN.sub(r"\\\g<0>", shown(" ".join(str(text).split())))


def html_text(text: object) -> str:
    """The text as HTML shows it unchanged, also inside an attribute; its line breaks stay."""
    return html.escape("\n".join(shown(line) for line in str(text).split("\n")))


def say(text: object) -> None:
    """Prints one line."""
    print(shown(text))


class Formatter(logging.Formatter):
    """Log records for a terminal: spelled out, and without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return shown_lines(redacted(super().format(record)))
