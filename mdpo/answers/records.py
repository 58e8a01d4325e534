"""Answers and their scores as they lie in files: JSONL, a line an answer, the question spelled out in each.

An answer's line holds the question's columns as ``mdpo generate`` reads them (``id``, ``images``, ``prompt``, …) and

- ``response``: the answer's text,
- ``answer``: its number among those that one writer gives to the question, from 0; counted where it is missing,
- ``tokens``: how many it has; null where that is not known,
- ``whole``: false where it was cut at the limit of tokens; true where it is missing,
- ``writer``: who wrote it, a model's or adapter's name; the file's name where it is missing.

A scored answer's line holds these and

- ``score``: the higher the better; null where it could not be scored,
- ``by``: what scored it,
- ``details``: what the score came from, an object.

So answers that people or other programs wrote are ranked like any: ``id``, ``images``, ``prompt`` and ``response`` are
enough.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from mdpo.data.canonical import Pictures, prompt_columns
from mdpo.data.image_sources import ImageRoot
from mdpo.data.images import ImageSource, StoredImage
from mdpo.data.picture_files import open_picture
from mdpo.data.problem import RowError, clipped, shortened
from mdpo.data.row import PromptRow
from mdpo.data.rows import Checked, check_rows
from mdpo.errors import InputError
from mdpo.evaluation.files import read_records

_ANSWER = ("response", "answer", "tokens", "whole", "writer")
_SCORED = ("score", "by", "details")
_MOST = 2**63  # of answers and tokens; what is larger counts nothing


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a question. row: the question.

    The other fields are the file's columns, ``answer`` as ``number``.
    """

    row: PromptRow
    response: str
    number: int
    writer: str
    tokens: int | None = None
    whole: bool = True

    @property
    def key(self) -> tuple[str, str, int]:
        """What names it among all answers: question, writer, number."""
        return self.row.id, self.writer, self.number

    def length(self, unit: str) -> int:
        """How long it is. unit: of ``length_unit``, of answers that it is among."""
        if unit == "words":
            return len(self.response.split())
        assert self.tokens is not None, "lengths are in words where an answer's tokens are not known"
        return self.tokens


