"""Pairwise human evaluation: a blind sheet, and what its raters' answers come to.

The sheet knows two answers to each question as left and right; which is whose stays in a key file beside it. Sides and
order follow from the seed and the question's id alone, so the same sheet can be made again.
"""

import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdpo.data import PromptRow
from mdpo.data.images import open_image
from mdpo.errors import InputError
from mdpo.outputs import whole_files, write_part

from ..files import as_json, read_json
from ..intervals import wilson
from ..responses import some
from ..results import Metric, Response, Result
from .page import PAGE

KEY_SCHEMA = "mdpo-human-key-1"
ANSWER_SCHEMA = "mdpo-human-answers-1"
CHOICES = ("left", "tie", "right")
_LONGEST_SIDE = 900  # pixels of an image on the sheet


@dataclass(frozen=True, slots=True)
class Sheet:
    """html: the page. key: what the raters must not see; ``tally`` needs it."""

    html: str
    key: dict[str, Any]


def make_sheet(
    rows: Sequence[PromptRow],
    first: Mapping[str, str],
    second: Mapping[str, str],
    *,
    names: tuple[str, str],
    seed: int = 0,
) -> Sheet:
    """The sheet for rows that both sides answered. first, second: answers by row id. names: whose they are.

    Raises InputError where an answer is missing, or an image is.
    """
    for name, answers in zip(names, (first, second), strict=True):
        missing = [row.id for row in rows if row.id not in answers]
        if missing:
            raise InputError(f"{name} has no answer to {some(missing)} of {len(rows)} questions")
    swapped = {row.id: _draw(seed, "side", row.id)[0] % 2 == 1 for row in rows}
    items = [_item(row, first[row.id], second[row.id], swapped[row.id]) for row in rows]
    items.sort(key=lambda item: _draw(seed, "order", item["id"]))
    # Names are not part of it: who has the key alone knows them.
    content = json.dumps(items, sort_keys=True).encode()
    sheet_id = hashlib.blake2b(content, digest_size=8).hexdigest()
    data = json.dumps({"schema": ANSWER_SCHEMA, "sheet": sheet_id, "items": items}, ensure_ascii=False)
    key = {
        "schema": KEY_SCHEMA,
        "sheet": sheet_id,
        "seed": seed,
        "first": names[0],
        "second": names[1],
        "swapped": swapped,
        "questions": {row.id: _question(row) for row in rows},
    }
    # "<" is spelled out: an answer that holds "</script>" must not end the data.
    return Sheet(PAGE.replace("{{data}}", data.replace("<", "\\u003c")), key)


def _draw(seed: int, what: str, id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{what}:{id}".encode(), digest_size=8).digest()


def _item(row: PromptRow, first: str, second: str, swapped: bool) -> dict[str, Any]:
    left, right = (second, first) if swapped else (first, second)
    images = [_data_uri(open_image(image, row.where)) for image in row.images]
    return {"id": row.id, "question": _question(row), "images": images, "left": left, "right": right}


def _question(row: PromptRow) -> str:
    parts = [part for message in row.prompt for part in message["content"]]
    return "\n".join(part["text"].strip() for part in parts if part["type"] == "text")


def _data_uri(image: Any) -> str:
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_sheet(path: Path, sheet: Sheet) -> Path:
    """Writes the page and, beside it, the key: both, or neither. Returns the key's path."""
    key = key_path(path)
    with whole_files(path, key) as (page_part, key_part):
        write_part(page_part, sheet.html)
        write_part(key_part, as_json(sheet.key))
    return key


def key_path(sheet: Path) -> Path:
    """Where the key of a sheet lies."""
    return sheet.with_suffix(".key.json")


def tally(key_file: str | Path, answer_paths: Sequence[str | Path]) -> Result:
    """Wins, ties and losses of the key's second side against its first, over all raters' votes.

    Intervals are Wilson's, a question being the unit: several raters of one question are one trial, so that they do not
    look like more questions than there are.

    Raises InputError for a file that is no key or no answers, for answers to another sheet, and for none at all.
    """
    key = read_json(key_file)
    if not isinstance(key, dict) or key.get("schema") != KEY_SCHEMA:
        raise InputError(f"{key_file} is not the key of a sheet")
    kinds = {"sheet": str, "first": str, "second": str, "swapped": dict, "questions": dict}
    broken = [name for name, kind in kinds.items() if not isinstance(key.get(name), kind)]
    if broken:
        raise InputError(f"{key_file} is not the key of a sheet: its {broken[0]} cannot be read; make the sheet again")
    votes: dict[str, list[str]] = {id: [] for id in key["swapped"]}
    for path in answer_paths:
        for id, choice in _read_votes(path, key).items():
            votes[id].append(_outcome(choice, key["swapped"][id]))
    answered = {id: outcomes for id, outcomes in votes.items() if outcomes}
    if not answered:
        raise InputError("no question was answered")
    missing = [id for id, outcomes in votes.items() if not outcomes]
    shares = {name: sum(outcomes.count(name) / len(outcomes) for outcomes in answered.values()) for name in _OUTCOMES}
    return Result(
        "Human preference",
        f"{key['second']} against {key['first']}, blind",
        [_metric(name, share, len(answered)) for name, share in shares.items()],
        [_response(id, outcomes, key["questions"].get(id, "")) for id, outcomes in answered.items()],
        {"questions": len(answered), "raters": len(answer_paths), "unanswered": len(missing)},
        [f"questions without an answer: {some(missing)}"] if missing else [],
    )


_OUTCOMES = {
    "win": ("higher", "the second side's answer is better"),
    "tie": ("higher", "neither is better"),
    "loss": ("lower", "the first side's answer is better"),
}


def _metric(name: str, share: float, questions: int) -> Metric:
    better, definition = _OUTCOMES[name]
    metric = Metric.of(name.capitalize(), share / questions * 100, better, f"{name}/questions", definition)
    return dataclasses.replace(metric, interval=[bound * 100 for bound in wilson(share, questions)])


def _read_votes(path: str | Path, key: Mapping[str, Any]) -> dict[str, str]:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != ANSWER_SCHEMA:
        raise InputError(f"{path} is not a file of answers saved from a sheet")
    if content.get("sheet") != key["sheet"]:
        raise InputError(f"{path} answers another sheet ({content.get('sheet')}) than the key's ({key['sheet']})")
    answers = content.get("answers")
    if not isinstance(answers, dict):
        raise InputError(f"{path} contains no answers")
    for id, choice in answers.items():
        if id not in key["swapped"] or choice not in CHOICES:
            raise InputError(f"{path}: {id!r}: {choice!r} is not an answer to the sheet")
    return answers


def _outcome(choice: str, swapped: bool) -> str:
    if choice == "tie":
        return "tie"
    second = "left" if swapped else "right"
    return "win" if choice == second else "loss"


def _response(id: str, outcomes: Sequence[str], question: str) -> Response:
    numbers = {name: outcomes.count(name) / len(outcomes) for name in _OUTCOMES} | {"questions": 1.0}
    return Response(id, "", numbers, question)
