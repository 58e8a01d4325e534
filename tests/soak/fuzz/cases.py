"""The fuzzers: each draws a command line and changes to the scene, from a seed."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from pathlib import Path
from random import Random
from typing import Any, get_origin, get_type_hints

import yaml

from mdpo.commands import program
from mdpo.config import MDPOConfig, RunConfig
from mdpo.settings.types import alternatives

from . import mutate
from .scene import COMMANDS, CONFIG, FOLDERS

HINTS = {
    f.name: hints[f.name]
    for kind, hints in ((kind, get_type_hints(kind)) for kind in (RunConfig, MDPOConfig))
    for f in fields_of(kind)
    if f.init
}
NAMES = sorted(HINTS)
# Stay as they are in the scene, whatever is drawn; to compile takes minutes.
_KEPT = {"use_cpu", "compile_layers", "torch_compile", "torch_compile_mode", "torch_compile_backend"}


@functools.cache
def _options(*words: str) -> list[str]:
    """The options of the command that a command line begins with; of train and plan, every setting."""
    parser = program()
    for word in words:
        commands = [
            action.choices
            for action in parser._actions
            if not action.option_strings and isinstance(action.choices, dict)
        ]
        if not commands or word not in commands[0]:
            break
        parser = commands[0][word]
    found = [option for action in parser._actions for option in action.option_strings if option != "-h"]
    return found + [f"--{name}" for name in NAMES if words[0] in ("train", "plan")]


@dataclass
class Case:
    """arguments: of ``cli.main``; files: what to put into the scene, by name; said: the input, for the report."""

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    said: str = ""
    seconds: float = 60.0


def settings(random: Random, number: int, scene: Path) -> Case:
    """One setting after the other, each with a value of the pool."""
    name = NAMES[number % len(NAMES)]
    return _run({name: _value(random, name)}, random)


def pairs(random: Random, number: int, scene: Path) -> Case:
    return _run({name: _value(random, name) for name in random.sample(NAMES, k=random.choice((2, 2, 3)))}, random)


def _value(random: Random, name: str) -> Any:
    return mutate.value_for(random, name, tuple(get_origin(option) or option for option in alternatives(HINTS[name])))


def _run(values: dict[str, Any], random: Random) -> Case:
    """In the file, or on the command line."""
    values = {name: value for name, value in values.items() if name not in _KEPT}
    if values.get("dataloader_num_workers") in (
        7,
        1000,
    ):  # as many processes as asked for, on a machine that others use too
        values["dataloader_num_workers"] = 2
    written = {**yaml.safe_load(CONFIG), **values}
    if random.random() < 0.3:
        arguments = ["train", "run.yaml"]
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            arguments += random.choice(([f"--{name}", text], [f"--{name}={text}"]))
        return Case(arguments, said=repr(values)[:300])
    text = yaml.dump(written, allow_unicode=True, Dumper=yaml.SafeDumper)
    return Case(["train", "run.yaml"], {"run.yaml": text.encode("utf-8", "surrogatepass")}, said=repr(values)[:300])


def yaml_files(random: Random, number: int, scene: Path) -> Case:
    content = mutate.mutate_yaml(random, CONFIG.encode())
    return Case(["train" if random.random() < 0.8 else "plan", "run.yaml"], {"run.yaml": content}, said="run.yaml")


def command_lines(random: Random, number: int, scene: Path) -> Case:
    words = list(COMMANDS.values())[number % len(COMMANDS)].words.split()
    if random.random() < 0.05:
        words[0] = mutate.word(random)
    arguments = mutate.mutate_words(random, words, _options(*words[:3]))
    return Case(
        arguments, said=" ".join(word if len(word) < 80 else f"{word[:20]}...{len(word)}" for word in arguments)
    )


def input_files(random: Random, number: int, scene: Path) -> Case:
    """Rows, results, answers, keys: what commands read, changed in one place."""
    readers = {name: command for name, command in COMMANDS.items() if command.reads}
    return _changed(random, scene, readers, number)


def model_files(random: Random, number: int, scene: Path) -> Case:
    """Models, adapters and checkpoints."""
    return _changed(random, scene, FOLDERS, number)


def _changed(random: Random, scene: Path, commands: dict[str, Any], number: int) -> Case:
    _, command = list(commands.items())[number % len(commands)]
    read = random.choice([path for path in command.reads if (scene / path).is_file()])
    content = (scene / read).read_bytes()
    for _ in range(random.choice((1, 1, 2))):
        content = mutate.mutate_file(random, read, content)
    return Case(command.words.split(), {read: content}, said=f"{read} changed")


FUZZERS: dict[str, Callable[[Random, int, Path], Case]] = {
    "settings": settings,
    "pairs": pairs,
    "yaml": yaml_files,
    "commands": command_lines,
    "inputs": input_files,
    "models": model_files,
}
