"""Objects that an answer names, against those that are annotated in its picture: a rule, without any model.

The vocabulary is every word that is annotated for any picture of the file, and the synonyms. Words are compared in
lower case and whole, and a plural in "s", "es" or "ies" counts as its singular; of several objects that begin at a word
the longest counts ("traffic light" before "light"). A word that is in no vocabulary is no object here, so an object
that no picture is annotated with is never seen; and "there is no dog" names a dog, as in CHAIR.

The score is F1 of the objects named against those annotated, each counted once. CHAIR's own figure, the part of the
named objects that are not there, would be best for an answer that names nothing, and training on it teaches silence;
recall alone rewards naming everything. F1 falls with each object that is made up and with each that is left out. An
answer that names nothing scores 0 where objects are annotated; where none are, it scores 1, and any other answer 0.

Details: ``named`` (the objects of the answer, in order, each once), ``found`` (of these the annotated ones), ``false``
(the others), ``present`` (all annotated ones) and ``missed`` (those of them that are not named). Over answers, CHAIR_s
is the part with any ``false``, CHAIR_i is the sum of ``false`` over the sum of ``named``, and cover that of ``found``
over that of ``present``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.data.problem import names, shortened
from mdpo.errors import InputError
from mdpo.evaluation.files import read_json, read_records, read_text, records_in

from ..records import Answer, Scored
from .way import score_each

_WORD = re.compile(r"[^\W_]+")


class Objects:
    """Scores answers by their objects.

    annotated: the objects in each question's picture, by the question's id. synonyms: words that mean the same; the
    first word of each stands for all.

    Raises InputError for an object, or a synonym, that has no letter or digit, and for a word that is a synonym of two.
    """

    name = "chair"

    def __init__(self, annotated: Mapping[str, Sequence[str]], synonyms: Sequence[Sequence[str]] = ()) -> None:
        self._vocabulary = _Vocabulary((word for words in annotated.values() for word in words), synonyms)
        self._present = {
            id: list(dict.fromkeys(self._vocabulary.object(word) for word in words)) for id, words in annotated.items()
        }
        self._questions = len(annotated)

    @classmethod
    def read(cls, objects: Path, synonyms: Path | None = None) -> "Objects":
        """From files.

        objects: records with an ``id`` and ``objects``, a list of words, as JSONL or a JSON list; their other columns,
            and records without ``objects``, are passed over. Or a JSON object of ids and such lists.
        synonyms: a line for each object, its words apart by ", ".

        Raises InputError that names the file and the record, key or line that is not so.
        """
        annotated = _annotations(objects)
        if synonyms is None:
            return cls(annotated)
        lines = _synonyms(synonyms)
        try:
            return cls(annotated, lines)
        except InputError as error:  # each word by itself is one: two lines share one
            raise InputError(f"{synonyms}: {error}") from error

    def __call__(self, answers: Sequence[Answer]) -> list[Scored]:
        """Raises InputError that names questions without annotation."""
        missing = list(dict.fromkeys(answer.row.id for answer in answers if answer.row.id not in self._present))
        if missing:
            raise InputError(
                f"{len(missing)} questions have no annotated objects: id {names(missing, 6)}; annotate them (an "
                "empty list says that there are none), or leave their answers out"
            )
        return score_each(answers, self.name, self._score)

    def settings(self) -> dict[str, Any]:
        return {"questions": self._questions, "words": len(self._vocabulary.words), "score": "F1"}

    def _score(self, answer: Answer) -> tuple[float, dict[str, Any]]:
        named = self._vocabulary.find(answer.response)
        present = self._present[answer.row.id]
        found = [word for word in named if word in present]
        total = len(named) + len(present)
        details = {
            "named": named,
            "found": found,
            "false": [word for word in named if word not in present],
            "present": present,
            "missed": [word for word in present if word not in named],
        }
        return (2 * len(found) / total if total else 1.0), details


class _Vocabulary:
    """Words that stand for objects. words: each with the object that it stands for."""

    def __init__(self, annotated: Any, synonyms: Sequence[Sequence[str]]) -> None:
        self.words: dict[str, str] = {}
        for same in synonyms:
            first, *others = map(_plain, same)
            for word in (first, *others):
                if self.words.setdefault(word, first) != first:
                    raise InputError(
                        f"{shortened(word, 40)} stands for {shortened(self.words[word], 40)} and for "
                        f"{shortened(first, 40)}; keep it with one of them"
                    )
        given = sorted(set(map(_plain, annotated)), key=len)  # a singular before its plural
        known = self.words.keys() | set(given)
        for word in given:
            if word not in self.words:
                singular = next((form for form in _singulars(word) if form in known), word)
                self.words[word] = self.words.get(singular, singular)
        self._longest = max((word.count(" ") + 1 for word in self.words), default=0)

    def object(self, word: str) -> str:
        """The object that an annotated word stands for."""
        return self.words[_plain(word)]

    def find(self, text: str) -> list[str]:
        """The objects that a text names, in order, each once."""
        tokens = _WORD.findall(text.lower())
        found: dict[str, None] = {}
        at = 0
        while at < len(tokens):
            for length in range(min(self._longest, len(tokens) - at), 0, -1):
                name = self._match(" ".join(tokens[at : at + length]))
                if name is not None:
                    found[name] = None
                    at += length - 1
                    break
            at += 1
        return list(found)

    def _match(self, word: str) -> str | None:
        return next((self.words[form] for form in (word, *_singulars(word)) if form in self.words), None)


def _plain(word: str) -> str:
    """A word as it is compared. Raises InputError where nothing is left of it."""
    plain = " ".join(_WORD.findall(word.lower()))
    if not plain:
        raise InputError(f"object {shortened(word, 40)} has no letter or digit; give the objects' names")
    return plain


def _singulars(word: str) -> list[str]:
    """What a word may be the plural of, the likeliest first."""
    if word.endswith("ies"):
        return [f"{word[:-3]}y", word[:-1]]
    return [word[:-1], *([word[:-2]] if word.endswith("es") else [])] if word.endswith("s") else []


def _annotations(path: Path) -> dict[str, list[str]]:
    content = read_records(path) if path.suffix == ".jsonl" else read_json(path, unique_keys=True)
    if isinstance(content, dict):
        entries = [(id, words, f"{path}, key {shortened(id, 40)}") for id, words in content.items()]
    else:
        entries = []
        for number, record in enumerate(records_in(content, path), start=1):
            where = f"{path}, record {number}"
            if record.get("id") is None:
                raise InputError(f"{where}: id is missing; give the question's")
            if record.get("objects") is not None:
                entries.append((str(record["id"]), record["objects"], where))
    annotated: dict[str, list[str]] = {}
    for id, words, where in entries:
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(f"{where}: objects is {shortened(words, 40)}; expected a list of words; write one")
        for word in words:
            _named(word, where)
        if annotated.setdefault(id, words) != words:
            raise InputError(f"{where}: id {shortened(id, 40)} appears twice, with other objects; keep one of them")
    if not annotated:
        raise InputError(f"{path} has no record with objects; give each image a list of its objects")
    return annotated


def _synonyms(path: Path) -> list[list[str]]:
    lines = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            words = [word.strip() for word in line.split(",")]
            for word in words:
                _named(word, f"{path}, line {number}")
            lines.append(words)
    if not lines:
        raise InputError(f"{path} is empty; expected lines of synonyms separated by ', ', such as 'dog, puppy'")
    return lines


def _named(word: str, where: str) -> None:
    try:
        _plain(word)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
