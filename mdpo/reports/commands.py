"""``mdpo report``: run folders in, one page out."""

import argparse

from mdpo.errors import InputError
from mdpo.output_checks import Output
from mdpo.shown import say

from .runs import load_run
from .write import report_files, write_report


def written_files(options: argparse.Namespace) -> list[Output]:
    return report_files(options.output)


def run_report(options: argparse.Namespace) -> None:
    names = options.names or [None] * len(options.runs)
    if len(names) != len(options.runs):
        raise InputError(f"--names has {len(names)} names for {len(options.runs)} runs; give one for each")
    runs = [load_run(path, name) for path, name in zip(options.runs, names, strict=True)]
    for path in write_report(runs, options.output, title=options.title):
        say(f"wrote {path}")
