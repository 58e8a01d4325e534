"""What ``mdpo data check`` shows: the table of broken rows, the counts, and the lengths as a picture."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mdpo.errors import InputError
from mdpo.outputs import whole_file

from .check import Report

_EXAMPLES = 5  # notes of a kind that are spelled out
_ALIKE = 20  # rows that are broken alike, which are listed
_BARS = " ▁▂▃▄▅▆▇█"


def report_lines(report: Report, source: str) -> Iterator[str]:
    """The report as text, broken rows first: every one, but of rows broken alike the first ``_ALIKE``."""
    if report.errors:
        yield f"broken rows of {source}:"
        yield from _broken(report)
        yield ""
    formats = ", ".join(f"{name} {count}" for name, count in report.formats.most_common())
    yield f"rows      {report.rows}, usable {report.usable}" + (f" ({formats})" if formats else "")
    broken = len({error.where for error in report.errors})
    yield f"broken    {broken}"
    for reason, count in report.dropped.most_common():
        yield f"dropped   {count}: {reason}"
    if report.usable:
        yield _images(report)
    if report.own_negatives:
        yield f"negatives {report.own_negatives} rows bring rejected_images; the negative own uses them"
    if report.contrasts:
        yield f"contrasts {report.contrasts} rows bring the answer that is right for their rejected image"
    if report.weighted:
        yield f"weights   {report.weighted} rows bring chosen_weights or rejected_weights"
    yield from _notes(report)
    if report.shown is not None:
        yield ""
        yield from report.shown.lines()
    if report.usable:
        yield ""
        yield f"lengths in {report.unit}"
        table = [("", "mean", "median", "95%", "longest", "rows from 0 to the longest")]
        table += [(name, *_statistics(lengths)) for name, lengths in report.lengths.items()]
        yield from _columns(table)


def _broken(report: Report) -> Iterator[str]:
    table = [("row", "field", "problem", "remedy")]
    alike: Counter[tuple[str, str, str]] = Counter()
    for error in report.errors:
        what = (error.field, error.problem, error.remedy)
        alike[what] += 1
        if alike[what] <= _ALIKE:
            table.append((error.where, *what))
    yield from _columns(table)
    for (field, problem, _), count in alike.items():
        if count > _ALIKE:  # a column that no row should have is in every row
            yield f"  and {count - _ALIKE} more rows with {field}: {problem}"


def _images(report: Report) -> str:
    with_image = report.usable - report.without_image
    line = f"images    {report.images} in {with_image} rows; {report.without_image} rows have none, text only"
    if not with_image:
        line += ": conditional: true, as any objective that compares images, refuses them all"
    return line


def _notes(report: Report) -> Iterator[str]:
    for kind, count in Counter(note.kind for note in report.notes).most_common():
        yield f"note      {kind}: {count}"
        examples = [note for note in report.notes if note.kind == kind]
        for note in examples[:_EXAMPLES]:
            yield f"            {note.where}: {note.field}: {note.detail}"
        if count > _EXAMPLES:
            yield f"            and {count - _EXAMPLES} more"


def _statistics(lengths: array) -> Iterable[str]:
    values = np.frombuffer(lengths, dtype=np.intc)
    counts, _ = np.histogram(values, bins=24, range=(0, int(values.max()) + 1))
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // counts.max())] for count in counts)
    return (
        f"{values.mean():.0f}",
        f"{np.median(values):.0f}",
        f"{np.quantile(values, 0.95):.0f}",
        f"{values.max()}",
        bars,
    )


def _columns(table: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def write_histogram(report: Report, path: Path) -> None:
    """The lengths as one picture. Raises InputError without matplotlib, or for a suffix that is no picture's;
    OutputError where ``path`` can't be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('--picture needs matplotlib; pip install -e ".[demo]" in the clone of mDPO') from error
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    longest = max(max(lengths) for lengths in report.lengths.values())
    bins = np.linspace(0, longest + 1, 50)
    for name, lengths in report.lengths.items():
        axes.hist(np.frombuffer(lengths, dtype=np.intc), bins=bins, histtype="step", label=name, linewidth=1.5)
    axes.set(xlabel=report.unit, ylabel="rows", title=f"{report.usable} rows")
    axes.legend()
    kind = path.suffix.removeprefix(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(
            f"--picture {path}: {path.suffix} is not the suffix of an image file; give one such as lengths.png"
        )
    metadata = {"Software": "mdpo data check"} if kind == "png" else None
    with whole_file(path) as part:
        figure.savefig(part, dpi=150, format=kind, metadata=metadata)
