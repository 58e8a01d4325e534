"""The commands that make preference pairs from a model's own answers."""

import argparse
from typing import Any

from . import pairs_command, rank_command, sample_command


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers the commands; each parser's ``run`` takes the parsed options."""
    sample_command.add_command(subparsers)
    rank_command.add_command(subparsers)
    pairs_command.add_command(subparsers)
