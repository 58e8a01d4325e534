"""Runs → the page, the picture and the Markdown."""

from collections.abc import Sequence
from pathlib import Path

from mdpo.errors import InputError
from mdpo.output_checks import PICTURE_MARK, Output
from mdpo.outputs import whole_files, write_part

from .charts import curves, group_bars, metric_dots, png
from .compare import compare
from .markdown import MARKDOWN_MARK, markdown
from .page import PAGE_MARK, page
from .runs import Run


def write_report(runs: Sequence[Run], output: str | Path, *, title: str | None = None) -> list[Path]:
    """Writes ``output`` (.html), and beside it the same as .md and .png: all of them or none. Returns their paths.

    runs: the first is the one that the others are compared against.

    Raises InputError where two runs share a name, or matplotlib is missing; OutputError where they cannot be written.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"two runs are called the same ({', '.join(names)}); tell them apart with --names")
    output = Path(output).expanduser()
    if output.suffix != ".html":
        raise InputError(f"--output is the page, and ends in .html; found {output}")
    title = title or " against ".join([" and ".join(names[1:]), names[0]] if len(names) > 1 else names)
    comparisons = compare(runs)
    panels = []
    for comparison in comparisons:
        panels.append((comparison.title, metric_dots(comparison)))
        bars = group_bars(comparison)
        if bars is not None:
            panels.append((f"{comparison.benchmark} by question type", bars))
    panels += curves(runs)
    output, picture, text = (result.path for result in report_files(output))
    written = [output, text, *([picture] if panels else [])]
    with whole_files(*written) as (page_part, text_part, *picture_part):
        write_part(page_part, page(runs, comparisons, title))
        write_part(text_part, markdown(runs, comparisons, title, picture.name if panels else None))
        for part in picture_part:
            png(panels, names, part)
    return written


def report_files(output: str | Path) -> list[Output]:
    """The page, its picture and its Markdown. Those of an earlier report are replaced, being made again in a moment."""
    page = Path(output).expanduser()
    return [
        Output("--output", page, mark=PAGE_MARK.encode()),
        Output("--output", page.with_suffix(".png"), mark=PICTURE_MARK),
        Output("--output", page.with_suffix(".md"), mark=MARKDOWN_MARK.encode()),
    ]
