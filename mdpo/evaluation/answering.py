"""A generation run that can be stopped and gone on with: a journal of answers, and the settings that made them."""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mdpo.data import PromptRow, data_files
from mdpo.errors import InputError

from .files import Journal, read_json, write_json

Answerer = Callable[[Sequence[PromptRow]], Iterable[str]]

_EDGE_BYTES = 2**20
# Weights, configs, and what decides on the text: chat templates and vocabularies.
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")
# What training notes of itself, such as how long it took: two runs to the same weights are the same model.
_NOTES = ("trainer_state.json", "mdpo_run.json", "mdpo_settings.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What an answer comes from, however its tokens are chosen. The batch size is not among it: see ``generate``.

    model, adapter: ``fingerprint`` of the folders. data: of the question file. text: digest of the ``TextOptions``.
    pictures: what of a ``PictureSize`` is given, None where nothing is.
    """

    model: str
    adapter: str | None
    data: str
    dtype: str
    max_new_tokens: int
    text: str | None = None
    pictures: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens is {self.max_new_tokens}; expected a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Source):
    """What an answer of ``generate`` depends on."""

    num_beams: int


def fingerprint(path: str | Path) -> str:
    """A file or model folder by name and content: of large weight files, size, first and last MiB are hashed.

    Raises InputError where it does not exist.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise InputError(f"{path} does not exist")
    files = [path]
    if path.is_dir():
        folders = [
            path,
            path / "additional_chat_templates",
        ]  # the checkpoints in a run's folder are models of their own
        files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
        files = [file for file in files if file.suffix in _SUFFIXES and file.name not in _NOTES and file.is_file()]
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if file.suffix != ".safetensors":  # what decides on the text counts to the last byte
                while block := stream.read(_EDGE_BYTES):
                    digest.update(block)
                continue
            digest.update(stream.read(_EDGE_BYTES))
            stream.seek(max(0, size - _EDGE_BYTES))
            digest.update(stream.read())
    return f"{path.name}@{digest.hexdigest()}"


def data_fingerprint(path: Path) -> str:
    """Of all files that the questions are read from; a data set of the hub goes by its name."""
    prints = [fingerprint(file) for file in data_files(path)]
    if len(prints) < 2:
        return prints[0] if prints else str(path)
    return f"{path.name}@{hashlib.blake2b(' '.join(prints).encode(), digest_size=8).hexdigest()}"


def settings_path(output: Path) -> Path:
    """The sidecar of an answer file."""
    return output.with_name(output.name + ".settings.json")


def answer_all(
    rows: Sequence[PromptRow], answerer: Answerer, settings: Settings, journal_path: Path, output: Path
) -> dict[str, str]:
    """Answers the rows that the journal lacks, and returns all answers by row id.

    journal_path: JSONL of ``{"id", "response"}``, appended to as answers come. output: what the sidecar is named after.

    Raises InputError where the journal was begun with other settings, or holds ids that the rows have not.
    """
    with resumed(journal_path, output, settings) as journal:
        answers = _done(journal, {row.id for row in rows})
        todo = [row for row in rows if row.id not in answers]
        if answers and todo:
            print(f"{len(answers)} of {len(rows)} answers are there; {len(todo)} to go")
        for row, answer in zip(todo, answerer(todo) if todo else (), strict=True):
            journal.append({"id": row.id, "response": answer})
            answers[row.id] = answer
    return answers


@contextmanager
def resumed(
    journal_path: Path, output: Path, settings: Source, versions: Mapping[str, str] | None = None
) -> Iterator[Journal]:
    """The journal of a run, begun or gone on with, and beside ``output`` the sidecar of what its answers come from.

    versions: of other packages, to note there beside PyTorch's, transformers' and PEFT's.

    Raises InputError where the journal was begun with other settings.
    """
    sidecar = settings_path(output)
    with Journal(journal_path) as journal:
        if journal.records or sidecar.is_file():
            _same_settings(sidecar, journal_path, bool(journal.records), settings)
        own = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
        write_json(sidecar, {"settings": asdict(settings), "environment": own | dict(versions or {})})
        yield journal


def _same_settings(sidecar: Path, journal: Path, begun: bool, settings: Source) -> None:
    if not begun:
        return  # nothing was answered yet: other settings may replace the old ones
    if not sidecar.is_file():
        raise InputError(
            f"{journal} has answers but no {sidecar.name} that says how they were made; give another --output"
        )
    content = read_json(sidecar)
    old = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(old, dict):
        raise InputError(f"{sidecar} is damaged; give another --output")
    differences = [
        f"{name}: {old.get(name)!r} then, {value!r} now"
        for name, value in asdict(settings).items()
        if old.get(name) != value
    ]
    if differences:
        raise InputError(
            f"{journal} was begun with other settings ({'; '.join(differences)}); go on with the old ones, or "
            "give another --output"
        )


def _done(journal: Journal, ids: set[str]) -> dict[str, str]:
    answers: dict[str, str] = {}
    for number, record in enumerate(journal.records, start=1):
        id, answer = record.get("id"), record.get("response")
        if not isinstance(id, str) or not isinstance(answer, str):
            raise InputError(f"{journal.path}, line {number} has no id or no response; give another --output")
        if id not in ids:
            raise InputError(
                f"{journal.path}, line {number}: id {id!r} is not among the questions; give another --output"
            )
        if id in answers:
            raise InputError(f"{journal.path}, line {number}: id {id!r} is answered twice; delete one of the two lines")
        answers[id] = answer
    return answers


def read_settings(responses: str | Path) -> dict[str, Any]:
    """What the sidecar of a response file says; empty where there is none."""
    sidecar = settings_path(Path(responses))
    content = read_json(sidecar) if sidecar.is_file() else {}
    return content if isinstance(content, dict) else {}
