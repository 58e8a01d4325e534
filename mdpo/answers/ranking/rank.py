"""Answers to scores, whichever way."""

from collections.abc import Sequence

from mdpo.errors import InputError

from ..records import Answer, Scored
from .length import without_length
from .way import Way

_EMPTY = "are they all empty?"
_ADVICE = {"agreement": "it takes two answers to a question: give several per question, or the files of several models"}


def rank(answers: Sequence[Answer], way: Way, *, length_control: bool = False) -> list[Scored]:
    """The answers with their scores, in order.

    way: one of ``mdpo.answers.ranking``. length_control: takes off the scores what length alone predicts, see
    ``without_length``.

    Raises InputError where no answer gets a score, and as the way does.
    """
    scored = way(answers)
    if not any(each.score is not None for each in scored):
        raise InputError(
            f"none of the {len(scored)} answers has a score by {way.name}; {_ADVICE.get(way.name, _EMPTY)}"
        )
    return without_length(scored) if length_control else scored
