"""Runs → the page, the picture and the Markdown."""

from collections.abc import Sequence
from pathlib import Path

from mdpo.errors import InputError

from .charts import curves, group_bars, metric_dots, png
from .compare import compare
from .markdown import markdown
from .page import page
from .runs import Run


def write_report(runs: Sequence[Run], output: str | Path, *, title: str | None = None) -> list[Path]:
    """Writes ``output`` (.html), and beside it the same as .png and .md. Returns the three paths.

    runs: the first is the one that the others are compared against.

    Raises InputError where two runs share a name, or matplotlib is missing.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"two runs are called the same ({', '.join(names)}); tell them apart with --names")
    output = Path(output).expanduser()
    if output.suffix != ".html":
        raise InputError(f"--output is the page, and ends in .html; found {output}")
    title = title or " against ".join([" and ".join(names[1:]), names[0]] if len(names) > 1 else names)
    comparisons = compare(runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(runs, comparisons, title), encoding="utf-8")

    panels = []
    for comparison in comparisons:
        panels.append((comparison.title, metric_dots(comparison)))
        bars = group_bars(comparison)
        if bars is not None:
            panels.append((f"{comparison.benchmark} by question type", bars))
    panels += curves(runs)
    picture, text = output.with_suffix(".png"), output.with_suffix(".md")
    written = [output]
    if panels:
        png(panels, names, picture)
        written.append(picture)
    text.write_text(markdown(runs, comparisons, title, picture.name if panels else None), encoding="utf-8")
    return [*written, text]
