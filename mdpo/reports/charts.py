"""Charts as SVG for the page and PNG for everything else, drawn by matplotlib from one description."""

import base64
import importlib
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from mdpo.errors import InputError
from mdpo.shown import shown

from .compare import Comparison, by_group
from .runs import Run

# Told apart in grey and by the colour-blind; the first is the run that the others are compared against.
COLOURS = ("#7a7f87", "#1f6fb4", "#d1642f", "#2a8f5b", "#8a5fb0", "#b38a1d")
MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNS = "●■▲◆▼✚"  # the markers, for the page's own text
CURVES = (
    ("loss", "Loss"),
    ("rewards/accuracies", "Chosen over rejected (share of pairs)"),
    ("rewards/imageless_accuracies", "Image over cropped image (share)"),
    ("rewards/margins", "Reward margin: chosen − rejected"),
    ("rewards/imageless_margins", "Reward margin: image − cropped image"),
    ("rewards/chosen", "Reward of the chosen answer"),
)
# The margins that these two terms of mDPO prefer by are above.
_ABOVE = ("response_preference", "image_preference")
_TERM_MARGINS = re.compile(r"(?:eval_)?terms/([\w.@-]{1,64})/margins")
_WIDTH, _HEIGHT = 4.6, 2.9  # inches; at 72 dpi a panel fits a phone without being shrunk
_MANY = 120  # points above which a curve is smoothed

Draw = Callable[[Any], None]


def curves(runs: Sequence[Run]) -> list[tuple[str, Draw]]:
    """(title, drawer onto matplotlib axes) of every training curve that any run logged."""
    found = []
    for metric, title in (*CURVES, *_terms(runs)):
        drawn = [run for run in runs if run.curve(metric)[0] or run.curve(f"eval_{metric}")[0]]
        if drawn:
            found.append((title, lambda axes, metric=metric: _draw_curve(axes, runs, metric)))
    return found


def _terms(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(metric, title) of the margin of every other term that a run logged: what other objectives than mDPO
    prefer by.
    """
    logged = (name for run in runs for entry in run.history for name in entry)
    names = dict.fromkeys(match[1] for name in logged if (match := _TERM_MARGINS.fullmatch(str(name))))
    return [(f"terms/{name}/margins", f"Margin of {name}") for name in names if name not in _ABOVE]


def _draw_curve(axes: Any, runs: Sequence[Run], metric: str) -> None:
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        steps, values = run.curve(metric)
        if steps:
            many = len(steps) > _MANY
            marker = {} if len(steps) > 1 else {"marker": "o"}
            axes.plot(steps, values, color=colour, lw=1.0 if many else 1.6, alpha=0.3 if many else 1, **marker)
            if many:
                axes.plot(steps, _smooth(values), color=colour, lw=1.6)
        steps, values = run.curve(f"eval_{metric}")
        if steps:
            axes.plot(steps, values, color=colour, ls="none", marker=MARKERS[index % len(MARKERS)], ms=5)
    if "margins" in metric or metric == "rewards/chosen":
        axes.axhline(0, color="#999", lw=0.8, ls=":")
    if "accuracies" in metric:
        axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("step")


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential mean, its start corrected for having no past."""
    smooth, mean, mass = [], 0.0, 0.0
    for value in values:
        mean, mass = weight * mean + (1 - weight) * value, weight * mass + 1 - weight
        smooth.append(mean / mass)
    return smooth


def group_bars(comparison: Comparison) -> Draw | None:
    """Bars by question type, a bar a run, with 95% intervals; None where the benchmark has no types."""
    groups = comparison.groups()
    if not groups:
        return None

    def draw(axes: Any) -> None:
        present = [(index, result) for index, result in enumerate(comparison.results) if result]
        thickness = 0.8 / len(present)
        for place, (index, result) in enumerate(present):
            stats = [by_group(result, group) for group in groups]
            values = [value for value, _ in stats]
            below = [max(0.0, value - interval.low) if interval else 0.0 for value, interval in stats]
            above = [max(0.0, interval.high - value) if interval else 0.0 for value, interval in stats]
            rows = [row + (place - (len(present) - 1) / 2) * thickness for row in range(len(groups))]
            axes.barh(
                rows,
                values,
                thickness * 0.92,
                xerr=[below, above],
                color=COLOURS[index % len(COLOURS)],
                error_kw={"lw": 0.9, "ecolor": "#333", "capsize": 2},
            )
        axes.set_yticks(range(len(groups)), [_label(group) for group in groups])
        axes.invert_yaxis()
        axes.set_xlim(left=0)

    return draw


def metric_dots(comparison: Comparison) -> Draw:
    """A row a metric, a dot a run, with 95% intervals: the table at a glance. Percentages alone share an axis."""
    rows = [row for row in comparison.rows if row.metric.unit == "%"] or comparison.rows

    def draw(axes: Any) -> None:
        for place, row in enumerate(rows):
            for index, cell in enumerate(row.cells):
                if cell.value is None:
                    continue
                y = place + (index - (len(row.cells) - 1) / 2) * 0.22
                colour = COLOURS[index % len(COLOURS)]
                if cell.interval:
                    axes.plot(cell.interval, [y, y], color=colour, lw=1.6)
                axes.plot([cell.value], [y], color=colour, marker=MARKERS[index % len(MARKERS)], ms=6)
        arrow = {"lower": "\n← better", "higher": "\nbetter →", "neither": ""}
        axes.set_yticks(range(len(rows)), [f"{_label(row.metric.name)}{arrow[row.metric.better]}" for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("%" if rows[0].metric.unit == "%" else "")
        axes.grid(axis="x", color="#e4e6e9", lw=0.8)

    return draw


def _label(text: str) -> str:
    """Somebody's text as matplotlib draws it unchanged: "$" would begin a formula, "_" hide a name from the legend."""
    return shown(text).replace("$", r"\$").replace("_", "\u200b_", 1 if text.startswith("_") else 0)


def svg(draw: Draw, *, height: float = _HEIGHT) -> str:
    """A chart as a ``data:`` address. As an image of its own, so that the ids in two charts do not meet."""
    figure, axes = _figure(_WIDTH, height)
    draw(axes[0])
    buffer = io.BytesIO()
    # No date and no random ids: the same runs give the same page.
    with _style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def png(panels: Sequence[tuple[str, Draw]], names: Sequence[str], path: Any) -> None:
    """All panels and a legend on one picture, three in a row."""
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = _figure(columns * 5.2, lines * 3.6 + 0.5, lines, columns)
    for (title, draw), place in zip(panels, axes, strict=False):
        draw(place)
        place.set_title(_label(title), fontsize=10, loc="left")
    for place in axes[len(panels) :]:
        place.set_visible(False)
    handles = [
        importlib.import_module("matplotlib.lines").Line2D(
            [], [], color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], label=_label(name)
        )
        for index, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(names), frameon=False)
    with _style():
        figure.savefig(path, dpi=120, format="png", metadata={"Software": "mdpo report"})


def _style() -> Any:
    return _matplotlib("matplotlib").rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "mdpo",
            "font.family": ["sans-serif"],
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def _figure(width: float, height: float, lines: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    # Not pyplot: it would keep every figure, and look for a display.
    figure_class = _matplotlib("matplotlib.figure").Figure
    with _style():
        figure = figure_class(figsize=(width, height), layout="constrained")
        return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError('a report\'s charts need matplotlib: pip install -e ".[eval]" in the clone of mDPO') from error
