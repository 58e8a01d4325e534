"""A value as its field's type has it. What a user writes for it is taken as it is meant, or named in one line."""

import numbers
import os
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from mdpo.errors import InputError
from mdpo.shown import shown_text

from .yaml_text import Written, plain, read_yaml

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
DTYPES = {
    "auto": "auto",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "float64": "float64",
}


def coerce(value: Any, hint: Any, where: str) -> Any:
    """``value`` as a field of type ``hint`` holds it.

    value: plain, or as ``read_yaml`` leaves it. where: the setting's name, for messages.
    Raises InputError: "WHERE is VALUE; expected TYPE".
    """
    options = alternatives(hint)
    read = value.value if isinstance(value, Written) else value
    # A true that may be text or a boolean is a boolean: the type that YAML reads goes first.
    for option in sorted(
        options, key=lambda option: not (type(read) is option or any(read is o for o in _literals(option)))
    ):
        try:
            return _convert(value, option)
        except (TypeError, ValueError, OverflowError):
            continue
    choices = [option for option in options if isinstance(option, type) and issubclass(option, Enum)]
    if choices:
        names = ", ".join(str(member.value) for member in choices[0])
        raise InputError(f"{where}: {shown(value)} is unknown; choose from {names}")
    raise InputError(f"{where} is {shown(value)}; expected {' or '.join(_name(option) for option in options)}")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type. Text is no alternative to an enumeration, which checks it."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    if any(isinstance(option, type) and issubclass(option, Enum) for option in options):
        return tuple(option for option in options if option is not str)
    return options


def _literals(option: Any) -> tuple[Any, ...]:
    return typing.get_args(option) if typing.get_origin(option) is typing.Literal else ()


def read_argument(text: str, hint: Any, where: str) -> Any:
    """A word of the command line for a setting of type ``hint``, to be given to ``coerce``.

    What the shell passes on for a setting that takes text, or a list of words, is the text: YAML would cut it at " #",
    trim and fold it. There, YAML is read only for what is not text: an empty argument or null, true where it may be a
    boolean, [a, b] where it may be a list, and {a: 1} where it may be a mapping.

    where: the option, for messages. Raises InputError where the setting takes no text and ``text`` is not YAML, or
    empty.
    """
    options = alternatives(hint)
    kinds = {typing.get_origin(option) or option for option in options}
    takes_text = str in kinds or is_list(hint)
    if not takes_text and not text.strip():
        raise InputError(f"{where} is empty; expected {' or '.join(_name(option) for option in options)}")
    try:
        read = read_yaml(text, where)
    except InputError:
        if not takes_text:
            raise
        return text
    if read is None and not (text and takes_text):
        return Written(None, text)
    if bool in kinds and isinstance(read, str) and text[1:-1] == read:  # 'true', with quotes as in a file
        return read
    if not takes_text or isinstance(read, Written) and read.text == text or type(read) in kinds & {list, dict}:
        return read
    return text


def is_flag(hint: Any) -> bool:
    """Whether the setting may stand on the command line without a value: a boolean, and nothing that takes a word."""
    return bool in alternatives(hint) and str not in alternatives(hint)


def is_list(hint: Any) -> bool:
    """Whether the setting takes a list of words."""
    return any(typing.get_origin(option) is list and typing.get_args(option) == (str,) for option in alternatives(hint))


def dtype_name(name: str) -> str:
    """torch's name of a dtype, from it or a short form such as bf16. Raises InputError for one that is none of them."""
    found = DTYPES.get(name.removeprefix("torch.").lower())
    if found is None:
        raise InputError(f"dtype: {shown(name)} is unknown; choose from auto, bfloat16, float16, float32")
    return found


def _convert(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``, or TypeError, ValueError or OverflowError."""
    origin = typing.get_origin(kind)
    if origin is list:
        return _list(value, typing.get_args(kind)[0])
    read = value.value if isinstance(value, Written) else value
    if origin is typing.Literal:
        if not any(read is choice for choice in _literals(kind)):
            raise ValueError
        return read
    if kind is type(None):
        if read is not None and read not in ("none", "None"):
            raise TypeError
        return None
    if kind is str:
        return _text(value)
    if kind in (int, float):
        return _number(read, kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        # `no` is the name of a choice, and false to YAML however it is written.
        return read if isinstance(read, kind) else kind("no" if read is False else _text(value))
    if kind is dict or origin is dict:
        if not isinstance(read, Mapping):
            raise TypeError
        return plain(read)
    if not isinstance(read, kind):
        raise TypeError
    return read


def _list(value: Any, kind: Any) -> list:
    """A list, or one entry that stands for a list of one; words may be separated by commas."""
    if isinstance(value, str) and kind is str:
        value = [word.strip() for word in value.split(",")]
    elif isinstance(value, Written) and kind is str and value.value is not None:
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return [_convert(entry, kind) for entry in value]


def _text(value: Any) -> str:
    if isinstance(value, Written) and value.value is not None:
        return value.text
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    raise TypeError


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
        raise TypeError
    if kind is float:
        return float(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _name(option: Any) -> str:
    if typing.get_origin(option) is list:
        kinds = {str: "a list of words", float: "a list of numbers", dict: "a list of mappings"}
        return kinds.get(typing.get_args(option)[0], "a list")
    if option is dict or typing.get_origin(option) is dict:
        return "a mapping"
    return _WORDS.get(option, getattr(option, "__name__", str(option)))


def shown(value: Any) -> str:
    """A value in a message: as it was written, shortened, without characters that move a terminal's cursor."""
    value = getattr(value, "value", value) if isinstance(value, Enum) else value
    text = value.text or "empty" if isinstance(value, Written) else repr(plain(value))
    return shown_text(text, 80)


def shortened(error: object) -> str:
    """Another library's message as one line."""
    return shown_text(" ".join(str(error).split()), 400)
