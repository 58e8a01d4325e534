"""What is wrong with one row, in parts that a table can show, and what becomes of rows that hold no preference."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from mdpo.errors import InputError
from mdpo.shown import shown

_LONGEST = 600  # characters of a part of a message: whatever slips in unshortened ends here


def clipped(text: str, limit: int = 200) -> str:
    """A text for a message, such as a path, with its middle left out and its length said where it is long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}…{text[-(limit // 4) :]} ({len(text):,} characters)"


def shortened(value: Any, limit: int = 100) -> str:
    """A value as a message quotes it: in quotes where it is text, and with its length said where it is long.

    Args:
        value: Text (a base64 image, an id) or anything else with a ``repr``.
        limit: The longest quotation in characters.
    """
    if isinstance(value, str) and len(value) > limit:  # before repr, which would copy it whole
        return f"{value[: limit * 2 // 3]!r}…{value[-(limit // 4) :]!r} ({len(value):,} characters)"
    if isinstance(value, bytes) and len(value) > limit:
        return f"{value[: limit // 2]!r}… ({len(value):,} bytes)"
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= 2 * limit else f"{text[:limit]}… ({len(text):,} characters)"


def names(columns: Iterable[Any], most: int = 12, separator: str = ", ") -> str:
    """Names for a message, in their order; "none" if there are none."""
    listed = [name if len(name) <= 40 else f"{name[:40]}…" for name in map(str, columns)]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (separator.join(listed[:most]) or "none") + more


def spelled_out(text: str) -> str:
    """A text for the terminal: control characters as escapes, a line break as ``\\n``."""
    return shown(text)


class RowError(InputError):
    """One row's error: the same message where training stops at it and where ``mdpo data check`` lists it.

    where: file and row. field: the column. problem: what is wrong. remedy: what to do.
    """

    where: str
    field: str
    problem: str
    remedy: str

    @classmethod
    def at(cls, where: str, field: str, problem: str, remedy: str) -> "RowError":
        # Not __init__: a dataloader's worker hands errors over by calling the class with the message alone.
        where, field, problem, remedy = map(_printable, (where, field, problem, remedy))
        error = cls(f"{where}: {field}: {problem}; {remedy}")
        error.where, error.field, error.problem, error.remedy = where, field, problem, remedy
        return error


def _printable(text: str) -> str:
    """Messages quote somebody's data: control characters are spelled out, not sent to a terminal."""
    return spelled_out(clipped(text, _LONGEST))


class Dropped(NamedTuple):
    """A sound row that holds no preference, such as one whose responses are all rated the same."""

    where: str
    reason: str


def other_pictures_missing(where: str, negative: str, count: int) -> RowError:
    """Of a row for which the data has fewer than ``count`` pictures beside its own, which a negative takes
    from there.
    """
    if count == 1:
        problem = f"{negative} needs a second row, with an image that this row does not have"
    else:
        problem = f"{negative} needs {count} images that this row does not have, and the data has fewer"
    return RowError.at(where, "images", problem, "choose another negative")
