"""The command line:
``mdpo train | plan | score | generate | evaluate | convert | merge | data | sample | rank | pairs | loop | report``.
"""

from mdpo.stops import ctrl_c_ends, is_main_process, what_is_kept

if __name__ == "__main__":
    ctrl_c_ends()

import argparse
import atexit
import errno
import gc
import logging
import signal
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import transformers

from mdpo.answers import commands as answers_commands
from mdpo.config import settings_help, takes_value
from mdpo.data import commands as data_commands
from mdpo.data import data_files
from mdpo.errors import InputError, OutputError, TrainingError
from mdpo.evaluation import commands as evaluation_commands
from mdpo.evaluation import score_command
from mdpo.launch import PROFILES
from mdpo.loop import commands as loop_commands
from mdpo.memory.commands import run_plan
from mdpo.models import (
    LANGUAGE_LINEAR,
    load_processor,
)
from mdpo.models import commands as models_commands
from mdpo.objectives import PRESETS, help_table
from mdpo.output_checks import check_not_input, check_output_folder, check_outputs
from mdpo.program import COMMANDS, program
from mdpo.reports import commands as report_commands
from mdpo.settings import dtype_name, is_text, path_problem, shown_text
from mdpo.shown import Formatter, redacted, shown
from mdpo.trainer.signals import Stopped, active, name_of, signals
from mdpo.training import train

