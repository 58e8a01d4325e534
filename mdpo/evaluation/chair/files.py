"""Object HalBench's responses and COCO's files, checked before anything is scored or paid for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from ..files import read_json, read_records


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
