"""The commands that make preference pairs from a model's own answers."""

import argparse
from typing import Any

from .rank import add_command as add_rank


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers ``rank``; its parser's ``run`` takes the parsed options."""
    add_rank(subparsers)
