"""``mdpo merge`` and ``mdpo convert``: a model folder in, another out."""

import argparse
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.program import COMMANDS
from mdpo.shown import say

from .bunny import convert_bunny
from .llava import convert_llava
from .merge import merge


def add_merge(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers ``merge``; its ``run`` takes the parsed options."""
    command = subparsers.add_parser("merge", help=COMMANDS["merge"])
    command.add_argument("adapter", type=Path)
    command.add_argument("destination", type=Path)
    command.add_argument(
        "--base", type=Path, help="base model, folder or owner/name on the hub; the one the adapter names without it"
    )
    command.set_defaults(run=run_merge)


def add_convert(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers ``convert``; its ``run`` takes the parsed options."""
    command = subparsers.add_parser("convert", help=COMMANDS["convert"])
    command.add_argument("layout", choices=["bunny", "llava"])
    command.add_argument("source", type=Path, help="folder, or owner/name on the hub")
    command.add_argument("destination", type=Path)
    command.add_argument(
        "--vision-tower",
        type=Path,
        help="llava: the CLIP model, folder or owner/name on the hub, where the source has none",
    )
    command.set_defaults(run=run_convert)


def run_merge(options: argparse.Namespace) -> None:
    """``mdpo merge``."""
    say(f"wrote {merge(options.adapter, options.destination, options.base)}")


def run_convert(options: argparse.Namespace) -> None:
    if options.layout == "bunny":
        if options.vision_tower is not None:
            raise InputError("--vision-tower: a Bunny checkpoint brings its own; leave it out")
        folder = convert_bunny(options.source, options.destination)
    else:
        folder = convert_llava(options.source, options.destination, vision_tower=options.vision_tower)
    say(f"wrote {folder}")
