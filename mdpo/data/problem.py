"""What is wrong with one row, in parts that a table can show, and what becomes of rows that hold no preference."""

from typing import NamedTuple

from mdpo.errors import InputError


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
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Dropped(NamedTuple):
    """A sound row that holds no preference, such as one whose responses are all rated the same."""

    where: str
    reason: str
