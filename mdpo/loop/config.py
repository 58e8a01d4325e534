"""The configuration of ``mdpo loop``: one YAML file, of which each part holds options of one command."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mdpo.config import config_text
from mdpo.errors import InputError
from mdpo.output_checks import is_same
from mdpo.settings.yaml_text import Written, plain, read_yaml

_SET_BY_LOOP = {
    "sample": ("output", "seed", "adapter"),
    "rank": ("output", "dry_run"),
    "pairs": ("output",),
    "train": ("train_data", "output_dir", "resume_from_checkpoint", "overwrite_output_dir"),
}
"""Options that the loop itself gives to the commands, or has in their place."""
_GREEDY = ("n", "temperature", "top_p")  # so does a measurement, whose answers are not drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How each round's model is measured: by one greedy answer to every question.

    Attributes:
        prompts: Questions, none of them among those that are trained on.
        sample: Options of ``mdpo sample``.
        rank: Options of ``mdpo rank``.
    """

    prompts: str
    sample: Mapping[str, Any] = field(default_factory=dict)
    rank: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """What ``mdpo loop`` needs.

    Attributes:
        prompts: Questions with their pictures, as ``mdpo sample`` reads them.
        output_dir: Folder of all that is written.
        train: Settings of ``mdpo train``, or the path of its YAML file. Without ``train_data``, which are the pairs.
        rounds: How often all of it is done.
        seed: Of the samples; each round has its own.
        sample, rank, pairs: Options of these commands, by their names on the command line.
        evaluate: How the models are measured, before the first round and after each; None: by the samples alone.
    """

    prompts: str
    output_dir: str
    train: str | Mapping[str, Any]
    rounds: int = 1
    seed: int = 42
    sample: Mapping[str, Any] = field(default_factory=dict)
    rank: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Evaluation | None = None


def read_loop(path: Path, *, rounds: int | None = None, output_dir: Path | None = None) -> LoopConfig:
    """The configuration in a YAML file. rounds, output_dir: instead of the file's.

    Raises InputError that names the key which is unknown, missing, of the wrong kind, or the loop's own to give.
    """
    values = _section(read_yaml(config_text(path), f"config {path}"), f"config {path}", LoopConfig)
    if rounds is not None:
        values["rounds"] = rounds
    if output_dir is not None:
        values["output_dir"] = str(output_dir)
    _check_kinds(values, f"config {path}")
    return LoopConfig(**values)


def _section(values: Any, where: str, kind: type) -> dict[str, Any]:
    """A mapping whose keys are the fields of ``kind``, none that must be there missing."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {_kind(values)}; expected keys and values")
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            raise InputError(f"{where}: unknown key {str(key)[:60]!r}; there are {', '.join(map(repr, known))}")
    for name, each in known.items():
        if name not in values and each.default is each.default_factory:  # both MISSING
            raise InputError(f"{where}: key {name!r} is missing")
    return dict(values)


def _check_kinds(values: dict[str, Any], where: str) -> None:
    for name in ("prompts", "output_dir"):
        if not isinstance(values[name], str) or not values[name]:
            raise InputError(f"{where}: {name} is {_kind(values[name])}; expected a path")
    for name, least in (("rounds", 1), ("seed", 0)):
        number = plain(values.get(name, least))
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"{where}: {name} is {str(number)[:40]}; expected a whole number from {least} on")
        if name in values:
            values[name] = number
    values["output_dir"] = str(Path(values["output_dir"]).expanduser())
    if not isinstance(values["train"], (str, Mapping)):
        raise InputError(f"{where}: train is {_kind(values['train'])}; expected the path of a YAML file or settings")
    for name in ("sample", "rank", "pairs"):
        values[name] = _options(values.get(name), f"{where}: {name}", name)
    if isinstance(values["train"], Mapping):
        values["train"] = _options(values["train"], f"{where}: train", "train")
    else:
        values["train"] = str(Path(values["train"]).expanduser())
    given = values.get("evaluate")
    if given is not None and plain(given) is not None:
        inner = _section(given, f"{where}: evaluate", Evaluation)
        if not isinstance(inner["prompts"], str) or not inner["prompts"]:
            raise InputError(f"{where}: evaluate: prompts is {_kind(inner['prompts'])}; expected a path")
        if inner["prompts"] == values["prompts"] or is_same(inner["prompts"], values["prompts"]):
            raise InputError(
                f"{where}: evaluate: prompts: these are the questions that are trained on; use other questions"
            )
        for name in ("sample", "rank"):
            inner[name] = _options(inner.get(name), f"{where}: evaluate: {name}", name)
        _refuse(inner["sample"], _GREEDY, f"{where}: evaluate: sample")
        values["evaluate"] = Evaluation(**inner)


def _options(values: Any, where: str, command: str) -> dict[str, Any]:
    if plain(values) is None:
        return {}
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {_kind(values)}; expected options of mdpo {command}")
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in named:
            raise InputError(f"{where}: {name[:60]} appears twice, with - and with _; keep one of them")
        named[name] = value
    _refuse(named, _SET_BY_LOOP[command], where)
    return named


def _refuse(options: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    for name in names:
        if name in options:
            raise InputError(f"{where}: {name} is set by the loop; leave it out")


def _kind(value: Any) -> str:
    value = plain(value)
    return "empty" if value in (None, "") else f"a {type(value).__name__}"


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line: ``{"n": 6, "length_control": True}`` as ``--n=6 --length-control``."""
    words = []
    for key, value in options.items():
        name = f"--{key.replace('_', '-')}"
        bare = plain(value)
        if bare is None or bare is False:
            continue
        if bare is True:
            words.append(name)
        elif isinstance(value, (list, tuple)):
            words += [name, *map(_word, value)]
        elif isinstance(value, Mapping):
            words.append(f"{name}={json.dumps(bare)}")
        else:
            words.append(f"{name}={_word(value)}")
    return words


def _word(value: Any) -> str:
    return value.text if isinstance(value, Written) else str(value)
