"""What every benchmark's run ends with: figures → a result, printed and written."""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.output_checks import Output
from mdpo.shown import say

from .answering import read_settings
from .judge import Judge, Reply, describe
from .results import Result, result_mark


def result_files(options: argparse.Namespace) -> list[Output]:
    """What ``evaluate`` writes: a result that is there is replaced if it is of the same benchmark (``result_of``)."""
    found = []
    if options.output is not None:
        found.append(Output("--output", options.output, mark=result_mark(options.result_of)))
    if getattr(options, "judge", None) and not options.dry_run:
        found.append(Output("--cache", options.cache, resumed=True))
    return found


def finish(result: Result, options: argparse.Namespace) -> None:
    """Prints the result of ``options.responses``, with the settings that made them, and writes it to
    ``options.output``."""
    print_and_write(dataclasses.replace(result, settings=read_settings(options.responses)), options.output)


def print_and_write(result: Result, output: Path | None) -> None:
    print(result.table())
    if output is not None:
        result.write(output)
        say(f"wrote {output}")


def described(judge: Judge, replies: Sequence[Reply], result: Result) -> dict[str, Any]:
    """The judge's description; another name than the one asked for is a warning: figures follow the judge."""
    description = describe(judge.options, replies)
    others = [name for name in description["returned"] if name != judge.options.model]
    if others:
        result.warnings.append(f"asked for {judge.options.model}, the endpoint answered as {', '.join(others)}")
    return description


def floats(numbers: Mapping[str, float]) -> dict[str, float]:
    """A response's numbers, all finite."""
    assert all(math.isfinite(value) for value in numbers.values())
    return {name: float(value) for name, value in numbers.items()}
