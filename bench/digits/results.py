"""What is known of one model after the demo, and the columns in which it is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from re import split
from typing import Any, NamedTuple

from bench.digits.world import mentioned

RED = "#d1242f"
COLORS = {"tuned": "#6e7781", "DPO": "#bf6a02", "mDPO": "#0860ca"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One model: its scores, its captions of the test scenes and, where it was trained here, how that went."""

    name: str
    scores: Any
    """What the world's columns read."""
    captions: list[str]
    log_ratio: float | None = None
    """Mean log π/ρ of the chosen captions of the test scenes."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The trainer's log."""


class Column(NamedTuple):
    name: str
    meaning: str
    value: Callable[[Result], float | None]
    form: str = "{:.1f}"


COLUMNS = (
    Column(
        "CHAIR_i",
        "of the digits named, each once a caption, those not in the picture, %",
        lambda result: result.scores.chair_i,
    ),
    Column("CHAIR_s", "of the captions, those that name such a digit, %", lambda result: result.scores.chair_s),
    Column("Cover", "of the digits in the picture, those named, %", lambda result: result.scores.cover),
    Column(
        "Partner", "of the digits named, absent partners of some in the picture, %", lambda r: r.scores.partner_rate
    ),
    Column("log π/ρ", "of the chosen (true) captions against the tuned model, mean", lambda r: r.log_ratio, "{:+.2f}"),
)


def cells(result: Result, columns: Sequence[Column] = COLUMNS) -> list[str]:
    """The model's row of the table."""
    values = [(column.value(result), column.form) for column in columns]
    return ["–" if value is None else form.format(value) for value, form in values]


def text_table(results: Sequence[Result], columns: Sequence[Column] = COLUMNS) -> str:
    """The table for a terminal."""
    lines = [" " * 8 + "".join(f"{column.name:>9}" for column in columns)]
    lines += [f"{result.name:<8}" + "".join(f"{cell:>9}" for cell in cells(result, columns)) for result in results]
    return "\n".join(lines)


def marked(caption: str, digits: Sequence[int]) -> list[tuple[str, bool]]:
    """A caption cut at its digits, each piece with whether it is a digit that the picture does not show."""
    return [(piece, piece.isdigit() and int(piece) not in digits) for piece in split(r"(\d)", caption) if piece]


def missed(caption: str, digits: Sequence[int]) -> list[int]:
    """The digits in the picture that a caption leaves out."""
    return [digit for digit in digits if digit not in mentioned(caption)]


Pieces = Callable[[str, Sequence[Any]], list[tuple[str, bool]]]
"""A caption in pieces, each with whether it is something that the picture does not show. Takes what it shows, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How a report speaks of a miniature world.

    summary: what was done, and the share of captions that follows. exhibits: which test pictures are shown. legend: how
    what is false in their captions is marked.
    """

    title: str
    summary: str
    exhibits: str
    legend: str
    columns: Sequence[Column]
    marked: Pieces
    """For the page."""
    in_short: Pieces
    """For the picture, where there is less room."""
    missed: Callable[[str, Sequence[Any]], Sequence[Any]]


DIGITS = World(
    title="mDPO in miniature",
    exhibits="The first test pictures",
    legend="Digits that are not in the picture are",
    columns=COLUMNS,
    summary=(
        "One small vision-language model, tuned to list the handwritten digits in a picture, then trained on the same "
        "preference pairs in two ways. Captions of unseen pictures that name a digit which is not there:"
    ),
    marked=marked,
    in_short=marked,
    missed=missed,
)
