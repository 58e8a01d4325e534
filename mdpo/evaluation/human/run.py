"""``mdpo evaluate human sheet | tally``: questions and two files of answers → a sheet; raters' answers → a result."""

import argparse

from mdpo.output_checks import Output
from mdpo.shown import say

from ..answer_options import questions_of
from ..finish import print_and_write
from ..responses import read_answers
from .sheet import key_path, make_sheet, tally, write_sheet


def sheet_files(options: argparse.Namespace) -> list[Output]:
    return [Output("--output", options.output), Output("--output", key_path(options.output))]


def run_sheet(options: argparse.Namespace) -> None:
    names = tuple(options.names or (options.first.stem, options.second.stem))
    sheet = make_sheet(
        questions_of(options),
        read_answers(options.first),
        read_answers(options.second),
        names=names,
        seed=options.seed,
    )
    key = write_sheet(options.output, sheet)
    say(f"wrote {options.output} for the raters, and {key}, which they must not see")


def run_tally(options: argparse.Namespace) -> None:
    print_and_write(tally(options.key, options.answers), options.output)
