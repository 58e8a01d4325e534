"""``mdpo loop``: a configuration in, rounds of training on a model's own answers."""

import argparse
from collections.abc import Callable, Sequence

from mdpo.shown import say

from .config import read_loop
from .run import command_lines, in_process, planned, run_loop


def run(options: argparse.Namespace, check: Callable[[Sequence[str]], None]) -> int:
    """The command; returns the exit code."""
    config = read_loop(options.config, rounds=options.rounds, output_dir=options.output_dir)
    if options.dry_run:
        for line in command_lines(planned(config, check)):
            say(line)
        return 0
    return run_loop(config, check, in_process)
