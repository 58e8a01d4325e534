"""``mdpo data check | preview | sample``."""

import argparse
from pathlib import Path
from typing import Any

from .choices import NEGATIVES, OBJECTIVE_NAMES
from .later import Later
from .rows import add_row_options, add_size_options, add_text_options


def add_data(commands: "argparse._SubParsersAction[Any]") -> None:
    data = commands.add_parser("data", help="check, preview or sample a data file before training on it")
    parts = data.add_subparsers(required=True, metavar="COMMAND")
    _add_check(parts)
    _add_preview(parts)
    _add_sample(parts)


def _add_check(parts: "argparse._SubParsersAction[Any]") -> None:
    command = parts.add_parser("check", help="list broken rows and what to do about them, duplicates and lengths")
    _data(command)
    command.add_argument("--model", type=Path, help="model whose processor measures lengths in tokens: folder or name")
    command.add_argument("--max-length", type=int, help="with --model: number of tokens at which responses are cut")
    command.add_argument(
        "--objective",
        choices=OBJECTIVE_NAMES,
        help="with --model: objective whose packed rows are measured (default: mdpo)",
    )
    command.add_argument(
        "--show", type=int, metavar="N", help="with --model: row to decode (default: the first usable row)"
    )
    command.add_argument(
        "--picture", type=Path, help="histogram of the lengths, such as lengths.png; an earlier one is replaced"
    )
    add_text_options(command)
    add_size_options(command)
    run = Later(
        "mdpo.data.commands:run_check",
        load_processor="mdpo.models:load_processor",
        objectives="mdpo.objectives:PRESETS",
    )
    command.set_defaults(run=run, results=Later("mdpo.data.commands:image_files"))


def _add_preview(parts: "argparse._SubParsersAction[Any]") -> None:
    command = parts.add_parser("preview", help="draw images beside their rejected images")
    _data(command)
    command.add_argument(
        "--output", type=Path, required=True, help="image file, such as preview.png; an earlier one is replaced"
    )
    command.add_argument("--rows", type=int, default=4, help="number of rows (default: %(default)s)")
    command.add_argument(
        "--negative",
        action="append",
        default=[],
        help=f"kind of rejected image, or a mixture; may be repeated: {', '.join(NEGATIVES)}",
    )
    command.add_argument("--seed", type=int, default=42, help="seed of the rejected images (default: %(default)s)")
    command.set_defaults(run=Later("mdpo.data.commands:run_preview"), results=Later("mdpo.data.commands:image_files"))


def _add_sample(parts: "argparse._SubParsersAction[Any]") -> None:
    command = parts.add_parser("sample", help="write rows of any format as JSONL in the canonical format")
    _data(command)
    command.add_argument(
        "--output", type=Path, required=True, help=".jsonl file; how it was drawn is recorded beside it"
    )
    command.add_argument("--count", type=int, help="number of rows (default: all)")
    command.add_argument("--seed", type=int, default=42, help="seed of the sample (default: %(default)s)")
    command.set_defaults(run=Later("mdpo.data.commands:run_sample"), results=Later("mdpo.data.commands:sampled_files"))


def _data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "data", type=Path, help="preference rows: .json, .jsonl, .parquet, saved dataset, or owner/name on the hub"
    )
    add_row_options(command)
