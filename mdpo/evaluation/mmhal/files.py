"""MMHal-Bench's template and the responses to it, checked before anything is paid for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.shown import shown

from ..files import read_records
from ..responses import read_answers, some
from .ratings import FIELDS, TYPES


def read_mmhal(path: str | Path, template: str | Path | None = None) -> list[dict[str, Any]]:
    """MMHal-Bench's records with their answers.

    path: the official template with ``model_answer`` filled in; or, with ``template``, rows with ``response`` or
    ``text``, in the template's order, or with the template's positions as ``id``.

    Raises InputError for a record that lacks a field, or has no answer, and for answers that do not fit the template.
    """
    records = read_records(path) if template is None else _fill(read_records(template), read_answers(path), path)
    for index, record in enumerate(records):
        missing = [name for name in FIELDS if record.get(name) is None]
        if missing:
            raise InputError(
                f"{path}, record {index} has no {', '.join(missing)}, only {', '.join(record)}; "
                "is this another benchmark's file, or one that needs --template?"
            )
        texts = [name for name in FIELDS[1:] if not isinstance(record[name], str)]
        if texts:
            raise InputError(
                f"{path}, record {index}: {texts[0]} is {shown(repr(record[texts[0]])[:60])}; expected text"
            )
    # The official type of a question is its index: a record that went missing would shift all behind it.
    shifted = [
        index
        for index, record in enumerate(records)
        if record.get("question_type", TYPES[index % 8]) != TYPES[index % 8]
    ]
    if shifted:
        raise InputError(f"{path}: records out of the official order, whose types repeat every eight: {some(shifted)}")
    empty = [index for index, record in enumerate(records) if not record["model_answer"].strip()]
    if len(empty) == len(records):
        raise InputError(f"{path}: every model_answer is empty; is this the template before it was filled in?")
    return records


def _fill(template: Sequence[Mapping[str, Any]], answers: Mapping[str, str], path: str | Path) -> list[dict[str, Any]]:
    ids = [str(index) for index in range(len(template))]
    unknown, missing = [id for id in answers if id not in ids], [id for id in ids if id not in answers]
    if unknown or missing:
        raise InputError(
            f"{path}: ids missing from the answers: {some(missing)}; unknown to the template: {some(unknown)}"
        )
    return [{**record, "model_answer": answers[id]} for id, record in zip(ids, template, strict=True)]