_WRITTEN = ("output", "picture", "cache", "destination", "reference")  # options that name results
_LAUNCHERS_TURN = 5.0  # seconds in which a launcher notices that a process has failed, and ends the others
_log = logging.getLogger("mdpo.cli")  # not __name__, which is __main__ under python -m


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. Bad input ends in one line on stderr and code 2,
    a run that cannot go on in one line and code 1, a signal in one line and 128 + its number."""
    atexit.register(gc.freeze)  # the collection at a process's end frees nothing, and takes seconds with torch loaded
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with signals():
            return _run(words)
    except (InputError, OutputError, TrainingError) as error:
        if not _is_said(error):
            print(f"error: {shown_text(redacted(str(error)), 2000)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(
            f"error: {shown_text(str(error.filename), 80)} is too long for the name of a file; give another",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:  # in the moment before the handlers are set, or after they are put back
        return 128 + signal.SIGINT


def _run(words: list[str]) -> int:
    options = argparse.Namespace(words=words)
    try:
        _parse(words, options)
        _log_to_terminal()
        for package in ("mdpo", "mdpo_kernels"):
            logging.getLogger(package).setLevel(logging.INFO)
        if options.run in (train, run_plan):
            _check_config_first(options.config, words)
        if hasattr(options, "dtype"):
            options.dtype = dtype_name(options.dtype)
        _check_outputs(options)
        return options.run(options) or 0
    except KeyboardInterrupt as error:
        return _left(error.number if isinstance(error, Stopped) else signal.SIGINT, options)
    except Exception:
        handlers = active()
        if handlers is None or handlers.received is None or (handlers.holding and is_main_process()):
            raise
        # A library written in C may answer an exception of Python's that it does not expect, as that of a signal, by
        # one of its own. And a process that its launcher ends may fail before it has ended what it holds.
        return _left(handlers.received, options)


def _left(number: int, options: argparse.Namespace) -> int:
    if is_main_process():
        print(f"stopped by {name_of(number)}{shown(what_is_kept(options))}", file=sys.stderr, flush=True)
    return 128 + number


def _parse(words: list[str], options: argparse.Namespace) -> None:
    """Puts what the words say into ``options``; leaves the program, as argparse does, where they say nothing."""
    parser = _parser()
    for word in words:
        if not is_text(word):
            parser.error(
                f"argument {shown_text(repr(word), 80)} holds a character that is no text (NUL, or bytes that are "
                "not UTF-8)"
            )
        if word.endswith("=--"):  # which argparse takes for no value at all
            parser.error(f"argument {word.removesuffix('=--')}: '--' is no value")
    _, options.overrides = parser.parse_known_args(_with_dashes(words), options)
    if options.overrides and options.run not in (train, run_plan):
        parser.error(f"unrecognized arguments: {' '.join(options.overrides)}")


def _is_said(error: InputError | OutputError | TrainingError) -> bool:
    """Whether another process of the run says so. Who is still there when the main process has failed, and its launcher
    has ended the others for it, has met something of its own."""
    if error.said is not None or is_main_process():
        return bool(error.said)
    try:
        with signals():
            time.sleep(_LAUNCHERS_TURN)
    except KeyboardInterrupt:
        return True
    return False


def _log_to_terminal() -> None:
    """Logs go to stderr spelled out, also those of other libraries, which quote file names and configs of strangers."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter("%(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    logging.getLogger("huggingface_hub").handlers.clear()  # its lines come here too


def _with_dashes(arguments: Sequence[str]) -> list[str]:
    """Options by the names that the parser has: --token_budget is --token-budget. What they are set to stays."""
    named = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        named.append(f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument)
    return named


def _check_config_first(config: Path, words: Sequence[str]) -> None:
    """Raises InputError where what would be read as model or config file is the value of an option before it."""
    for option, word in pairwise(words):
        if not option.startswith("--") and Path(word) == config:
            return
        if Path(word) != config or "=" in option or "--memory".startswith(option):
            continue
        if takes_value(option) or not config.exists():
            raise InputError(
                f"config: {word} is the value of {option}; the config file, or model and data, come first, then --key "
                "value"
            )


def _check_outputs(options: argparse.Namespace) -> None:
    """Whether a command's results can be written where they are asked for, and destroy nothing, before it begins."""
    inputs = {name: _paths(value) for name, value in vars(options).items() if name not in _WRITTEN and _paths(value)}
    if "data" in inputs and hasattr(options, "image_dir"):  # rows; AMBER's --data is a folder of its own
        inputs["data"] += data_files(options.data)
    for name in ("output", "picture"):
        path = getattr(options, name, None)
        if path is not None and not path.name:  # "." and "/", beside which nothing can be named after them
            raise InputError(f"--{name}: {path} is a folder; give a file")
    if hasattr(options, "results"):
        check_outputs(options.results(options), inputs)
    for name, called in (("destination", "destination"), ("reference", "--reference")):
        folder = getattr(options, name, None)
        if folder is not None:
            check_output_folder(folder, called)
            check_not_input(called, folder, {name: paths[0] for name, paths in inputs.items()})


def _paths(value: Any) -> list[Path]:
    """The paths that an option gives."""
    return [path for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]


class _Parser(argparse.ArgumentParser):
    """argparse repeats what it was given: here in one line, shortened and without what moves a terminal's cursor. And
    every path is held to ``path_problem``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        super().error(shown_text(message, 400))


class _Strict(_Parser):
    """A parser of which an error is an InputError, and which knows options by their whole names: a file is not typed,
    and who sets --temperature must not miss that --temp has set it as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {shown_text(message, 400)}")


def check_words(words: Sequence[str]) -> None:
    """Raises InputError where the words after ``mdpo`` are not a command and its options, or cannot be used. Runs
    nothing.
    """
    options, overrides = _parser(_Strict).parse_known_args(_with_dashes(words))
    if overrides and options.run is not train:
        raise InputError(f"mdpo {words[0]}: unrecognized arguments: {' '.join(overrides)}")
    if hasattr(options, "check"):
        options.check(options)


def _path(text: str) -> Path:
    problem = path_problem(text)
    if problem is not None:
        raise argparse.ArgumentTypeError(problem)
    return Path(text)


def _parser(kind: type[_Parser] = _Parser) -> argparse.ArgumentParser:
    parser = program(kind)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "train",
        help=COMMANDS["train"],
        epilog=f"{settings_help()}\n\n{help_table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _run_source(command, "train")
    command.add_argument(
        "--memory",
        help="of the GPU, as in 24GiB, or auto, what is free on it: train with the plan that mdpo plan makes for it; "
        "without it, on a GPU, with the plan for what is free that keeps precision and optimizer",
    )
    command.add_argument(
        "--accelerate", choices=list(PROFILES), help="start a process for each visible GPU, by accelerate launch"
    )
    command.set_defaults(run=train)

    command = commands.add_parser("plan", help=COMMANDS["plan"])
    _run_source(command, "plan")
    command.add_argument(
        "--memory",
        help="of the GPU, as in 24GiB, or auto, what is free on it; without it, what mdpo train chooses here",
    )
    command.set_defaults(run=run_plan, lora_pattern=LANGUAGE_LINEAR)

    models_commands.add_merge(commands)
    score_command.add_command(commands)
    models_commands.add_convert(commands)
    data_commands.add_commands(commands, load_processor, {name: each.branches for name, each in PRESETS.items()})
    evaluation_commands.add_commands(commands)
    answers_commands.add_commands(commands)
    loop_commands.add_command(commands, check_words)
    report_commands.add_commands(commands)
    return parser


def _run_source(command: argparse.ArgumentParser, name: str) -> None:
    """What ``RunSource.of`` reads: DATA is left among the words that are no option's, since whether it is there depends
    on the first."""
    command.usage = f"mdpo {name} MODEL DATA [--key value ...]\n       mdpo {name} CONFIG.yaml [--key value ...]"
    command.add_argument(
        "config",
        type=Path,
        metavar="MODEL DATA",
        help="model and preference rows, each a file, a folder or owner/name on the hub; "
        "or one YAML file with these and other settings",
    )


if __name__ == "__main__":
    sys.exit(main())
