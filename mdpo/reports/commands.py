"""``mdpo report``: run folders in, one page out."""

import argparse
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.program import COMMANDS
from mdpo.shown import say

from .runs import load_run
from .write import report_files, write_report


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Registers ``report``; its ``run`` takes the parsed options."""
    command = subparsers.add_parser(
        "report",
        help=COMMANDS["report"],
        description="A run is a folder with trainer_state.json, with results of mdpo evaluate, or with both. "
        "An earlier report at --output is replaced.",
    )
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders; the first is compared against")
    command.add_argument("--names", nargs="+", help="what to call the runs; their folders' names without it")
    command.add_argument("--title", help="of the page")
    command.add_argument("--output", type=Path, default=Path("report.html"), help=".html; .png and .md go beside it")
    command.set_defaults(run=run_report, results=lambda options: report_files(options.output))


def run_report(options: argparse.Namespace) -> None:
    names = options.names or [None] * len(options.runs)
    if len(names) != len(options.runs):
        raise InputError(f"--names gives {len(names)} names to {len(options.runs)} runs")
    runs = [load_run(path, name) for path, name in zip(options.runs, names, strict=True)]
    for path in write_report(runs, options.output, title=options.title):
        say(f"wrote {path}")
