"""AMBER's official files and the responses to it, checked before anything is scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from ..files import read_json, read_records
from ..responses import some
from .metrics import problems


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
        found = problems(responses, annotations)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for problem, remedy in (
        ("duplicate", "keep one response for each"),
        ("unknown", "is it another benchmark's file?"),
    ):
        if found[problem]:
            raise InputError(f"{path}: {problem} ids: {some(found[problem])}; {remedy}")
    return responses, found["missing"]
