"""The benchmarks' own question files as rows to answer, and the answers in the benchmarks' own layouts.

Layouts, as the official programs read them:

- AMBER: ``query_generative.json`` ``[{"id", "image", "query"}]`` → ``[{"id": int, "response"}]``.
- MMHal-Bench: its template JSON of 96 records → the same records with ``model_answer`` filled in.
- Object HalBench: RLHF-V's JSONL of ``{"image_id", "question", "image"}``, the image in base64 → JSONL of
  ``{"question_id", "image_id", "prompt", "text"}``.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mdpo.data import PromptRow, parse_rows
from mdpo.errors import InputError
from mdpo.outputs import write_text

from .files import read_records, write_json

BENCHMARKS = ("amber", "mmhal", "object-halbench")
_QUESTION_COLUMNS = {"amber": ("query",), "mmhal": ("question",), "object-halbench": ("question", "prompt")}
_SUFFIXES = ("", ".jpg", ".jpeg", ".png")


def read_questions(
    path: str | Path, benchmark: str, image_dir: str | Path | None = None, *, allow_outside: bool = False
) -> Sequence[PromptRow]:
    """The rows of an official question file; a row's id is AMBER's ``id``, or the position, which is what MMHal-Bench
    and Object HalBench go by.

    image_dir: folder of the images; the file's by default. allow_outside: links may lead out of it. Raises InputError
    naming the record and the field.
    """
    folder = Path(image_dir or Path(path).parent).expanduser()
    records = [
        {
            "id": str(_field(record, ("id",), path, index)) if benchmark == "amber" else str(index),
            "prompt": _field(record, _QUESTION_COLUMNS[benchmark], path, index),
            "image": _image(record, folder, f"{Path(path).name}, record {index}"),
        }
        for index, record in enumerate(_records(path))
    ]
    return parse_rows(records, folder, source=Path(path).name, kind=PromptRow, allow_outside=allow_outside)


def write_answers(path: Path, benchmark: str, questions: str | Path, answers: Mapping[str, str]) -> None:
    """Writes answers, by row id, in the benchmark's layout."""
    records = _records(questions)
    if benchmark == "amber":
        write_json(path, [{"id": record["id"], "response": answers[str(record["id"])]} for record in records])
    elif benchmark == "mmhal":
        write_json(
            path,
            [
                {name: value for name, value in record.items() if name != "image"}
                | {"model_answer": answers[str(index)]}
                for index, record in enumerate(records)
            ],
        )
    else:
        lines = [_object_line(index, record, answers[str(index)]) for index, record in enumerate(records)]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _object_line(index: int, record: Mapping[str, Any], answer: str) -> dict[str, Any]:
    image = {"image_id": record["image_id"]} if "image_id" in record else {}
    prompt = next(record[name] for name in _QUESTION_COLUMNS["object-halbench"] if name in record)
    return {"question_id": index} | image | {"prompt": prompt, "text": answer}


def _records(path: str | Path) -> list[dict[str, Any]]:
    records = read_records(path)
    if not records:
        raise InputError(f"{path} contains no questions")
    return records


def _field(record: Mapping[str, Any], names: Sequence[str], path: str | Path, index: int) -> Any:
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise InputError(
        f"{path}, record {index} has no {' or '.join(names)}, only {', '.join(record) or 'nothing'}; "
        "is this another benchmark's file?"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a NUL
        return False


def _image(record: Mapping[str, Any], folder: Path, where: str) -> bytes | str:
    """A path below ``folder``, or the image file itself where the record holds it in base64."""
    value = record.get("image")
    names = [value] if isinstance(value, str) and len(value) < 256 else []
    if "image_src" in record:
        # MMHal-Bench's images come from the web: saved under the address's last part, or under their id.
        names += [PurePosixPath(str(record["image_src"])).name, str(record.get("image_id"))]
    for name in names:
        for suffix in _SUFFIXES:
            if _is_file(folder / (name + suffix)):
                return name + suffix
    if isinstance(value, str) and len(value) >= 256:
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise InputError(f"{where}: image is neither a path nor an image in base64: {error}") from error
    if not names:
        raise InputError(f"{where}: has no image, only {', '.join(record)}")
    raise InputError(f"{where}: no image {' or '.join(names)} in {folder}; set --image-dir")
