"""``mdpo pairs``: from answers to preference pairs."""

import argparse
from typing import Any

from . import pairs


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers the commands; each parser's ``run`` takes the parsed options."""
    pairs.add_command(subparsers)
