"""``mdpo data check | preview | sample``: looking at data before training on it."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import ProcessorMixin

from mdpo.errors import InputError
from mdpo.output_checks import PICTURE_MARK, Output
from mdpo.program import COMMANDS
from mdpo.shown import say

from .check import check_file
from .check_report import report_lines, write_histogram
from .image_sources import ImageRoot
from .negatives import NEGATIVES
from .picture_size import PictureSize, add_size_options, size_options, size_pictures
from .preview import check_picture_name, contact_sheet, write_picture
from .read import read_rows, source_root
from .sample import sample_file, sample_files
from .text_options import TextOptions, add_text_options, text_options


def add_commands(
    subparsers: argparse._SubParsersAction,
    load_processor: Callable[[Path], ProcessorMixin],
    objectives: Mapping[str, Sequence[str]],
) -> None:
    """Registers ``data`` and its own commands; each sets ``run``, a function of the parsed options.

    load_processor: the processor of a model folder. objectives: the branches of each by its name.
    """
    data = subparsers.add_parser("data", help=COMMANDS["data"])
    commands = data.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("check", help="every broken row with its remedy, duplicates, lengths")
    _data(command)
    command.add_argument("--model", type=Path, help="folder of the model's processor: lengths in its tokens")
    command.add_argument("--max-length", type=int, help="with --model: which responses it would cut")
    command.add_argument(
        "--objective", choices=list(objectives), help="with --model: whose packed rows are measured; mdpo without it"
    )
    command.add_argument(
        "--show", type=int, metavar="N", help="with --model: decode row N; the first usable without it"
    )
    command.add_argument(
        "--picture", type=Path, help="histogram of the lengths, such as lengths.png; an earlier one is replaced"
    )
    add_text_options(command)
    add_size_options(command)
    command.set_defaults(run=lambda options: run_check(options, load_processor, objectives), results=_pictures)

    command = commands.add_parser("preview", help="a picture of images beside their negatives")
    _data(command)
    command.add_argument(
        "--output", type=Path, required=True, help="the picture, such as preview.png; an earlier one is replaced"
    )
    command.add_argument("--rows", type=int, default=4, help="how many rows of the data")
    command.add_argument(
        "--negative", action="append", default=[], help=f"{', '.join(NEGATIVES)} or a mixture; may be repeated"
    )
    command.add_argument("--seed", type=int, default=42, help="of the negatives")
    command.set_defaults(run=run_preview, results=_pictures)

    command = commands.add_parser("sample", help="rows of any format as JSONL in the canonical one")
    _data(command)
    command.add_argument("--output", type=Path, required=True, help=".jsonl; how it was drawn is recorded beside it")
    command.add_argument("--count", type=int, help="how many rows; all without it")
    command.add_argument("--seed", type=int, default=42, help="of the sample")
    command.set_defaults(run=run_sample, results=lambda options: sample_files(options.output))


def _data(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, help=".json, .jsonl, .parquet, a saved dataset, or owner/name on the hub")
    add_row_options(command)


def add_row_options(command: argparse.ArgumentParser) -> None:
    """How a command reads rows: ``image_dir``, ``allow_outside`` and ``ignore_columns``."""
    command.add_argument("--image-dir", type=Path, help="folder of the images; the data file's without it")
    command.add_argument(
        "--allow-outside", action="store_true", help="image paths and links may lead out of the image folder"
    )
    command.add_argument(
        "--ignore-columns", type=_columns, default=[], metavar="A,B", help="columns to read the rows without"
    )


def _pictures(options: argparse.Namespace) -> list[Output]:
    asked = {f"--{name}": getattr(options, name, None) for name in ("picture", "output")}
    return [Output(setting, path, mark=PICTURE_MARK) for setting, path in asked.items() if path is not None]


def _columns(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _root(options: argparse.Namespace) -> ImageRoot:
    return source_root(options.data, options.image_dir, options.allow_outside)


def run_check(
    options: argparse.Namespace,
    load_processor: Callable[[Path], ProcessorMixin],
    objectives: Mapping[str, Sequence[str]],
) -> None:
    """Prints the report. Raises InputError with a summary where rows are broken or none is usable."""
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
        branches=objectives[options.objective or "mdpo"],
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
        raise InputError(f"{options.data} holds no rows that can be used")
    if options.show is not None and report.shown is None:
        last = report.rows - 1
        raise InputError(
            f"--show {options.show}: no such usable row; choose one of 0 to {last} that is not listed above"
        )


def run_preview(options: argparse.Namespace) -> None:
    if options.rows < 1:
        raise InputError(f"--rows {options.rows}: expected a number above 0")
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
