"""What says which run is meant, after ``mdpo train`` and ``mdpo plan``: a YAML file, or a model and its data."""

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

from mdpo.config import MDPOConfig, RunConfig, build_config, is_setting, load_config, parse_overrides
from mdpo.errors import InputError
from mdpo.shown import shown

_YAML = (".yaml", ".yml")
_DATA = (".json", ".jsonl", ".parquet", ".arrow")


class RunSource(NamedTuple):
    """The settings of a run before and after the command line's own.

    Attributes:
        config: The YAML file; None where model and data were given.
        typed: The settings that model and data say, and an output_dir where none was given.
        overrides: The settings that were typed as ``--key value``; they win.
        names_folder: Whether output_dir was chosen here.
    """

    config: Path | None
    typed: dict[str, Any]
    overrides: dict[str, Any]
    names_folder: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> "RunSource":
        """From the command line. options: ``config``, the first word after the command, and ``overrides``, the words
        that are none of the command's options. Raises InputError, with what to type, for words that name no run.
        """
        words, command = list(options.overrides), f"mdpo {options.words[0]}"
        first, others = str(options.config), []
        while words and not words[0].startswith("--"):
            others.append(words.pop(0))
        for word in others:
            if is_setting(word):
                raise InputError(f"unexpected argument {word!r}; settings are written --key value: --{word} ...")
        if is_config(first):
            _check_alone(first, others, command)
            return cls(Path(first), {}, parse_overrides(words))
        overrides = parse_overrides(words)
        typed = _model_and_data(first, others, overrides, command)
        named = "output_dir" in overrides
        if not named:
            data = overrides.get("train_data", typed.get("train_data"))
            typed["output_dir"] = default_folder(first, data)
        return cls(None, typed, overrides, names_folder=not named)

    def load(self, more: dict[str, Any] | None = None) -> tuple[RunConfig, MDPOConfig]:
        """The two configs. more: settings that win over what was typed. Raises InputError as ``load_config``."""
        overrides = {**self.overrides, **(more or {})}
        if self.config is not None:
            return load_config(self.config, overrides)
        return build_config({**self.typed, **overrides}, source="command line")


def is_config(word: str) -> bool:
    """Whether the first word is a YAML file, and not a model."""
    path = Path(word)
    return path.suffix.lower() in _YAML or path.is_file() and not _is_data(word)


def default_folder(model: str, data: Any) -> str:
    """Where a run goes that names no output_dir: ``runs/MODEL-DATA``, by the last parts of their names."""
    if isinstance(data, (list, dict)):
        data = next(iter(data), "")
    model_name = Path(model.partition("@")[0]).resolve().name
    data_name = re.split(r"[@:]", Path(str(data)).name)[0].partition(".")[0]
    words = [re.sub(r"[^\w.-]+", "-", name).strip("-.") for name in (model_name, data_name)]
    return str(Path("runs", "-".join(word for word in words if word)))


def _is_data(word: str) -> bool:
    return Path(word.partition(":")[0]).suffix.lower() in _DATA


def _check_alone(config: str, others: list[str], command: str) -> None:
    """Raises InputError where a word stands beside a YAML file, which names model and data itself."""
    if not others:
        return
    other, usual = others[0], f"{command} {shown(config)}"
    if is_config(other):
        raise InputError(f"{shown(other)}: a second YAML file, and a run has one; type {usual}")
    raise InputError(
        f"{shown(other)}: a YAML file names its model and data; type {usual} --train_data {shown(other)}, or "
        f"{command} MODEL {shown(other)}"
    )


def _model_and_data(model: str, others: list[str], overrides: dict[str, Any], command: str) -> dict[str, Any]:
    """The settings that MODEL and DATA say. Raises InputError for a word too many or one too few."""
    if _is_data(model):
        called = shown(others[0]) if others else "MODEL"
        raise InputError(f"{shown(model)}: a data file, where the model stands; type {command} {called} {shown(model)}")
    for name, given in (("model_name_or_path", True), ("train_data", bool(others))):
        if given and name in overrides:
            raise InputError(f"{name}: given twice, as a word and as --{name}; keep one of them")
    if len(others) > 1:
        raise InputError(
            f"{shown(others[1])} is a word too many; expected --key value after the data; several data files are typed "
            f"as {command} {shown(model)} --train_data {' '.join(map(shown, others))}"
        )
    if others and Path(others[0]).suffix.lower() in _YAML:
        raise InputError(
            f"{shown(others[0])}: a YAML file, where the data stands; type {command} {shown(others[0])} "
            f"--model_name_or_path {shown(model)}"
        )
    if not others and "train_data" not in overrides:
        raise InputError(f"DATA is missing; type {command} {shown(model)} DATA, or {command} CONFIG.yaml")
    return {"model_name_or_path": model, **({"train_data": others[0]} if others else {})}
