"""``mdpo data check | preview | sample``: looking at data before training on it."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from transformers import ProcessorMixin

from mdpo.errors import InputError
from mdpo.output_checks import PICTURE_MARK, Output
from mdpo.shown import say

from .check import check_file
from .check_report import report_lines, write_histogram
from .image_sources import ImageRoot
from .picture_size import PictureSize, size_options, size_pictures
from .preview import check_picture_name, contact_sheet, write_picture
from .read import read_rows, source_root
from .sample import sample_file, sample_files
from .text_options import TextOptions, text_options


class HasBranches(Protocol):
    """An objective, of which this part needs no more."""

    @property
    def branches(self) -> tuple[str, ...]: ...


def image_files(options: argparse.Namespace) -> list[Output]:
    asked = {f"--{name}": getattr(options, name, None) for name in ("picture", "output")}
    return [Output(setting, path, mark=PICTURE_MARK) for setting, path in asked.items() if path is not None]


def sampled_files(options: argparse.Namespace) -> list[Output]:
    return sample_files(options.output)


def _root(options: argparse.Namespace) -> ImageRoot:
    return source_root(options.data, options.image_dir, options.allow_outside)


def run_check(
    options: argparse.Namespace,
    load_processor: Callable[[Path], ProcessorMixin],
    objectives: Mapping[str, HasBranches],
) -> None:
    """Prints the report. Raises InputError with a summary if rows are broken or none is usable.

    load_processor: the processor of a model folder. objectives: each by its name.
    """
    if options.max_length is not None and options.model is None:
        raise InputError("--max-length counts tokens; give --model too")
    if options.objective is not None and options.model is None:
        raise InputError("--objective counts the tokens of packed rows; give --model too")
    if options.show is not None and options.model is None:
        raise InputError("--show decodes a model's tokens; give --model too")
    text = text_options(options)
    if text != TextOptions() and options.model is None:
        raise InputError("--system-prompt, --chat-template and the like belong to a processor; give --model too")
    size = size_options(options)
    if size != PictureSize() and options.model is None:
        raise InputError("--max-pixels and the like belong to a processor; give --model too")
    processor = None if options.model is None else size_pictures(load_processor(options.model), size)
    report = check_file(
        options.data,
        _root(options),
        processor=processor,
        max_length=options.max_length,
        text=text,
        branches=objectives[options.objective or "mdpo"].branches,
        ignore_columns=options.ignore_columns,
        show_row=options.show,
    )
    for line in report_lines(report, str(options.data)):
        say(line)
    if options.picture is not None and report.usable:
        write_histogram(report, options.picture)
        say("")
        say(f"wrote {options.picture}")
    if report.errors:
        broken = len({error.where for error in report.errors})
        raise InputError(f"{options.data}: {broken} of {report.rows} rows are broken; fix or drop those listed above")
    if not report.usable:
        raise InputError(f"{options.data} contains no rows that can be used")
    if options.show is not None and report.shown is None:
        last = report.rows - 1
        raise InputError(
            f"--show {options.show}: no such usable row; choose one of 0 to {last} that is not listed above"
        )


def run_preview(options: argparse.Namespace) -> None:
    if options.rows < 1:
        raise InputError(f"--rows is {options.rows}; expected a number above 0")
    check_picture_name(options.output)
    rows = read_rows(
        options.data, options.image_dir, allow_outside=options.allow_outside, ignore_columns=options.ignore_columns
    )
    write_picture(contact_sheet(rows, options.rows, options.negative, options.seed), options.output)
    say(f"wrote {options.output}")


def run_sample(options: argparse.Namespace) -> None:
    record = sample_file(
        options.data,
        _root(options),
        options.output,
        count=options.count,
        seed=options.seed,
        ignore_columns=options.ignore_columns,
    )
    say(f"wrote {record['rows']} rows to {options.output}, seed {record['seed']}")
