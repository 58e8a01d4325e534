"""The commands that make preference pairs from a model's own answers."""

import argparse
from typing import Any

from . import pairs_command, sample_command
from .rank import add_command as add_rank


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers the commands; each parser's ``run`` takes the parsed options."""
    sample_command.add_command(subparsers)
    add_rank(subparsers)
    pairs_command.add_command(subparsers)
