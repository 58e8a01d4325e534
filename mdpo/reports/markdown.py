"""The same report as Markdown: for a README, an issue, or a terminal."""

from collections.abc import Sequence
from urllib.parse import quote

from mdpo.shown import markdown as escaped

from .compare import Cell, Comparison, Row
from .runs import Run

MARKDOWN_MARK = "<!-- mdpo report -->"


def markdown(runs: Sequence[Run], comparisons: Sequence[Comparison], title: str, picture: str | None) -> str:
    """The document. picture: a path to the PNG, to be shown at the top."""
    lines = [f"# {escaped(title)}", "", MARKDOWN_MARK, ""]
    if picture is not None:
        lines += [f"![{escaped(title)}](<{quote(picture)}>)", ""]
    for comparison in comparisons:
        lines += _section(comparison)
    trained = [run for run in runs if run.history]
    if trained:
        lines += ["## Training", "", "| run | steps | first loss | last loss |", "|---|---|---|---|"]
        lines += [_training_line(run) for run in trained] + [""]
    return "\n".join(lines)


def _section(comparison: Comparison) -> list[str]:
    heads = [escaped(name) for name in comparison.runs]
    lines = [
        f"## {escaped(comparison.title)}",
        "",
        f"| metric | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
        *(_line(row) for row in comparison.rows),
        "",
        "In brackets: 95% intervals, by bootstrap over responses.",
        "",
    ]
    if comparison.notes:
        lines += [*(f"- {escaped(note)}" for note in comparison.notes), ""]
    return lines


def _line(row: Row) -> str:
    arrow = {"lower": " ↓", "higher": " ↑", "neither": ""}[row.metric.better]
    return f"| {escaped(row.metric.name)}{arrow} | {' | '.join(_cell(cell, row) for cell in row.cells)} |"


def _cell(cell: Cell, row: Row) -> str:
    if cell.value is None:
        return "–"
    digits = row.digits
    text = f"**{cell.value:.{digits}f}{escaped(row.metric.unit)}**"
    if cell.interval:
        text += f" [{cell.interval.low:.{digits}f}, {cell.interval.high:.{digits}f}]"
    if cell.change:
        low, high = cell.change.interval
        text += f"; {cell.change.value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] {cell.change.verdict}"
    return text


def _training_line(run: Run) -> str:
    steps, losses = run.curve("loss")
    if not steps:
        return f"| {escaped(run.name)} | – | – | – |"
    return f"| {escaped(run.name)} | {steps[-1]:.0f} | {losses[0]:.4f} | {losses[-1]:.4f} |"
