"""The commands that make preference pairs from a model's own answers."""

import argparse
from typing import Any

from . import sample_command


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers ``sample``; its parser's ``run`` takes the parsed options."""
    sample_command.add_command(subparsers)