def length_unit(answers: Iterable[Answer]) -> str:
    """In what the answers' lengths compare: "tokens" where each one's are known, else "words"."""
    return "tokens" if all(answer.tokens is not None for answer in answers) else "words"


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer and its score. score: the higher the better; None where it could not be scored. by: what scored it.

    details: what the score came from.
    """

    answer: Answer
    score: float | None
    by: str
    details: Mapping[str, Any] = field(default_factory=dict)


def answer_columns(answer: Answer, pictures: Pictures) -> dict[str, Any]:
    """The line of an answer. pictures: of the folder in which the file lies."""
    return prompt_columns(answer.row, pictures.place) | {
        "response": answer.response,
        "answer": answer.number,
        "tokens": answer.tokens,
        "whole": answer.whole,
        "writer": answer.writer,
    }


def scored_columns(scored: Scored, pictures: Pictures) -> dict[str, Any]:
    """The line of a scored answer. pictures: of the folder in which the file lies."""
    score = None if scored.score is None else float(scored.score)
    return answer_columns(scored.answer, pictures) | {"score": score, "by": scored.by, "details": dict(scored.details)}


def read_answers(paths: Sequence[Path], *, allow_outside: bool = False) -> list[Answer]:
    """The answers of one file or several, such as of several models: one pool, in the files' order.

    Image paths are taken below each file's folder. allow_outside: they may lead out of it. Columns of scores are passed
    over.

    Raises InputError that names file, line and column of what is missing or of the wrong kind, of an answer that comes
    twice, and of a question that another file asks otherwise under the same id.
    """
    pool = _Pool(allow_outside)
    return [answer for path in paths for answer, _ in pool.read(Path(path).expanduser())]


def read_scored(path: Path, *, allow_outside: bool = False) -> list[Scored]:
    """The scored answers of a file. Raises InputError as ``read_answers``."""
    return [_scored(answer, *record) for answer, record in _Pool(allow_outside).read(path.expanduser(), scored=True)]


class _Question(NamedTuple):
    row: PromptRow
    columns: Mapping[str, Any]
    folder: Path


class _Pool:
    """Reads files of answers whose questions are shared."""

    def __init__(self, allow_outside: bool) -> None:
        self._allow_outside = allow_outside
        self._questions: dict[str, _Question] = {}
        self._answers: dict[tuple[str, str, int], str] = {}

    def read(self, path: Path, *, scored: bool = False) -> Iterator[tuple[Answer, tuple[Mapping[str, Any], str]]]:
        """Yields each answer with its record and where that stands."""
        root = ImageRoot(path.parent.resolve(), self._allow_outside)
        records = read_records(path)
        if not records:
            raise InputError(f"{path} contains no answers")
        counted: Counter[tuple[str, str]] = Counter()
        for number, record in enumerate(records, start=1):
            where = f"{path}, answer {number}"
            if scored and "score" not in record:
                raise RowError.at(where, "score", "is missing", "give the file that mdpo rank writes")
            answer = _answer(record, self._question(record, where, root), counted, path.stem, where)
            first = self._answers.setdefault(answer.key, where)
            if first is not where:
                problem = (
                    f"answer {answer.number} of {shortened(answer.writer)} to {shortened(answer.row.id)} is also that "
                    f"of {first}"
                )
                raise RowError.at(
                    where, "answer", problem, "number each writer's answers, or give the writers different names"
                )
            yield answer, (record, where)

    def _question(self, record: Mapping[str, Any], where: str, root: ImageRoot) -> PromptRow:
        columns = {name: value for name, value in record.items() if name not in (*_ANSWER, *_SCORED)}
        if columns.get("id") is None:
            raise RowError.at(where, "id", "is missing", "the answers to one question share its id")
        known = self._questions.get(str(columns["id"]))
        if known is not None and known.columns == columns and known.folder == root.folder:
            return known.row
        (found,) = check_rows([(where, columns)], root, PromptRow)
        if isinstance(found, RowError):
            raise found
        assert isinstance(found, Checked), "a question alone is never dropped"
        if known is None:
            self._questions[found.row.id] = _Question(found.row, columns, root.folder)
            return found.row
        difference = _difference(known.row, found.row)
        if difference is not None:
            problem = f"id {shortened(found.row.id)} has another {difference} than at {known.row.where}"
            raise RowError.at(where, "id", problem, "give each question its own id")
        return known.row


def _difference(one: PromptRow, other: PromptRow) -> str | None:
    """What tells two questions apart: the prompt, or the pictures, by their bytes."""
    if (one.prompt, one.plain, one.tools, one.template_kwargs) != (
        other.prompt,
        other.plain,
        other.tools,
        other.template_kwargs,
    ):
        return "prompt"
    same = len(one.images) == len(other.images) and all(
        map(_same_picture, one.images, other.images, repeat(other.where))
    )
    return None if same else "picture"


def _same_picture(one: ImageSource, other: ImageSource, where: str) -> bool:
    return one == other or _bytes_of(one, where) == _bytes_of(other, where)


def _bytes_of(image: ImageSource, where: str) -> bytes:
    if isinstance(image, StoredImage):
        return image.read()
    assert isinstance(image, Path), "a file's rows hold paths or stored images"
    try:
        with open_picture(image) as file:
            return file.read()
    except OSError as error:
        problem = f"image {clipped(str(image))} cannot be read: {error.strerror or error}"
        raise RowError.at(where, "images", problem, "restore it, or leave the answer out") from error


def _answer(
    record: Mapping[str, Any], row: PromptRow, counted: Counter[tuple[str, str]], name: str, where: str
) -> Answer:
    response = record.get("response")
    if not isinstance(response, str):
        raise RowError.at(where, "response", f"is {shortened(response, 40)}; expected text", "give the answer's text")
    try:
        response.encode()
    except UnicodeEncodeError as error:
        problem = f"half a surrogate pair at character {error.start}: no Unicode text"
        raise RowError.at(where, "response", problem, "fix the text") from error
    writer = record.get("writer", name)
    if not isinstance(writer, str) or not writer:
        raise RowError.at(where, "writer", f"is {shortened(writer, 40)}; expected a name", "say who wrote the answer")
    number = record.get("answer")
    if number is None:
        number = counted[row.id, writer]
    counted[row.id, writer] += 1
    tokens, whole = record.get("tokens"), record.get("whole", True)
    if not _is_count(number):
        raise RowError.at(
            where, "answer", f"is {shortened(number, 40)}; expected a whole number from 0 on", "number the answers"
        )
    if tokens is not None and not _is_count(tokens):
        raise RowError.at(
            where, "tokens", f"is {shortened(tokens, 40)}; expected a whole number or null", "leave it out"
        )
    if not isinstance(whole, bool):
        raise RowError.at(where, "whole", f"is {shortened(whole, 40)}; expected true or false", "leave it out")
    return Answer(row, response, number, writer, tokens, whole)


def _scored(answer: Answer, record: Mapping[str, Any], where: str) -> Scored:
    score, by, details = record["score"], record.get("by", ""), record.get("details", {})
    if score is not None and not _is_finite(score):
        raise RowError.at(where, "score", f"is {shortened(score, 40)}; expected a number or null", "leave the line out")
    if not isinstance(by, str):
        raise RowError.at(where, "by", f"is {shortened(by, 40)}; expected a name", "say what scored the answer")
    if not isinstance(details, Mapping):
        raise RowError.at(where, "details", f"is {shortened(details, 40)}; expected an object", "leave it out")
    return Scored(answer, score if score is None else float(score), by, details)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # NaN is not; and an integer of any length compares


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST
