"""Response files of the three benchmarks, checked before anything is scored or paid for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.shown import shown

from . import amber, mmhal
from .files import read_json, read_records

_SHOWN = 10


def some(values: Sequence[Any]) -> str:
    """The first few of a list, and how many there are."""
    shown = ", ".join(map(str, values[:_SHOWN]))
    return f"{len(values)} ({shown}{', …' if len(values) > _SHOWN else ''})"


def read_amber_rules(
    annotations: str | Path, relation: str | Path
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """AMBER's ``annotations.json`` and ``relation.json``. Raises InputError naming the file, and what of it is not
    read.
    """
    entries, words = read_json(annotations), read_json(relation)
    for at, entry in enumerate(entries if isinstance(entries, list) else [None]):
        if not _is_annotation(entry):
            raise InputError(f"{annotations} is not AMBER's file: entry {at} has no usable id, type, truth and hallu")
    if not isinstance(words, dict) or not all(map(_are_words, words.values())):
        raise InputError(f"{relation} is not AMBER's file; expected lists of words by word")
    return entries, words


def _is_annotation(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or not isinstance(entry.get("type"), str):
        return False
    return entry["type"] != "generative" or _are_words(entry.get("truth")) and _are_words(entry.get("hallu"))


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def read_amber(path: str | Path, annotations: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
    """AMBER's responses, and the ids of generative questions that none answers.

    Raises InputError for duplicate or unknown ids, all of them counted and the first ones named.
    """
    responses = read_records(path)
    if not responses:
        raise InputError(f"{path} contains no responses")
    try:
        found = amber.problems(responses, annotations)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for problem, remedy in (
        ("duplicate", "keep one response for each"),
        ("unknown", "is it another benchmark's file?"),
    ):
        if found[problem]:
            raise InputError(f"{path}: {problem} ids: {some(found[problem])}; {remedy}")
    return responses, found["missing"]


def read_captions(path: str | Path, questions: str | Path | None = None) -> list[dict[str, Any]]:
    """Object HalBench's rows as ``{"image_id": int, "question": str, "caption": str}``.

    As the official loader reads them: the answer is ``text``, else ``answer`` (or ``caption``, as pycocoevalcap has
    it), without "Assistant:" and outer blanks; the question ``prompt``, else ``question``. A row without ``image_id``
    has the one of ``questions`` at its position.

    Raises InputError that names the row, also where an image's question is answered twice.
    """
    rows = read_records(path)
    if not rows:
        raise InputError(f"{path} contains no responses")
    asked = read_records(questions) if questions is not None else None
    captions, seen = [], {}
    for index, row in enumerate(rows):
        where = f"{path}, row {index}"
        if asked is not None and "image_id" not in row:
            if len(asked) != len(rows):
                raise InputError(f"{path} has {len(rows)} rows and {questions} {len(asked)}: ids cannot go by position")
            row = row | {"image_id": asked[index].get("image_id")}
        answer = next((row[name] for name in ("text", "answer", "caption") if isinstance(row.get(name), str)), None)
        if answer is None:
            raise InputError(
                f"{where} has no text, answer or caption, only {', '.join(row)}; is this another benchmark's file?"
            )
        caption = {
            "image_id": _image_id(row.get("image_id"), where),
            "question": str(row.get("prompt", row.get("question", ""))),
            "caption": answer.replace("Assistant:", "").strip(),
        }
        first = seen.setdefault((caption["image_id"], caption["question"]), index)
        if first != index:
            raise InputError(f"{where} answers image {caption['image_id']} again, as row {first}; keep one of the two")
        captions.append(caption)
    return captions


def _image_id(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: image_id is {value!r}; expected the number of a COCO image; give the question file with "
            "--questions"
        ) from error


def read_coco(paths: Sequence[str | Path], *keys: str) -> list[Mapping[str, Any]]:
    """Parsed COCO files. Raises InputError where one lacks one of the keys, or an entry what is read of it."""
    read = {
        "annotations": {"image_id": int, **({"category_id": int} if "categories" in keys else {"caption": str})},
        "categories": {"id": int, "name": str},
    }
    files = []
    for path in paths:
        content = read_json(path)
        missing = [key for key in keys if not isinstance(content, dict) or key not in content]
        if missing:
            raise InputError(f"{path} is not a COCO file of this kind: it has no {' and no '.join(missing)}")
        for key in keys:
            entries = content[key] if isinstance(content[key], list) else [None]
            for at, entry in enumerate(entries):
                if not isinstance(entry, dict) or not all(
                    isinstance(entry.get(name), kind) for name, kind in read[key].items()
                ):
                    raise InputError(
                        f"{path} is not a COCO file of this kind: {key} {at} has no usable {', '.join(read[key])}"
                    )
        files.append(content)
    return files


def read_mmhal(path: str | Path, template: str | Path | None = None) -> list[dict[str, Any]]:
    """MMHal-Bench's records with their answers.

    path: the official template with ``model_answer`` filled in; or, with ``template``, rows with ``response`` or
    ``text``, in the template's order, or with the template's positions as ``id``.

    Raises InputError for a record that lacks a field, or has no answer, and for answers that do not fit the template.
    """
    records = read_records(path) if template is None else _fill(read_records(template), read_answers(path), path)
    for index, record in enumerate(records):
        missing = [name for name in mmhal.FIELDS if record.get(name) is None]
        if missing:
            raise InputError(
                f"{path}, record {index} has no {', '.join(missing)}, only {', '.join(record)}; "
                "is this another benchmark's file, or one that needs --template?"
            )
        texts = [name for name in mmhal.FIELDS[1:] if not isinstance(record[name], str)]
        if texts:
            raise InputError(
                f"{path}, record {index}: {texts[0]} is {shown(repr(record[texts[0]])[:60])}; expected text"
            )
    # The official type of a question is its index: a record that went missing would shift all behind it.
    shifted = [
        index
        for index, record in enumerate(records)
        if record.get("question_type", mmhal.TYPES[index % 8]) != mmhal.TYPES[index % 8]
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
