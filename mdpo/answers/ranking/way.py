"""What every way of scoring has in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mdpo.data import PromptRow

from ..records import Answer, Scored


class Way(Protocol):
    """A way of scoring answers. name: how it is called on the command line and in a scored answer's ``by``."""

    name: str

    def __call__(self, answers: Sequence[Answer]) -> list[Scored]:
        """The answers with their scores, in order; None where one has no words or cannot be scored."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """What the scores came about by, as JSON has it; once they are there, what they cost too."""
        ...


def is_empty(answer: Answer) -> bool:
    """Whether an answer has no words, and so nothing that could be scored."""
    return not answer.response.strip()


def score_each(
    answers: Sequence[Answer], by: str, score: Callable[[Answer], tuple[float | None, Mapping[str, Any]]]
) -> list[Scored]:
    """The answers as ``score`` scores them, one after the other; empty ones are passed over.

    score: returns the score and its details.
    """
    scored = []
    for answer in answers:
        value, details = (None, {}) if is_empty(answer) else score(answer)
        scored.append(Scored(answer, value, by, details))
    return scored


def by_question(answers: Sequence[Answer]) -> dict[str, list[int]]:
    """The positions of each question's answers."""
    positions: dict[str, list[int]] = {}
    for at, answer in enumerate(answers):
        positions.setdefault(answer.row.id, []).append(at)
    return positions


def question_text(row: PromptRow) -> str:
    """What was asked last, without what stands for pictures."""
    last = next((message for message in reversed(row.prompt) if message["role"] == "user"), row.prompt[-1])
    return "".join(part["text"] for part in last["content"] if part["type"] == "text").strip()
