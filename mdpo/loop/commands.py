"""``mdpo loop``: a configuration in, rounds of training on a model's own answers."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mdpo.program import COMMANDS
from mdpo.shown import say

from .config import read_loop
from .run import command_lines, in_process, planned, run_loop


def add_command(subparsers: "argparse._SubParsersAction[Any]", check: Callable[[Sequence[str]], None]) -> None:
    """Registers ``loop``; its ``run`` takes the parsed options.

    check: raises InputError where the words of a command are not right.
    """
    command = subparsers.add_parser(
        "loop",
        help=COMMANDS["loop"],
        description="Each stage is a command that could be typed; it is printed before it runs.",
    )
    command.add_argument(
        "config", type=Path, help="YAML: prompts, output_dir, train, and options of sample, rank, pairs, evaluate"
    )
    command.add_argument(
        "--rounds", type=int, help="instead of the file's; more of them go on with a loop that is done"
    )
    command.add_argument("--output-dir", type=Path, help="instead of the file's")
    command.add_argument("--dry-run", action="store_true", help="print the commands, and run none")
    command.set_defaults(run=lambda options: run(options, check))


def run(options: argparse.Namespace, check: Callable[[Sequence[str]], None]) -> int:
    """The command; returns the exit code."""
    config = read_loop(options.config, rounds=options.rounds, output_dir=options.output_dir)
    if options.dry_run:
        for line in command_lines(planned(config, check)):
            say(line)
        return 0
    return run_loop(config, check, in_process)
