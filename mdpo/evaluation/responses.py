"""What the response files of all benchmarks have in common: answers by id, and a few of many values in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from .files import read_records

_SHOWN = 10


def some(values: Sequence[Any]) -> str:
    """The first few of a list, and how many there are."""
    shown = ", ".join(map(str, values[:_SHOWN]))
    return f"{len(values)} ({shown}{', …' if len(values) > _SHOWN else ''})"


def read_answers(path: str | Path) -> dict[str, str]:
    """Answers by id from a response file of any layout that ``mdpo generate`` writes.

    The id is ``id``, else ``question_id``, else the position. Raises InputError for a row without an answer, or an id
    that comes twice.
    """
    answers: dict[str, str] = {}
    for position, row in enumerate(read_records(path)):
        names = ("response", "text", "answer", "model_answer")
        answer = next((row[name] for name in names if isinstance(row.get(name), str)), None)
        id = str(row.get("id", row.get("question_id", position)))
        if answer is None:
            raise InputError(f"{path}, row {position} has no {' or '.join(names)}, only {', '.join(row)}")
        if id in answers:
            raise InputError(f"{path}, row {position}: id {id} appears twice; keep one response for each")
        answers[id] = answer
    return answers
