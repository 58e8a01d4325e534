"""``mdpo loop | report``."""

import argparse
from pathlib import Path
from typing import Any

from .later import Later


def add_loop(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser(
        "loop",
        help="run rounds of sample, rank, pairs and train, each from the last model; resumable",
        description="Each stage is a command that could be typed; it is printed before it runs.",
    )
    command.add_argument(
        "config", type=Path, help="YAML file: prompts, output_dir, train, and options of sample, rank, pairs, evaluate"
    )
    command.add_argument(
        "--rounds", type=int, help="number of rounds; more of them continue a finished loop (default: the file's)"
    )
    command.add_argument("--output-dir", type=Path, help="folder of the loop (default: the file's)")
    command.add_argument("--dry-run", action="store_true", help="print the commands, and run none")
    command.set_defaults(run=Later("mdpo.loop.commands:run", check="mdpo.commands:check_words"))


def add_report(commands: "argparse._SubParsersAction[Any]") -> None:
    command = commands.add_parser(
        "report",
        help="write one page (HTML, PNG, Markdown) about the results of training and evaluation",
        description="A run is a folder with trainer_state.json, with results of mdpo evaluate, or with both. "
        "An earlier report at --output is replaced.",
    )
    command.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs; the others are compared against the first"
    )
    command.add_argument("--names", nargs="+", help="names of the runs (default: their folders' names)")
    command.add_argument("--title", help="title of the page")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        help=".html file; .png and .md go beside it (default: %(default)s)",
    )
    command.set_defaults(
        run=Later("mdpo.reports.commands:run_report"), results=Later("mdpo.reports.commands:written_files")
    )
