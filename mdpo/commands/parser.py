"""The program's parser, and what was typed as its options."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mdpo import __doc__ as description
from mdpo import __version__
from mdpo.errors import InputError
from mdpo.shown import shown_text
from mdpo.typed import is_text, path_problem

from .answers import add_generate, add_pairs, add_rank, add_sample, add_score
from .data import add_data
from .evaluate import add_evaluate
from .loop import add_loop, add_report
from .train import add_convert, add_merge, add_plan, add_train

_ADD = (
    add_train,
    add_plan,
    add_merge,
    add_score,
    add_convert,
    add_data,
    add_generate,
    add_evaluate,
    add_sample,
    add_rank,
    add_pairs,
    add_loop,
    add_report,
)
_TAKE_SETTINGS = ("train", "plan")  # as --key value, which RunSource reads


class _Parser(argparse.ArgumentParser):
    """argparse repeats what it was given: here in one line, shortened and without what moves a terminal's cursor. And
    every path is held to ``path_problem``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        super().error(shown_text(message, 400))


class _Strict(_Parser):
    """A parser whose errors are InputErrors, and which knows options by their whole names: a file is not typed, and
    who sets --temperature must not miss that --temp has set it as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {shown_text(message, 400)}")


def _path(text: str) -> Path:
    problem = path_problem(text)
    if problem is not None:
        raise argparse.ArgumentTypeError(problem)
    return Path(text)


def program(kind: type[_Parser] = _Parser) -> argparse.ArgumentParser:
    """The parser of the whole program. kind: its class, and its commands'."""
    parser = kind(
        prog="mdpo",
        description=description,
        epilog="Results are written whole or not at all, and never over something else: a report, image or result "
        "of the same command is replaced, answers are added to, and any other file that exists is refused.",
    )
    parser.add_argument("--version", action="version", version=f"mdpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in _ADD:
        add(commands)
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the words after ``mdpo`` say; leaves the program, as argparse does, if they do not say anything.

    The options have ``run``, a ``Later``; ``words``; and ``overrides``, the words that are settings.
    """
    parser = program()
    for word in words:
        if not is_text(word):
            parser.error(
                f"argument {shown_text(repr(word), 80)} contains a character that is not text (NUL, or bytes that are "
                "not UTF-8)"
            )
        if word.endswith("=--"):  # which argparse takes for no value at all
            parser.error(f"argument {word.removesuffix('=--')}: '--' is not a value")
    options, overrides = parser.parse_known_args(with_dashes(words))
    if overrides and options.command not in _TAKE_SETTINGS:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    options.words, options.overrides = list(words), overrides
    return options


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Options by the names that the parser has: --token_budget is --token-budget. Their values stay as they are."""
    named = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        named.append(f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument)
    return named


def check_words(words: Sequence[str]) -> None:
    """Raises InputError if the words after ``mdpo`` are not a command with its options, or cannot be used. Runs
    nothing.
    """
    options, overrides = program(_Strict).parse_known_args(with_dashes(words))
    if overrides and options.command != "train":
        raise InputError(f"mdpo {words[0]}: unrecognized arguments: {' '.join(overrides)}")
    if hasattr(options, "check"):
        options.check(options)
